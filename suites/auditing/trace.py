"""``audit_trace``: what a plain training loop's updates tell about its records, round by round."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from suites.auditing.blind import blind_scores
from suites.auditing.measures import epsilon_measures
from suites.auditing.result import Audit, Rows
from suites.auditing.scene import ArrayScene
from suites.auditing.scores import about
from suites.contracts import Params, Records, RoundView, Skip
from suites.errors import RequestError
from suites.scoring_membership import membership_measures

ATTACKS = ("round_cosine", "span", "loss_threshold")
CONTROLS = ("random_membership", "oracle_membership")


@dataclass
class Trace:
    """A model, the records in question, and what each round changed.

    ``rounds`` may be given as (parameters before, update) pairs, each a mapping from names to tensors as in ``model.state_dict()``; or a
    loop records them itself: ``with trace.round(): train_one_epoch()``.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier of records [n, F] with logits [n, K]; its parameters after the last round are the released ones.
    X, y, member : array
        Records, labels from 0 up, and which of them were trained on.
    public : array, optional
        Records [m, F] of nobody's, from which span membership learns what all records have in common.
    """

    model: nn.Module = field(repr=False)
    X: ArrayLike = field(repr=False)  # records are nobody's to print
    y: ArrayLike = field(repr=False)
    member: ArrayLike = field(repr=False)
    public: ArrayLike | None = field(default=None, repr=False)
    rounds: list[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        _records(self)  # before a training is spent on records that do not fit

    @contextmanager
    def round(self) -> Iterator[None]:
        """Record what happens to the model's parameters inside this block as one round."""
        before = _copied(self.model.state_dict())
        yield
        self.rounds.append((before, {name: t.detach().clone() - before[name] for name, t in self.model.state_dict().items()}))


def audit_trace(
    trace: Trace,
    *,
    seed: int = 0,
    delta: float = 1e-5,
    confidence: float = 0.95,
    independent_inclusion: bool = False,
    claimed: float | None = None,
    name: str = "model",
) -> Audit:
    """Audit the updates of a training loop as a server would see them: no reference model is needed.

    Runs the cosine of each round's update with each record's gradient, averaged over rounds, and span membership (the share of a record in
    the row space of the first layer's update); the loss of the released model, controls and the blind baseline stand beside. Parameters as
    for ``audit``. Raises ``RequestError`` where trace and records do not fit.
    """
    x, y, member = _checked(trace)
    public = torch.empty(0, x.shape[1]) if trace.public is None else torch.as_tensor(np.asarray(trace.public, dtype=np.float32))
    after = {key: before + trace.rounds[-1][1][key] for key, before in _copied(trace.rounds[-1][0]).items()}
    scene = ArrayScene(
        candidates=Records(x, y),
        auxiliary=Records(public, torch.zeros(len(public), dtype=torch.int64)),
        member=torch.from_numpy(member).float(),
        classes=int(y.max()) + 1,
        view="server",
        at=lambda params, records: torch.func.functional_call(trace.model, params, (records,)),
        rounds=[_view(index, before, update) for index, (before, update) in enumerate(trace.rounds)],
        released=after,
    )
    rows = Rows(name, "server", seed)
    was_training = trace.model.training
    trace.model.eval()
    try:
        for attack in (*ATTACKS, *CONTROLS):
            begun = time.process_time()
            try:
                scores = scene.scores(attack, seed).detach().double().numpy()
            except Skip as skip:
                rows.skip(attack, str(skip))
                continue
            measures = membership_measures(scores, member)
            if attack in ATTACKS:
                measures += epsilon_measures(
                    scores[member],
                    scores[~member],
                    delta=delta,
                    confidence=confidence,
                    independent_inclusion=independent_inclusion,
                    claimed=claimed,
                    sentence="as given",
                )
            seconds = time.process_time() - begun
            rows.add(attack, measures, scores=scores, member=member, control=attack in CONTROLS, seconds=seconds)
    finally:
        trace.model.train(was_training)
    unseen = blind_scores(x.numpy(), y.numpy(), member, seed)
    rows.add("blind", membership_measures(unseen, member), scores=unseen, member=member, control=True)
    title = f"Audit of {name}: {len(trace.rounds)} rounds, {int(member.sum())} members, {int((~member).sum())} non-members"
    return rows.finish(title, [about(delta, confidence, independent_inclusion)])


def _view(index: int, before: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> RoundView:
    moved = {name: t for name, t in _copied(update).items() if t.is_floating_point()}
    return RoundView(index, _copied(before), {0: moved}, moved, {})


def _copied(params: Mapping[str, Tensor]) -> Params:
    return {name: torch.as_tensor(tensor).detach().clone() for name, tensor in params.items()}


def _checked(trace: Trace) -> tuple[Tensor, Tensor, np.ndarray]:
    if not trace.rounds:
        raise RequestError("the trace has no round; train inside `with trace.round():`, or give rounds=[(before, update), ...]")
    names = set(trace.model.state_dict())
    for index, (before, update) in enumerate(trace.rounds):
        if set(before) != names or not set(update) <= names or set(dict(trace.model.named_parameters())) - set(update):
            raise RequestError(
                f"round {index} names other tensors than the model's state_dict; give (parameters before, update) by its names"
            )
    return _records(trace)


def _records(trace: Trace) -> tuple[Tensor, Tensor, np.ndarray]:
    x, y = np.asarray(trace.X, dtype=np.float32), np.asarray(trace.y).reshape(-1)
    marks = np.asarray(trace.member).reshape(-1)
    if not np.isin(marks, (0, 1)).all():
        raise RequestError("member must say True or False (or 1 or 0) for each record, not which records were trained on")
    member = marks.astype(bool)
    if x.ndim != 2 or not len(x) == len(y) == len(member):
        raise RequestError(f"X {x.shape}, y {y.shape} and member {member.shape} must be [n, F], [n] and [n] of the same records")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise RequestError("y must be class numbers from 0 up, in the order of the model's outputs")
    if member.all() or not member.any():
        raise RequestError("an audit needs members and non-members; member marks all records or none")
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), member
