"""The scheduler: every cell of a plan that the store lacks, in a process of its own, as many at a time as there are workers.

It keeps no state but the store's, so that a killed run goes on where it stopped. A failed cell is written down and the rest goes on; a
request that a cell finds wrong (one class only, a disk that is full) ends the run with its one sentence.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suites.errors import RequestError
from suites.forecast import Forecast, Likeness
from suites.forkserver import ForkServer
from suites.plan import Cell, Plan
from suites.store import Store, write_trouble, writing
from suites.worker import WRITE_FAILED, failure

_POLL = 0.25
_TOUCH_EVERY = 20.0
_RESTARTS = 3
_AT_FIRST_USE = ("torch._dynamo",)  # what a process's first optimiser loads, over a second of it


@dataclass(frozen=True, slots=True)
class Progress:
    """What a listener is told after each change."""

    done: int
    failed: int
    total: int
    running: Sequence[str]
    seconds_left: float


@dataclass(slots=True)
class Outcome:
    """Which cells of the plan are not in the store, and why."""

    failed: dict[str, str] = field(default_factory=dict)  # id -> error
    computed: int = 0  # in this run; the rest was there


def default_workers(device: str) -> int:
    """One a core that this process may use; one on CUDA, where a process takes the device's memory for itself."""
    import os

    if device != "cpu":
        return 1
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pending(plan: Plan, store: Store) -> list[Cell]:
    """The cells that the store lacks."""
    return [cell for cell in plan.cells if store.manifest(cell.stage, cell.id) is None]


def execute(plan: Plan, store: Store, workers: int, tell: Callable[[Progress], None] = lambda _: None) -> Outcome:
    """Compute what is missing; returns when every cell is done, failed, or waits for a failed one."""
    store.open()
    store.sweep()
    cells = pending(plan, store)
    if not cells:
        return Outcome()
    with writing(store.root.parent):
        run = _Run(plan, store, cells, workers, tell)
        with run:
            return run.loop()


class _Run:
    def __init__(self, plan: Plan, store: Store, cells: Sequence[Cell], workers: int, tell: Callable[[Progress], None]) -> None:
        self.plan, self.store, self.workers, self.tell = plan, store, workers, tell
        self.forecast = Forecast()
        self.forecast.recall(store)
        self.waiting = sorted(cells, key=lambda cell: (_ORDER[cell.stage], -self.forecast.seconds(cell)))
        self.missing = {cell.id for cell in cells}  # neither done nor given up
        self.likeness = {cell.id: Likeness.of(cell.spec) for cell in cells}
        self.left = Counter(self.likeness.values())  # of the missing
        self.stages = {cell.id: cell.stage for cell in plan.cells}
        self.running: dict[str, Cell] = {}
        self.outcome = Outcome()
        self.restarts = 0
        self.touched = time.monotonic()
        self.preloaded = {name for name in plan.code if ":" not in name and " " not in name}
        self.calls = {cell.call.partition(":")[0] for cell in plan.cells}

    def __enter__(self) -> None:
        self.server = self._serve()

    def __exit__(self, *_: object) -> None:
        self.server.close()
        for identity in self.running:
            self.store.release(identity)
        if self.running:  # a run that ends early leaves cells half done
            self.store.sweep()

    def loop(self) -> Outcome:
        while self.missing:
            self._fill()
            self._say()
            if not self.running and not self.waiting:
                break
            try:
                for identity, code in self.server.ended(_POLL):
                    self._settle(self.running.pop(identity), code)
            except ChildProcessError:
                self._restart()
            if time.monotonic() - self.touched > _TOUCH_EVERY:
                self.touched = time.monotonic()
                for identity in self.running:
                    self.store.touch(identity)
        self._say()
        return self.outcome

    def _fill(self) -> None:
        """Start what is ready while workers are free; give up what waits for a failed cell."""
        for cell in list(self.waiting):
            broken = [name for name, identity in cell.inputs.items() if identity in self.outcome.failed]
            if broken:
                self.waiting.remove(cell)
                self._give_up(cell, f"not run, since what it reads failed: {self.outcome.failed[cell.inputs[broken[0]]]}")
            elif len(self.running) < self.workers and not self.missing.intersection(cell.inputs.values()) and self.store.claim(cell.id):
                self.waiting.remove(cell)
                if self.store.manifest(cell.stage, cell.id) is not None:  # another run was faster
                    self._done(cell)
                else:
                    self._start(cell)
            elif len(self.running) >= self.workers:
                return

    def _start(self, cell: Cell) -> None:
        (self.store.root / "failed" / f"{cell.id}.json").unlink(missing_ok=True)
        inputs = {name: str(self.store.folder(self.stages[identity], identity)) for name, identity in cell.inputs.items()}
        arguments = {"store": str(self.store.root), "stage": cell.stage, "identity": cell.id, "call": cell.call}
        self.running[cell.id] = cell
        self.server.submit(cell.id, "suites.worker:work", {**arguments, "spec": dict(cell.spec), "inputs": inputs})

    def _settle(self, cell: Cell, code: int) -> None:
        found = self.store.manifest(cell.stage, cell.id)
        if found is not None:
            self.forecast.note(cell.spec, float(found["seconds"]))
            self.outcome.computed += 1
            self._preload(found["imported"])
            self._done(cell)
            return
        self.store.release(cell.id)
        left = failure(self.store, cell.id)
        if code == WRITE_FAILED:
            raise RequestError(write_trouble(OSError(28, ""), self.store.root.parent) or "")
        if left is None:
            how = f"ended by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "") if code < 0 else f"exit code {code}"
            self._give_up(cell, f"the worker {how}")
        elif left["kind"] in ("request", "write"):
            raise RequestError(str(left["error"]))
        else:
            self._give_up(cell, str(left["error"]))

    def _done(self, cell: Cell) -> None:
        self._no_longer(cell)
        self.store.release(cell.id)

    def _give_up(self, cell: Cell, why: str) -> None:
        self._no_longer(cell)
        self.outcome.failed[cell.id] = why

    def _no_longer(self, cell: Cell) -> None:
        self.missing.discard(cell.id)
        self.left[self.likeness[cell.id]] -= 1

    def _preload(self, modules: Sequence[str]) -> None:
        """What one cell had to import by itself, the server loads for the cells to come."""
        new = [name for name in modules if name not in self.preloaded]
        if new and len(self.waiting) > self.workers:
            self.preloaded.update(new)
            self.server.preload(new)

    def _serve(self) -> ForkServer:
        late = _AT_FIRST_USE if "suites.federation" in self.plan.code else ()
        names = [*sorted(self.calls), *sorted(self.preloaded), *late, "suites.registry:look_up"]
        return ForkServer(names, self.store.root / "workers.log")

    def _restart(self) -> None:
        """The server was killed and its workers with it: begin their cells again, but not for ever."""
        self.restarts += 1
        if self.restarts > _RESTARTS:
            raise RequestError(f"workers keep being killed (out of memory?); see {self.store.root / 'workers.log'} and lower --workers")
        self.server.close()
        self.server = self._serve()
        self.waiting[:0] = self.running.values()
        self.running.clear()

    def _say(self) -> None:
        left = self.forecast.total_of(self.left, self.workers)
        total, failed = len(self.plan.cells), len(self.outcome.failed)
        titles = [cell.title for cell in self.running.values()]
        self.tell(Progress(total - len(self.missing) - failed, failed, total, titles, left))


_ORDER = {"train": 0, "reference": 1, "attack": 2}


def store_of(out: Path) -> Store:
    return Store((out / "store").resolve())
