"""All sites against one: a record is a member of the site whose update stands out from what the other sites say about it.

Threat: a server that sees each site's update in every round. Source: Zhu et al. 2024, "FedMIA" (arXiv 2402.06289), simplified: the signal
is ``round_cosine``'s, the other sites' signals of the same round are its null distribution, and the standing is averaged over rounds.
With few sites that null is coarse, so its spread is pooled over records.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.ghost import Products
from attacks.membership.rounds import RoundWise
from suites.contracts import Goal, Sees, Skip


class FedMIA(RoundWise):
    """Membership by how far a site's cosine stands above the other sites' for the same record, averaged over rounds."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "updates"})

    def signals(self, found: Products) -> Tensor:
        cosine = found.cosine()
        sites = len(cosine)
        if sites < 3:
            raise Skip("other sites are the null distribution, and that takes at least three sites in a round")
        others = (cosine.sum(0) - cosine) / (sites - 1)  # [S, n]
        spread = torch.stack([cosine[torch.arange(sites) != site].std(0) for site in range(sites)])
        return (cosine - others) / spread.mean(1, keepdim=True).clamp_min(1e-30)
