"""What an audit of plain arrays costs on the shared membership workload (1,200 records of 1,000 features), in CPU seconds of one thread.

Peers on it, whole process: 31 s and 1.3 GB, 16 s, 58 s. The file is looked for in $INFL_BENCH_GOLDEN, then in ../shared/golden.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from suites.audit import Network
from suites.auditing.arrays import audit

# The peak of the child's own memory, which begins when the interpreter is executed; ru_maxrss would begin at the peak of this process, from
# which the child was forked, and that is whatever other benchmarks needed before.
WHOLE = """
import sys, torch, numpy as np
torch.set_num_threads(1)
from suites.audit import Network, audit
from suites.meter import peak_memory
data = np.load(sys.argv[1], allow_pickle=False)
x, y, member = data["x"], data["y"], data["member"].astype(bool)
print(audit(Network(), x, y, member, references=16).report(sys.argv[2]))
print(peak_memory() // 2**20)
"""


def workload() -> Path:
    folder = os.environ.get("INFL_BENCH_GOLDEN") or Path(__file__).parents[2].parent / "shared" / "golden"
    path = Path(folder) / "mia_workload.npz"
    if not path.is_file():
        pytest.skip("mia_workload.npz is not here: set INFL_BENCH_GOLDEN to the folder that holds it")
    return path


def test_a_whole_audit_with_its_report(benchmark, tmp_path: Path) -> None:
    np.ones(2**27).sum()  # 1 GB in this process, as other benchmarks leave it: none of it is the child's
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 2**20

    def run() -> tuple[float, int]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", WHOLE, str(workload()), str(tmp_path)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        report, megabytes = said.splitlines()
        assert Path(report).is_file()
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, int(megabytes)

    seconds, megabytes = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(cpu_seconds=seconds, megabytes=megabytes)
    assert seconds <= 15
    assert megabytes <= 600


def test_lira_with_64_references(benchmark) -> None:
    """Target, references and attack; what the audit adds (bounds, controls, the other attacks) is in the whole one above."""
    torch.set_num_threads(1)
    data = np.load(workload(), allow_pickle=False)
    x, y, member = data["x"], data["y"], data["member"].astype(bool)
    spent = []

    def run() -> float:
        started = time.process_time()
        told = audit(Network(), x, y, member, references=64)
        whole = time.process_time() - started
        rows = told.table[told.table["attack"] == "lira"]
        spent.append(float(rows["seconds"].iloc[0]))  # of the fits and of LiRA alone
        assert spent[-1] <= whole
        return told.value("auc", "lira")

    area = benchmark.pedantic(run, rounds=3)
    benchmark.extra_info.update(cpu_seconds=min(spent), auc=area)
    assert min(spent) <= 8
    assert 0.80 <= area <= 0.86
