"""``infl-bench profile``: what a training step costs under each defense, against the most that this device can do.

Each defense runs the real engine in a fresh process, on drawn numbers (no cohort is read). A step's seconds and FLOP are the slope between
a short and a long local training, so that set-up, recording and channel do not count as step; they are the round's. A defense that
calibrates its noise is profiled at noise multiplier 1, since a step costs the same and no accountant need be imported. On a CPU the
clock is the process's own (one thread), which a busy neighbour hardly moves.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suites import api, config, registry
from suites.errors import RequestError
from suites.forkserver import ForkServer
from suites.registry import Plugin

if TYPE_CHECKING:
    from suites.contracts import Task
    from suites.stack import Stack

SITES, CLASSES, BATCHES = 2, 10, 2  # batches a site: the smallest federation in which sampling and channel do their work
_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Workload:
    """What is profiled: a task's net at a width, batch and number of local steps, on a device."""

    task: str
    features: int
    batch: int
    steps: int
    device: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One defense's costs; rates are 0 where nothing could be counted."""

    defense: str
    device: str
    step_seconds: float
    samples_per_second: float
    round_seconds: float  # beside the steps: set-up, recording, channel
    flop_per_step: float
    share_of_peak: float
    peak_memory_bytes: int  # of a process on CPU, of the device's allocator on CUDA
    bytes_up_per_round: int  # all sites
    parameters: int
    error: str = ""


def profile_suite(suite: str, *, device: str = "auto", features: int = 765, batch: int = 100, steps: int = 20) -> list[Profile]:
    """Profile every defense of a suite."""
    registry.refuse_intruders()
    spec = config.load(suite)[0]
    refs = list(dict.fromkeys(_uncalibrated(ref) for ref in spec.defenses))
    work = Workload(registry.find("tasks", spec.task).ref, features, batch, steps, api.resolve_device(device))
    return profile(refs, work)


def profile(refs: Sequence[str], work: Workload) -> list[Profile]:
    """Profile defenses one after the other, each in a process of its own, so that none inherits another's memory."""
    found = []
    with tempfile.TemporaryDirectory(prefix="infl-bench-profile-") as scratch:
        log = Path(scratch, "log")
        server = _server(log)
        try:
            for number, ref in enumerate(refs):
                path, said = Path(scratch, f"{number}.json"), log.stat().st_size
                server.submit(ref, "suites.profile:measure_defense", {"ref": ref, "work": asdict(work), "path": str(path)})
                try:
                    while not server.ended(60.0):
                        pass
                except ChildProcessError:  # killed, its worker with it: this defense failed, the next has a server of its own
                    server.close()
                    server = _server(log)
                found.append(Profile(**json.loads(path.read_text())) if path.exists() else _failed(ref, work, log, said))
        finally:
            server.close()
    return found


def _server(log: Path) -> ForkServer:
    return ForkServer(["suites.federation", "suites.profile"], log)


