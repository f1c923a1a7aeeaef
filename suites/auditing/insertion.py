"""Canaries among a site's training records, each by its own fair coin, which only the referee sees fall."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from suites.contracts import Records, RequestError
from suites.federation import Pool
from suites.prepared import Prepared

SITE = 0  # the site that holds the canaries


class Inserting(Protocol):
    """An attack that brings records of its own."""

    def inserts(self, auxiliary: Records, classes: int, rng: torch.Generator) -> Records: ...


def insert(prepared: Prepared, attack: Inserting, rng: torch.Generator, coins: torch.Generator) -> Prepared:
    """The same data with the attack's records in the pool, those whose coin fell so at site ``SITE``; they alone are candidates.

    ``rng`` is the attack's own stream for designing, ``coins`` the referee's. Inclusion is independent over canaries and of everything
    else, which is what one-run bounds need.
    """
    pool = prepared.pool
    auxiliary = prepared.records(prepared.auxiliary)
    canaries = attack.inserts(auxiliary, pool.classes, rng)
    count, features = len(canaries), pool.x.shape[1]
    if count < 1 or canaries.x.shape != (count, features) or canaries.y.shape != (count,):
        raise RequestError(
            f"{type(attack).__name__}.inserts gave x {tuple(canaries.x.shape)} and y {tuple(canaries.y.shape)}; give records "
            f"x [n, {features}] in public units and labels y [n]"
        )
    if not bool(canaries.x.isfinite().all()) or not bool(((canaries.y >= 0) & (canaries.y < pool.classes)).all()):
        raise RequestError(f"{type(attack).__name__}.inserts gave values that are not finite or labels outside 0 to {pool.classes - 1}")
    index = torch.arange(len(pool.x), len(pool.x) + count)
    included = torch.rand(count, generator=coins) < 0.5
    sites = tuple(torch.cat([site, index[included]]) if i == SITE else site for i, site in enumerate(prepared.sites))
    x, y = torch.cat([pool.x, canaries.x.to(pool.x.dtype)]), torch.cat([pool.y, canaries.y.to(pool.y.dtype)])
    person = _persons(prepared.person, count)
    # Gaps keep the public fill: in its site's means a canary would move other records' inputs, beside what it is there to show.
    return replace(
        prepared,
        pool=Pool(x, y, pool.classes, person),
        sites=sites,
        candidates=index,
        member=included,
        person=person,
        site_of=None
        if prepared.site_of is None
        else torch.cat([prepared.site_of, prepared.site_of[prepared.sites[SITE][:1]].expand(count)]),
    )


def _persons(person: Tensor | None, count: int) -> Tensor | None:
    """Each canary is a person of its own."""
    return None if person is None else torch.cat([person, int(person.max()) + 1 + torch.arange(count, dtype=person.dtype)])
