"""What a dry run reads before it foretells: the cohorts and the defenses' settings, so that a wrong request fails as early as it can.

The complaint is the one that the run itself would make. Nothing is written and nothing is downloaded: of a cohort that is not on this
machine only its name is known, and that is said. One local epoch of each defense is run and timed, which foretells its trainings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.plan import CELL_FUNCTIONS, Plan

if TYPE_CHECKING:
    from suites.bench import Bench

LONG = 0.5  # seconds of an epoch that is its own measure
QUICK = 2  # rounds, and local epochs, of a quick training that are timed


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What could not be looked at, in sentences; of each training looked at its spec and the seconds that one federation takes."""

    unread: list[str]
    trainings: list[tuple[Mapping[str, Any], float]] = field(default_factory=list)
    values: list[tuple[Mapping[str, Any], int]] = field(default_factory=list)  # and how many its cohort has, records x features


def rehearse(plan: Plan) -> Rehearsed:
    """Read each part's cohort, fit each defense to it on every seed's split, and time an epoch of the first seed.

    Raises
    ------
    RequestError
        Whatever the first training of each defense would raise before its first step.
    """
    cells = [cell for cell in plan.cells if cell.stage == "train" and not cell.spec.get("inserts")]
    if any(cell.call != CELL_FUNCTIONS["train"] for cell in cells):
        return Rehearsed([])
    unread = [
        f"{part.data.name} is not on this machine, so its columns are not checked: infl-bench data fetch {part.data.name}"
        for part in plan.suite.each
        if not at_hand(part.data)
    ]
    from suites.bench import Bench  # and with it torch
    from suites.prepared import Prepared, prepare

    held: dict[tuple[str, str, int], Prepared] = {}
    trainings: list[tuple[Mapping[str, Any], float]] = []
    values: list[tuple[Mapping[str, Any], int]] = []
    for cell in sorted(cells, key=lambda cell: (str(cell.spec["data"]), int(cell.spec["seed"]))):
        data = DataSpec(**cell.spec["data"])
        if not at_hand(data):
            continue
        where = (cell.spec["task"], data.model_dump_json(), cell.spec["seed"])  # a site's size, which a defense may refuse, is its split's
        if where not in held:
            held = {where: prepare(cell.spec, None)}  # one at a time: cohorts are large
        bench = Bench(cell.spec, None, held[where])
        if cell.spec["seed"] == 0:
            if not trainings:
                bench.short()  # the first of a process pays for what is loaded once
            trainings.append((cell.spec, _seconds(bench)))
            values.append((cell.spec, held[where].pool.x.numel()))
    return Rehearsed(unread, trainings, values)


def _seconds(bench: Bench) -> float:
    """Of one whole training. Where an epoch is quick, what each further one adds is timed: the first pays for setting out."""
    epochs = bench.federation.rounds * bench.federation.local.epochs
    first = _timed(bench, 1)
    if first > LONG or epochs <= QUICK**2:
        return first * epochs
    first, several = min(first, _timed(bench, 1)), _timed(bench, QUICK)
    return first + max(several - first, 0.0) / (QUICK**2 - 1) * (epochs - 1)


def _timed(bench: Bench, times: int) -> float:
    """Seconds of the processor over ``times`` rounds of ``times`` local epochs."""
    started = time.process_time()
    bench.short(times, times)
    return time.process_time() - started


def at_hand(data: DataSpec) -> bool:
    """Whether the cohort can be read without a download."""
    if data.name is None or not card(data.name).download:
        return True
    from suites.cohorts.named import at_hand as fetched

    return fetched(data.name)
