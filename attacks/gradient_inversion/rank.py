"""What the rank and the row space of the first layer's update say before any search: noise, and records that the adversary already has.

dW = D^T X has the rank of its records at most (Zhu and Blaschko 2021, "R-GAP", use the rank as a risk score), so more directions than
records are noise, which a search would fit. And a record in hand that lies in the rows' span is one of the batch: another one keeps only
about B / F of its energy there (Petrov et al. 2024, "DAGER", use the same test on tokens).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient, certified, first_linear, known_count
from suites.contracts import Goal, Guess, Observation, Sees, Skip, Target

DIRECTION = 1e-3  # share of the largest singular value from which a direction is no rounding
INSIDE = 1e-3  # share of a record's length that may lie outside the span


def directions(target: Target, features: int) -> tuple[Tensor, int]:
    """Right singular vectors [r, F'] of the first layer's update that are more than rounding, and their number r."""
    gradient = as_gradient(target)
    _, values, right = torch.linalg.svd(gradient[first_linear(gradient, features).weight].double(), full_matrices=False)
    count = int((values > DIRECTION * values[0]).sum())
    return right[:count], count


class KnownRecords:
    """Auxiliary records that stand behind a message, told by the span of its first layer's update; the origin for the others."""

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        features, public = known_count(seen.known, "features"), seen.auxiliary
        values, proven, found = [], [], 0
        for target in seen.targets:
            rows, rank = directions(target, features)
            if rows.shape[1] != features or not len(public):
                raise Skip("no record in hand is as wide as the first layer, so none can be held against its update")
            if rank > min(target.batch, features // 2):
                raise Skip("the update spans more directions than its records do, so lying among them says nothing")
            x = public.x.double()
            outside = (x - x @ rows.T @ rows).norm(dim=1) / x.norm(dim=1).clamp_min(1e-300)
            chosen = outside.argsort()[: target.batch]
            chosen = chosen[outside[chosen] <= INSIDE]
            value = public.x.new_zeros(target.batch, features)
            value[: len(chosen)] = public.x[chosen]
            values.append(value)
            proven.append(len(chosen) == target.batch and certified(seen, target, value, public.y[chosen], seen.key))
            found += len(chosen)
        return Guess(values, certified=torch.tensor(proven), notes={"known_records": float(found)})
