"""Who masks with whom, and how many shares open a mask: the public rules of one secure aggregation session.

Below 20 sites every pair masks (Bonawitz et al. 2017). From 20 on a site masks only with its neighbours on a circle in hashed order (the
k-regular graph of Bell et al. 2020). Bell's degree rests on tail bounds over random failures; this one is sized for the worst case, whoever
chooses the colluders and the dropouts: a circle of even degree k stays connected when fewer than k sites are taken out of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from suites.contracts import RequestError

SPARSE_FROM = 20


@dataclass(frozen=True, slots=True)
class Rules:
    """``holders`` = degree + 1: each site keeps a share of its own secrets and gives one to each neighbour."""

    sites: int
    degree: int
    threshold: int
    colluders: int

    @property
    def holders(self) -> int:
        return self.degree + 1

    @property
    def dropouts(self) -> int:
        """How many sites may vanish, whichever they are."""
        return self.holders - self.threshold

    @property
    def least(self) -> int:
        """The smallest set of survivors whose sum a site helps to open."""
        return self.sites - self.dropouts

    @property
    def active(self) -> bool:
        """Whether the threshold alone (2t > holders + colluders) keeps a lying server from both shares of a site."""
        return 2 * self.threshold > self.holders + self.colluders


def rules(sites: int, *, colluders: int | None = None, dropouts: int | None = None, threshold: int | None = None) -> Rules:
    """Rules for so many sites.

    Parameters
    ----------
    colluders : int, optional
        Sites that may share all they have with the server; a tenth of the sites, at least one, if not given.
    dropouts : int, optional
        Sites that may vanish within a round; sizes the sparse graph. An eighth of the sites, at least one, if not given.
    threshold : int, optional
        Shares that open a secret. If not given, the least that also holds against a lying server: (holders + colluders) // 2 + 1.
    """
    if sites < 2:
        raise RequestError(
            f"secure aggregation hides a site in a sum, so it needs at least 2 sites and got {sites}; add sites or leave the defense out"
        )
    against = min(max(1, sites // 10), sites - 2) if colluders is None else colluders
    lost = max(1, sites // 8) if dropouts is None else dropouts
    if against < 0 or lost < 0 or against > sites - 2:
        raise RequestError(
            f"with {against} colluders and {lost} dropouts among {sites} sites the sum hides nobody; "
            f"colluders must be between 0 and {sites - 2}, dropouts not negative"
        )
    degree = sites - 1
    if sites >= SPARSE_FROM:
        even = 2 * lost + against + (against % 2)
        degree = min(degree, max(2, even))
    needed = (degree + 1 + against) // 2 + 1 if threshold is None else threshold
    if not against + 2 <= needed <= degree + 1:  # with one share less, a sum of the colluders and one other site could be opened
        raise RequestError(
            f"a threshold of {needed} of {degree + 1} shares cannot serve: it must be "
            f"at least the {against} colluders and 2 more, and at most {degree + 1}; change threshold or colluders"
        )
    return Rules(sites, degree, needed, against)


def neighbours(cohort: Sequence[int], degree: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Each site's neighbours, in ascending order; ``seed`` (the session's hash) shuffles the circle."""
    if degree >= len(cohort) - 1:
        return {site: tuple(other for other in sorted(cohort) if other != site) for site in cohort}
    circle = sorted(cohort, key=lambda site: hashlib.sha256(seed + site.to_bytes(8, "big")).digest())
    reach, twice = degree // 2, circle + circle
    return {
        site: tuple(sorted(twice[place + 1 : place + 1 + reach] + twice[len(circle) + place - reach : len(circle) + place]))
        for place, site in enumerate(circle)
    }
