"""What a server sees of chosen records under any defense stack: real hooks and networks, without a federation's training around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from suites.contracts import (
    Attack,
    Defense,
    Federation,
    KeySource,
    Message,
    Params,
    Probe,
    ProbeRecord,
    Records,
    Round,
    Secret,
    Shape,
    Target,
    Threat,
)
from suites.lanes import wire
from suites.modules import build
from suites.observation import Evidence, Guarded, Scene, Seen
from suites.randomness import keys, stream
from suites.simulation import simulate
from suites.stack import Stack
from suites.tasks.classification import Classification


@dataclass(frozen=True, slots=True)
class Sight:
    """``truth`` has the records behind each message."""

    scene: Scene
    evidence: Evidence
    truth: list[Tensor]
    pool: Records  # the candidates

    def guess(self, attack: Attack, *coordinates: object, **threat: Any) -> Any:
        guarded = Guarded(Seen(self.scene, self.evidence, Threat(**threat)), frozenset(attack.needs))
        return attack.run(guarded, stream("sight", *coordinates))

    def named(self, attack: Attack, *coordinates: object) -> tuple[int, int]:
        """How many true records the attack's guesses are, each message's as a set, and how many there are."""
        return hits(self.guess(attack, *coordinates).value, self.truth)


def hits(guess: Sequence[Tensor], truth: Sequence[Tensor]) -> tuple[int, int]:
    """Records guessed right, each message's as a set without repeats, and records in all."""
    found = 0
    for said, real in zip(guess, truth):
        distance = torch.cdist(torch.unique(said.double(), dim=0), real.double())
        found += int((distance <= 1e-4 * real.double().norm(dim=1)).any(0).sum())
    return found, sum(len(real) for real in truth)


def shuffled(records: int, minibatch: int, steps: int, rng: torch.Generator) -> Tensor:
    """Which records each step takes [steps, B], shuffled anew whenever all had their turn."""
    taken = []
    while len(taken) < steps:
        for part in torch.randperm(records, generator=rng).split(minibatch):
            taken.append(torch.zeros(records).index_fill(0, part, 1.0))
    return torch.stack(taken[:steps])


def look(
    layers: Sequence[Defense],
    records: Records,
    messages: Sequence[Sequence[int]],
    candidates: Tensor,
    auxiliary: Tensor,
    *,
    classes: int,
    task: Classification | None = None,
    secret: KeySource | None = None,
    start: object = 0,
    optimiser: Any = "gradient",
    steps: int = 1,
    lr: float = 0.0,
    sites: int = 1,
    minibatch: int | None = None,
    settle: tuple[Sequence[int], int] | None = None,
) -> Sight:
    """One message for each list of ``messages`` (rows of ``records``), a gradient at a fresh network unless said; ``sites`` are summed.

    ``settle``: rows, and how many steps the network is trained on them before, a hundred at a time.
    """
    task = task or Classification(dropout=0.0)
    stack = Stack(layers).plan(Federation(sites=sites), Shape((len(records.x),) * sites, records.x.shape[1], classes))
    drawn: Secret | None = stack.secret(secret or keys("sight", "secret", start))
    inputs = stack.prepare(records.x, drawn)
    module = build(task, stack, inputs.shape[1], classes, drawn, stream("sight", "start", start))
    if settle is not None:
        _train(module, task, inputs[list(settle[0])], records.y[list(settle[0])], settle[1], stream("sight", "settle", start))
    broadcast = wire(module)
    module.eval()
    probes = []
    for number, chosen in enumerate([messages[i : i + sites] for i in range(0, len(messages), sites)]):
        sent: list[Params] = []
        for rows in chosen:
            target = Target(broadcast, {}, len(rows), optimiser, steps, lr, 0, 1, 0, minibatch=minibatch)
            order = None if minibatch is None else shuffled(len(rows), minibatch, steps, stream("sight", "order", start, number))
            update = simulate(module, task.loss, target, inputs[list(rows)], records.y[list(rows)], stack.clip, order)
            sent.append({name: value.detach() for name, value in update.items()})
        mean = {name: torch.stack([one[name] for one in sent]).mean(0) for name in sent[0]}
        probe = Probe(f"{number}", 0, tuple(tuple(rows) for rows in chosen), optimiser, steps, lr, minibatch=minibatch)
        kind: Any = "gradient" if optimiser == "gradient" else "update"
        probes.append(ProbeRecord(probe, tuple(Message(site, kind, one) for site, one in enumerate(sent)), mean))
    truth = [records.x[list(rows)] for rows in messages]
    if sites > 1:
        truth = [torch.cat(truth[i : i + sites]) for i in range(0, len(truth), sites)]
    zero = {name: torch.zeros_like(value) for name, value in broadcast.items()}
    asked = Records(records.x[candidates], records.y[candidates])
    scene = Scene(
        task=task,
        stack=stack,
        federation=Federation(sites=sites),
        classes=classes,
        features=records.x.shape[1],
        secret=drawn,
        candidates=asked,
        auxiliary=Records(records.x[auxiliary], records.y[auxiliary]),
        members=sum(len(one) for one in truth),
        keys=keys("sight", "adversary"),
        references=lambda count: [],
        truth=lambda: truth,
        pool=records,
    )
    return Sight(scene, Evidence([Round(0, broadcast, (), zero, tuple(probes))], [broadcast]), truth, asked)


def _train(module: nn.Module, task: Classification, x: Tensor, y: Tensor, steps: int, rng: torch.Generator) -> None:
    adam = torch.optim.Adam(module.parameters(), 1.5e-3)
    for _ in range(steps):
        rows = torch.randperm(len(x), generator=rng)[:100]
        adam.zero_grad()
        task.loss(module(x[rows]), y[rows]).mean().backward()
        adam.step()
