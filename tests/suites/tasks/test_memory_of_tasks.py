"""Tasks that lay out records of their own prepare them where they lie, and judge a network on a part of the records at a time.

Stated is the growth of a process at its peak, over what Python and torch take, in multiples of the file's dense float32 matrix: once the
data are prepared, and at the end of a whole training cell with its metrics, simple methods and costs. The table of spatial domains is
itself three times as wide as the matrix (a cell, its neighbours, theirs), so there the multiple is of the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from suites import api, registry
from suites.bench import Bench
from suites.cohorts.spec import DataSpec, PartitionSpec, SplitSpec
from suites.forkserver import _KEEP_MEMORY
from suites.split import split
from suites.tasks.layout import blocks
from suites.tasks.structured import Structured

CELLS, GENES, WIDE = 5000, 8000, 30_000  # of GENES, what an attack takes for the network counts beside the matrix
CHILD = """
import json, sys, tempfile
from pathlib import Path
import scipy.linalg, scipy.sparse, scipy.spatial, sklearn.cluster, sklearn.metrics, torch
import suites.cohorts.load, suites.preprocess, suites.split
from suites import referee
torch.optim.Adam([torch.zeros(2, requires_grad=True)], fused=True).step()  # what its first use loads
def said(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
before, took = said("VmRSS"), {}
class Noted(referee.Bench):
    def __init__(self, *given):
        super().__init__(*given)
        took["prepared"] = said("VmHWM") - before
referee.Bench = Noted
with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / "store" / "cell"
    folder.mkdir(parents=True)
    referee.train_cell(json.loads(sys.argv[1]), folder)
    took["peak"] = said("VmHWM") - before
    metrics = [row["metric"] for row in json.loads((folder / referee.ROWS).read_text())]
print(json.dumps({**took, "metrics": metrics}))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("memory") / "cells.h5ad", GENES)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("memory") / "wide.h5ad", WIDE)


def write(path: Path, genes: int) -> Path:
    """Counts in CSR float64, an eighth of them of control cells, with places and proteins."""
    rng = np.random.default_rng(0)
    counts = sparse.random(CELLS, genes, 0.05, format="csr", random_state=0, data_rvs=lambda k: rng.integers(1, 5, k).astype(np.float64))
    obs = pd.DataFrame(
        {
            "kind": rng.choice(["a", "b", "c"], CELLS),
            "condition": rng.choice(["control", "AAA", "BBB", "AAA+BBB", "CCC", "DDD", "EEE", "FFF"], CELLS),
            "place": [f"s{i % 2}" for i in range(CELLS)],
        },
        index=[f"c{i}" for i in range(CELLS)],
    )
    data = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))
    data.obsm["spatial"], data.obsm["protein"] = rng.random((CELLS, 2)), rng.poisson(3, (CELLS, 14)).astype(np.float32)
    data.write_h5ad(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("task", "label", "unit", "defense", "tables", "prepared", "peak"),
    [
        ("spatial_domains", "kind", "person", "fedavg", 3, 1.35, 1.8),
        ("perturbation", "condition", "person", "fedavg", 1, 2.5, 2.5),
        ("perturbation", "condition", "person", "dp_sgd:epsilon=8", 1, 2.5, 2.5),
        ("integration:mosaic=false", "kind", "record", "fedavg", 1, 2.5, 2.5),
        ("integration:mosaic=false", "kind", "record", "dp_sgd:epsilon=8", 1, 2.5, 2.5),
        ("integration:mosaic=false", "kind", "record", "infl:published", 1, 2.5, 2.5),
        ("integration:mosaic=false", "kind", "record", "infl:hardened:minimum=64", 1, 2.5, 2.5),
    ],
)
def test_its_cell_keeps_within_so_many_matrices(
    file: Path, task: str, label: str, unit: str, defense: str, tables: int, prepared: float, peak: float
) -> None:
    spec = {
        "suite": "s",
        "task": task,
        "data": {"path": str(file), "label": label, "site": "place"},
        "split": {"unit": unit, "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 1, "local": {"epochs": 1}},
        "defense": defense,
        "seed": 0,
    }
    like_a_worker = {**_KEEP_MEMORY, **os.environ}
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(spec)], capture_output=True, text=True, check=False, env=like_a_worker)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    matrix = tables * CELLS * GENES * 4
    if defense == "fedavg":
        assert any(metric.endswith((":pca", ":additive_model")) for metric in said["metrics"]), "simple methods are judged as well"
    print(task, defense, {name: round(said[name] / matrix, 2) for name in ("prepared", "peak")})
    assert said["prepared"] < prepared * matrix, said["prepared"] / matrix
    assert said["peak"] < peak * matrix, said["peak"] / matrix


