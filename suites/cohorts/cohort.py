"""A cohort in memory: records by features with labels, and where known sites and persons."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]

_BLOCK = 1 << 24  # bytes hashed at a time


@dataclass(frozen=True, slots=True)
class Cohort:
    """Records of one data set, before any standardising (that is ``suites.preprocess``, learnt from public records only).

    ``x`` [N, F] float32 may hold NaN only where the suite imputes. ``y`` [N] indexes ``classes``; ``site`` [N] indexes ``sites``;
    ``person`` [N] holds codes without names, because barcodes and patient codes are never printed. ``digest`` is the SHA-256
    of the content, whatever file it came from.
    """

    name: str
    x: Floats
    y: Codes
    classes: tuple[str, ...]
    features: tuple[str, ...]
    site: Codes | None = None
    sites: tuple[str, ...] = ()
    person: Codes | None = None
    citation: str = ""
    licence: str = ""
    transform: str = "none"  # what was done to the stored values
    truth: Any = None  # of a generated cohort only; never part of the digest
    digest: str = field(default="", compare=False)
    attribute: Codes | None = None  # [N] 1 for records that have a binary attribute, 0 for those that have not, -1 where nobody knows
    first: Codes | None = field(default=None, compare=False)  # [N] the first record that is the same one; None where ``x`` tells

    def __post_init__(self) -> None:
        if not self.digest:
            object.__setattr__(self, "digest", content_digest(self))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Codes) -> Self:
        """Some of the records, under the name and the digest of all."""
        site, person, attribute = (None if own is None else own[rows] for own in (self.site, self.person, self.attribute))
        first = np.arange(len(rows))
        return replace(self, x=self.x[rows], y=self.y[rows], truth=None, first=first, site=site, person=person, attribute=attribute)

    def __repr__(self) -> str:
        where = f", {len(self.sites)} sites" if self.sites else ""
        return f"Cohort({self.name}: {len(self.x)} records x {len(self.features)} features, {len(self.classes)} classes{where})"


def content_digest(cohort: Cohort) -> str:
    """SHA-256 over values, codes and names, each preceded by its length, so that no two cohorts run together."""
    state = hashlib.sha256(b"infl-bench cohort v1")
    for array in (cohort.x, cohort.y, cohort.site, cohort.person):
        _array(state, array)
    if cohort.attribute is not None:  # the digest of a cohort without one is what it always was
        _array(state, cohort.attribute)
    for names in (cohort.classes, cohort.features, cohort.sites):
        _names(state, names)
    return state.hexdigest()


def _array(state: Any, array: NDArray[Any] | None) -> None:
    if array is None:
        state.update(b"none")
        return
    little = array.dtype.newbyteorder("<")
    state.update(f"{array.shape}{little.str}".encode())
    rows = max(1, _BLOCK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        state.update(np.ascontiguousarray(array[start : start + rows], dtype=little))


def _names(state: Any, names: Iterable[str]) -> None:
    for name in names:
        encoded = name.encode()
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    state.update(b"end")
