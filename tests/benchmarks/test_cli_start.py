"""How soon the command line answers, in CPU seconds: it must not import torch, pandas or numpy to do so."""

import os
import resource
import subprocess
import sys

import pytest

INFL_BENCH = "import sys; sys.argv[0] = 'infl-bench'; from suites.cli import main; main()"


def cpu_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", INFL_BENCH, *arguments], check=True, stdout=subprocess.DEVNULL, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("arguments", "bar"), [(["--help"], 0.7), (["list"], 1.0)])
def test_start(benchmark, arguments: list[str], bar: float) -> None:
    cpu_seconds(*arguments)  # bytecode is compiled once
    spent = sorted(cpu_seconds(*arguments) for _ in range(5))[2]
    benchmark.extra_info["cpu_seconds"] = spent
    benchmark.pedantic(cpu_seconds, args=arguments, rounds=1)
    assert spent < bar
