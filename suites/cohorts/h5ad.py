"""Reads what a cohort needs out of an .h5ad file and nothing else.

Straight from HDF5 in blocks: the values go into one dense float32 matrix and never exist twice, whatever the file's layout (dense,
CSR, CSC; any number type), and obsm, layers or neighbour graphs that nobody asked for stay on disk. Covers the encodings of
anndata 0.6 (scanpy's embedded cohort) to today; anndata itself, a second to import, is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from suites.cohorts import compressed, frame
from suites.errors import RequestError, did_you_mean

_TABLES = {".csv", ".tsv", ".txt", ".tab"}
_BLOCK = 1 << 24  # bytes of values read at a time
_MISSING = {"", "nan", "NaN", "NA", "<NA>", "None"}  # the last is what str() makes of a gap


@contextmanager
def open_h5ad(path: str | Path) -> Iterator[h5py.File]:
    """The open file; RequestError where there is none or it is no .h5ad."""
    where = Path(path).expanduser()
    if not where.exists():
        near = [p.name for p in where.parent.glob("*.h5ad")] if where.parent.is_dir() else []
        raise RequestError(f"there is no file {where}{did_you_mean(where.name, near) if near else '; check the path'}")
    if where.suffix.lower() in _TABLES and where.is_file():
        raise RequestError(
            f"{where} is a table of text, and labels and sites are read from an .h5ad's obs; read it with anndata.read_text, set adata.obs "
            f"and write adata.write_h5ad('{where.stem}.h5ad')"
        )
    if where.is_dir() or not h5py.is_hdf5(where):
        raise RequestError(f"{where} is not an .h5ad file (not HDF5); write one with anndata's adata.write_h5ad('{where.stem}.h5ad')")
    try:
        file = h5py.File(where, "r")
    except OSError as error:
        raise RequestError(
            f"{where} cannot be read as HDF5 ({str(error).split('(')[-1].rstrip(')')}); copy or download it again"
        ) from error
    with file:
        if "obs" not in file or "var" not in file:
            raise RequestError(f"{where} is HDF5 but not an .h5ad: it has no obs and var tables; write it with anndata's write_h5ad")
        try:
            yield file
        except (OSError, RuntimeError) as error:  # a damaged chunk or object, or a compression filter that is not installed
            raise RequestError(f"{where} breaks off while it is read ({error}); write it again, with gzip or no compression") from error


# ------------------------------------------------------------------------------------------------------------------ obs and var


def columns(file: h5py.File, table: str = "obs") -> list[str]:
    """The table's columns in alphabetical order, without its index."""
    held = file[table]
    names = (
        held.dtype.names if isinstance(held, h5py.Dataset) else [n for n in held if n != "__categories"]
    )  # where anndata 0.7 keeps its lists
    return sorted(set(names) - {_index(held)})


def index(file: h5py.File, table: str) -> NDArray[np.object_]:
    """The names of the records (obs) or features (var), as text."""
    held = file[table]
    name = _index(held)
    if isinstance(held, h5py.Dataset):
        return _text(held[name])
    if name not in held:
        raise RequestError(
            f"{file.filename} has no {table} names, so that its rows cannot be told apart; write it with anndata's write_h5ad"
        )
    return _text(_read(held[name], f"{table} names"))


def column(file: h5py.File, name: str) -> NDArray[np.object_]:
    """One obs column as text [N], None where missing; RequestError with the nearest and all names where there is no such column."""
    known = columns(file)
    if name not in known:
        listed = ", ".join(known) or "none"
        near = did_you_mean(name, known)
        raise RequestError(f"{file.filename} has no obs column '{name}'{near if 'mean' in near else ''}; its columns: {listed}")
    held, what = file["obs"], f"obs column '{name}'"
    if not isinstance(held, h5py.Dataset):
        found = _text(_read(held[name], what))
        names = held.get(_index(held))
        if isinstance(names, h5py.Dataset) and len(names) != len(found):
            raise _damaged(file, what, f"it has {len(found)} entries for {len(names)} records")
        return found
    values = held[name]  # anndata before 0.7: one compound table, categories aside in uns
    categories = file.get(f"uns/{name}_categories")
    return _text(values if categories is None else _decode(file, np.asarray(values), _text(categories[()]), what))


