"""RNA and open chromatin of the same cells, as 10x's Multiome pipeline (Cell Ranger ARC) gives them out, to AnnData.

One matrix holds both: ``features/feature_type`` says "Gene Expression" or "Peaks" of each row. Labels are no part of it and come from a
table by barcode (``analysis/clustering/.../clusters.csv``, say). Barcodes become numbers. Tried on files of this layout that the tests
make, and on no others.
"""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from suites.errors import RequestError

RNA, PEAKS = "Gene Expression", "Peaks"


def multiome(path: Path, metadata: Path | None = None) -> anndata.AnnData:
    """``filtered_feature_bc_matrix.h5``, or an .h5ad read from it (``var["feature_types"]``): X gets the genes, obsm["peaks"] the peaks.

    ``metadata`` has barcodes in its first column; its other columns become those of ``obs``. Cells that it does not list have no label.
    """
    if not path.is_file():
        raise RequestError(f"there is no file {path}; give filtered_feature_bc_matrix.h5, or an .h5ad with var['feature_types']")
    counts, kinds, names, barcodes, obs = _read_h5ad(path) if path.suffix == ".h5ad" else _read_tenx(path)
    rna, peaks = np.flatnonzero(kinds == RNA), np.flatnonzero(kinds == PEAKS)
    if not len(rna) or not len(peaks):
        found = ", ".join(sorted(set(kinds.tolist()))) or "none"
        raise RequestError(f"{path} has features of the kinds {found} where '{RNA}' and '{PEAKS}' are needed; give a Multiome matrix")
    if metadata is not None:
        obs = _about(metadata, barcodes)
    if not len(obs.columns):
        raise RequestError(f"{path} says nothing of its cells but their barcodes; give --metadata, a table of labels by barcode")
    obs.index = pd.Index([f"cell {i}" for i in range(len(obs))])
    made = anndata.AnnData(counts[:, rna], obs=obs, var=pd.DataFrame(index=pd.Index(names[rna])))
    made.var_names_make_unique()
    made.obsm["peaks"] = counts[:, peaks]
    made.uns["peaks_names"] = names[peaks].astype(object)
    return made


Parts = tuple[sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray, pd.DataFrame]


def _read_tenx(path: Path) -> Parts:
    """Features by barcodes in compressed columns (10x's HDF5 layout since Cell Ranger 3), which is cells by features in rows."""
    if not h5py.is_hdf5(path):
        raise RequestError(f"{path} is no HDF5 file; give filtered_feature_bc_matrix.h5")
    with h5py.File(path) as file:
        if "matrix/features/feature_type" not in file:
            raise RequestError(
                f"{path} has no matrix/features/feature_type, so that genes and peaks cannot be told apart; give 10x's own file"
            )
        held = file["matrix"]
        features, cells = (int(n) for n in held["shape"][()])
        parts = (held["data"][()].astype(np.float32), held["indices"][()], held["indptr"][()])
        try:
            counts = sparse.csr_matrix(parts, shape=(cells, features))
            counts.check_format(full_check=True)  # an index past the last feature would be read from memory that is not the matrix's
        except ValueError as error:
            raise RequestError(f"{path} is damaged: its matrix does not fit its own shape ({error}); fetch it again") from None
        kinds, names, barcodes = (_words(held[name][()]) for name in ("features/feature_type", "features/name", "barcodes"))
    return counts, kinds, names, barcodes, pd.DataFrame(index=range(cells))


def _read_h5ad(path: Path) -> Parts:
    held = anndata.read_h5ad(path)
    if "feature_types" not in held.var:
        raise RequestError(
            f"{path} has no var['feature_types'], so that genes and peaks cannot be told apart; keep it when reading 10x's file"
        )
    counts = sparse.csr_matrix(held.X, dtype=np.float32)
    barcodes = held.obs_names.to_numpy().astype(str)
    return counts, held.var["feature_types"].to_numpy().astype(str), held.var_names.to_numpy().astype(str), barcodes, held.obs.copy()


def _words(values: np.ndarray) -> np.ndarray:
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()])


def _about(metadata: Path, barcodes: np.ndarray) -> pd.DataFrame:
    """The table's rows in the order of the cells, as text; None where it does not list one."""
    if not metadata.is_file():
        raise RequestError(f"there is no file {metadata}; check the path")
    tabs = metadata.name.removesuffix(".gz").endswith((".tsv", ".txt"))
    table = pd.read_csv(metadata, sep="\t" if tabs else ",", index_col=0, dtype=str)
    if table.index.has_duplicates:
        again = int(table.index.duplicated().sum())
        raise RequestError(
            f"{metadata} lists {again} barcodes twice in its first column, so a cell would have two labels; keep one row each"
        )
    found = table.reindex(barcodes)
    if not table.index.isin(barcodes).any():
        raise RequestError(f"{metadata} lists no barcode of the matrix in its first column; give the table of the same cells")
    return found.reset_index(drop=True).astype(object).where(found.reset_index(drop=True).notna(), None)
