"""The attacks of the standard ensemble that take batches apart first, on one search a message instead of one each.

``norms``, ``gram_search`` and ``principal_components`` begin with the same search in the row space and differ in what they do with its
records; each alone would draw its own starts. Here the first draws them and the others are handed what it found, which leaves to each what
its own would have given it but for the luck of the starts, at a third of the time. Everything else is the referee's: federations as
``infl-bench run docs/hardened_standard.yaml --out FOLDER`` has trained them, threat, scorer, controls, calibration over the seeds.

    python -c "from tests.infl.hardened_together import run; run('reconstruction', 'together', seeds=range(5))"
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from attacks.key import gram_search, mixed, norms, principal_components
from reports import schema
from reports.shrinkage import with_shrinkage
from suites import registry
from suites.bench import Bench
from suites.contracts import Observation, Target, Threat
from suites.trial import Trial

SINGLE, SUMS = ("principal_components", "norms", "gram_search"), ("norms_of_sum", "gram_search_of_sum")
WHERE = {"goal": "reconstruction", "view": "server", "key": "none"}


class OneSearch:
    """``mixed_records`` that searches once, with the randomness of whoever asks first, and keeps what it found in ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, seen: Observation, targets: Iterable[Target], rng: torch.Generator, **search: int) -> mixed.Mixed:
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(asdict(mixed.mixed_records(seen, tuple(targets), rng, **search)), self.path)
        return mixed.Mixed(**load_file(self.path))


def run(trained: str | Path, out: str | Path, seeds: Iterable[int], attacks: tuple[str, ...] = SINGLE) -> None:
    """Add the cells of ``seeds`` under both defenses to ``out``, and write its results anew; cells that are there are not run again."""
    folder = Path(out)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    wanted = set(seeds)
    for manifest in sorted((Path(trained) / "store" / "train").glob("*/cell.json"), key=lambda path: _spec(path)["seed"]):
        spec = _spec(manifest)
        name = f"{attacks[0]}-{spec['defense'].replace(':', '.')}-{spec['seed']}"
        cell, search = folder / "cells" / f"{name}.json", folder / "searches" / f"{name}.safetensors"
        if spec["seed"] in wanted and not cell.exists():
            rows, curves = together(Bench(spec, Path(trained) / "store" / "prepared"), manifest.parent, attacks, search)
            cell.write_text(json.dumps([rows, curves]))
    tables(folder)


def together(bench: Bench, trained: Path, attacks: tuple[str, ...], search: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and curves of attacks that share a search, on one federation."""
    once = OneSearch(search)
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    with ExitStack() as held:
        for module in (principal_components, norms, gram_search):
            held.enter_context(patch.object(module, "mixed_records", once))
        for name in attacks:
            started = time.perf_counter()
            trial = Trial(bench, Threat(), trained, [])
            found, lines = trial.run(registry.find("attacks", name).make(), name, {**WHERE, "attack": name})
            rows += [{**row, "seconds": time.perf_counter() - started} for row in found]
            curves += lines
    return rows, curves


def tables(folder: Path) -> pd.DataFrame:
    """``results.parquet`` of all cells in ``folder``, calibrated over their seeds."""
    held = [json.loads(path.read_text()) for path in sorted((folder / "cells").glob("*.json"))]
    rows = pd.DataFrame([row for own, _ in held for row in own]).assign(schema_version=schema.SCHEMA_VERSION)
    curves = pd.DataFrame([line for _, own in held for line in own])[list(schema.CURVES)]
    table = with_shrinkage(rows[[*schema.RESULTS]], curves)
    table.to_parquet(folder / "results.parquet", index=False)
    return table


def _spec(manifest: Path) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(manifest.read_text())["spec"]
    return spec
