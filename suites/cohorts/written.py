"""An AnnData onto the disk: the whole file, or none and one sentence.

HDF5 that runs out of room while it writes may end the process. So the file is made in memory, and its bytes are written in one go.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import anndata
import h5py

from suites.errors import RequestError


def image(data: anndata.AnnData) -> BytesIO:
    """The bytes of ``data`` as an .h5ad."""
    held = BytesIO()
    data.strings_to_categoricals()
    with h5py.File(held, "w") as file:
        anndata.io.write_elem(file, "/", data)
    return held


def digest(made: BytesIO) -> str:
    return hashlib.sha256(made.getbuffer()).hexdigest()


def put(made: BytesIO, path: Path) -> None:
    """The bytes into ``path`` by way of a file beside it, which goes whatever happens; OSError where there is no room or no right."""
    with _beside(path) as temporary:
        with temporary.open("wb") as file:
            file.write(made.getbuffer())
        os.replace(temporary, path)  # several processes may do this at once: each its own file


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        os.chmod(name, 0o666 & ~_mask())  # as any new file: mkstemp's own are for their maker alone
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_target(out: Path, *sources: Path | None) -> None:
    """RequestError where ``out`` is a folder, lies in none, or is one of the files that are read."""
    if out.is_dir():
        raise RequestError(f"--out {out} is a folder, and one .h5ad is written; name a file, such as --out {out / 'cohort.h5ad'}")
    if not out.parent.is_dir():
        raise RequestError(f"--out {out} lies in a folder that is not there; make {out.parent} first, or name another place")
    if out.exists() and any(source is not None and source.exists() and out.samefile(source) for source in sources):
        raise RequestError(f"--out {out} is the file that is read, and would be lost; name another file")