def _index(held: h5py.Dataset | h5py.Group) -> str:
    if isinstance(held, h5py.Dataset):
        return next((name for name in ("index", "_index") if name in held.dtype.names), held.dtype.names[0])
    name = held.attrs.get("_index", "_index")
    return name.decode() if isinstance(name, bytes) else str(name)


def _read(held: h5py.Dataset | h5py.Group, what: str) -> NDArray[Any]:
    """A stored column: plain, categorical or nullable; missing entries are None."""
    if isinstance(held, h5py.Dataset):
        values: NDArray[Any] = held[()]
        categories = held.attrs.get("categories")  # anndata 0.7: codes that point to a list
        return values if categories is None else _decode(held.file, values, _text(held.file[categories][()]), what)
    if "codes" in held and "categories" in held:
        return _decode(held.file, held["codes"][()], _text(_read(held["categories"], what)), what)
    if "values" in held and "mask" in held:
        values, gaps = _text(held["values"][()]), held["mask"][()].astype(bool)
        if gaps.shape != values.shape:
            raise _damaged(held.file, what, f"it has {len(values)} values but says of {gaps.size} whether they are missing")
        values[gaps] = None
        return values
    kind = held.attrs.get("encoding-type", "unknown")
    raise RequestError(
        f"{held.file.filename} stores {what} as '{kind}', which is not read here; turn it into text with .astype(str) and write again"
    )


def _decode(file: h5py.File, codes: NDArray[Any], categories: NDArray[np.object_], what: str) -> NDArray[np.object_]:
    """Codes, -1 for missing, to names."""
    if codes.dtype.kind not in "iub":
        raise _damaged(file, what, f"its codes are of type {codes.dtype}")
    places = codes.astype(np.int64)
    if len(places) and not -1 <= places.min() <= places.max() < len(categories):
        raise _damaged(file, what, f"it has codes from {places.min()} to {places.max()} for {len(categories)} categories")
    return np.append(categories, [None])[places]


def _damaged(file: h5py.File, what: str, why: str) -> RequestError:
    return RequestError(f"{file.filename}: {what} is damaged: {why}, so that records would get wrong names; write or copy the file again")


def _text(values: NDArray[Any]) -> NDArray[np.object_]:
    """Any column as text: whole numbers without a point, missing entries None."""
    out = np.empty(len(values), dtype=object)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.floor(values))
        out[:] = [None if np.isnan(v) else str(int(v)) if w else str(v) for v, w in zip(values.tolist(), whole)]
        return out
    decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()]
    out[:] = [None if v is None or str(v) in _MISSING else str(v) for v in decoded]
    return out


# ------------------------------------------------------------------------------------------------------------------------ values


def matrix(file: h5py.File, where: str, rows: NDArray[np.bool_], features: int) -> NDArray[np.float32]:
    """The chosen rows of "X", "raw", "layers/NAME" or "obsm/NAME" as a dense float32 matrix [rows.sum(), F]."""
    held = file.get({"raw": "raw/X"}.get(where, where))
    if held is None and where == "raw":
        held = file.get("raw.X")  # anndata before 0.7
    if frame.is_frame(held):
        return frame.values(held, rows)
    if held is None or (isinstance(held, h5py.Group) and not compressed.PARTS & set(held)):
        present = [key for key in ("X", "raw") if key in file or f"{key}.X" in file]
        present += [f"{part}/{name}" for part in ("layers", "obsm") if isinstance(file.get(part), h5py.Group) for name in file[part]]
        raise _no_matrix(file, where, present)
    out = np.empty((int(rows.sum()), features), dtype=np.float32)
    shape = compressed.shape(held, where)
    if shape != (len(rows), features):
        stored, told = " x ".join(map(str, shape)), f"{len(rows)} x {features}"
        raise RequestError(f"{file.filename}: matrix '{where}' is {stored} but obs and var say {told}; write the file again with anndata")
    if isinstance(held, h5py.Dataset):
        _dense(held, rows, out)
    else:
        _sparse(compressed.opened(held, where), rows, out)
    return out


