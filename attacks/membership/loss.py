"""Members are fitted better: the loss of the released model as the membership score (Yeom et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks.membership.per_record import Predict, losses
from suites.contracts import Goal, Guess, Observation, Secret, Sees


class LossThreshold:
    """Membership by the negative loss of the released model."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        with torch.no_grad():
            return Guess(-losses(seen, released(seen), seen.candidates))


def released(seen: Observation) -> Predict:
    """The released model under the key that there is: records [n, F] to outputs."""
    key = key_to_use(seen)
    return lambda x: seen.predict(seen.released, x, key)


def key_to_use(seen: Observation) -> Secret | None:
    """The held key, else one of the adversary's own drawing: who holds none can still draw, and wrong keys may open the model."""
    return seen.key if seen.key is not None else seen.draw_key(0)
