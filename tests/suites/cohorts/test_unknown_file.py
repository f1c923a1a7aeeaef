"""A file that no test of a cohort knows: 30,000 genes in any layout and number type, odd column names, read by the run's own cell.

The cell parses, checks, splits, standardises and trains in one process; its peak above what Python and torch take is held against the
dense float32 matrix.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

CELLS, GENES = 4000, 30_000  # a network of 30,000 inputs at five sites takes 0.3 GB whatever the records: too few would measure that
CHILD = """
import json, sys, tempfile
from pathlib import Path
import suites.cohorts.load, suites.preprocess, suites.split, scipy.sparse, torch
from suites.bench import Bench
torch.optim.Adam([torch.zeros(2, requires_grad=True)], fused=True).step()  # what its first use loads
def said(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
before = said("VmRSS")
with tempfile.TemporaryDirectory() as cache:
    bench = Bench(json.loads(sys.argv[1]), Path(cache))
    prepared = said("VmHWM") - before
    trained = bench.train([bench.assignment()], target=True)[0]
    metrics = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    sizes = [len(site) for site in bench.prepared.sites]
peaks = {"peak": said("VmHWM") - before, "prepared": prepared}
print(json.dumps({**peaks, "shape": list(bench.prepared.pool.x.shape), "metrics": metrics, "sites": sizes}))
"""


def write(path: Path, layout: str, cells: int = CELLS) -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(["T", "B", "NK", "Mono"], cells)
    obs = pd.DataFrame(
        {
            "Cell type (broad)": pd.Categorical(kinds),
            "batch_id": pd.array([f"b{i % 5}" for i in range(cells)], dtype="string"),
            "donor": np.arange(cells) % 20,
            "n_counts": rng.random(cells),
        },
        index=[f"AAAC-{i}" for i in range(cells)],
    )
    x: object
    if layout == "dense float64":
        x = rng.normal(5, 1, (cells, GENES))
    else:
        counts = sparse.random(cells, GENES, 0.08, format="csr", random_state=0, data_rvs=lambda k: rng.integers(1, 9, k))
        kinds_of = {"csr int64": np.int64, "csc uint16": np.uint16}
        x = counts.astype(kinds_of[layout]) if layout in kinds_of else counts.astype(np.float64) / 3
        x = x.tocsc() if layout.startswith("csc") else x
    data = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)]))
    data.obsm["X_umap"] = rng.normal(size=(cells, 2))
    data.uns["colours"] = np.array(["red", "blue"], dtype=object)
    data.write_h5ad(path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(
    ("layout", "cells"), [("csr int64", CELLS), ("csc float64", CELLS), ("dense float64", CELLS), ("csc uint16", 2000)]
)
def test_it_trains_within_two_and_a_half_matrices(tmp_path: Path, layout: str, cells: int) -> None:
    path = tmp_path / "unknown.h5ad"
    write(path, layout, cells)
    spec = {
        "suite": "s",
        "task": "classification",
        "data": {"path": str(path), "label": "Cell type (broad)", "site": "batch_id", "person": "donor"},
        "split": {"unit": "person", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 1, "local": {"epochs": 1}},
        "defense": "fedavg",
        "seed": 0,
    }
    held = anndata.read_h5ad(path, backed="r")  # somebody has it open
    try:
        done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(spec)], capture_output=True, text=True, check=False)
    finally:
        held.file.close()
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["shape"] == [cells, GENES]
    assert len(said["sites"]) == 5
    assert np.isfinite(said["metrics"]["accuracy"])
    matrix = cells * GENES * 4
    assert said["prepared"] < 1.8 * matrix, said["prepared"] / matrix  # parsed, checked, split and standardised without a second matrix
    assert said["peak"] < 2.5 * matrix, said["peak"] / matrix
