"""How long a cell will take, foretold from cells that were measured: in this run, or by earlier ones in the same folder.

Where none was, from an epoch of its training that a dry run timed; where none was timed either, from a guess that says so. What an attack
takes grows with the cohort's values (records x features) and, where it searches, with its budget. Measured cells are held as multiples of
their guess, so that one of another size or budget still tells of this machine; attacks of which none was measured go by the others.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from suites.plan import Cell
from suites.registry import portable
from suites.store import MANIFEST, Store

UNMEASURED = {"train": 2.0, "reference": 4.0, "attack": 0.2}  # seconds; a guess, said to be one
# Searches take far longer than other attacks; seconds at their own effort, on one core, for cohorts of the catalogue's sizes, as a mean
# over the defenses of `standard`: where a search succeeds, as under FedAvg, it ends early.
SEARCHES = {
    "row_space": 10.0,
    "row_space_of_sum": 20.0,
    "gram_search": 5.0,
    "gram_search_of_sum": 25.0,
    "norms_of_sum": 17.0,
    "overlap": 4.0,
    "ladder": 1.5,
    "ladder_of_sum": 22.0,
    "cosine_inversion": 2.0,
    "cosine_inversion_of_sum": 3.0,
    "inverting_gradients": 8.0,
    "inverting_gradients_of_sum": 8.0,
    "dlg": 4.0,
    "dlg_of_sum": 6.0,
    "idlg": 4.0,
    "idlg_of_sum": 6.0,
    "tableak": 8.0,
    "tableak_of_sum": 10.0,
    "learned_inverter": 9.0,
    "learned_inverter_of_sum": 12.0,
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


@dataclass(frozen=True, slots=True)
class Likeness:
    """What of a cell's request its time goes by: cells that are alike in it are foretold alike."""

    stage: str
    task: str
    data: str
    defense: str
    attack: str
    budget: str
    references: int

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Likeness:
        task, defense, attack = (portable(str(spec.get(name, ""))) for name in ("task", "defense", "attack"))
        data = json.dumps(spec.get("data", {}), sort_keys=True, default=str)
        return cls(str(spec.get("stage", "")), task, data, defense, attack, str(spec.get("budget", "")), int(spec.get("count", 1)))

    @property
    def kinds(self) -> list[tuple[str, ...]]:
        """From the closest likeness to the widest."""
        stage, task, defense, attack = self.stage, self.task, self.defense, self.attack
        one: list[tuple[str, ...]] = [
            (stage, task, defense, attack, self.budget),
            (stage, "", defense, attack, self.budget),
            (stage, "", "", attack, self.budget),
            (stage, "", "", attack, ""),
        ]
        # Likenesses across attacks are no measure of an attack, whose time is its own: they set the pace of all that are not measured.
        return one if stage == "attack" else [*one, (stage, task, defense), (stage, "", defense), (stage, task, ""), (stage,)]

    def guess(self, millions: float = 0.0) -> float:
        """Seconds, where nothing alike was measured, on a cohort of so many million values."""
        if self.stage != "attack":
            return UNMEASURED[self.stage]
        name, budget = self.attack.partition(":")[0], float(self.budget or 1.0)
        if name in PLAIN and not self.task.startswith("classification"):
            return UNMEASURED["attack"]
        searched = SEARCHES.get(name)
        small = UNMEASURED["attack"] if searched is None else max(searched * budget, UNMEASURED["attack"])
        return small + millions * (WIDER.get(name, 0.0) * budget + WIDE)


class Forecast:
    """Medians of measured times, as multiples of the guess, by the closest kind of cell that was measured."""

    def __init__(self) -> None:
        self._multiples: dict[tuple[str, ...], list[float]] = {}
        self._attacks: dict[str, tuple[int, float, float]] = {}  # by task: how many, their seconds, and their guesses
        self._expected: dict[tuple[str, str], float] = {}  # of one training, by task and defense
        self._millions: dict[tuple[str, str], float] = {}  # values, by task and data
        self._store: Store | None = None

    def expect(self, spec: Mapping[str, Any], seconds: float) -> None:
        """One training of this task and defense takes about so long."""
        like = Likeness.of(spec)
        self._expected[like.task, like.defense] = seconds

    def sized(self, spec: Mapping[str, Any], values: int) -> None:
        """The cohort of this task and data has so many values."""
        like = Likeness.of(spec)
        self._millions[like.task, like.data] = values / 1e6

    @property
    def measured(self) -> bool:
        return bool(self._multiples)

    def note(self, spec: Mapping[str, Any], seconds: float) -> None:
        like = Likeness.of(spec)
        if self._store is not None and like.stage == "train" and (like.task, like.data) not in self._millions:
            self._measure(self._store)  # prepared by this very training, perhaps
        guessed = self._guess(like)
        for kind in like.kinds:
            self._multiples.setdefault(kind, []).append(seconds / guessed)
        if like.stage == "attack":
            for task in {like.task, ""}:
                count, spent, foretold = self._attacks.get(task, (0, 0.0, 0.0))
                self._attacks[task] = count + 1, spent + seconds, foretold + guessed

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
        return self._seconds(Likeness.of(cell.spec))

    def total(self, cells: Iterable[Cell], workers: int) -> float:
        """Seconds until all are done, were the workers always busy."""
        return self.total_of(Counter(Likeness.of(cell.spec) for cell in cells), workers)

    def total_of(self, cells: Mapping[Likeness, int], workers: int) -> float:
        """The same of so many cells of each likeness: whoever asks often counts them once."""
        return sum(count * self._seconds(like) for like, count in cells.items() if count > 0) / workers

    def _seconds(self, like: Likeness) -> float:
        known = next((self._multiples[kind] for kind in like.kinds if kind in self._multiples), None)
        return median(known) * self._guess(like) if known else self._foretold(like)

    def _foretold(self, like: Likeness) -> float:
        if like.stage == "attack":
            return self._guess(like) * self._pace(like.task)
        one = self._expected.get((like.task, like.defense))
        return self._guess(like) if one is None else START + one * (1 + LANE * (like.references - 1))

    def _pace(self, task: str) -> float:
        """How much longer than guessed the measured attacks on this task, or else on any, took in all."""
        for known in (task, ""):
            count, spent, guessed = self._attacks.get(known, (0, 0.0, 0.0))
            if count >= _FEW:
                return spent / guessed
        return 1.0

    def _guess(self, like: Likeness) -> float:
        return like.guess(self._millions.get((like.task, like.data), 0.0))

    def _measure(self, store: Store) -> None:
        """The sizes of the cohorts that this folder holds prepared, from the files' headers."""
        for path in (store.root / "prepared").glob("*.safetensors"):
            with suppress(OSError, ValueError, KeyError):
                held = _header(path)
                records, features = held["x"]["shape"]
                self.sized(json.loads(held["__metadata__"]["spec"]), records * features)


def _header(path: Path) -> Any:
    """What a safetensors file says of itself: eight bytes that count, then JSON."""
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))
