"""A sparse matrix (CSR, CSC) as an .h5ad keeps it: three arrays that must fit each other, held against each other before they are used.

What turns them into a dense matrix trusts them: an index past the last feature would land in another record, or outside the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from suites.errors import RequestError

PARTS = {"data", "indices", "indptr"}


@dataclass(frozen=True, slots=True)
class Compressed:
    """``pointers`` [lines + 1] say which stretch of ``values`` and ``indices`` is whose; lines are rows, or columns of CSC."""

    where: str
    values: h5py.Dataset
    indices: h5py.Dataset
    pointers: NDArray[np.int64]
    by_column: bool
    across: int  # length of a line

    def lines(self, start: int, stop: int) -> Any:
        """Lines ``start`` to ``stop`` as scipy's CSR [stop - start, across] or CSC [across, stop - start], values float32."""
        from scipy import sparse

        low, high = int(self.pointers[start]), int(self.pointers[stop])
        values, indices = self.values[low:high].astype(np.float32), self.indices[low:high]
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= self.across):
            wrong = next(int(i) for i in (indices.max(), indices.min()) if not 0 <= int(i) < self.across)
            raise _damaged(self.where, f"it has a value at place {wrong} of a {'column' if self.by_column else 'row'} of {self.across}")
        parts = (values, indices, self.pointers[start : stop + 1] - low)
        if self.by_column:
            return sparse.csc_matrix(parts, shape=(self.across, stop - start))
        return sparse.csr_matrix(parts, shape=(stop - start, self.across))


def shape(held: h5py.Dataset | h5py.Group, name: str) -> tuple[int, ...]:
    """Rows and columns of a stored matrix, dense or sparse."""
    if isinstance(held, h5py.Dataset):
        return tuple(held.shape)
    told = held.attrs.get("shape", held.attrs.get("h5sparse_shape"))
    if told is None or np.ndim(told) != 1 or len(told) != 2:
        raise _damaged(_called(held, name), "it does not say how many rows and columns it has (attribute 'shape')")
    return tuple(int(size) for size in told)


def opened(held: h5py.Group, name: str) -> Compressed:
    """The sparse matrix ``name``; RequestError where a part is missing or the parts contradict each other."""
    where = _called(held, name)
    rows, columns = shape(held, name)
    for part, kinds in (("data", "fiub"), ("indices", "iu"), ("indptr", "iu")):
        found = held.get(part)
        if not isinstance(found, h5py.Dataset) or found.ndim != 1:
            raise _damaged(where, f"its part '{part}' is missing")
        if found.dtype.kind not in kinds:
            raise RequestError(f"{where} holds {part} of type {found.dtype} where numbers are needed; convert them before writing")
    kind = held.attrs.get("encoding-type", held.attrs.get("h5sparse_format"))
    by_column = str(kind.decode() if isinstance(kind, bytes) else kind).startswith("csc")
    lines, across = (columns, rows) if by_column else (rows, columns)
    values, indices = held["data"], held["indices"]
    pointers: NDArray[np.int64] = held["indptr"][()].astype(np.int64)
    if len(pointers) != lines + 1:
        raise _damaged(
            where, f"its 'indptr' has {len(pointers)} entries where {lines} {'columns' if by_column else 'rows'} need {lines + 1}"
        )
    if len(values) != len(indices):
        raise _damaged(where, f"it has {len(values)} values ('data') but {len(indices)} places for them ('indices')")
    if pointers[0] != 0 or pointers[-1] != len(indices) or (np.diff(pointers) < 0).any():
        raise _damaged(where, f"its 'indptr' does not rise from 0 to its {len(indices)} values")
    return Compressed(where, values, indices, pointers, by_column, across)


def _called(held: h5py.Group, name: str) -> str:
    return f"{held.file.filename}: sparse matrix '{name}'"


def _damaged(where: str, why: str) -> RequestError:
    return RequestError(f"{where} is damaged: {why}, so that values would land in other records; write or copy the file again")
