"""``audit``: membership inference on plain arrays and a function that fits a model; references, controls and bounds included."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reports.roc import auc
from suites.auditing.blind import blind_scores
from suites.auditing.bound import check_level
from suites.auditing.measures import epsilon_measures
from suites.auditing.result import Audit, Rows
from suites.auditing.scene import ArrayScene, Outputs
from suites.auditing.scores import about
from suites.contracts import Records, Reference, Skip
from suites.errors import RequestError
from suites.scoring_membership import membership_measures

Fit = Callable[..., Any]  # (X, y) or (X, y, seed) -> a model with predict_proba, or a function of X giving probabilities or logits
ATTACKS = ("lira", "rmia", "loss_threshold", "quantile")
CONTROLS = ("random_membership", "oracle_membership")
_LEAST = 1e-12  # a probability of exactly zero has no logarithm


def audit(
    fit: Fit,
    X: ArrayLike,
    y: ArrayLike,
    member: ArrayLike,
    *,
    references: int = 16,
    public: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    delta: float = 1e-5,
    confidence: float = 0.95,
    independent_inclusion: bool = False,
    claimed: float | None = None,
    name: str = "model",
) -> Audit:
    """Audit a way of fitting models: fit it on the members, and try to tell members from non-members by what the model says.

    Parameters
    ----------
    fit : callable
        ``fit(X, y)`` or ``fit(X, y, seed)`` returns a model with ``predict_proba``, or a function of X that gives probabilities or logits
        [n, K]. It is called once on the members and ``references`` times on random draws of as many records.
        ``suites.audit.Network()`` is such a function, and a fast one.
    X, y : array
        Records [n, F] and labels [n], members and non-members alike.
    member : array of bool
        Which records the audited model is fitted on.
    references : int
        Models that the adversary trains; 0 leaves out LiRA and RMIA.
    public : (X, y), optional
        Records that are neither, for RMIA's population and quantile regression; RMIA else compares candidates with each other.
    delta, confidence, independent_inclusion, claimed, name
        As for ``audit_scores``.

    Returns
    -------
    Audit
        One row a metric for each attack and control; *blind* is a baseline that sees no model: what it finds is in the split.

    Raises
    ------
    RequestError
        In one sentence, where the arrays do not fit each other or the model says nothing that can be scored.
    """
    check_level(delta, confidence)
    data = _checked(X, y, member)
    rows, started = Rows(name, "outsider", seed), time.process_time()
    included = _inclusion(data.member, references, seed)
    models = _fits(fit, data, included, seed)
    target, rest = _outputs(models[0], data), [_outputs(model, data) for model in models[1:]]
    outside = _records(*public, data) if public is not None else None
    auxiliary = outside if outside is not None else Records(data.x, data.y)
    padding = torch.zeros(len(auxiliary), dtype=torch.bool)
    masks = [torch.from_numpy(row) for row in included[1:]]
    scene = ArrayScene(
        candidates=Records(data.x, data.y),
        auxiliary=auxiliary,
        member=torch.from_numpy(data.member).float(),
        classes=len(data.classes),
        target=target,
        # candidates that stand in for the public records keep their own inclusion
        models=[
            Reference(k, torch.cat([mask, padding if outside is not None else mask]), {}, outputs)
            for k, (mask, outputs) in enumerate(zip(masks, rest))
        ],
    )
    fitting = time.process_time() - started
    for attack in (*ATTACKS, *CONTROLS):
        if attack == "quantile" and outside is None:
            rows.skip(attack, "quantile regression learns from records that are nobody's: give public=(X, y)")
            continue
        begun = time.process_time()
        try:
            scores = scene.scores(attack, seed).double().numpy()
        except Skip as skip:
            rows.skip(attack, str(skip))
            continue
        measures = membership_measures(scores, data.member)
        control = attack in CONTROLS
        if not control:
            filled = np.nan_to_num(scores, nan=float(np.nanmedian(scores)))
            sides = filled[data.member], filled[~data.member]
            measures += epsilon_measures(
                *sides,
                delta=delta,
                confidence=confidence,
                independent_inclusion=independent_inclusion,
                claimed=claimed,
                sentence="as given",
            )
        uses = references if attack in ("lira", "rmia") else 0
        seconds = time.process_time() - begun + (fitting if uses else 0.0)
        rows.add(attack, measures, scores=scores, member=data.member, control=control, seconds=seconds, references=uses)
    unseen = blind_scores(data.x.numpy(), data.y.numpy(), data.member, seed)
    rows.add("blind", membership_measures(unseen, data.member), scores=unseen, member=data.member, control=True)
    count = int(data.member.sum())
    title = f"Audit of {name}: {count} members, {len(data.member) - count} non-members, {references} references"
    return rows.finish(title, [*_warnings(unseen, data), about(delta, confidence, independent_inclusion)])


@dataclass(frozen=True)
class _Data:
    x: Tensor  # [n, F]
    y: Tensor  # [n] positions in ``classes``
    raw: NDArray[Any]  # X as given, for ``fit``
    labels: NDArray[Any]
    member: NDArray[np.bool_]
    classes: NDArray[Any]


def _checked(X: ArrayLike, y: ArrayLike, member: ArrayLike) -> _Data:
    raw, labels, inside = np.asarray(X), np.asarray(y).reshape(-1), np.asarray(member).reshape(-1)
    if raw.ndim != 2 or not len(raw) == len(labels) == len(inside):
        raise RequestError(f"X {raw.shape}, y {labels.shape} and member {inside.shape} must be [n, F], [n] and [n] of the same records")
    if not np.isin(np.unique(inside), (0, 1)).all():
        raise RequestError(f"member must be true or false for each record, but holds {np.unique(inside)[:3].tolist()}")
    chosen = inside.astype(bool)
    if min(chosen.sum(), (~chosen).sum()) < 2:
        raise RequestError(f"an audit needs at least two members and two non-members, but member marks {chosen.sum()} of {len(chosen)}")
    try:
        x = torch.from_numpy(raw.astype(np.float32))
    except (TypeError, ValueError) as error:
        raise RequestError(f"X holds something that is not a number ({error}); encode categories first") from error
    if not bool(x.isfinite().all()):
        raise RequestError("X holds NaN or infinite values; impute or drop these records first")
    classes, position = np.unique(labels, return_inverse=True)
    if len(classes) > max(2, len(labels) // 2):
        raise RequestError(
            f"y has {len(classes)} different values for {len(labels)} records; an audit is about classifiers, so give classes"
        )
    shared = {row.tobytes() for row in raw[chosen]} & {row.tobytes() for row in raw[~chosen]}
    if shared:
        raise RequestError(f"{len(shared)} records are members and non-members at once, and no attack could tell them apart; drop them")
    return _Data(x, torch.from_numpy(position.reshape(-1)).long(), raw, labels, chosen, classes)


def _inclusion(member: NDArray[np.bool_], references: int, seed: int) -> NDArray[np.bool_]:
    """[1 + R, n]: the members, then for each reference a draw in which every record is in about as many references as it is out."""
    if references < 0 or references == 1:
        raise RequestError(f"references is {references}; LiRA needs models with and without each record, so give 2 or more, or 0 for none")
    n, share = len(member), member.mean()
    within = min(max(1, round(share * references)), max(1, references - 1))
    ranks = np.random.default_rng([seed, 20_230_607]).random((references, n)).argsort(0) if references else np.empty((0, n), dtype=int)
    return np.concatenate([member[None], ranks < within])


def _fits(fit: Fit, data: _Data, included: NDArray[np.bool_], seed: int) -> list[Any]:
    seeds = [seed * 1_000_003 + k for k in range(len(included))]
    many = getattr(fit, "many", None)
    if many is not None:
        return list(many(data.raw, data.labels, included, seeds))
    try:
        seeded = "seed" in inspect.signature(fit).parameters
    except (TypeError, ValueError):
        seeded = False
    extra = [{"seed": one} if seeded else {} for one in seeds]
    return [fit(data.raw[row], data.labels[row], **more) for row, more in zip(included, extra)]


def _outputs(model: Any, data: _Data) -> Outputs:
    """A model's outputs as logits [n, K] in the order of ``data.classes``; a class that it never saw gets the least probability."""
    ask = getattr(model, "predict_proba", None) or model
    if not callable(ask):
        raise RequestError(f"fit returned {type(model).__name__}, which has no predict_proba and cannot be called; return one that does")
    own = getattr(model, "classes_", None)
    place = None if own is None else np.searchsorted(data.classes, np.asarray(own))

    def logits(x: Tensor) -> Tensor:
        said = np.asarray(ask(x.numpy().astype(data.raw.dtype, copy=False)), dtype=np.float64)
        width = len(data.classes) if place is None else len(place)
        if said.ndim == 1 and width == 2:
            said = np.stack([1 - said, said], 1)
        if said.shape != (len(x), width):
            raise RequestError(f"the model gave {said.shape} for {len(x)} records and {width} classes; it has to give one value a class")
        if not np.isfinite(said).all():
            raise RequestError("the model gave NaN or infinite outputs, which cannot be scored; check its training")
        proba = bool((said >= 0).all() and (np.abs(said.sum(1) - 1) < 1e-3).all())
        scale = np.log(np.maximum(said, _LEAST)) if proba else said - said.max(1, keepdims=True)
        full = np.full((len(x), len(data.classes)), min(float(np.log(_LEAST)), float(scale.min())))
        full[:, place if place is not None else slice(None)] = scale
        return torch.from_numpy(full)

    return logits


