"""A site's update points along the gradients of its own records: their cosine, averaged over the rounds, tells members.

Threat: a server that sees each site's update (Li et al. 2023, "Effective passive membership inference attacks in federated learning against
overparameterized models"), or only the combined one. No reference models are needed. A record's score is its largest average over sites.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from attacks.membership.ghost import Products
from attacks.membership.rounds import RoundWise
from suites.contracts import Goal, Params, RoundView, Sees


class RoundCosine(RoundWise):
    """Membership by the cosine of each site's update and the record's gradient, averaged over rounds, largest over sites."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "updates"})

    def signals(self, found: Products) -> Tensor:
        return found.cosine()


class RoundCosineOfSum(RoundCosine):
    """Membership by the cosine of the combined update and the record's gradient, averaged over rounds."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "sums"})

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}
