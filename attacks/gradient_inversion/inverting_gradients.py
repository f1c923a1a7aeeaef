"""Inverting gradients by the paper's own recipe, for vectors (Geiping, Bauermeister, Droege and Moeller 2020, arXiv 2003.14053).

One minus the cosine of simulated and received message, given to Adam as the slope's sign alone; the rate falls to a tenth after 3/8, 5/8
and 7/8 of the steps; labels are read off the output bias first. Its image priors are left out: genes have no neighbours whose differences
total variation could punish, and no bounds to clamp to. The paper takes 4,800 steps and more; ``cosine_inversion`` is our variant for few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.cosine import CosineInversion
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.message import unlabelled
from suites.contracts import Observation, Sees, Target


class InvertingGradients(CosineInversion):
    """Records by signed Adam on the cosine distance.

    Parameters
    ----------
    budget : int
        Adam's steps.
    restarts : int
        Starts a target.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    """

    signed: ClassVar[bool] = True

    def __init__(self, budget: int = 500, restarts: int = 1, limit: int = 3) -> None:
        super().__init__(budget, restarts, limit, prior=0.0, lr=0.1)

    def labels(self, seen: Observation, target: Target, classes: int) -> Tensor | None:
        return None if unlabelled(seen.known) else label_list(target, classes)

    def schedule(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.MultiStepLR(optimiser, [max(self.budget * eighth // 8, 1) for eighth in (3, 5, 7)], gamma=0.1)


class InvertingGradientsOfSum(InvertingGradients):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "simulate", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
