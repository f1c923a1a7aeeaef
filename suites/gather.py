"""Rows and curves of finished cells become the two tables and the record, each written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from reports import schema
from reports.calibration import with_calibration
from reports.flags import with_flags
from reports.roc import CONVENTION
from reports.shrinkage import with_shrinkage
from suites import about, registry
from suites.closure import combined
from suites.config import SuiteSpec
from suites.plan import Cell, Plan
from suites.runner import Outcome
from suites.store import Store, writing

ROWS, CURVES, RECEIPT = "rows.json", "curves.json", "receipt.json"
RESULTS_FILE, CURVES_FILE, RECORD_FILE = "results.parquet", "curves.parquet", "record.json"
_BLANK = {"metric": "", "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "direction": "higher", "role": "score", "reason": ""}


def results(plan: Plan, store: Store, outcome: Outcome, curve_table: pd.DataFrame) -> pd.DataFrame:
    """One row a metric, in the order of the plan: done, failed and skipped cells alike; ``curve_table`` is that of ``curves``."""
    rows: list[dict[str, Any]] = []
    for cell in plan.cells:
        if cell.id in outcome.failed:
            reason = f"{'reference models: ' if cell.stage == 'reference' else ''}{outcome.failed[cell.id]}"
            rows.append(_row(cell, {"status": "failed", "reason": reason, **({} if cell.columns["attack"] else _TRAINING)}, 0.0))
            continue
        manifest = store.manifest(cell.stage, cell.id)
        seconds = float(manifest["seconds"]) if manifest else 0.0
        rows.extend(_row(cell, row, seconds) for row in _read(store.folder(cell.stage, cell.id) / ROWS))
    rows.extend({**_BLANK, **skipped.columns, "status": "skipped", "reason": skipped.reason, "seconds": 0.0} for skipped in plan.skipped)
    if not rows:
        return schema.empty()
    frame = pd.DataFrame([{**row, "protocol": _protocol(row), "schema_version": schema.SCHEMA_VERSION} for row in rows])
    ordered = [*schema.RESULTS, *(name for name in frame.columns if name not in schema.RESULTS)]
    table = frame[ordered].astype({name: kind for name, kind in schema.RESULTS.items() if kind != schema.TEXT})
    return schema.validate(with_flags(with_shrinkage(with_calibration(table, curve_table), curve_table)))


def curves(plan: Plan, store: Store, outcome: Outcome) -> pd.DataFrame:
    """ROC points, key curves, reconstructions, in the order of the plan."""
    rows = [
        {**{name: cell.columns[name] for name in schema.CURVES if name in cell.columns}, **_own(cell, curve)}
        for cell in plan.cells
        if cell.stage == "attack" and cell.id not in outcome.failed
        for curve in _read(store.folder(cell.stage, cell.id) / CURVES)
    ]
    if not rows:
        return schema.empty_curves()
    frame = pd.DataFrame(rows)[list(schema.CURVES)]
    return schema.validate_curves(frame.astype({name: kind for name, kind in schema.CURVES.items() if kind != schema.TEXT}))


def record(plan: Plan, outcome: Outcome, store: Store, text: str, device: str, command: str = "") -> dict[str, Any]:
    """With what code, data, versions and seeds the tables were made; every random number can be derived again from it.

    ``command`` is the command line as it was typed, "" for a run from Python.
    """
    request = _request(plan.suite)
    cells: dict[str, Any] = {}
    for cell in plan.cells:
        found = store.manifest(cell.stage, cell.id) or {}
        status = "failed" if cell.id in outcome.failed else "done"
        cells[cell.id] = {"title": cell.title, "status": status, "seconds": found.get("seconds"), "cpu_seconds": found.get("cpu_seconds")}
    return {
        "schema_version": schema.SCHEMA_VERSION,
        "infl_bench": version("infl-bench"),
        "suite": plan.suite.suite,
        "title": plan.suite.title,
        "command": command,
        "seeds": list(range(plan.suite.seeds)),
        "cohort": about.cohort(plan, store),
        "parts": [_part(part, plan, store) for part in plan.suite.parts],
        "cards": about.cards(list(dict.fromkeys(ref for part in plan.suite.each for ref in (*part.defenses, *part.utility_only)))),
        "attacks": about.attacks(plan),
        "receipts": _receipts(plan, store),
        "data_digest": plan.data,
        "code_hash": combined(plan.code),
        "code": plan.code,
        "versions": {**plan.versions, "pandas": pd.__version__, "python": platform.python_version()},
        "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count(), "device": device},
        "request": request,
        "suite_text": text,
        "cells": cells,
    }


def _request(suite: SuiteSpec) -> dict[str, Any]:
    """The suite as it was run; of a data file its name alone."""
    request = suite.model_dump(mode="json")
    for spec in (request, *request["parts"]):
        if spec["data"]["path"]:
            spec["data"]["path"] = Path(spec["data"]["path"]).name
    return request


def _part(part: SuiteSpec, plan: Plan, store: Store) -> dict[str, Any]:
    """Which rows are a part's, what was asked of it and of what data it is."""
    rows = {"task": registry.find("tasks", part.task).label, "data": part.data.name or Path(str(part.data.path)).stem}
    return {**rows, "request": _request(part), "cohort": about.cohort(plan, store, part)}


def _receipts(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """The receipt of every training that claims an ε, under the columns that name its cell."""
    found = []
    for cell in plan.cells:
        path = store.folder(cell.stage, cell.id) / RECEIPT
        if cell.stage == "train" and not cell.spec.get("inserts") and path.is_file():
            found.append({**{name: cell.columns[name] for name in ("task", "data", "defense", "seed")}, **json.loads(path.read_text())})
    return found


def write(out: Path, table: pd.DataFrame, curve_table: pd.DataFrame, made_with: Mapping[str, Any]) -> None:
    """The three files of a run, each renamed into place when it is whole."""
    with writing(out):
        _atomically(out / RESULTS_FILE, lambda path: table.to_parquet(path, index=False))
        _atomically(out / CURVES_FILE, lambda path: curve_table.to_parquet(path, index=False))
        _atomically(out / RECORD_FILE, lambda path: path.write_text(json.dumps(made_with, indent=1, sort_keys=False)))


def _protocol(row: Mapping[str, Any]) -> str:
    """How scores are told apart, ties included, where a row is about a yes or no of each record."""
    return CONVENTION if str(row["goal"]).partition(":")[0] in ("membership", "audit") else ""


_TRAINING = {"goal": "utility", "role": "utility"}


def _row(cell: Cell, row: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    made = {**_BLANK, "status": "ok", "seconds": seconds, **_own(cell, row)}
    infinite = [name for name in ("value", "low", "high") if made[name] is None or math.isinf(made[name])]
    if infinite:
        made.update(dict.fromkeys(infinite, math.nan))
        made["reason"] = made["reason"] or "not a finite number"
    if made["status"] == "ok" and math.isnan(made["value"]) and not made["reason"]:
        made["reason"] = "not a number"
    return made


def _own(cell: Cell, row: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's row under the plan's columns: what names the cell is the plan's to say, the goal of a training row is its own."""
    return {**row, **cell.columns, "goal": cell.columns["goal"] or row.get("goal", "")}


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def _atomically(path: Path, save: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