def _records(X: ArrayLike, y: ArrayLike, data: _Data) -> Records:
    x, labels = np.asarray(X, dtype=np.float32), np.asarray(y).reshape(-1)
    if x.ndim != 2 or x.shape[1] != data.x.shape[1] or len(x) != len(labels) or not np.isin(labels, data.classes).all():
        raise RequestError(
            f"public must be (X [m, {data.x.shape[1]}], y [m]) with the classes of y, but X is {x.shape} and y {labels.shape}"
        )
    own = {row.tobytes() for row in data.x.numpy()}
    if shared := sum(row.tobytes() in own for row in x):
        raise RequestError(f"{shared} of the public records are in X too, and what is public about them would be about members; drop them")
    return Records(torch.from_numpy(x), torch.from_numpy(np.searchsorted(data.classes, labels)).long())


def _warnings(unseen: NDArray[np.float64], data: _Data) -> list[str]:
    blind = auc(unseen, data.member, level=0.99)
    said = []
    if blind.low > 0.5:
        said.append(
            f"Blind AUC {blind.value:.3f}: members and non-members differ without any model; subtract this from every figure in thought."
        )
    if min(data.member.sum(), (~data.member).sum()) < 50:
        said.append("Fewer than 50 records on one side: intervals are wide and low false-positive rates cannot be resolved.")
    return said
