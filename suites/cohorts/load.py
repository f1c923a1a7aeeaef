"""``load``: from what a suite says about its data to a checked ``Cohort``.

Every complaint is a ``RequestError`` of one sentence: what is wrong, why that matters, how to mend it. Names of records are never
printed, since barcodes and patient codes stay out of reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from suites.cohorts import h5ad
from suites.cohorts.cohort import Codes, Cohort
from suites.cohorts.spec import DataSpec
from suites.cohorts.values import checked
from suites.errors import RequestError, did_you_mean

_NO_LABEL = {"unlabelled", "unlabeled", "unassigned", "unannotated"}  # words for it in public files, beside true gaps
Texts = NDArray[np.object_]


def load(data: DataSpec) -> Cohort:
    """The cohort that ``data`` speaks of, checked and (where asked or found to be counts) transformed record by record.

    Raises
    ------
    RequestError
        Unknown name, missing or foreign file, no such column, one class only, a site with one record, NaN or Inf where nothing is
        imputed, a feature that is zero throughout, negative values where a logarithm is asked, records with the same name.
    """
    if data.path is not None:
        if data.params:
            raise RequestError("data.params belong to a generated cohort (name: synthetic) and a file has none; remove them")
        return from_file(data, Path(data.path).expanduser(), Path(data.path).stem)
    from suites.cohorts.named import named

    return named(data)


def from_file(data: DataSpec, path: Path, name: str, citation: str = "", licence: str = "") -> Cohort:
    """A cohort out of an .h5ad; ``data`` names its columns."""
    with h5ad.open_h5ad(path) as file:
        label = data.label
        if label is None:
            raise RequestError(
                f"{path} needs a label column, since classes are what is learnt; its obs columns: {', '.join(h5ad.columns(file))}"
            )
        records = h5ad.index(file, "obs")
        if not len(records):
            raise RequestError(
                f"{path} holds no records (its obs table is empty), so there is nothing to learn from; write it with cells in it"
            )
        _distinct(path, records)
        labels = h5ad.column(file, label)
        rows = _labelled(path, label, labels, _only(file, data), data)
        classes, y = _codes(labels[rows])
        sites, site = _column(file, "site", data.site, rows)
        _, person = _column(file, "person", data.person, rows)
        attribute = None if data.attribute is None else _attribute(path, file, data.attribute, rows)
        matrix = data.matrix or "X"
        own = h5ad.own_names(file, matrix)
        features = _features(file, matrix) if own is None else own
        if not features:
            raise RequestError(f"{path} holds no features in '{matrix}', so there is nothing to learn from; choose another matrix")
        with np.errstate(over="ignore"):  # beyond float32: found as Inf below
            x = h5ad.matrix(file, matrix, rows, len(features))
    if site is not None and (alone := np.flatnonzero(np.bincount(site) < 2)).size:
        raise RequestError(
            f"{path}: site '{sites[alone[0]]}' has one record, which its every update would lay open; merge the site with another or leave "
            "it out"
        )
    x, features, done = checked(str(path), x, features, data)
    return Cohort(name, x, y, classes, features, site, sites, person, citation, licence, transform=done, attribute=attribute)


def counts(data: DataSpec) -> Any:
    """The matrix that ``data.matrix`` names, of the records that ``load`` gives, as it is stored and never dense: CSR [N, P] float32.

    For a modality of a hundred thousand features, nearly all of them zero (open chromatin); raises ``RequestError`` as ``load`` does.
    """
    from scipy import sparse

    from suites.cohorts.named import source

    found = source(data)
    if found is None:  # generated
        return sparse.csr_matrix(load(data).x)
    data, path = found
    with h5ad.open_h5ad(path) as file:
        if data.label is None:
            raise RequestError(f"{path} needs a label column, since it says which records are kept; name one of its obs columns")
        rows = _labelled(path, data.label, h5ad.column(file, data.label), _only(file, data), data)
        held = h5ad.sparse_matrix(file, data.matrix or "X", rows)
    if not np.isfinite(held.data).all() or (held.data < 0).any():
        raise RequestError(f"{path}: '{data.matrix}' holds values that are negative or not finite, which counts cannot be; give counts")
    return held


# ----------------------------------------------------------------------------------------------------------------------- columns


def _features(file: h5py.File, matrix: str) -> tuple[str, ...]:
    table = "var"
    if matrix == "raw":  # raw keeps its own, often longer, list of features
        table = "raw/var" if "raw/var" in file else "raw.var"
    if table not in file:
        raise RequestError(f"{file.filename} holds no matrix 'raw'; use matrix: X")
    names: list[str] = []
    used: dict[str, int] = {}
    for name in h5ad.index(file, table):  # gene symbols repeat in many files: number the later ones
        again = used.get(name, 0)
        used[name] = again + 1
        names.append(f"{name}-{again}" if again else str(name))
    return tuple(names)


def _attribute(path: Path, file: h5py.File, asked: str, rows: NDArray[np.bool_]) -> Codes:
    """Which records have the attribute: 1, 0, or -1 where the column says nothing."""
    name, equals, value = asked.partition("=")
    held = h5ad.column(file, name)[rows]
    known = sorted({str(text) for text in held if text is not None})
    if equals and value not in known:
        raise RequestError(f"{path}: no record has '{value}' in '{name}'{did_you_mean(value, known)}")
    if len(known) < 2 or (not equals and len(known) != 2):
        raise RequestError(
            f"{path}: an attribute is something that a record has or has not, and '{name}' takes {len(known)} values; name one of them "
            f"(attribute: {name}={known[-1] if known else 'VALUE'}), or another column"
        )
    return np.array([-1 if text is None else int(str(text) == (value if equals else known[-1])) for text in held], dtype=np.int64)


def _distinct(path: Path, names: Texts) -> None:
    _, first, count = np.unique(names.astype(str), return_index=True, return_counts=True)
    if (count > 1).any():
        again = int((count > 1).sum())
        row = int(first[count > 1].min())
        raise RequestError(
            f"{path}: {again} obs names occur more than once (the first at row {row}), so that one record could be both trained on and "
            "tested; remove the duplicates, or call adata.obs_names_make_unique() if they are different records"
        )


def _only(file: h5py.File, data: DataSpec) -> NDArray[np.bool_]:
    """The records that the suite speaks of; a value that no record has is a typing error and is told."""
    rows = np.ones(len(h5ad.index(file, "obs")), dtype=bool)
    for name, wanted in data.only.items():
        held = h5ad.column(file, name)
        known = sorted({str(text) for text in held if text is not None})
        for value in wanted:
            if value not in known:
                raise RequestError(f"{file.filename}: no record has '{value}' in '{name}'{did_you_mean(value, known)}")
        rows &= np.isin(held.astype(str), wanted)
    if data.only and not rows.any():
        raise RequestError(f"{file.filename}: no record is left by only: {dict(data.only)}; ask for values that occur together")
    return rows


def _labelled(path: Path, label: str, labels: Texts, asked: NDArray[np.bool_], data: DataSpec) -> NDArray[np.bool_]:
    """The records to keep of those ``asked``; complains of missing labels, of classes too small to be learnt and tested, of one only."""
    rows: NDArray[np.bool_] = asked & np.array([text is not None and text.lower() not in _NO_LABEL for text in labels], dtype=bool)
    gaps = int(asked.sum() - rows.sum())
    if gaps and "unlabelled" not in data.drop:
        raise RequestError(
            f"{path}: {gaps} of {asked.sum()} records have no '{label}' (empty, NaN, None, or a word such as unassigned), so there is "
            "nothing to learn from them; set drop: [unlabelled] (--drop unlabelled)"
        )
    names, code, count = np.unique(labels[rows].astype(str), return_inverse=True, return_counts=True)
    rare = count < 2
    if rare.sum() > max(1, len(code) // 4):
        raise RequestError(
            f"{path}: '{label}' takes {len(names)} values in {len(code)} records, so it names records or measures something and is "
            "no class; choose another label column"
        )
    if rare.any():
        if "rare" not in data.drop:
            raise RequestError(
                f"{path}: class '{names[rare][0]}' of '{label}' has one record, which cannot be learnt and tested; merge the class with "
                "another or set drop: [rare] (--drop rare)"
            )
        rows[np.flatnonzero(rows)[rare[code]]] = False
    if len(names) - rare.sum() < 2:
        only = names[~rare][0] if (~rare).any() else "none"
        raise RequestError(
            f"{path}: '{label}' has one class only ('{only}'), so there is nothing to tell apart; choose another label column"
        )
    return rows


def _column(file: h5py.File, role: str, name: str | None, rows: NDArray[np.bool_]) -> tuple[tuple[str, ...], Codes | None]:
    """Names and codes of the site or person column, None where none is named."""
    if name is None:
        return (), None
    texts = h5ad.column(file, name)[rows]
    gaps = sum(text is None for text in texts)
    if gaps:
        raise RequestError(
            f"{file.filename}: {gaps} records have no '{name}', so their {role} is unknown; fill the column in or leave them out"
        )
    return _codes(texts)


def _codes(texts: Texts) -> tuple[tuple[str, ...], Codes]:
    names, codes = np.unique(texts.astype(str), return_inverse=True)
    return tuple(str(name) for name in names), codes.astype(np.int64)
