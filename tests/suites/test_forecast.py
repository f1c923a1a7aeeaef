"""How long it will take: what was measured of the likest cell, else a guess that knows which attacks search."""

from __future__ import annotations

from typing import Any

import pytest

from suites.forecast import SEARCHES, UNMEASURED, Forecast
from suites.plan import Cell


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
    assert told.seconds(cell(attack="lira")) == 1.0
    assert told.seconds(cell(attack="lira", task="perturbation")) == 5.0
    assert told.seconds(cell(attack="lira", task="integration")) == 3.0  # of the same defense and attack elsewhere
    assert told.seconds(cell(attack="lira", task="integration", defense="secure_aggregation")) == 5.0  # of the same attack
    assert told.measured


def test_another_budget_and_another_attack_are_other_cells() -> None:
    told = Forecast()
    told.note(cell(attack="row_space", budget=10.0).spec, 300.0)
    assert told.seconds(cell(attack="row_space")) == SEARCHES["row_space"]
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
    assert told.seconds(cell("train", task="perturbation")) == 3.0
