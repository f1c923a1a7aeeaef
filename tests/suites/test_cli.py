"""What a user touches: commands, exit codes, and one clear sentence for every mistake."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suites import fake_suite

INFL_BENCH = "import sys; sys.argv[0] = 'infl-bench'; from suites.cli import main; main()"
FAKED = """
from tests.suites.fake_suite import FUNCTIONS
import suites.api
suites.api.request.__kwdefaults__["functions"] = FUNCTIONS
suites.api.carry_out.__kwdefaults__["report"] = False
"""


def infl_bench(*arguments: object, fake: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    code = (FAKED if fake else "") + INFL_BENCH
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def complains(said: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one sentence, without a traceback."""
    assert said.returncode == 2, (said.stdout, said.stderr)
    assert "Traceback" not in said.stderr
    lines = said.stderr.strip().splitlines()
    assert len(lines) == 1, said.stderr
    assert lines[0].startswith("infl-bench: ")
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return fake_suite.write(tmp_path / "suite")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quikstart"], ["no suite 'quikstart'", "did you mean 'quickstart'"]),
        (["run", "nowhere.yaml"], ["no suite file nowhere.yaml"]),
        (["run", "quickstart", "--defense", "fedavgg"], ["no defense 'fedavgg'", "did you mean 'fedavg'"]),
        (["run", "quickstart", "--defense", "infl:published:strenght=2"], ["unknown parameter 'strenght'", "'strength'"]),
        (["run", "quickstart", "--attack", "lyra"], ["no attack 'lyra'", "did you mean 'lira'"]),
        (["run", "quickstart", "--attack", "nowhere.py:Mine"], ["no plug-in file nowhere.py"]),
        (["run", "quickstart", "--task", "clasification"], ["did you mean 'classification'"]),
        (["run", "quickstart", "--data", "pbmc68"], ["no cohort named 'pbmc68'", "did you mean 'pbmc68k'"]),
        (["run", "quickstart", "--data", "nowhere.h5ad"], ["no data file nowhere.h5ad"]),
        (["run", "quickstart", "--seeds", "0"], ["seeds"]),
        (["run", "quickstart", "--seeds", "many"], ["'--seeds'"]),
        (["run", "quickstart", "--device", "gpu"], ["device 'gpu'", "did you mean 'cuda'"]),
        (["run", "quickstart", "--executor", "slurm"], ["executor 'slurm'"]),
        (["run", "quickstart", "--fail-if", "leakage"], ["cannot read 'leakage'"]),
        (["run", "quickstart", "--sedes", "3"], ["--sedes"]),
        (["run"], ["needs SUITE", "a suite of the catalogue"]),
        (["rum", "quickstart"], ["rum"]),
        (["list", "atacks"], ["did you mean 'attacks'"]),
        (["check", "lyra"], ["did you mean 'lira'"]),
        (["data", "show", "pbmc"], ["did you mean 'pbmc68k'"]),
        (["report", "nowhere"], ["holds no results.parquet"]),
        (["profile", "quikstart"], ["did you mean 'quickstart'"]),
    ],
)
def test_each_mistake_is_one_sentence_and_exit_code_2(arguments: list[str], words: list[str]) -> None:
    complains(infl_bench(*arguments), *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("defenses:", "defences:", ["small.yaml", "line 8", "did you mean 'defenses'"]),
        ("defenses: [", "defenses: [[", ["small.yaml", "line", "not YAML"]),
        ("seeds: 2", "seeds: two", ["small.yaml, line 5", "seeds"]),
    ],
)
def test_a_wrong_suite_file(suite: Path, old: str, new: str, words: list[str]) -> None:
    suite.write_text(suite.read_text().replace(old, new))
    complains(infl_bench("run", suite), *words)


def test_cuda_without_a_device(suite: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    complains(infl_bench("run", suite, "--device", "cuda"), "no CUDA device", "--device cpu")


def test_an_output_folder_that_cannot_be_written(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    complains(infl_bench("run", suite, "--out", tmp_path / "file", fake=True), "in the way", "--out")
    complains(infl_bench("run", suite, "--out", "/proc/out", fake=True), "/proc/out", "--out")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder(suite: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    complains(infl_bench("run", suite, "--out", tmp_path / "out", fake=True), "permission denied")


def test_a_disk_that_is_full_on_write(suite: Path, tmp_path: Path) -> None:
    said = infl_bench("run", suite, "--out", tmp_path / "out", fake=True, FAKE_TROUBLE="full@attack")
    complains(said, "no space left on the device", str(tmp_path / "out"))


def test_a_request_that_only_a_worker_finds_wrong(suite: Path, tmp_path: Path) -> None:
    said = infl_bench("run", suite, "--out", tmp_path / "out", fake=True, FAKE_TROUBLE="request@train")
    complains(said, "site 3 has one record")


def test_a_file_that_is_no_h5ad(tmp_path: Path) -> None:
    (tmp_path / "cells.h5ad").write_text("not HDF5")
    said = infl_bench("run", "quickstart", "--data", tmp_path / "cells.h5ad", "--label", "kind", "--out", tmp_path / "out")
    complains(said, "cells.h5ad")


def test_a_failed_cell_gives_exit_code_1(suite: Path, tmp_path: Path) -> None:
    said = infl_bench("run", suite, "--out", tmp_path / "out", fake=True, FAKE_TROUBLE=f"raise@train {suite.parent}/defenses.py:Plain 1")
    assert said.returncode == 1, said.stderr
    assert "ZeroDivisionError" in said.stderr
    assert "Traceback" not in said.stderr
    assert (tmp_path / "out" / "results.parquet").exists()


def test_dry_run_says_what_would_run_and_runs_nothing(suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = infl_bench("run", suite, "--out", out, "--dry-run", fake=True)
    assert said.returncode == 0, said.stderr
    assert "22 cells, 22 to run" in said.stdout
    assert "a guess" in said.stdout
    assert not out.exists()


def test_a_listing_for_each_kind() -> None:
    said = infl_bench("list")
    assert said.returncode == 0
    for word in ("quickstart", "classification", "pbmc68k", "infl:published", "lira", "membership", "references"):
        assert word in said.stdout
    only = infl_bench("list", "tasks")
    assert "classification" in only.stdout
    assert "lira" not in only.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["run", "--help"]])
def test_nothing_heavy_is_imported_to_answer(arguments: list[str]) -> None:
    said = subprocess.run([sys.executable, "-X", "importtime", "-c", INFL_BENCH, *arguments], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in said.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numpy", "pandas", "scipy", "sklearn", "matplotlib", "attacks", "infl", "baselines"}


def test_a_card() -> None:
    assert "scanpy" in infl_bench("data", "show", "pbmc68k").stdout