ATTACKED = """suite: large
title: A file that no test knows
task: "{task}"
data: {{path: {path}, label: {label}, site: place}}
split: {{unit: {unit}, train: 0.5, validation: 0.05, test: 0.25, auxiliary: 0.2}}
partition: {{kind: column}}
federation: {{rounds: 1, local: {{epochs: 1, batch: 100}}}}
seeds: 1
references: 2
probes: [{{gradients: 1, batch: 1, round: 0}}]
defenses: [{defenses}]
attacks: [{attacks}]
threats: [{{view: server, key: {key}}}]
"""
DEFENSES = ("fedavg", "dp_sgd:epsilon=8:optimiser=sgd", "secure_aggregation", "infl:published:strength=1", "infl:hardened:minimum=64")
ATTACKS = ("closed_form", "span", "span_of_sum", "matched_span", "lira", "rmia", "quantile", "loss_threshold")
READING_GRADIENTS = ("gradient_norm", "gradient_difference", "bias_difference", "round_cosine", "round_cosine_of_sum")
LARGE = [("perturbation", "condition", "person"), ("integration:mosaic=false", "kind", "record")]


def took(folder: Path, path: Path, stage: str, said: str, **asked: str) -> dict[str, float]:
    """Growth of each cell's process, in matrices, by what the cell ``said``."""
    suite = folder / "large.yaml"
    suite.write_text(ATTACKED.format(path=path, **asked))
    table = api.run(suite, out=folder / "out", workers=1, report=False)
    assert set(table["status"]) == {"ok"}, table["reason"].unique()
    cells = [json.loads(found.read_text()) for found in (folder / "out").glob(f"store/{stage}/*/cell.json")]
    matrix = CELLS * WIDE * 4
    found: dict[str, float] = {}
    for cell in cells:
        share = (cell["peak_memory_bytes"] - cell["memory_at_start_bytes"]) / matrix
        found[cell["spec"][said]] = max(share, found.get(cell["spec"][said], 0.0))
    print(asked["task"], stage, {name: round(share, 2) for name, share in found.items()})
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("task", "label", "unit"), LARGE)
def test_an_attack_on_it_keeps_within_two_and_a_half_matrices(wide: Path, tmp_path: Path, task: str, label: str, unit: str) -> None:
    """Its outputs are wider than its records, which they hand on: of all candidates at once they were five matrices."""
    asked = {"task": task, "label": label, "unit": unit, "key": "leaked", "defenses": '"infl:published:strength=1"'}
    found = took(tmp_path, wide, "attack", "attack", attacks=", ".join((*ATTACKS, *READING_GRADIENTS)), **asked)
    assert found.keys() == {*ATTACKS, *READING_GRADIENTS}
    assert max(found.values()) < 2.5, found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("stage", ["train", "reference"])
@pytest.mark.parametrize(("task", "label", "unit"), LARGE)
def test_training_on_it_keeps_within_two_and_a_half_matrices(
    wide: Path, tmp_path_factory: pytest.TempPathFactory, stage: str, task: str, label: str, unit: str
) -> None:
    asked = {"task": task, "label": label, "unit": unit, "key": "none", "defenses": ", ".join(f'"{ref}"' for ref in DEFENSES)}
    folder = tmp_path_factory.getbasetemp() / f"trained {task.partition(':')[0]}"  # the second stage finds the first one's run
    folder.mkdir(exist_ok=True)
    found = took(folder, wide, stage, "defense", attacks="lira", **asked)
    assert len(found) == len(DEFENSES)
    assert max(found.values()) < 2.5, found


