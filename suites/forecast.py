"""How long a cell will take, foretold from cells that were measured: in this run, or by earlier ones in the same folder.

Where none was, from an epoch of its training that a dry run timed; where none was timed either, from a guess that says so. What an attack
takes grows with the cohort's values (records x features) and, where it searches, with its budget. Measured cells are held as multiples of
their guess, so that one of another size or budget still tells of this machine; attacks of which none was measured go by the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from suites.plan import Cell
from suites.registry import portable
from suites.store import MANIFEST, Store

UNMEASURED = {"train": 2.0, "reference": 4.0, "attack": 0.2}  # seconds; a guess, said to be one
# Searches take far longer than other attacks; seconds at their own effort, on one core, for cohorts of the catalogue's sizes.
SEARCHES = {
    "row_space": 10.0,
    "row_space_of_sum": 20.0,
    "gram_search": 5.0,
    "gram_search_of_sum": 5.0,
    "norms_of_sum": 5.0,
    "overlap": 4.0,
    "ladder_of_sum": 5.0,
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
WIDE = 0.025  # seconds more for every million values of the cohort, of any attack: it reads and standardises them
# Of those that take more, measured from half a million to fifty million values with probes of one record; of many takes far longer.
WIDER = {
    "overlap": 0.5,
    "gram_search": 0.3,
    "gram_search_of_sum": 1.2,
    "learned_inverter": 1.5,
    "learned_inverter_of_sum": 1.5,
    "ladder_of_sum": 0.5,
    "norms_of_sum": 0.15,
    "cosine_inversion": 0.15,
    "cosine_inversion_of_sum": 0.15,
    "candidates_in_span": 0.1,
    "candidates_in_span_of_sum": 0.06,
    "matched_span": 0.1,
    "matched_span_of_sum": 0.05,
    "span": 0.15,
    "span_of_sum": 0.04,
    "principal_components": 0.05,
    "open_with_wrong_keys": 0.25,
}
# Read a network's outputs or inputs as classes and features, which those of other tasks are not: they look, and say so.
PLAIN = {"learned_inverter", "learned_inverter_of_sum", "gram_search_of_sum", "norms_of_sum"}
START = 0.3  # seconds in which a training's process reads its data and writes its records
LANE = 0.6  # what one more reference adds to those trained with it, in trainings of its own
_ENOUGH = 200  # manifests read from earlier runs, a stage
_FEW = 3  # measured attacks that speak for others


class Forecast:
    """Medians of measured times, as multiples of the guess, by the closest kind of cell that was measured."""

    def __init__(self) -> None:
        self._multiples: dict[tuple[str, ...], list[float]] = {}
        self._attacks: dict[str, list[tuple[float, float]]] = {}  # by task: seconds and guess
        self._expected: dict[tuple[str, str], float] = {}  # of one training, by task and defense
        self._millions: dict[tuple[str, str], float] = {}  # values, by task and data
        self._store: Store | None = None

    def expect(self, spec: Mapping[str, Any], seconds: float) -> None:
        """One training of this task and defense takes about so long."""
        self._expected[portable(str(spec["task"])), portable(str(spec["defense"]))] = seconds

    def sized(self, spec: Mapping[str, Any], values: int) -> None:
        """The cohort of this task and data has so many values."""
        self._millions[_data(spec)] = values / 1e6

    @property
    def measured(self) -> bool:
        return bool(self._multiples)

    def note(self, spec: Mapping[str, Any], seconds: float) -> None:
        if self._store is not None and spec["stage"] == "train" and _data(spec) not in self._millions:
            self._measure(self._store)  # prepared by this very training, perhaps
        guessed = self._guess(spec)
        for key in _kinds(spec):
            self._multiples.setdefault(key, []).append(seconds / guessed)
        if spec["stage"] == "attack":
            for task in {portable(str(spec.get("task", ""))), ""}:
                self._attacks.setdefault(task, []).append((seconds, guessed))

    def recall(self, store: Store) -> None:
        """Learn from the cells of earlier runs in this folder."""
        self._store = store
        self._measure(store)
        for stage in UNMEASURED:
            for path in sorted((store.root / stage).glob(f"*/{MANIFEST}"))[:_ENOUGH]:
                try:
                    found = json.loads(path.read_text())
                    self.note(found["spec"], float(found["seconds"]))
                except (OSError, ValueError, KeyError):
                    continue

    def seconds(self, cell: Cell) -> float:
        known = next((self._multiples[key] for key in _kinds(cell.spec) if key in self._multiples), None)
        return median(known) * self._guess(cell.spec) if known else self._foretold(cell.spec)

    def _foretold(self, spec: Mapping[str, Any]) -> float:
        task = portable(str(spec.get("task", "")))
        one = self._expected.get((task, portable(str(spec["defense"]))))
        if spec["stage"] == "attack":
            return self._guess(spec) * self._pace(task)
        if one is None:
            return self._guess(spec)
        return START + one * (1 + LANE * (int(spec.get("count", 1)) - 1))

    def _pace(self, task: str) -> float:
        """How much longer than guessed the measured attacks on this task, or else on any, took in all."""
        known = self._attacks.get(task, [])
        known = known if len(known) >= _FEW else self._attacks.get("", [])
        return sum(s for s, _ in known) / sum(g for _, g in known) if len(known) >= _FEW else 1.0

    def _guess(self, spec: Mapping[str, Any]) -> float:
        return guess(spec, self._millions.get(_data(spec), 0.0))

    def _measure(self, store: Store) -> None:
        """The sizes of the cohorts that this folder holds prepared, from the files' headers."""
        for path in (store.root / "prepared").glob("*.safetensors"):
            with suppress(OSError, ValueError, KeyError):
                held = _header(path)
                records, features = held["x"]["shape"]
                self.sized(json.loads(held["__metadata__"]["spec"]), records * features)

    def total(self, cells: Iterable[Cell], workers: int) -> float:
        """Seconds until all are done, were the workers always busy."""
        return sum(map(self.seconds, cells)) / workers


