"""How long a cell will take, foretold from cells that were measured: in this run, or by earlier ones in the same folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from suites.plan import Cell
from suites.registry import portable
from suites.store import MANIFEST, Store

UNMEASURED = {"train": 5.0, "reference": 10.0, "attack": 0.5}  # seconds; a guess, said to be one
_ENOUGH = 200  # manifests read from earlier runs, a stage


class Forecast:
    """Medians of measured seconds, by the closest kind of cell that was measured."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, ...], list[float]] = {}

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
        return median(known) if known else UNMEASURED[cell.stage]

    def total(self, cells: Iterable[Cell], workers: int) -> float:
        """Seconds until all are done, were the workers always busy."""
        return sum(map(self.seconds, cells)) / workers


def _kinds(spec: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """From the closest likeness to the widest."""
    stage, defense, attack = str(spec["stage"]), portable(str(spec["defense"])), portable(str(spec.get("attack", "")))
    return [(stage, defense, attack), (stage, "", attack), (stage, defense, ""), (stage,)]
