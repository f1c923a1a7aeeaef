"""How long a cell will take, foretold from cells that were measured: in this run, or by earlier ones in the same folder.

Where none was, from an epoch of its training that a dry run timed; where none was timed either, from a guess that says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from suites.plan import Cell
from suites.registry import portable
from suites.store import MANIFEST, Store

UNMEASURED = {"train": 2.0, "reference": 4.0, "attack": 0.3}  # seconds; a guess, said to be one
# Searches take far longer than other attacks; seconds at their own effort, on one core, for cohorts of the catalogue's sizes.
SEARCHES = {
    "row_space": 10.0,
    "row_space_of_sum": 20.0,
    "gram_search": 8.0,
    "gram_search_of_sum": 12.0,
    "norms_of_sum": 8.0,
    "overlap": 5.0,
    "cosine_inversion": 2.0,
    "cosine_inversion_of_sum": 2.0,
    "inverting_gradients": 8.0,
    "inverting_gradients_of_sum": 8.0,
    "dlg": 4.0,
    "dlg_of_sum": 6.0,
    "idlg": 4.0,
    "idlg_of_sum": 6.0,
    "tableak": 8.0,
    "tableak_of_sum": 10.0,
    "learned_inverter": 6.0,
    "learned_inverter_of_sum": 8.0,
}
START = 0.3  # seconds in which a training's process reads its data and writes its records
LANE = 0.6  # what one more reference adds to those trained with it, in trainings of its own
_ENOUGH = 200  # manifests read from earlier runs, a stage


class Forecast:
    """Medians of measured seconds, by the closest kind of cell that was measured."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = {}
        self._expected: dict[tuple[str, str], float] = {}  # of one training, by task and defense

    def expect(self, spec: Mapping[str, Any], seconds: float) -> None:
        """One training of this task and defense takes about so long."""
        self._expected[portable(str(spec["task"])), portable(str(spec["defense"]))] = seconds

    @property
    def measured(self) -> bool:
        return bool(self._seconds)

    def note(self, spec: Mapping[str, Any], seconds: float) -> None:
        for key in _kinds(spec):
            self._seconds.setdefault(key, []).append(seconds)

    def recall(self, store: Store) -> None:
        """Learn from the cells of earlier runs in this folder."""
        for stage in UNMEASURED:
            for path in sorted((store.root / stage).glob(f"*/{MANIFEST}"))[:_ENOUGH]:
                try:
                    found = json.loads(path.read_text())
                    self.note(found["spec"], float(found["seconds"]))
                except (OSError, ValueError, KeyError):
                    continue

    def seconds(self, cell: Cell) -> float:
        known = next((self._seconds[key] for key in _kinds(cell.spec) if key in self._seconds), None)
        return median(known) if known else self._foretold(cell.spec)

    def _foretold(self, spec: Mapping[str, Any]) -> float:
        one = self._expected.get((portable(str(spec.get("task", ""))), portable(str(spec["defense"]))))
        if spec["stage"] == "attack" or one is None:
            return guess(spec)
        return START + one * (1 + LANE * (int(spec.get("count", 1)) - 1))

    def total(self, cells: Iterable[Cell], workers: int) -> float:
        """Seconds until all are done, were the workers always busy."""
        return sum(map(self.seconds, cells)) / workers


def guess(spec: Mapping[str, Any]) -> float:
    """Seconds of a cell of which nothing alike was measured."""
    stage, budget = str(spec["stage"]), float(spec.get("budget", 1.0))
    searched = SEARCHES.get(portable(str(spec.get("attack", ""))).partition(":")[0])
    return max(searched * budget, UNMEASURED["attack"]) if searched is not None else UNMEASURED[stage]


def _kinds(spec: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """From the closest likeness to the widest."""
    stage, defense, attack = str(spec["stage"]), portable(str(spec["defense"])), portable(str(spec.get("attack", "")))
    task, budget = portable(str(spec.get("task", ""))), str(spec.get("budget", ""))
    return [
        (stage, task, defense, attack, budget),
        (stage, "", defense, attack, budget),
        (stage, "", "", attack, budget),
        *_wider(stage, task, defense),
    ]


def _wider(stage: str, task: str, defense: str) -> list[tuple[str, ...]]:
    """Likenesses across attacks say nothing of an attack, whose time is its own."""
    return [] if stage == "attack" else [(stage, task, defense), (stage, "", defense), (stage, task, ""), (stage,)]
