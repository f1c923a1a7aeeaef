"""Tasks that lay out records of their own prepare them where they lie: no second copy of the matrix, and none of the wider table.

Stated is the growth of a process at its peak, over what Python and torch take, in multiples of the file's dense float32 matrix. The table
of spatial domains is itself three times as wide as that (a cell, its neighbours, theirs), so there the multiple is of the table.
"""

from __future__ import annotations

import json
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

from suites import registry
from suites.cohorts.spec import DataSpec, PartitionSpec, SplitSpec
from suites.split import split
from suites.tasks.layout import blocks
from tests.suites.cohorts.test_unknown_file import CHILD

CELLS, GENES = 5000, 8000
NEEDED = "import sklearn.cluster, sklearn.metrics, scipy.spatial\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts in CSR float64, a quarter of them of control cells, with places and proteins."""
    rng = np.random.default_rng(0)
    counts = sparse.random(CELLS, GENES, 0.05, format="csr", random_state=0, data_rvs=lambda k: rng.integers(1, 5, k).astype(np.float64))
    obs = pd.DataFrame(
        {
            "kind": rng.choice(["a", "b", "c"], CELLS),
            "condition": rng.choice(["control", "AAA", "BBB", "AAA+BBB", "CCC", "DDD", "EEE", "FFF"], CELLS),
            "place": [f"s{i % 2}" for i in range(CELLS)],
        },
        index=[f"c{i}" for i in range(CELLS)],
    )
    data = anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))
    data.obsm["spatial"], data.obsm["protein"] = rng.random((CELLS, 2)), rng.poisson(3, (CELLS, 14)).astype(np.float32)
    path = tmp_path_factory.mktemp("memory") / "cells.h5ad"
    data.write_h5ad(path)
    return path


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("task", "label", "unit", "tables", "prepared", "peak"),
    [
        ("spatial_domains", "kind", "person", 3, 1.35, 2.7),
        ("perturbation", "condition", "person", 1, 2.5, 3.0),
        ("integration:mosaic=false", "kind", "record", 1, 2.5, 3.0),
    ],
)
def test_it_is_prepared_within_so_many_matrices(
    file: Path, task: str, label: str, unit: str, tables: int, prepared: float, peak: float
) -> None:
    spec = {
        "suite": "s",
        "task": task,
        "data": {"path": str(file), "label": label, "site": "place"},
        "split": {"unit": unit, "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 1, "local": {"epochs": 1}},
        "defense": "fedavg",
        "seed": 0,
    }
    done = subprocess.run([sys.executable, "-c", NEEDED + CHILD, json.dumps(spec)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    matrix = tables * CELLS * GENES * 4
    print(task, {name: round(said[name] / matrix, 2) for name in ("prepared", "peak")})
    assert said["prepared"] < prepared * matrix, said["prepared"] / matrix
    assert said["peak"] < peak * matrix, said["peak"] / matrix


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
