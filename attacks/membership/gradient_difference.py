"""Taking a member's gradient out of its site's update makes the update shorter: by how much tells members.

Threat: a server that sees each site's update (Li et al. 2023, as ``round_cosine``). The score is |u|^2 - |u - s g|^2 over |u|^2, where g is
the record's negative gradient and s = |u| / median |g| puts it on the update's scale, since a site's rate and steps are between them.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from attacks.membership.ghost import Products
from attacks.membership.rounds import RoundWise
from suites.contracts import Goal, Sees


class GradientDifference(RoundWise):
    """Membership by how much shorter a site's update gets without the record's gradient, averaged over rounds."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "updates"})

    def signals(self, found: Products) -> Tensor:
        length = found.update.sqrt()[:, None].clamp_min(1e-30)  # [S, 1]
        scale = length / found.record.sqrt().median().clamp_min(1e-30)
        return (2 * scale * found.dot - scale.square() * found.record) / length.square()
