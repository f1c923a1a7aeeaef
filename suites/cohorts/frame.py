"""A table of numbers that an .h5ad keeps column by column: an obsm entry that was a pandas DataFrame (antibodies of a CITE-seq, places)."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from suites.errors import RequestError


def is_frame(held: h5py.Dataset | h5py.Group | None) -> bool:
    """Whether it is such a table: anndata's encoding "dataframe" (0.7 and later)."""
    kind = held.attrs.get("encoding-type", "") if isinstance(held, h5py.Group) else ""
    return (kind.decode() if isinstance(kind, bytes) else str(kind)) == "dataframe"


def names(held: h5py.Group) -> tuple[str, ...]:
    """Its columns in their own order, without the index."""
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in held.attrs["column-order"])


def values(held: h5py.Group, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The chosen rows of all columns, dense float32 [rows.sum(), columns]; a nullable entry that is missing is NaN.

    RequestError where a column holds words or categories, or is not as long as obs.
    """
    columns, table = names(held), held.name.strip("/")
    out = np.empty((int(rows.sum()), len(columns)), dtype=np.float32)
    for place, name in enumerate(columns):
        column = held[name]
        nullable = isinstance(column, h5py.Group) and "values" in column and "mask" in column
        stored: Any = column["values"] if nullable else column
        if not isinstance(stored, h5py.Dataset) or stored.dtype.kind not in "fiub" or "categories" in stored.attrs:
            raise RequestError(
                f"{held.file.filename}: column '{name}' of the table '{table}' holds no numbers, which a matrix needs; "
                "drop that column or turn it into numbers before writing"
            )
        if stored.shape != (len(rows),):
            raise RequestError(
                f"{held.file.filename}: column '{name}' of the table '{table}' has {stored.size} rows but obs has {len(rows)}; "
                "write the file again with anndata"
            )
        out[:, place] = stored[()][rows]
        if nullable:
            out[column["mask"][()].astype(bool)[rows], place] = np.nan
    return out
