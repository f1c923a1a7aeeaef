"""Cells that do small, real, deterministic work in place of the referee's, so that the runner is tested in seconds."""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suites import registry
from suites.errors import RequestError, Skip


def _work(spec: Mapping[str, Any], salt: str = "") -> float:
    """A number that follows from the spec alone, after a chain of hashes as long as the suite's epochs say."""
    state = json.dumps({**spec, "data_digest": ""}, sort_keys=True).encode() + salt.encode()
    for _ in range(spec["federation"]["local"]["epochs"] * 1000):
        state = hashlib.sha256(state).digest()
    return int.from_bytes(state[:6], "little") / 2**48


def _misbehave(spec: Mapping[str, Any], folder: Path) -> None:
    trouble = os.environ.get("FAKE_TROUBLE", "").split("@")
    if len(trouble) == 2 and f"{spec['stage']} {spec['defense']} {spec['seed']}".startswith(trouble[1]):
        {
            "raise": lambda: 1 / 0,
            "request": lambda: _raise(RequestError("site 3 has one record, which cannot be split; merge it with another")),
            "skip": lambda: _raise(Skip("nothing to see")),
            "full": lambda: Path("/dev/full").write_text("x"),
            "die": lambda: os.kill(os.getpid(), 9),
            "orphan": lambda: time.sleep(60),
        }[trouble[0]]()
    pids = os.environ.get("FAKE_PIDS")
    if pids:
        (Path(pids) / str(os.getpid())).touch()


def _raise(error: Exception) -> None:
    raise error


def train_cell(spec: Mapping[str, Any], folder: Path) -> None:
    _misbehave(spec, folder)
    value = _work(spec)
    (folder / "model.bin").write_bytes(str(value).encode() * 1000)
    row = {"goal": "utility", "metric": "accuracy", "value": value, "low": math.nan, "high": math.nan, "n": 10, "role": "utility"}
    (folder / "rows.json").write_text(json.dumps([row]))


def reference_cell(spec: Mapping[str, Any], folder: Path) -> None:
    _misbehave(spec, folder)
    (folder / "references.json").write_text(
        json.dumps({k: _work(spec, str(k)) for k in range(spec["first"], spec["first"] + spec["count"])})
    )


def attack_cell(spec: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> None:
    _misbehave(spec, folder)
    value = _work(spec, (inputs["train"] / "model.bin").read_text())
    found: dict[str, float] = {}
    for name in sorted(inputs):
        if name != "train":
            found |= json.loads((inputs[name] / "references.json").read_text())
    value += sum(found[str(k)] for k in range(spec["references"]))
    value += float(registry.find("attacks", spec["attack"]).load().bonus)
    row = {"metric": "leakage", "value": value, "low": value - 1, "high": value + 1, "n": 5, "role": "score"}
    (folder / "rows.json").write_text(json.dumps([row]))
    (folder / "curves.json").write_text(json.dumps([{"curve": "roc", "x": 0.0, "y": value}]))


COUNT = 0


def tell_about_me(path: str) -> None:
    """Process, threads, and how often this was called in this process."""
    global COUNT  # noqa: PLW0603
    COUNT += 1
    Path(path).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {COUNT}")


def count_once() -> None:
    """What a server may be asked to call before it forks."""
    global COUNT  # noqa: PLW0603
    COUNT += 1


def find_without_looking(path: str) -> None:
    """How often a process that looks a plug-in up reads what is installed."""
    looks = []
    registry.entry_points = lambda **of: looks.append(of) or []  # type: ignore[assignment]
    registry.find("attacks", "lira")
    Path(path).write_text(str(len(looks)))