def guess(spec: Mapping[str, Any], millions: float = 0.0) -> float:
    """Seconds of a cell of which nothing alike was measured, on a cohort of so many million values."""
    stage, budget = str(spec["stage"]), float(spec.get("budget", 1.0))
    if stage != "attack":
        return UNMEASURED[stage]
    name = portable(str(spec.get("attack", ""))).partition(":")[0]
    if name in PLAIN and not portable(str(spec.get("task", "classification"))).startswith("classification"):
        return UNMEASURED["attack"]
    searched = SEARCHES.get(name)
    small = UNMEASURED["attack"] if searched is None else max(searched * budget, UNMEASURED["attack"])
    return small + millions * (WIDER.get(name, 0.0) * budget + WIDE)


def _header(path: Path) -> Any:
    """What a safetensors file says of itself: eight bytes that count, then JSON."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))


def _data(spec: Mapping[str, Any]) -> tuple[str, str]:
    return portable(str(spec.get("task", ""))), json.dumps(spec.get("data", {}), sort_keys=True, default=str)


def _kinds(spec: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """From the closest likeness to the widest."""
    stage, defense, attack = str(spec["stage"]), portable(str(spec["defense"])), portable(str(spec.get("attack", "")))
    task, budget = portable(str(spec.get("task", ""))), str(spec.get("budget", ""))
    return [
        (stage, task, defense, attack, budget),
        (stage, "", defense, attack, budget),
        (stage, "", "", attack, budget),
        (stage, "", "", attack, ""),
        *_wider(stage, task, defense),
    ]


def _wider(stage: str, task: str, defense: str) -> list[tuple[str, ...]]:
    """Likenesses across attacks are no measure of an attack, whose time is its own: they set the pace of all that are not measured."""
    return [] if stage == "attack" else [(stage, task, defense), (stage, "", defense), (stage, task, ""), (stage,)]