CASES: list[tuple[str, dict[str, Any], Literal["record", "person"]]] = [
    ("spatial_domains:tiles=3", {"name": "synthetic_tissue", "params": {"rows": 12, "columns": 10}}, "person"),
    ("integration", {"name": "synthetic_paired", "params": {"cells": 200}}, "record"),
    ("integration:lsi=4:second=peaks", {"name": "synthetic_multiome"}, "record"),
]


@pytest.mark.parametrize(("task", "data", "unit"), CASES)
def test_a_table_in_the_cohorts_own_memory_is_the_one_laid_out_anew(
    task: str, data: dict[str, Any], unit: Literal["record", "person"]
) -> None:
    made = registry.find("tasks", task).make()
    cohort = made.cohort(DataSpec(**data))
    parts = split(cohort, SplitSpec(unit=unit, train=0.4, validation=0.1, test=0.2, auxiliary=0.3), PartitionSpec(kind="column"), 0)
    other = replace(cohort, x=cohort.x.copy())
    before = cohort.x.copy()
    table = made.table(cohort, parts)
    assert np.shares_memory(table.x.numpy(), cohort.x), "the table lies where the values were read"
    anew = made.table(other, parts)
    assert np.array_equal(other.x, before, equal_nan=True), "a cohort that has no room for it is left alone"
    assert torch.equal(table.x, anew.x)
    assert not torch.equal(table.x, torch.zeros_like(table.x))


def test_records_are_laid_out_in_blocks_that_cover_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.tasks.layout._BLOCK", 12)
    assert [range(11)[some] for some in blocks(11, 3)] == [range(4), range(4, 8), range(8, 11)]
    assert [range(2)[some] for some in blocks(2, 99)] == [range(1), range(1, 2)]
    assert not list(blocks(0, 3))


EVALUATED: list[tuple[str, dict[str, Any], str]] = [
    ("spatial_domains:tiles=3", {"name": "synthetic_tissue", "params": {"rows": 24, "columns": 20}}, "person"),
    ("integration", {"name": "synthetic_paired", "params": {"cells": 300}}, "record"),
    ("perturbation", {"name": "synthetic_perturbation"}, "person"),
]


@pytest.mark.parametrize(("task", "data", "unit"), EVALUATED)
def test_records_judged_in_parts_are_judged_as_all_at_once(
    task: str, data: dict[str, Any], unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {
        "suite": "s",
        "task": task,
        "data": data,
        "split": {"unit": unit, "train": 0.4, "validation": 0.1, "test": 0.3, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 2, "selection": "validation", "local": {"epochs": 1}},
        "defense": "fedavg",
        "seed": 0,
    }
    bench = Bench(spec, None)
    assert isinstance(bench.task, Structured)
    rows: list[int] = []
    learnt_nothing = bench.task.nothing

    def nothing(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return learnt_nothing(x)

    monkeypatch.setattr(bench.task, "nothing", nothing)

    def judged() -> tuple[list[float], dict[str, float], dict[str, float], dict[str, float]]:
        trained = bench.train([bench.assignment()], target=True)[0]
        metrics = bench.utility(trained)
        return trained.validation, metrics, bench.floor(), {one.metric: one.value for one in bench.yardsticks(metrics)}

    whole = judged()
    monkeypatch.setattr("suites.room.BLOCK", 32 * 7 * bench.prepared.pool.x.shape[1])
    parts = judged()
    test = len(bench.prepared.test)
    assert rows == [test, *[7] * (test // 7), *([test % 7] if test % 7 else [])]
    assert whole[0] == pytest.approx(parts[0], rel=1e-5)
    for one, other in zip(whole[1:], parts[1:], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)
