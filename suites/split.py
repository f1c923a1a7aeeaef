"""Disjoint training, validation, test and auxiliary records, and training records over sites; all from named coordinates.

The auxiliary part is the adversary's public knowledge and the only part that the preprocessor learns from. With ``unit="person"``
no person straddles two parts, nor two sites of an "iid" or "dirichlet" partition.

A record that is there again (``suites.cohorts.alike``) is in no part: the first is kept, as if the others had not been stored, and how many
they are is told. Keeping copies together on one side would do for the split alone, but not after it: an adversary's references draw records
one by one, so that one copy would be in a reference and the other count as out of it, and intervals would count a record twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suites.cohorts.alike import first_alike
from suites.cohorts.cohort import Cohort
from suites.cohorts.spec import PartitionSpec, SplitSpec
from suites.errors import RequestError
from suites.randomness import stream

Codes = NDArray[np.int64]
_PARTS = ("train", "validation", "test", "auxiliary")
_TRIES = 100  # dirichlet draws before giving up


@dataclass(frozen=True, slots=True)
class Split:
    """Record indices, int64 and ascending. ``names`` has one name a site; a site column's names, else "site 1" and so on."""

    sites: tuple[Tensor, ...]  # training records of each site
    validation: Tensor
    test: Tensor
    auxiliary: Tensor
    names: tuple[str, ...] = ()
    withheld: tuple[Tensor, ...] = ()  # what the sites that take no part would have trained on
    copies: int = 0  # records that repeat another and lie in no part


def split(cohort: Cohort, split: SplitSpec, partition: PartitionSpec, *coordinates: object, units: str = "persons") -> Split:
    """Cut a cohort; equal coordinates give the same parts, and the parts do not depend on the partition. ``units`` says what persons are.

    Classes (and within them known sites) are stratified as well as whole records or persons allow. An attribute is not: where members had
    the public's share of it by design, an attack on that share would be asked what it knows. Of records that are the same, the first stays.

    Raises
    ------
    RequestError
        No person column for ``unit="person"``, no site column for ``kind="column"``, a part that stays empty, or a site with fewer
        than two training records.
    """
    first = first_alike(cohort.x) if cohort.first is None else cohort.first
    kept = np.flatnonzero(first == np.arange(len(cohort)))
    copies = len(cohort) - len(kept)
    if not copies:
        return _cut(cohort, split, partition, *coordinates, units=units)
    try:
        cut = _cut(cohort.take(kept), split, partition, *coordinates, units=units)
    except RequestError as error:
        raise RequestError(f"{error} ({copies} of the {len(cohort)} records repeat another and were left out)") from None
    place = torch.from_numpy(kept)
    sites, withheld = (tuple(place[own] for own in parts) for parts in (cut.sites, cut.withheld))
    return Split(sites, place[cut.validation], place[cut.test], place[cut.auxiliary], cut.names, withheld, copies)


def _cut(cohort: Cohort, split: SplitSpec, partition: PartitionSpec, *coordinates: object, units: str) -> Split:
    """``split`` of records that are all different."""
    if split.unit == "person" and cohort.person is None:
        raise RequestError(
            f"split unit 'person' needs to know who gave each record of {cohort.name}; name the person column or use unit 'record'"
        )
    if partition.kind == "column" and cohort.site is None:
        raise RequestError(f"partition 'column' needs to know the site of each record of {cohort.name}; name the site column or use 'iid'")
    part = _parts(cohort, split, stream("split", split.unit, *coordinates))
    for code, (name, share) in enumerate(zip(_PARTS, split.shares)):
        if share > 0 and not (part == code).any():
            people = cohort.person if split.unit == "person" else None
            held = "too few records" if people is None else f"too few {units} ({len(np.unique(people))})"
            spared = ", or 0" if name == "validation" else ""
            other = "" if people is None else f", or part the records of one of the {units} (unit: record)"
            raise RequestError(
                f"{cohort.name} has {held} for a {name} part of {share:g}; give that part a larger share (`split: {{{name}: …}}` in a copy "
                f"of the suite's YAML file){spared}{other}"
            )
    train = np.flatnonzero(part == 0)
    site, names = _sites(cohort, split, partition, train, stream("partition", partition.kind, *coordinates))
    sites = tuple(torch.from_numpy(train[site == code]) for code in range(len(names)))
    for name, records in zip(names, sites):
        if len(records) < 2:
            raise RequestError(
                f"{name} of {cohort.name} has fewer than two training records ({len(records)}), so that its update would be a record laid "
                "open; use fewer sites, a larger train share or (dirichlet) a larger alpha"
            )
    validation, test, auxiliary = (torch.from_numpy(np.flatnonzero(part == code)) for code in (1, 2, 3))
    if not partition.held_out:
        return Split(sites, validation, test, auxiliary, names)
    if partition.held_out >= len(names):
        raise RequestError(
            f"held_out: {partition.held_out} of {len(names)} sites leaves nobody to train, and members are what the others are set "
            "against; hold out fewer"
        )
    order = _permutation(len(names), stream("held out", *coordinates))
    out, kept = sorted(order[: partition.held_out].tolist()), sorted(order[partition.held_out :].tolist())
    taking_part = tuple(sites[code] for code in kept)
    return Split(taking_part, validation, test, auxiliary, tuple(names[code] for code in kept), tuple(sites[code] for code in out))


