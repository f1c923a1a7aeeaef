"""A baseline that sees no model: how well can members be told from the data alone?

An AUC above one half here comes from the split (site, batch, class or time), not from any model, and must be subtracted in thought
from every membership figure beside it. The score says how unlike the auxiliary records a record is, since those share the non-members'
distribution: its distance to the nearest of them, and how rare its class is among them.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from suites.contracts import Goal, Guess, Observation, Sees

NEIGHBOURS = 5


class Blind:
    """Membership from records alone: members are further from the auxiliary records only if the split leaks."""

    goal: ClassVar[Goal] = "membership"
    control: ClassVar[bool] = True  # it sees no model, so what it finds is the split's leakage
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        candidates, public = seen.candidates, seen.auxiliary
        if len(public) == 0:
            return Guess(torch.zeros(len(candidates)))
        near = torch.cdist(candidates.x, public.x).topk(min(NEIGHBOURS, len(public)), largest=False).values.mean(1)
        common = (candidates.y[:, None] == public.y[None]).float().mean(1)
        return Guess(near / near.median().clamp_min(1e-12) - (common + 1 / len(public)).log())
