"""Members are fitted, so the released model's gradient at them is small: its negative log norm is the score (Nasr et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks.membership.ghost import products
from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Guess, Observation, Sees


class GradientNorm:
    """Membership by how small the record's gradient is at the released model."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        candidates, key = seen.candidates, key_to_use(seen)
        found = products(
            lambda params: seen.predict(params, candidates.x, key),
            lambda outputs: seen.loss(outputs, candidates.y),
            seen.released,
            [{name: torch.zeros_like(tensor) for name, tensor in seen.released.items()}],
        )
        return Guess(-found.record.clamp_min(1e-30).log())
