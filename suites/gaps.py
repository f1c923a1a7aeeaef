"""Gaps of a site's records filled by the site: with the means of what it measured itself on its training records.

Nothing of this leaves the site, and nobody else's records look like it. A candidate, a test record or an auxiliary one keeps the public
fill (``suites.preprocess``) whether it is a member or not: were members filled by their sites, their membership could be read off the fill.
So an attack that answers with the right candidate differs from the record as trained on wherever that had a gap, and is not ``exact``.

A promise about single records or persons does not go with it. Every record has a share in its site's means, hence in the inputs of all
others that have a gap there, which is outside any clipping and any ε. Under such a promise gaps keep the public fill (``may_fill``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suites.contracts import Claim, Clip


def may_fill(clip: Clip | None, claim: Claim | None) -> bool:
    """Whether sites may use their own means: where nothing is clipped or promised for less than a whole site."""
    return clip is None and (claim is None or claim.kind != "dp" or claim.unit == "site")


def fill(x: Tensor, gaps: Tensor | None, sites: Sequence[Tensor]) -> list[Tensor]:
    """The pool as each site feeds it: [N, F] a site, one tensor for all sites that share no record.

    Parameters
    ----------
    x : [N, F] in public units, 0 (the public mean) in every gap; not modified
    gaps : [N, F] bool, or None where nothing is to be filled: ``x`` itself for every site
    sites : each site's training records as indices into the pool; what a site never measured keeps the public fill
    """
    if gaps is None:
        return [x for _ in sites]
    made, filled = list[Tensor](), x
    held = torch.ones(len(x), dtype=torch.bool)  # what the present tensor has filled for some site
    for site in sites:
        if bool(held[site].any()):  # the first site, or one that holds others' records too
            filled, held = x.clone(), torch.zeros_like(held)
        held[site] = True
        own, missing = x[site], gaps[site]
        measured = (~missing).sum(0)
        means = own.sum(0, dtype=torch.float64) / measured.clamp_min(1)
        filled[site] = torch.where(missing, means.to(x.dtype), own)
        made.append(filled)
    return made
