"""The profile: every defense measured by one code path, with counts that can be checked by hand."""

import subprocess
import sys

import pytest

from suites import profile
from suites.errors import RequestError

WORK = profile.Workload("classification", features=50, batch=20, steps=3, device="cpu")


@pytest.fixture(scope="module")
def found() -> dict[str, profile.Profile]:
    refs = ["fedavg", "dp_sgd:noise_multiplier=1", "secure_aggregation", "infl:published"]
    return {one.defense: one for one in profile.profile(refs, WORK)}


def test_every_defense_is_measured(found: dict[str, profile.Profile]) -> None:
    assert len(found) == 4
    for one in found.values():
        assert one.error == ""
        assert one.step_seconds > 0
        assert one.samples_per_second == pytest.approx(WORK.batch / one.step_seconds)
        assert 0 < one.share_of_peak < 1.5
        assert one.peak_memory_bytes > 2**26


def test_counts_do_not_depend_on_the_clock(found: dict[str, profile.Profile]) -> None:
    plain = found["fedavg"]
    assert plain.bytes_up_per_round == profile.SITES * 4 * plain.parameters
    # three products a layer and step (two in the first layer, whose input needs no gradient)
    matrices = plain.flop_per_step / (2 * WORK.batch)
    assert 2 * 50 * 64 < matrices < 3 * plain.parameters
    assert found["secure_aggregation"].flop_per_step == plain.flop_per_step
    assert found["infl:published"].flop_per_step > plain.flop_per_step


def test_calibration_is_left_out() -> None:
    assert profile._uncalibrated("dp_sgd:epsilon=8:clip=2") == "dp_sgd:clip=2:noise_multiplier=1"
    assert profile._uncalibrated("fedavg") == "fedavg"
    assert profile._uncalibrated("infl:published:strength=5+dp_sgd:epsilon=8") == "infl:published:strength=5+dp_sgd:noise_multiplier=1"


def test_a_defense_that_fails_says_so_and_the_rest_is_measured(tmp_path) -> None:
    text = "from suites.contracts import Defense\nclass Bad(Defense):\n    def model(self, net, secret): raise ArithmeticError('no')\n"
    (tmp_path / "bad.py").write_text(text)
    bad, good = profile.profile([f"{tmp_path}/bad.py:Bad", "fedavg"], WORK)
    assert bad.error == "ArithmeticError: no"
    assert good.error == ""


def test_a_defense_whose_processes_are_killed_says_so_and_the_rest_is_measured(tmp_path) -> None:
    """As where memory runs out: the worker goes, and the server that would have told of it."""
    kill = "import os, time\n        os.kill(os.getppid(), 9)\n        time.sleep(60)"
    text = f"from suites.contracts import Defense\nclass Bad(Defense):\n    def model(self, net, secret):\n        {kill}\n"
    (tmp_path / "bad.py").write_text(text)
    (tmp_path / "other.py").write_text("from suites.contracts import Defense\nclass Other(Defense):\n    def model(self, *_): 1 / 0\n")
    other, bad, good = profile.profile([f"{tmp_path}/other.py:Other", f"{tmp_path}/bad.py:Bad", "fedavg"], WORK)
    assert "out of memory?" in bad.error  # and not what another said before it
    assert "division" in other.error
    assert good.error == ""


def test_a_wrong_request_is_one_sentence() -> None:
    with pytest.raises(RequestError, match="epsilon and noise_multiplier"):
        profile.profile(["dp_sgd:epsilon=8:noise_multiplier=1"], WORK)


def test_nothing_heavy_is_needed_to_import_it() -> None:
    code = """
import sys
for name in ("opacus", "scanpy", "anndata"):
    sys.modules[name] = None  # importing it now raises
from suites import profile, meter
assert "torch" not in sys.modules
work = dict(task="classification", features=20, batch=10, steps=1, device="cpu")
profile.measure_defense("dp_sgd:noise_multiplier=1", work, sys.argv[1])
"""
    said = subprocess.run([sys.executable, "-c", code, "/dev/null"], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
