"""The minimum of ``infl:hardened`` is what was measured: the committed table says it, and single cells can be measured again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from infl.hardened import Hardened
from tests.infl import hardened_checkpoints
from tests.infl.hardened_limits import UNITS, cohort, measure, needed

TABLE = Path(__file__).parents[2] / "docs" / "hardened.csv"


def test_the_default_minimum_is_the_measured_one() -> None:
    table = pd.read_csv(TABLE)
    assert set(table["data"]) == {"pbmc68k", "kang", "cptac"}
    assert set(table[table["spread"] == Hardened().spread]["data"]) == {"pbmc68k", "kang", "cptac"}
    assert needed(table, spread=Hardened().spread) == Hardened().minimum


def test_a_smaller_spread_is_not_enough_at_that_minimum() -> None:
    """Why the default spread is what it is: on CPTAC the search still names some at 1.4."""
    table = pd.read_csv(TABLE)
    runs = table[(table["data"] == "cptac") & (table["spread"] == 1.4) & (table["records_behind"] == Hardened().minimum)]
    assert runs[runs["attack"] == "gram_search"]["share"].mean() > 0.05
    assert bool((table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all())


def test_needed_takes_the_worst_attack_without_plaintext() -> None:
    rows = [(1, "gram_search", 1.0), (64, "overlap", 0.8), (64, "norms", 0.0), (128, "norms", 0.04), (128, "known_plaintext", 0.9)]
    table = pd.DataFrame(rows, columns=["records_behind", "attack", "share"]).assign(data="one", spread=2.0)
    assert needed(table) == 128
    assert needed(table, spread=2.0) == 128
    with_less = pd.concat([table, table.assign(spread=1.0, share=0.06)])
    assert needed(with_less, spread=1.5) == 128
    with pytest.raises(ValueError, match="NaN"):
        needed(with_less)


def test_overlapping_batches_are_measured_up_to_the_width_alone() -> None:
    """Above it the attack declines, and its draw would be no measurement."""
    table = pd.read_csv(TABLE)
    assert table[table["attack"] == "overlap"]["records_behind"].max() == UNITS


def test_batches_that_come_back_are_open_as_the_page_says() -> None:
    table = pd.read_csv(TABLE.with_name("hardened_checkpoints.csv"))
    assert not table[table["checkpoints"] == 1]["isolated"].any()
    more = table[table["checkpoints"] > 1]
    wrong = more[more["right"] < more["answered"]]
    assert (len(more), len(wrong)) == (12, 1)
    assert (more["answered"] >= 800).all()
    assert (more.drop(wrong.index)["low"] > 0.99).all()


@pytest.mark.slow
def test_a_batch_that_comes_back_is_taken_apart_though_it_is_twice_as_large_as_the_layer() -> None:
    data = cohort("pbmc68k")
    assert hardened_checkpoints.measure(data, 1, False, 0)["isolated"] == 0
    for trained in (False, True):
        found = hardened_checkpoints.measure(data, 2, trained, 0)
        assert found["right"] > 0.95 * found["answered"] > 500


@pytest.mark.slow
@pytest.mark.parametrize(("size", "attack", "low", "high"), [(1, "gram_search", 0.95, 1.0), (64, "overlap", 0.5, 1.0)])
def test_cells_of_the_table_come_out_again(size: int, attack: str, low: float, high: float) -> None:
    rows = {row["attack"]: row for row in measure(cohort("pbmc68k"), Hardened().spread, size, 0)}
    assert low <= rows[attack]["share"] <= high


@pytest.mark.slow
def test_at_the_minimum_nothing_above_chance_is_named() -> None:
    for row in measure(cohort("pbmc68k"), Hardened().spread, Hardened().minimum, 0):
        assert row["low"] <= 0.0, row
