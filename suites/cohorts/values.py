"""Checks and transforms of a cohort's values, in blocks and in place, so that no second copy of the matrix is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suites.cohorts.cohort import Floats
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError

COUNTS_TO = 10_000.0  # what a record's counts are scaled to: a constant, so that no record's value depends on the others
_BLOCK = 1 << 22  # values looked at a time


@dataclass(slots=True)
class Survey:
    """What one pass over the values found."""

    filled: NDArray[np.bool_]  # [F] some value that is neither zero nor missing
    nan: int = 0
    inf: int = 0
    bad: tuple[int, int] = (0, 0)  # record and feature of the first NaN or Inf
    negative: int = 0
    whole: bool = True


def _blocks(x: Floats) -> Iterator[tuple[int, Floats]]:
    step = max(1, _BLOCK // max(1, x.shape[1]))
    for start in range(0, len(x), step):
        yield start, x[start : start + step]


def survey(x: Floats) -> Survey:
    found = Survey(np.zeros(x.shape[1], dtype=bool))
    for start, block in _blocks(x):
        finite = np.isfinite(block)
        if not finite.all():
            if not found.nan + found.inf:
                row, feature = np.argwhere(~finite)[0]
                found.bad = (start + int(row), int(feature))
            gaps = int(np.isnan(block).sum())
            found.nan += gaps
            found.inf += int((~finite).sum()) - gaps
            found.filled |= ((block != 0) & finite).any(0)
        else:
            found.filled |= block.any(0)
        found.negative += int((block < 0).sum())
        found.whole = found.whole and bool((block == np.floor(block))[finite].all())
    return found


def checked(path: str, x: Floats, features: tuple[str, ...], data: DataSpec) -> tuple[Floats, tuple[str, ...], str]:
    """Checked and transformed values; ``x`` is changed in place."""
    found = survey(x)
    where = f"(the first in record {found.bad[0]}, feature '{features[found.bad[1]]}')" if found.nan + found.inf else ""
    if found.inf:
        raise RequestError(
            f"{path}: {found.inf} values are infinite {where}, which no network survives; replace them or leave those records out"
        )
    if found.nan and not data.imputes:
        raise RequestError(
            f"{path}: {found.nan} values are NaN {where}, which no network survives; fill them in or set missing: impute (--missing impute)"
        )
    empty = np.flatnonzero(~found.filled)
    if len(empty) and "empty" not in data.drop:
        raise RequestError(
            f"{path}: {len(empty)} of {len(features)} features are zero in every record (the first is '{features[empty[0]]}'), so they "
            "carry nothing; remove them or set drop: [empty] (--drop empty)"
        )
    if len(empty) == len(features):
        raise RequestError(f"{path}: every feature is zero in every record, so nothing can be learnt; choose another matrix")
    if len(empty):
        x, features = x.take(np.flatnonzero(found.filled), axis=1), tuple(name for name, kept in zip(features, found.filled) if kept)
    transform = data.transform or "auto"
    if transform == "log1p":
        if found.negative:
            why = f"{found.negative} values are negative, which counts and intensities cannot be"
            raise RequestError(f"{path}: transform log1p was asked but {why}; use transform: none")
        np.log1p(x, out=x)
        return x, features, "log1p"
    if transform == "auto" and found.whole and not found.negative and not found.nan:
        for _, block in _blocks(x):
            total = block.sum(1, dtype=np.float64, keepdims=True)
            np.multiply(block, (COUNTS_TO / np.maximum(total, 1.0)).astype(np.float32), out=block)
            np.log1p(block, out=block)
        return x, features, f"log1p of counts per {COUNTS_TO:,.0f}"
    return x, features, "none"
