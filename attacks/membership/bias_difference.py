"""Bias vectors alone tell members: the cosine of a site's bias update and the record's bias gradients, averaged over rounds.

Threat: a server that sees each site's update, or only its bias terms ("... via Bias Differences", 2025: the local attack). A few hundred
numbers a round are enough, so withholding or compressing the weights does not help.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from attacks.membership.ghost import Products
from attacks.membership.rounds import RoundWise
from suites.contracts import Goal, Sees


class BiasDifference(RoundWise):
    """Membership by the cosine of each site's bias updates and the record's bias gradients, averaged over rounds."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "updates"})

    def signals(self, found: Products) -> Tensor:
        return found.bias_cosine()
