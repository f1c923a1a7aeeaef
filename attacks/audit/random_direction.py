"""Random-direction canaries: nothing is known of model or data but the number of features (after Andrew et al. 2023, "One-shot empirical
privacy estimation for federated learning", who insert random directions for whole clients).

Random directions in many dimensions are nearly orthogonal to each other and to everything else, so that a canary's share in an update can
be read off; what is left of the others is solved for.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks.audit.designed import COUNT, SIZE
from attacks.audit.matched_filter import filtered
from suites.contracts import Goal, Guess, Observation, Records, Sees


class RandomDirectionCanaries:
    """Canaries in random directions with random labels, read off a site's updates by a matched filter.

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
        drawn = torch.randn(self.count, auxiliary.x.shape[1], generator=rng)
        size = SIZE * float(auxiliary.x.square().sum(1).mean().sqrt())
        return Records(drawn / drawn.norm(dim=1, keepdim=True) * size, torch.randint(classes, (self.count,), generator=rng))

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(filtered(seen))