def _permutation(count: int, rng: torch.Generator) -> Codes:
    order: Codes = torch.randperm(count, generator=rng).numpy()
    return order


def _parts(cohort: Cohort, split: SplitSpec, rng: torch.Generator) -> Codes:
    """The part (0 to 3) of every record."""
    if split.unit == "person":
        assert cohort.person is not None
        people, owner = np.unique(cohort.person, return_inverse=True)
        profile = np.zeros((len(people), len(cohort.classes)))
        np.add.at(profile, (owner, cohort.y), 1.0)
        return _whole(profile, split.shares, rng)[owner]
    place = cohort.site if cohort.site is not None else np.zeros(len(cohort), dtype=np.int64)
    shuffled = _permutation(len(cohort), rng)
    class_rank = _permutation(len(cohort.classes), rng)  # so that no class always comes first in rounding
    order = shuffled[np.lexsort((place[shuffled], class_rank[cohort.y[shuffled]]))]
    part = np.empty(len(cohort), dtype=np.int64)
    part[order] = _in_turn(len(cohort), split.shares)
    return part


def _in_turn(count: int, shares: Sequence[float]) -> Codes:
    """A sequence of parts of which every stretch holds nearly its share of each: the next goes to the part furthest behind."""
    out = np.empty(count, dtype=np.int64)
    due = [0.0] * len(shares)
    for i in range(count):
        due = [d + share for d, share in zip(due, shares)]
        chosen = due.index(max(due))
        due[chosen] -= 1.0
        out[i] = chosen
    return out


def _whole(profile: NDArray[np.float64], shares: Sequence[float], rng: torch.Generator) -> Codes:
    """The part of every person: each goes to the part that is furthest behind in what they bring, by class and in all.

    ``profile`` [persons, K] counts each person's records by class. The largest persons come first, and persons of one profile one after
    the other, so that every kind of person is spread by the shares: a part made of singles would be another population than one of pairs.
    """
    spread = (profile > 0).sum(0) > 1  # a class of one person can be in one part only: it would always go to the largest
    bring = np.column_stack([profile[:, spread], profile.sum(1)])
    weight = bring / np.maximum(bring.sum(0), 1.0)
    shuffled = _permutation(len(bring), rng)
    kind = np.unique(profile, axis=0, return_inverse=True)[1].reshape(-1)
    rank = _permutation(int(kind.max()) + 1, rng)
    due = np.zeros((len(shares), bring.shape[1]))  # [parts, K + 1] records that each part has yet to get of those dealt out
    out = np.empty(len(bring), dtype=np.int64)
    for person in shuffled[np.lexsort((rank[kind[shuffled]], -bring[shuffled, -1]))]:
        due += np.outer([*shares], bring[person])
        need = np.where(np.array(shares) > 0, due @ weight[person], -np.inf)
        out[person] = chosen = int(np.argmax(need))
        due[chosen] -= bring[person]
    for part in np.flatnonzero(np.array(shares) > 0):  # a share of less than a person is still a part: it is given the smallest one
        counts = np.bincount(out, minlength=len(shares))
        if counts[part] == 0 and counts.max() > 1:
            spare = np.flatnonzero(out == counts.argmax())
            out[spare[np.argmin(bring[spare, -1])]] = part
    return out


def _sites(cohort: Cohort, split: SplitSpec, partition: PartitionSpec, train: Codes, rng: torch.Generator) -> tuple[Codes, tuple[str, ...]]:
    """The site of every training record, and the sites' names."""
    if partition.kind == "column":
        assert cohort.site is not None
        present = np.unique(cohort.site[train]) if split.unit == "person" else np.arange(len(cohort.sites))
        # Where persons move as a whole, a site may have given all of its persons to the other parts: then it does not take part.
        return np.searchsorted(present, cohort.site[train]), tuple(f"site {cohort.sites[code]}" for code in present)
    names = tuple(f"site {code + 1}" for code in range(partition.sites))
    if split.unit == "person":
        assert cohort.person is not None
        people, owner = np.unique(cohort.person[train], return_inverse=True)
        profile = np.zeros((len(people), len(cohort.classes)))
        np.add.at(profile, (owner, cohort.y[train]), 1.0)
        label = profile.argmax(1)
    else:
        owner, label = np.arange(len(train)), cohort.y[train]
    if partition.kind == "iid":
        site = np.empty(len(label), dtype=np.int64)
        site[_permutation(len(label), rng)] = np.arange(len(label)) % partition.sites
        return site[owner], names
    for _ in range(_TRIES):
        site = _dirichlet(label, len(cohort.classes), partition, rng)[owner]
        if np.bincount(site, minlength=partition.sites).min() >= 2:
            break
    return site, names


def _dirichlet(label: Codes, classes: int, partition: PartitionSpec, rng: torch.Generator) -> Codes:
    """Label skew: each class spreads over the sites by a draw from Dirichlet(alpha) (Hsu, Qi & Brown 2019)."""
    shape = torch.full((classes, partition.sites), partition.alpha, dtype=torch.float64)
    # Gamma(alpha) = Gamma(alpha + 1) * U^(1/alpha), in logs, since small alphas underflow.
    boosted = torch._standard_gamma(shape + 1, generator=rng).log()
    logits = boosted + torch.rand(shape.shape, generator=rng, dtype=torch.float64).log() / partition.alpha
    return torch.multinomial(torch.softmax(logits, 1)[torch.from_numpy(label)], 1, generator=rng).squeeze(1).numpy()
