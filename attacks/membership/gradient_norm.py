"""Members are fitted, so the released model's gradient at them is small: its negative log norm is the score (Nasr et al. 2019)."""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks.membership.ghost import RecordGradients
from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Guess, Observation, Sees


class GradientNorm:
    """Membership by how small the record's gradient is at the released model."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        found = RecordGradients.of_candidates(seen, key_to_use(seen)).products(seen.released, [])
        return Guess(-found.record.clamp_min(1e-30).log())
