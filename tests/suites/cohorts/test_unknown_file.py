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
MATRIX = CELLS * GENES * 4
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
    trained = bench.train([bench.assignment()], target=True)[0]
    metrics = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    sizes = [len(site) for site in bench.prepared.sites]
print(json.dumps({"peak": said("VmHWM") - before, "shape": list(bench.prepared.pool.x.shape), "metrics": metrics, "sites": sizes}))
"""


def write(path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(["T", "B", "NK", "Mono"], CELLS)
    obs = pd.DataFrame(
        {
            "Cell type (broad)": pd.Categorical(kinds),
            "batch_id": pd.array([f"b{i % 5}" for i in range(CELLS)], dtype="string"),
            "donor": np.arange(CELLS) % 20,
            "n_counts": rng.random(CELLS),
        },
        index=[f"AAAC-{i}" for i in range(CELLS)],
    )
    x: object
    if layout == "dense float64":
        x = rng.normal(5, 1, (CELLS, GENES))
    else:
        counts = sparse.random(CELLS, GENES, 0.08, format="csr", random_state=0, data_rvs=lambda k: rng.integers(1, 9, k))
        x = counts.astype(np.int64) if layout == "csr int64" else (counts.astype(np.float64) / 3).tocsc()
    data = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)]))
    data.obsm["X_umap"] = rng.normal(size=(CELLS, 2))
    data.uns["colours"] = np.array(["red", "blue"], dtype=object)
    data.write_h5ad(path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("layout", ["csr int64", "csc float64", "dense float64"])
def test_it_trains_within_two_and_a_half_matrices(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "unknown.h5ad"
    write(path, layout)
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
    assert said["shape"] == [CELLS, GENES]
    assert len(said["sites"]) == 5
    assert np.isfinite(said["metrics"]["accuracy"])
    assert said["peak"] < 2.5 * MATRIX, said["peak"] / MATRIX
