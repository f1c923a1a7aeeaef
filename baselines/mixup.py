"""Mixup: each record of a batch is blended with another, inputs and losses alike (Zhang et al. 2018, arXiv 1710.09412).

A regulariser that is often proposed against gradient inversion and membership inference; as a defense it makes no promise. A blend is a
linear combination of two records of the same site, so whoever sees the update still sees both records' span.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from suites.contracts import Card, Defense, RequestError


class Mixup(Defense):
    """Blends with shares from Beta(alpha, alpha), a fresh share for each record, and a random partner from the same batch.

    Parameters
    ----------
    alpha : float
        Above 0; small values leave most records nearly alone, 1 draws shares uniformly.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update in the clear, made of blended records; a batch of one record is not blended",
        site="the broadcast model",
        outsider="the released model",
        does_not_protect="single records: a batch of one has no partner, and two blended records span the same space as the two alone; the "
        "blending coefficients are drawn anew in each step, so that many steps average them out",
    )

    def __init__(self, *, alpha: float = 1.0) -> None:
        if not 0 < alpha < math.inf:
            raise RequestError(f"mixup got alpha={alpha:g}, but the shares come from Beta(alpha, alpha) with alpha above 0; give 1, say")
        self.alpha = float(alpha)

    def blend(self, records: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        partner = torch.randperm(records, generator=rng)
        if self.alpha == 1:
            return partner, torch.rand(records, generator=rng)
        # Beta(a, a) = G1 / (G1 + G2) of two Gamma(a) variables.
        gammas = torch._standard_gamma(torch.full((2, records), self.alpha, dtype=torch.float64), generator=rng)
        return partner, (gammas[0] / gammas.sum(0).clamp_min(1e-300)).float()
