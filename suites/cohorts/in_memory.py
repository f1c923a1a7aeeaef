"""A cohort that a program holds as an AnnData object, for ``suites.api``: cells of a run are processes, so they read it from a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from suites.errors import RequestError

NAME = "anndata.h5ad"


def as_file(data: Any, folder: Path) -> Path:
    """The file behind a backed object, as it lies on disk; else ``folder/anndata.h5ad``, written anew.

    It holds the records, as the run's store does. RequestError where ``data`` is no AnnData object.
    """
    if not (hasattr(data, "write_h5ad") and hasattr(data, "obs") and hasattr(data, "isbacked")):
        raise RequestError(
            f"data is a {type(data).__name__}, which is no cohort; give a name, the path of an .h5ad file or an AnnData object"
        )
    if data.isbacked and not data.is_view:
        return Path(data.filename)
    folder.mkdir(parents=True, exist_ok=True)
    held = data.to_memory() if data.isbacked else data
    path, half = folder / NAME, folder / f".{NAME}.{os.getpid()}"
    try:
        held.write_h5ad(half, convert_strings_to_categoricals=False)  # else the caller's obs would change
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
    return path
