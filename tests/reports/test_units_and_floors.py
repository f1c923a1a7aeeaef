"""A report calls things what they are: no persons where tiles are held whole, and no largest class where there is no class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tables_fixture import results

from reports import tables, verdict, words
from reports.render import render
from reports.schema import empty_curves
from reports.setting import data_terms, limits_in_words, threat_terms

FLOORS = {"pearson_delta": "no change for any gene", "ari": "one cluster for all", "r2_of_another": "the best guess without features"}


def judged_by(metric: str) -> pd.DataFrame:
    """The fixture's results with another headline than accuracy, its controls renamed with it."""
    table: pd.DataFrame = results()
    table = table[~((table["role"] == "utility") & (table["metric"] != "accuracy"))]
    return table.assign(metric=table["metric"].str.replace(r"^accuracy\b", metric, regex=True))


@pytest.mark.parametrize("metric", FLOORS)
def test_the_floor_is_named_after_what_judges(metric: str) -> None:
    table = judged_by(metric)
    said = " ".join(sentence for _, sentences in verdict.verdict(table) for sentence in sentences)
    assert f"; {FLOORS[metric]} gives " in said
    assert "largest class" not in said
    assert tables.utility_table(table, "utility").shown.iloc[-1]["Defense"] == FLOORS[metric].removeprefix("the ")


def test_of_classes_it_is_the_largest() -> None:
    said = " ".join(sentence for _, sentences in verdict.verdict(results()) for sentence in sentences)
    assert "; the largest class alone gives " in said
    assert words.floor("accuracy") == "the largest class alone"


def record(**cohort: Any) -> dict[str, Any]:
    return {"request": {"split": {"unit": "person"}}, "cohort": {"records": 900, "persons": 100, **cohort}}


def test_units_are_called_what_the_task_calls_them() -> None:
    table = judged_by("ari")
    tiles = record(units="tiles of tissue")
    assert dict(data_terms(table, tiles))["Size"] == "900 records, 100 tiles of tissue"
    assert dict(threat_terms(table, tiles))["Unit of privacy and of the split"] == "person (here: tiles of tissue)"
    assert any("something else whole: tiles of tissue" in one for one in limits_in_words(table, tiles))
    assert dict(data_terms(table, record()))["Size"] == "900 records, 100 persons"
    assert dict(threat_terms(table, record()))["Unit of privacy and of the split"] == "person"
    assert not any("something else whole" in one for one in limits_in_words(table, record()))


def test_a_whole_report_of_clusters_names_no_class_and_no_hundred_persons(tmp_path: Path) -> None:
    text = render(judged_by("ari"), empty_curves(), record(units="tiles of tissue"), tmp_path).read_text()
    assert "largest class" not in text
    assert "100 persons" not in text
    assert "one cluster for all" in text
