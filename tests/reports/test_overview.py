"""The overview of attacks: strongest defense, FedAvg beside it, needs from the record, Markdown that holds its cells."""

from __future__ import annotations

import pandas as pd
import tables_fixture

from reports.overview import attacks_table
from reports.stats import summarise
from reports.tables import markdown
from reports.words import threat


def test_each_attack_stands_where_it_is_strongest() -> None:
    results = tables_fixture.results()
    record = {"attacks": {"lira": {"goal": "membership", "needs": ["candidates", "references"], "summary": "x"}}}
    summary = summarise(results)
    table = attacks_table(summary, results, record, "attacks")
    assert table is not None
    leaks = summary[(summary["metric"] == "leakage") & (summary["role"] == "score") & (summary["status"] == "ok")]
    for row in table.data.itertuples():
        own = leaks[(leaks["attack"] == row.attack) & (leaks["goal"] == row.goal)]
        assert row.leakage == own["value"].max()
        assert row.strongest_on == own.loc[own["value"].idxmax(), "defense"]
        assert (row.view, row.key) == tuple(own.loc[own["value"].idxmax(), ["view", "key"]])
        assert row.low <= row.leakage <= row.high
    assert table.shown["as"].tolist() == [threat(row.view, row.key) for row in table.data.itertuples()]
    assert table.shown["as"].nunique() > 1
    assert table.data.set_index("attack").loc["lira", "needs"] == "candidates, references"
    lines = markdown(table).splitlines()
    assert len(lines) == len(table.shown) + 2
    assert len({line.count("|") - line.count(r"\|") for line in lines}) == 1


def test_without_scores_there_is_no_table() -> None:
    results = tables_fixture.results()
    none = results[results["role"] != "score"]
    assert attacks_table(summarise(none), pd.DataFrame(none), {}, "attacks") is None