def measure_defense(ref: str, work: Mapping[str, Any], path: str) -> None:
    """Profile one defense in this process; writes a ``Profile`` as JSON."""
    import torch

    from suites.meter import flop, measure, peak_flop_rate
    from suites.stack import Stack

    torch.set_num_threads(1)
    asked = Workload(**work)
    task: Task = registry.find("tasks", asked.task).make()
    layers = [plugin.make() for plugin in registry.stack(ref)]
    peak_rate = peak_flop_rate(asked.device)
    short, long = _Bench(task, Stack(layers), asked, 1), _Bench(task, Stack(layers), asked, 1 + asked.steps)
    short.run()
    with measure(asked.device) as whole:
        trained = long.run()
    gaps, shorts = [], []
    for _ in range(_REPEATS):  # interleaved, so that whatever slows one slows both
        with measure(asked.device) as brief:
            short.run()
        with measure(asked.device) as full:
            long.run()
        gaps.append((full.busy - brief.busy) / (long.steps - short.steps))
        shorts.append(brief.busy)
    step = max(sorted(gaps)[_REPEATS // 2], 1e-9)
    work_of_step = (flop(long.run) - flop(short.run)) / (long.steps - short.steps)
    found = Profile(
        registry.portable(ref),
        asked.device,
        step,
        asked.batch / step,
        max(sorted(shorts)[_REPEATS // 2] - short.steps * step, 0.0),
        work_of_step,
        work_of_step / step / peak_rate,
        whole.peak_bytes,
        trained.up,
        trained.parameters,
    )
    Path(path).write_text(json.dumps(asdict(found)))


@dataclass(frozen=True, slots=True)
class _Sent:
    up: int
    parameters: int


class _Bench:
    """One round of a small federation with a given number of local epochs."""

    def __init__(self, task: Task, stack: Stack, work: Workload, epochs: int) -> None:
        import torch

        from suites.contracts import Federation, Local, Shape
        from suites.federation import Assignment, Pool
        from suites.randomness import stream
        from suites.stack import Stack

        class Unclaimed(Stack):  # a claim would import an accountant, and is no part of a step
            def claim(self, federation: Federation, shape: Shape) -> None:
                return None

        each = BATCHES * work.batch
        draw = stream("profile", "records")
        x = torch.randn(SITES * each, work.features, generator=draw).to(work.device)
        y = torch.randint(0, CLASSES, (SITES * each,), generator=draw).to(work.device)
        self.federation = Federation(stack.topology, sites=SITES, rounds=1, local=Local(epochs=epochs, batch=work.batch))
        shape = Shape((SITES * each,) if stack.topology == "centralized" else (each,) * SITES, work.features, CLASSES)
        self.stack = Unclaimed(stack.plan(self.federation, shape).layers)
        self.pool, self.task, self.epochs = Pool(x, y, CLASSES), task, epochs
        sites = torch.arange(SITES * each).reshape(SITES, each)
        self.assignment = Assignment(tuple(sites), ("profile",), ("profile", "defense"))

    @property
    def steps(self) -> int:
        """Steps of all sites; pooled records make as many."""
        return self.epochs * BATCHES * SITES

    def run(self) -> _Sent:
        from suites.federation import train
        from suites.meter import wire_bytes

        trained = train(self.task, self.stack, self.federation, self.pool, [self.assignment], chunk=1)[0]
        sent = sum(wire_bytes(message.payload) for record in trained.rounds for message in record.messages)
        return _Sent(sent, sum(tensor.numel() for tensor in trained.finals[0].values()))


def show(profiles: Iterable[Profile]) -> None:
    """Print a table, and what went wrong below it."""
    from rich.console import Console
    from rich.table import Table

    listed = list(profiles)
    console = Console()
    console.width = max(console.width, 120)
    base = next((p for p in listed if p.defense == "fedavg" and not p.error), next((p for p in listed if not p.error), None))
    first = f"× {base.defense}" if base else "×"
    table = Table("defense", "device", "samples/s", "ms/step", first, "MFLOP/step", "% of peak", "peak MiB", "round ms", "KiB up/round")
    for p in listed:
        if p.error:
            table.add_row(p.defense, p.device, "failed")
            continue
        numbers = (
            p.samples_per_second,
            1e3 * p.step_seconds,
            p.step_seconds / base.step_seconds if base else 1.0,
            p.flop_per_step / 1e6,
            100 * p.share_of_peak,
        )
        rest = (p.peak_memory_bytes / 2**20, 1e3 * p.round_seconds, p.bytes_up_per_round / 2**10)
        table.add_row(p.defense, p.device, *(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in (*numbers, *rest)))
    console.print(table)
    for p in listed:
        if p.error:
            console.print(f"{p.defense}: {p.error}", markup=False, highlight=False)


def _uncalibrated(ref: str) -> str:
    """The same stack with its noise given instead of calibrated."""

    def layer(plugin: Plugin) -> str:
        known = plugin.facts.parameters or {}
        if "epsilon" in plugin.parameters and "noise_multiplier" in known:
            rest = "".join(f":{key}={value}" for key, value in plugin.parameters.items() if key != "epsilon")
            return f"{plugin.ref.split(':epsilon=')[0].split(':')[0]}{rest}:noise_multiplier=1"
        return plugin.ref

    return "+".join(layer(plugin) for plugin in registry.stack(ref))


def _failed(ref: str, work: Workload, log: Path, before: int) -> Profile:
    """What the processes of this defense wrote last; ``before``: how long the log was when it began."""
    lines = log.read_bytes()[before:].decode(errors="replace").strip().splitlines()
    said = lines[-1] if lines else "the process ended without a word (out of memory?)"
    if "RequestError" in said:
        raise RequestError(said.partition(": ")[2])
    return Profile(registry.portable(ref), work.device, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, said)
