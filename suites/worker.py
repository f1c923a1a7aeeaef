"""One cell in its own process: call, record, and rename into the store; whatever goes wrong is written down, never lost.

The same function serves the local pool and a cluster's job, since all it needs is the store's folder and the cell's JSON.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suites.errors import RequestError, Skip
from suites.meter import peak_memory, reset_peak_memory
from suites.store import Store, write_trouble

ROWS = "rows.json"


def work(store: str, stage: str, identity: str, call: str, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
    """Compute one cell into the store.

    Parameters
    ----------
    call : ``module:function``, called as function(spec, folder), or function(spec, folder, inputs) for an attack
    inputs : folders of finished cells, by name
    """
    place, loaded = Store(Path(store)), set(sys.modules)
    reset_peak_memory()  # of a fork, which begins with what its server holds
    at_start = peak_memory()
    started, before = time.perf_counter(), time.process_time()
    try:
        folder = place.begin(identity)
        _talk_into(folder / "log.txt")
        try:
            module, _, function = call.partition(":")
            cell = getattr(importlib.import_module(module), function)
            cell(spec, folder, *([{name: Path(path) for name, path in inputs.items()}] if stage == "attack" else []))
        except Skip as skip:
            row = {"metric": "", "value": math.nan, "status": "skipped", "reason": str(skip)}
            (folder / ROWS).write_text(json.dumps([row]))
        _drop_empty(folder / "log.txt")
        recorded = {
            "stage": stage,
            "spec": spec,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - before,
            "peak_memory_bytes": peak_memory(),
            "memory_at_start_bytes": at_start,  # Python, torch and the modules: what any cell takes before it begins
            "imported": _imported(loaded),
        }
        place.commit(folder, stage, identity, recorded)
    except BaseException as error:
        _fail(place, identity, error, time.perf_counter() - started)
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _imported(before: set[str]) -> list[str]:
    """Roots of what this cell had to import by itself: the server may load them once for all cells to come."""
    new = {name for name in sys.modules if name not in before and not name.startswith(("infl_bench_plugin", "_"))}
    return sorted(name for name in new if name.rpartition(".")[0] not in new)


def failure(store: Store, identity: str) -> dict[str, Any] | None:
    """What a failed cell left: kind (request, write or failed), error and traceback."""
    try:
        found: dict[str, Any] = json.loads((store.root / "failed" / f"{identity}.json").read_text())
        return found
    except (OSError, ValueError):
        return None


def _fail(store: Store, identity: str, error: BaseException, seconds: float) -> None:
    full = write_trouble(error, store.root.parent)
    kind = "request" if isinstance(error, RequestError) else "write" if full else "failed"
    text = str(error) if kind == "request" else full or f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    left = {"kind": kind, "error": text, "traceback": traceback.format_exc(), "seconds": seconds}
    path = store.root / "failed" / f"{identity}.json"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(left, indent=1))
        os.replace(temporary, path)
    except OSError:
        os._exit(WRITE_FAILED)  # not even the note can be written: only the exit code is left to say so


WRITE_FAILED = 75  # sysexits.h: a temporary failure


def _talk_into(log: Path) -> None:
    """Standard output and error of a cell go beside its results."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _drop_empty(log: Path) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if log.exists() and log.stat().st_size == 0:
        log.unlink()