def _no_matrix(file: h5py.File, where: str, present: Sequence[str]) -> RequestError:
    """Which there are; one that differs in capitals alone is the nearest."""
    if not present:
        return RequestError(f"{file.filename} holds no matrix '{where}'; write one into X")
    same = [name for name in present if name.lower() == where.lower()]
    near = f"; did you mean '{same[0]}'?" if same else did_you_mean(where, present)
    example = same[0] if same else present[0]
    return RequestError(f"{file.filename} holds no matrix '{where}'{near} (a suite file chooses one: data: {{matrix: {example}}})")


def own_names(file: h5py.File, where: str) -> tuple[str, ...] | None:
    """What the columns of an obsm matrix are called (numbers, where it has no names); None for the others, which have var's names."""
    held = file.get(where)
    if not where.startswith("obsm/") or held is None:
        return None
    called = where.removeprefix("obsm/")
    if frame.is_frame(held):
        return tuple(f"{called} {name}" for name in frame.names(held))
    shape = held.attrs.get("shape", ()) if isinstance(held, h5py.Group) else held.shape
    return tuple(f"{called} {i + 1}" for i in range(int(shape[1]))) if len(shape) == 2 else None


def sparse_matrix(file: h5py.File, where: str, rows: NDArray[np.bool_]) -> Any:
    """The chosen rows of the same matrices as CSR [rows.sum(), F] float32, read in blocks; a dense one becomes sparse block by block."""
    from scipy import sparse

    held = file.get(where)
    if frame.is_frame(held):
        return sparse.csr_matrix(frame.values(held, rows))
    if held is None or (isinstance(held, h5py.Group) and not compressed.PARTS & set(held)):
        present = [f"obsm/{name}" for name in file.get("obsm", ())]
        raise _no_matrix(file, where, present)
    shape = compressed.shape(held, where)
    if len(shape) != 2 or shape[0] != len(rows):
        raise RequestError(f"{file.filename}: matrix '{where}' is no table of {len(rows)} records; write the file again with anndata")
    if isinstance(held, h5py.Dataset):
        step = max(1, _BLOCK // max(1, held.shape[1] * held.dtype.itemsize))
        blocks = [sparse.csr_matrix(held[i : i + step][rows[i : i + step]], dtype=np.float32) for i in range(0, len(rows), step)]
        return sparse.vstack(blocks, format="csr")
    found = compressed.opened(held, where)
    return found.lines(0, len(found.pointers) - 1).tocsr()[rows]


def _dense(held: h5py.Dataset, rows: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    if held.dtype.kind not in "fiub":
        raise RequestError(f"{held.file.filename} holds values of type {held.dtype} where numbers are needed; convert them before writing")
    tall = held.chunks[0] if held.chunks else 1
    step = max(1, _BLOCK // max(1, held.shape[1] * held.dtype.itemsize))
    step = max(tall, step // tall * tall)  # whole chunks, so that none is unpacked twice
    done = 0
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        block = held[start : start + step]
        kept = block if chosen.all() else block[chosen]
        out[done : done + len(kept)] = kept
        done += len(kept)


def _sparse(held: compressed.Compressed, rows: NDArray[np.bool_], out: NDArray[np.float32]) -> None:
    done = 0
    for start, stop in _spans(held.pointers, held.across):
        block = held.lines(start, stop)
        if held.by_column:
            out[:, start:stop] = block.toarray()[rows]
            continue
        chosen = rows[start:stop]
        kept = block if chosen.all() else block[chosen]
        kept.toarray(out=out[done : done + kept.shape[0]])
        done += kept.shape[0]


def _spans(pointers: Sequence[int] | NDArray[Any], across: int) -> Iterator[tuple[int, int]]:
    """Runs of whole lines that are small both as stored (12 bytes a value) and as dense float32."""
    lines = len(pointers) - 1
    start = 0
    most = max(1, _BLOCK // max(1, 4 * across))
    while start < lines:
        full = int(np.searchsorted(pointers, int(pointers[start]) + _BLOCK // 12, side="right")) - 1
        stop = min(lines, start + most, max(start + 1, full))
        yield start, stop
        start = stop
