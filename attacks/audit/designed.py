"""Designed canaries: records orthogonal to each other and nearly so to everybody else's, mislabelled, so large that clipping is tight.

Threat: a server that sees the site's updates and brought records of its own into its training (an audit's worst case; Nasr et al. 2021,
"Adversary instantiation"; Maddock, Sablayrolles and Stock 2023, CANIFE, who optimise canaries to the same two ends). In the first layer the
gradient of a record is d x^T, so canaries on directions in which public records hardly vary meet neither each other nor the rest.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.audit.matched_filter import filtered
from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Guess, Observation, Records, Sees

SIZE = 3.0  # of a canary, in root mean squares of a public record
COUNT = 128


class DesignedCanaries:
    """Canaries on directions where public records hardly vary, read off a site's updates by a matched filter in the first layer.

    Parameters
    ----------
    count : int
        Canaries brought in; each is trained on or not by the referee's coin.
    """

    goal: ClassVar[Goal] = "audit"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "updates"})

    def __init__(self, count: int = COUNT) -> None:
        self.count = count

    def inserts(self, auxiliary: Records, classes: int, rng: torch.Generator) -> Records:
        return designed(auxiliary, classes, self.count, rng)

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(filtered(seen))


class DesignedCanariesOfSum(DesignedCanaries):
    """The same, read off the sum of all sites' updates."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "sums"})


class DesignedCanariesBlackBox(DesignedCanaries):
    """The same canaries, told apart by the released model's confidence in their wrong labels alone."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "released", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        with torch.no_grad():
            outputs = seen.predict(seen.released, seen.candidates.x, key_to_use(seen))
            return Guess(-seen.loss(outputs, seen.candidates.y))


def designed(auxiliary: Records, classes: int, count: int, rng: torch.Generator) -> Records:
    """``count`` records on the directions of least public energy (in turn, with both signs, where there are fewer directions than that)."""
    features = auxiliary.x.shape[1]
    _, _, directions = torch.linalg.svd(auxiliary.x.double(), full_matrices=True)  # strongest first
    room = min(max(1, count), max(1, (features + 1) // 2 if len(auxiliary) >= features else features - len(auxiliary)))
    mixed = _rotation(room, rng) @ directions[-room:]
    turns = torch.arange(count) // room
    size = SIZE * float(auxiliary.x.square().sum(1).mean().sqrt())
    x = mixed[torch.arange(count) % room] * torch.where(turns % 2 == 0, 1.0, -1.0)[:, None].double() * size
    return Records(x.float(), torch.randint(classes, (count,), generator=rng))


def _rotation(width: int, rng: torch.Generator) -> Tensor:
    """Random mixing, so that no feature carries a canary alone."""
    basis: Tensor = torch.linalg.qr(torch.randn(width, width, generator=rng, dtype=torch.float64))[0]
    return basis
