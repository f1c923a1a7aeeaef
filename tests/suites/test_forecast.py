"""How long it will take: what was measured of the likest cell, else a guess that knows which attacks search."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from suites.forecast import SEARCHES, UNMEASURED, Forecast
from suites.plan import Cell
from suites.store import Store
from tests.suites.test_cli import infl_bench


def cell(stage: Any = "attack", **spec: Any) -> Cell:
    made = {"stage": stage, "task": "classification", "defense": "fedavg", "budget": 1.0, **spec}
    return Cell(stage, "id", "module:function", made, {})


def test_a_guess_knows_searches_and_their_budget() -> None:
    told = Forecast()
    assert told.seconds(cell(attack="blind")) == UNMEASURED["attack"]
    assert told.seconds(cell(attack="row_space:limit=2")) == SEARCHES["row_space"]
    assert told.seconds(cell(attack="row_space", budget=0.5)) == SEARCHES["row_space"] / 2
    assert told.seconds(cell("train")) == UNMEASURED["train"]
    assert not told.measured


def test_the_likest_measured_cell_speaks() -> None:
    told = Forecast()
    told.note(cell(attack="lira").spec, 1.0)
    told.note(cell(attack="lira", task="perturbation").spec, 5.0)
    told.note(cell(attack="lira", task="perturbation", defense="infl:hardened").spec, 9.0)
    assert told.seconds(cell(attack="lira")) == pytest.approx(1.0)
    assert told.seconds(cell(attack="lira", task="perturbation")) == pytest.approx(5.0)
    assert told.seconds(cell(attack="lira", task="integration")) == pytest.approx(3.0)  # of the same defense and attack elsewhere
    assert told.seconds(cell(attack="lira", task="integration", defense="secure_aggregation")) == pytest.approx(5.0)  # of the same attack
    assert told.measured


def test_another_budget_is_scaled_and_one_attack_says_nothing_of_another() -> None:
    told = Forecast()
    told.note(cell(attack="row_space", budget=10.0).spec, 300.0)
    assert told.seconds(cell(attack="row_space", budget=10.0)) == pytest.approx(300.0)
    assert told.seconds(cell(attack="row_space")) == pytest.approx(30.0)
    assert told.seconds(cell(attack="blind")) == UNMEASURED["attack"]


def test_trainings_speak_for_each_other() -> None:
    told = Forecast()
    told.note(cell("train", task="perturbation").spec, 8.0)
    assert told.seconds(cell("train", task="perturbation", defense="secure_aggregation")) == 8.0
    assert told.seconds(cell("reference", task="perturbation")) == UNMEASURED["reference"]
    assert told.total([cell("train", task="perturbation")] * 3, 2) == pytest.approx(12.0)


def test_an_epoch_that_was_timed_speaks_before_a_guess_and_after_a_measured_cell() -> None:
    """Of its own task and defense, and of trainings alone; references train together and share what every step costs."""
    told = Forecast()
    told.expect(cell("train", task="perturbation").spec, 100.0)
    one, eight = (told.seconds(cell("reference", task="perturbation", count=count)) for count in (1, 8))
    assert told.seconds(cell("train", task="perturbation")) == one == pytest.approx(100.0, rel=0.05)
    assert 2 * one < eight < 8 * one
    assert told.seconds(cell("train", task="perturbation", defense="infl:published")) == UNMEASURED["train"]
    assert told.seconds(cell("attack", task="perturbation", attack="blind")) == UNMEASURED["attack"]
    assert not told.measured
    told.note(cell("train", task="perturbation").spec, 3.0)
    assert told.seconds(cell("train", task="perturbation")) == pytest.approx(3.0)


# CPU seconds of the cells of `quickstart --attack standard --budget 0.3 --references 2` under fedavg, on a file of 5,000 x 10,000.
WIDE_FILE = {
    ("learned_inverter_of_sum", 0.3): 25.6,
    ("learned_inverter", 0.3): 24.6,
    ("gram_search_of_sum", 0.3): 21.5,
    ("overlap", 0.3): 12.0,
    ("gram_search", 0.3): 8.3,
    ("ladder_of_sum", 0.3): 7.8,
    ("matched_span", 1.0): 6.1,
    ("candidates_in_span", 1.0): 5.4,
    ("norms_of_sum", 0.3): 4.8,
    ("span", 1.0): 4.8,
    ("candidates_in_span_of_sum", 1.0): 3.2,
    ("principal_components", 1.0): 2.5,
    ("cosine_inversion_of_sum", 0.3): 2.4,
    ("matched_span_of_sum", 1.0): 2.3,
    ("span_of_sum", 1.0): 1.8,
    ("cocktail_party", 0.3): 1.7,
    ("fedmia", 1.0): 1.5,
    ("bias_difference", 1.0): 1.4,
    ("rmia", 1.0): 1.4,
    ("closed_form", 1.0): 1.2,
    ("blind", 1.0): 1.1,
    ("ladder", 0.3): 1.0,
    ("lira", 1.0): 0.8,
    ("loss_threshold", 1.0): 0.1,
}


def test_a_wide_file_is_foretold_within_a_factor_of_two() -> None:
    told, attacks = Forecast(), [cell(attack=name, budget=budget) for name, budget in WIDE_FILE]
    spent = sum(WIDE_FILE.values())
    assert told.total(attacks, 1) < spent / 2, "as if the file were small"
    told.sized(attacks[0].spec, 50_000_000)
    assert spent / 2 < told.total(attacks, 1) < spent * 2


def test_what_is_left_goes_by_what_is_done_where_nobody_said_how_large_the_cohort_is() -> None:
    told = Forecast()
    for (name, budget), seconds in [*WIDE_FILE.items()][:6]:
        told.note(cell(attack=name, budget=budget).spec, seconds)
    left = [cell(attack=name, budget=budget) for name, budget in [*WIDE_FILE][6:]]
    spent = sum([*WIDE_FILE.values()][6:])
    assert spent / 2 < told.total(left, 1) < spent * 2
    assert told.seconds(cell("train")) == UNMEASURED["train"], "attacks say nothing of trainings"


def test_a_cell_of_another_size_is_scaled() -> None:
    told = Forecast()
    small, large = cell(attack="gram_search", data={"name": "small"}), cell(attack="gram_search", data={"name": "large"})
    told.sized(small.spec, 1_000_000)
    told.sized(large.spec, 100_000_000)
    told.note(small.spec, 4.0)
    assert told.seconds(small) == pytest.approx(4.0)
    assert 8.0 < told.seconds(large) < 100.0


def test_a_run_reads_the_size_from_what_it_has_prepared(tmp_path: Path) -> None:
    store, told, asked = Store(tmp_path / "store"), Forecast(), cell(attack="learned_inverter", budget=0.3, data={"path": "wide.h5ad"})
    store.open()
    told.recall(store)  # when a run begins, nothing is prepared
    before = told.seconds(asked)
    (store.root / "prepared").mkdir()
    about = {"spec": json.dumps({"task": "classification", "data": {"path": "wide.h5ad"}})}
    save_file({"x": torch.zeros(2000, 5000, dtype=torch.uint8)}, store.root / "prepared" / "a.safetensors", about)
    (store.root / "prepared" / "b.safetensors").write_bytes(b"cut")
    told.note(cell("train", data={"path": "wide.h5ad"}).spec, 1.0)
    assert told.seconds(asked) > before + 3.0
    later = Forecast()
    later.recall(store)
    assert later.seconds(asked) == told.seconds(asked)


@pytest.mark.slow
def test_the_time_of_a_part_of_standard_is_foretold_within_a_factor_of_two(tmp_path: Path) -> None:
    """Foretold for one worker against the cells' CPU seconds, which the load of the machine sways less than the clock."""
    asked = ("run", "standard", "--data-only-embedded", "--task", "spatial_domains", "--seeds", 1, "--defense", "fedavg", "--workers", 1)
    dry = infl_bench(*asked, "--out", tmp_path / "out", "--dry-run", OMP_NUM_THREADS="1")
    told = re.search(r"^foretold: ([\d.]+) (s|min) ", dry.stdout, re.MULTILINE)
    assert told is not None, dry.stdout + dry.stderr
    foretold = float(told[1]) * {"s": 1, "min": 60}[told[2]]
    wet = infl_bench(*asked, "--out", tmp_path / "out", OMP_NUM_THREADS="1")
    assert wet.returncode == 0, wet.stderr
    cells = [json.loads(path.read_text()) for path in (tmp_path / "out" / "store").glob("*/*/cell.json")]
    spent = sum(float(found["cpu_seconds"]) for found in cells)
    assert len(cells) > 20
    assert spent / 2 <= foretold <= spent * 2, f"foretold {foretold:.0f} s, spent {spent:.0f} s"
