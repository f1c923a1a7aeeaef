"""Draw a report again from a finished run's tables, alone or beside a second run's."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from reports import schema
from suites.errors import RequestError
from suites.gather import CURVES_FILE, RECORD_FILE, RESULTS_FILE
from suites.store import writing


def redraw(folder: Path, other: Path | None = None) -> Path:
    """Draw ``folder``'s report; with ``other``, that run's answers beside its own."""
    results, curves, record = _read(folder)
    beside: dict[str, Any] = {}
    if other is not None:
        run = import_module("reports.compare").Run
        beside["other"] = run(other.resolve().name, *_read(other))
    with writing(folder):
        return Path(import_module("reports.render").render(results, curves, record, folder, **beside))


def _read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    if not (folder / RESULTS_FILE).is_file():
        raise RequestError(f"{folder} holds no {RESULTS_FILE}; give the --out folder of a finished run")
    try:
        results = schema.validate(pd.read_parquet(folder / RESULTS_FILE))
        path = folder / CURVES_FILE
        curves = schema.validate_curves(pd.read_parquet(path)) if path.is_file() else schema.empty_curves()
        path = folder / RECORD_FILE
        record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise RequestError(f"the tables in {folder} cannot be read ({' '.join(str(error).split())}); run the suite again") from None
    return results, curves, record
