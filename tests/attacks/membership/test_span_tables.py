"""docs/span.md holds what docs/span.csv says and the bars of the span attacks; anyone with the cohorts can measure them again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.attacks.membership.span_tables import COHORTS, DOCS, OURS, PLAIN, SPAN, TITLES, measure, put, real, tables


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(DOCS / "span.csv")


def test_the_page_holds_the_tables_of_the_results(table: pd.DataFrame) -> None:
    page = (DOCS / "span.md").read_text(encoding="utf-8")
    first, second = tables(table)
    assert put(page, first, second) == page
    assert first in page
    assert second in page


@pytest.mark.parametrize("cohort", COHORTS)
def test_one_update_tells_members_and_secret_mixing_hides_them(cohort: str, table: pd.DataFrame) -> None:
    own = table[(table["cohort"] == cohort) & (table["hidden"] == 64)].set_index(["defense", "attack"])
    span = own.loc[(PLAIN, SPAN)]
    assert span["seeds"] >= 5
    assert span["low"] >= 0.97
    for attack in TITLES.keys() - {SPAN, "span:rounds=1"}:
        assert own.loc[(PLAIN, attack)]["high"] < span["low"]
    assert own.loc[(PLAIN, "blind")]["low"] < 0.5 < own.loc[(PLAIN, "blind")]["high"]
    for attack in (SPAN, "span:rounds=1"):
        assert 0.40 <= own.loc[(OURS, attack)]["low"] < own.loc[(OURS, attack)]["high"] <= 0.60


def test_more_records_for_each_hidden_unit_tell_less(table: pd.DataFrame) -> None:
    for cohort in COHORTS:
        own = table[(table["cohort"] == cohort) & (table["defense"] == PLAIN) & (table["attack"] == "span:rounds=1")]
        areas = own.sort_values("records_per_unit")["auc"]
        assert len(areas) == 5
        assert areas.is_monotonic_decreasing or float(areas.diff().max()) < 0.01


def test_tables_are_put_where_the_page_marks_them() -> None:
    page = "a\n<!-- beside -->\nold\n<!-- end of beside -->\nb\n<!-- curve -->\n<!-- end of curve -->\nc\n"
    made = put(page, "| x |", "| y |")
    assert made == "a\n<!-- beside -->\n| x |\n<!-- end of beside -->\nb\n<!-- curve -->\n| y |\n<!-- end of curve -->\nc\n"
    assert put(made, "| x |", "| y |") == made


@pytest.mark.slow
@pytest.mark.parametrize("cohort", COHORTS)
def test_the_bars_come_out_again(cohort: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AUC of at least .97 from one first-layer delta at FedAvg's server, and .40 to .60 under infl:hardened, on three seeds."""
    folder = real()
    if cohort != "pbmc68k" and folder is None:
        pytest.skip("the real cohorts are not here: set INFL_BENCH_DATA to the folder that holds them")
    if folder is not None:
        monkeypatch.setenv("INFL_BENCH_DATA", str(folder))
    found = measure(cohort, tmp_path, seeds=3, defenses=[PLAIN, OURS], attacks=[SPAN]).set_index("defense")
    assert found.loc[PLAIN, "auc"] >= 0.97
    assert 0.40 <= found.loc[OURS, "auc"] <= 0.60
