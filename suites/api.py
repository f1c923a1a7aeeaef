"""The whole of ``infl-bench run`` as a function: ``from suites.api import run``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suites import config, parts, registry
from suites.cohorts import in_memory
from suites.errors import RequestError
from suites.plan import CELL_FUNCTIONS, Plan, plan
from suites.runner import Outcome, Progress, default_workers, execute, store_of
from suites.store import writing

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Request:
    """A suite with the changes asked for, planned on a device; ``out`` is where it will be written."""

    plan: Plan
    text: str
    out: Path
    device: str
    command: str = ""  # as it was typed; empty where there was no command line


def request(
    suite: str | Path,
    *,
    out: str | Path | None = None,
    task: str | None = None,
    data: str | Path | Any = None,
    label: str | None = None,
    site: str | None = None,
    person: str | None = None,
    transform: str | None = None,
    missing: str | None = None,
    drop: Sequence[str] | None = None,
    data_only_embedded: bool = False,
    defenses: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    seeds: int | None = None,
    references: int | None = None,
    budget: float | None = None,
    device: str | None = None,
    functions: Mapping[str, str] = CELL_FUNCTIONS,
    command: str = "",
) -> Request:
    """Read, change and plan a suite, without computing anything; see ``run`` for the arguments."""
    registry.refuse_intruders()
    spec, text = config.load(suite)
    spec, task = parts.chosen(spec, task)
    given = {"label": label, "site": site, "person": person, "transform": transform, "missing": missing, "drop": drop}
    columns = {name: value for name, value in given.items() if value is not None}
    for name in columns | ({"data": data} if data is not None else {}):
        parts.refuse_many(spec, f"--{name}")
    if data_only_embedded:
        if data is not None:
            raise RequestError("--data names a cohort and --data-only-embedded replaces those that need a download; give one of them")
        spec = parts.embedded(spec)
    source = spec.data.model_dump(exclude_defaults=True)
    if data is not None and not isinstance(data, str):
        default = Path("infl-bench-out") / f"{spec.suite}-{Path(in_memory.NAME).stem}"
        with writing(place := default if out is None else Path(out)):
            data = str(data if isinstance(data, Path) else in_memory.as_file(data, place))
    if data is not None:
        is_file = data.lower().endswith((".h5ad", ".h5", ".csv", ".tsv", ".txt", ".loom")) or "/" in data or Path(data).exists()
        source = {"path" if is_file else "name": data}
    changed = config.override(
        spec,
        task=task,
        data={**source, **columns} if data or columns else None,
        partition={**spec.partition.model_dump(), "kind": "column"} if site else None,
        split={**spec.split.model_dump(), "unit": "person"} if person else None,  # a person's records never straddle
        title=f"{spec.suite} on {Path(data).stem}" if data is not None else None,
        defenses=list(defenses) if defenses is not None else None,
        attacks=list(attacks) if attacks is not None else None,
        seeds=seeds,
        references=references,
        budget=budget,
        device=device,
    )
    chosen = resolve_device(changed.device)
    folder = changed.suite if data is None else f"{changed.suite}-{Path(data).stem}"  # another cohort never overwrites the first
    where = Path(out) if out is not None else Path("infl-bench-out") / folder
    return Request(plan(changed, chosen, functions), text, where, chosen, command)


def run(
    suite: str | Path,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    report: bool = True,
    tell: Callable[[Progress], None] = lambda _: None,
    **changes: Any,
) -> pd.DataFrame:
    """Run a suite, or what is missing of it, and return its results table.

    Parameters
    ----------
    suite : name from the catalogue, or a YAML file
    out : folder for store, tables and report; default ``infl-bench-out/<suite>``, or ``<suite>-<data>`` where data is given
    workers : processes at a time; default one a core
    report : whether to draw ``out/report``
    tell : called after each change with a ``Progress``
    changes : task, data, label, site, person, transform, missing, drop, data_only_embedded, defenses, attacks, seeds, references, budget,
        device: in place of the suite's own. ``data`` is a cohort's name, the path of an .h5ad file, or an AnnData object: of a backed one
        its file is read, one in memory is written into ``out``

    Returns
    -------
    DataFrame
        One metric a row (``reports.schema``). A failed cell is a row with status "failed"; only a wrong request raises.

    Raises
    ------
    RequestError
        One sentence: what is wrong, why, how to mend.
    """
    return carry_out(request(suite, out=out, **changes), workers=workers, report=report, tell=tell)


def check_workers(workers: int | None) -> None:
    """At least one process must work."""
    if workers is not None and workers < 1:
        raise RequestError(f"--workers is {workers}, but at least one process must work; give 1 or more")


def carry_out(
    asked: Request, *, workers: int | None = None, report: bool = True, tell: Callable[[Progress], None] = lambda _: None
) -> pd.DataFrame:
    """Compute a planned request, write its tables and draw its report."""
    store = store_of(asked.out)
    check_workers(workers)
    threading.Thread(target=_warm, args=(report,), daemon=True).start()
    outcome = execute(asked.plan, store, workers or default_workers(asked.device), tell)
    return _finish(asked, outcome, report=report)


def resolve_device(name: str) -> str:
    """``auto`` is CUDA where there is one; asking for CUDA where there is none is an error."""
    if name == "cpu" or (name == "auto" and not _may_have_cuda()):
        return "cpu"
    if _may_have_cuda():
        import torch

        if torch.cuda.is_available():
            return "cuda"
    if name == "cuda":
        raise RequestError("--device cuda was asked for, but torch finds no CUDA device here; use --device cpu or auto")
    return "cpu"


def _may_have_cuda() -> bool:
    """Whether it is worth seconds of torch to ask: NVIDIA's driver shows itself in /dev (or the system is not Linux)."""
    return sys.platform != "linux" or any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def _finish(asked: Request, outcome: Outcome, *, report: bool) -> pd.DataFrame:
    from reports.schema import SchemaError
    from suites import gather

    store = store_of(asked.out)
    try:
        curves = gather.curves(asked.plan, store, outcome)
        table = gather.results(asked.plan, store, outcome, curves)
    except SchemaError as error:
        raise RequestError(f"what the cells wrote is no results table: {error}") from error
    record = gather.record(asked.plan, outcome, store, asked.text, asked.device, asked.command)
    gather.write(asked.out, table, curves, record)
    if report:
        with writing(asked.out):
            import_module("reports.render").render(table, curves, record, asked.out)
    return table


def _warm(report: bool) -> None:
    """Load what the end needs while the workers work; an error shows itself when it is needed."""
    try:
        import_module("suites.gather")
        if report:
            import_module("reports.render")
    except Exception:
        return
