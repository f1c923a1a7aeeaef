"""Re-identification by length: a rotation hides what a record is, and keeps how long it is.

Threat: a server that sees messages of few records and holds candidate records; no key, no plaintext. The mixed record falls out of the
first layer (Phong et al. 2018); its length, or under an unknown common scale the ratio of lengths, is matched to the candidates'. A defense
that brings all records to one length answers this, and only this: see ``gram_search``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.key.mixed import by_target, may_be, mixed_records
from suites.contracts import Goal, Guess, Observation, Sees, Target

_EXACT = 1e-3  # relative error of a length up to which it names its record


class Norms:
    """Mixed records matched to candidates by length; the guess is the candidate itself.

    Parameters
    ----------
    budget : int
        Evaluations a message where batches must be taken apart first.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "candidates", "auxiliary", "simulate", "predict"})

    def __init__(self, budget: int = 900) -> None:
        self.budget = budget

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        mixed, x = mixed_records(seen, self.messages(seen), rng, budget=self.budget), seen.candidates.x
        allowed = may_be(mixed, seen.candidates.y)
        placed, gap = match_lengths(mixed.z.norm(dim=1), x.double().norm(dim=1), allowed)
        sure = gap < _EXACT
        return Guess(by_target(x[placed], mixed), -gap, notes={"within_a_thousandth": float(sure.double().mean())})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets


class NormsOfSum(Norms):
    """The same on sums over sites, taken apart first: all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "candidates", "auxiliary", "simulate", "predict"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def match_lengths(length: Tensor, among: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """For lengths [K] a candidate [K] each, nobody twice, and the relative gap [K]; under the better of scale 1 and the median ratio."""
    best, gap = torch.zeros(len(length), dtype=torch.int64), torch.full_like(length, torch.inf)
    scale = float(length.median() / among.median().clamp_min(1e-300))  # 0 where most messages gave nothing but noise
    for ratio in (1.0, scale) if scale > 0 else (1.0,):
        off = (length[:, None] / ratio / among[None].clamp_min(1e-300) - 1).abs()
        cost = off.clamp_max(1.0).square().masked_fill(~allowed, 1e3)
        rows = linear_sum_assignment(cost.numpy())[1] if len(length) <= len(among) else cost.argmin(1).numpy()
        placed = torch.as_tensor(rows)
        found = off[torch.arange(len(off)), placed]
        if found.median() < gap.median():
            best, gap = placed, found
    return best, gap
