"""Site of origin: at which of the sites does a record that took part belong?

Threat: a server that sees each site's update (Hu et al. 2021, "Source inference attacks in federated learning", arXiv 2109.05659: there by
the loss of each site's model). Here by what a record leaves in a site's update: the cosine with its gradient over all rounds, and its share
of the first layer's row space. Each is set on one scale a site, as sites differ in size and rate; a record goes to the site where the two
together stand out most.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.matched_span import MatchedSpan
from attacks.membership.round_cosine import RoundCosine
from suites.contracts import Goal, Guess, Observation, Sees, Skip


class SiteOfOrigin:
    """For every candidate and site how much speaks for it, from cosine and matched span of each site's updates."""

    goal: ClassVar[Goal] = "property"
    property: ClassVar[str] = "site_of_origin"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "updates"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        cosine, rounds = RoundCosine().by_site(seen)
        if len(cosine) < 2:
            raise Skip("a record of the only site in sight needs no telling where it belongs")
        sites = seen.known["protocol"].value.sites
        evidence = _table(cosine, sites)
        with contextlib.suppress(Skip):  # no first layer to read: the cosine stands alone
            evidence = evidence + _table(MatchedSpan().by_site(seen)[0], sites)
        return Guess(evidence, notes={"sites": float(len(cosine)), "rounds": float(rounds)})


def _table(found: dict[int, Tensor], sites: int) -> Tensor:
    """[n, S] standard scores over candidates; a site that was never seen has none of the records."""
    count = len(next(iter(found.values())))
    table = torch.full((count, sites), -torch.inf, dtype=torch.float64)
    for site, signal in found.items():
        table[:, site] = (signal.double() - signal.double().mean()) / signal.double().std().clamp_min(1e-30)
    return table
