"""docs/hardened.md holds what the files beside it hold: its tables, its picture, its sentences on known plaintexts and colluding sites."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from infl.hardened import Hardened
from reports.intervals import clopper_pearson
from suites.api import run
from tests.infl.hardened_limits import ALONE, STACKED
from tests.infl.hardened_page import ATTACKS, BEHIND, DOCS, LIFTED, by_known, cells, draw, made, membership_table, put, source
from tests.infl.hardened_tables import OURS, PLAIN, collusion


def page() -> str:
    """The page on one line, so that a sentence is found wherever it breaks."""
    return re.sub(r"\s+", " ", (DOCS / "hardened.md").read_text(encoding="utf-8"))


def known(defense: str = ALONE) -> pd.DataFrame:
    table = pd.read_csv(DOCS / "hardened_known.csv")
    assert set(table["defense"]) == {ALONE, STACKED}
    return table[table["defense"] == defense]


def test_the_page_holds_the_tables_of_the_files() -> None:
    held = (DOCS / "hardened.md").read_text(encoding="utf-8")
    assert put(held, made()) == held
    with pytest.raises(ValueError, match="no place for the table other"):
        put(held, {"other": ""})


def test_the_picture_was_drawn_from_the_files_that_are_here() -> None:
    with Image.open(DOCS / "hardened.png") as picture:
        assert picture.info["Source"] == source()


def test_the_picture_has_a_panel_a_cohort_and_attack_with_a_line_a_spread() -> None:
    limits, collusion = pd.read_csv(DOCS / "hardened.csv"), pd.read_csv(DOCS / "hardened_collusion.csv")
    panels = {panel.get_title(): panel for panel in draw(limits, pd.read_csv(DOCS / "hardened_known.csv"), collusion).axes}
    for data in ("pbmc68k", "kang", "cptac"):
        for attack, title in ATTACKS.items():
            own = limits[(limits["data"] == data) & (limits["attack"] == attack)]
            assert len(panels[f"{data}: {title}"].containers) == own["spread"].nunique()
            assert own[own["spread"] == Hardened().spread]["records_behind"].max() >= (64 if attack == "overlap" else Hardened().minimum)
    assert len(panels) == 3 * len(ATTACKS) + 2
    (lower,) = (panel for title, panel in panels.items() if "known plaintexts" in title)
    lines = [name for name in lower.get_legend_handles_labels()[1] if "sums" in name]
    assert lines == [f"c = {Hardened().spread:g}, sums of {size}" for size in sorted(set(known(STACKED)["records_behind"]))]


def test_at_the_minimum_and_the_default_spread_estimates_and_intervals_are_what_the_page_says() -> None:
    found = cells(pd.read_csv(DOCS / "hardened.csv"))
    found = found[found["spread"] == Hardened().spread]
    twice = 100 * found[(found["records_behind"] == 2 * Hardened().minimum) & (found["attack"] != "known_plaintext")]["share"]
    assert f"At 256 (pbmc68k, three seeds, and Kang, one) it is {twice.min():+.0f} to {twice.max():+.0f} %" in page()
    found = found[found["records_behind"] == Hardened().minimum]
    assert (found.groupby("data")["attack"].nunique() == len(ATTACKS) - 1).all()  # batches larger than the layer are not intersected
    assert (found["seeds"].min(), found["seeds"].max()) == (3, 8)
    known = found["attack"] == "known_plaintext"
    assert found[~known]["share"].max() <= 0.05
    assert f"upper ends of their intervals reach {100 * found[~known]['high'].max():.0f} %" in page()
    shares = 100 * found[known]["share"]
    assert f"Twenty known records name {shares.min():.0f} to {shares.max():.0f} % at 128" in page()


def test_overlapping_batches_up_to_the_width_are_named_as_the_page_says() -> None:
    found = cells(pd.read_csv(DOCS / "hardened.csv"))
    found = found[(found["attack"] == "overlap") & (found["records_behind"] == 64) & (found["spread"] <= 2)]
    assert set(found["data"]) == {"pbmc68k", "kang", "cptac"}
    low, high = 100 * found["share"].min(), 100 * found["share"].max()
    assert f"24 redrawn gradients of 64 records name {low:.0f} to {high:.0f} % of the records above chance" in page()


def test_known_plaintexts_name_what_the_page_says() -> None:
    table, text = known(), page()
    single = table[table["records_behind"] == 1]
    for _, own in single.groupby("spread"):
        assert set(own["known"]) == {0, 3, 10, 30, 100}
    assert set(single["spread"]) == {1.0, 1.4, 1.7, 2.0, 4.0}
    assert (single["share"] == 1.0).all()
    assert "all others are named at c = 1, 1.4, 1.7, 2 and 4 with 0, 3, 10, 30 and 100 known" in text
    sixteen = table[table["records_behind"] == 16]["share"]
    assert f"In batches of 16, {100 * sixteen.min():.0f} to {100 * sixteen.max():.0f} % are, whatever was known" in text
    most = table[table["records_behind"] == Hardened().minimum]
    assert ((most["low"] <= 0) & (most["high"] >= 0)).all()
    shares = most[most["spread"] == Hardened().spread]["share"]
    assert len(shares) == 5
    assert f"(c = {Hardened().spread:g}: {100 * shares.min():+.0f} to {100 * shares.max():+.0f} %; intervals are wide)" in text


def test_known_plaintexts_name_out_of_sums_what_the_page_says() -> None:
    """Behind secure aggregation, where the known records are known of a sum of two sites."""
    table, text = known(STACKED), page()
    assert (table["spread"] == Hardened().spread).all()
    assert set(table["records_behind"]) == {2, 16, 2 * 64}
    for _, own in table.groupby(["records_behind", "seed"]):
        assert list(own["known"]) == [0, 3, 10, 30, 100]
    small, sixteen, most = (own for _, own in table.groupby("records_behind"))
    assert (small["share"] == 1.0).all()
    assert "Sums of one record a site give up all others with 0, 3, 10, 30 and 100 known" in text
    assert f"sums of 8 a site {100 * sixteen['share'].min():.0f} to {100 * sixteen['share'].max():.0f} %" in text
    told = most[most["known"] == 100]
    ends = [(end - told["chance"].mean()) / (1 - told["chance"].mean()) for end in clopper_pearson(told["hits"].sum(), told["of"].sum())]
    assert f"the three seeds' {told['of'].sum()} records together give {100 * ends[0]:.0f} to {100 * ends[1]:.0f} %" in text
    most = by_known(most)
    assert (most["seeds"] == 3).all()
    assert ((most["low"] <= 0) & (most["high"] >= 0)).all()
    assert f"sums of 64 a site little ({100 * most['share'].min():+.0f} to {100 * most['share'].max():+.0f} %" in text


def test_more_messages_in_sight_make_batches_fall_as_the_page_says() -> None:
    few = pd.read_csv(DOCS / "hardened.csv").set_index(["data", "spread", "records_behind", "attack"])["share"].sort_index()
    many = known()
    many = many[(many["spread"] == 2.0) & (many["records_behind"] == 16) & (many["known"] == 0)]
    four = few.loc[("pbmc68k", 2.0, 16, "gram_search")].item()
    assert f"gave up few of their records at c = 2 ({100 * four:.0f} % above chance)" in page()
    assert many[["hits", "of"]].to_numpy().tolist() == [[160, 160]]


def test_a_colluding_site_names_every_record_alone_and_behind_secure_aggregation() -> None:
    table = pd.read_csv(DOCS / "hardened_collusion.csv")
    rows = {(row["defense"], row["attack"], row["view"]): row for row in table.to_dict("records")}
    assert (table["seeds"] == 3).all()
    assert rows[PLAIN, "ladder", "server"]["share"] == 1.0
    for defense in (LIFTED, BEHIND):
        site, server = (rows[defense, "ladder_of_sum", view] for view in ("site", "server"))
        assert (site["key"], server["key"]) == ("right", "none")
        assert site["share"] == 1.0
        assert site["cosine"] > 0.999
        assert site["low"] > server["high"]
        assert server["low"] <= server["chance_reidentified"] <= server["high"]
    assert (BEHIND, "ladder", "server") not in rows  # no site's message is in sight there


def test_a_cohort_where_an_attack_did_not_run_has_no_number() -> None:
    rows = [
        ("pbmc68k", "span", PLAIN, 0.9),
        ("pbmc68k", "span", OURS, 0.0),
        ("pbmc68k", "lira", PLAIN, 0.95),
        ("cptac", "span", PLAIN, 0.8),
    ]
    table = pd.DataFrame(rows, columns=["data", "attack", "defense", "leakage"]).assign(goal="membership", low=-0.1, high=1.0)
    lines = membership_table(table).splitlines()
    assert lines[0] == "| attack | pbmc68k, FedAvg | pbmc68k, infl:hardened | cptac, FedAvg | cptac, infl:hardened |"
    assert lines[2:] == [
        "| lira | 0.95 [-0.10, 1.00] | - | - | - |",
        "| span | 0.90 [-0.10, 1.00] | 0.00 [-0.10, 1.00] | 0.80 [-0.10, 1.00] | - |",
    ]


@pytest.mark.slow
def test_one_seed_of_the_colluding_site_comes_out_again(tmp_path: Path) -> None:
    """Alone and stacked with secure aggregation; the server's search, which fails, is held to a tenth of its length."""
    attack = "ladder_of_sum:budget=90"
    run(DOCS / "hardened_collusion.yaml", out=tmp_path, workers=1, report=False, seeds=1, defenses=[LIFTED, BEHIND], attacks=[attack])
    rows = {(row["defense"], row["view"]): row for row in collusion(tmp_path / "results.parquet").to_dict("records")}
    assert set(rows) == {(defense, view) for defense in (LIFTED, BEHIND) for view in ("site", "server")}
    for defense in (LIFTED, BEHIND):
        assert rows[defense, "site"]["share"] == 1.0
        assert rows[defense, "site"]["cosine"] > 0.999
        assert rows[defense, "server"]["low"] <= rows[defense, "server"]["chance_reidentified"]
