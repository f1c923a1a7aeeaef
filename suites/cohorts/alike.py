"""Which records of a cohort are the same one again: equal in every value that a model is fed.

A file that was written twice over, or cells that two tables have in common, would put a record on both sides of the split: a non-member, or
one of the adversary's own, that equals a member byte for byte (no attack can then be right, and every public statistic was fitted on it).
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]


def first_alike(x: NDArray[np.float32]) -> Codes:
    """For each row of ``x`` [N, F] the first row that holds the same values, [N]; gaps (NaN) equal gaps, and -0 equals 0."""
    seen: dict[bytes, int] = {}
    out = np.empty(len(x), dtype=np.int64)
    for i, row in enumerate(x):
        values = row + np.float32(0)  # -0 becomes 0
        values[np.isnan(values)] = np.nan  # one bit pattern of the many
        out[i] = seen.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), i)
    return out
