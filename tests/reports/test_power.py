"""A low number of an attack that does not work where nothing protects is not told as protection, in words, pictures or tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from tables_fixture import results

from reports import gallery, tables, verdict
from reports.flags import flag_results
from reports.plots import style
from reports.plots.heatmap import heatmap
from reports.plots.plane import EDGE, RIGHT, plane
from reports.power import powers, silences
from reports.standing import standing, standings
from reports.stats import summarise, t_interval

SUM = "cosine_inversion_of_sum"  # the only attack that applies to secure aggregation in this table
WHERE = ("reconstruction", "server", "secure_aggregation", "without")


def on_fedavg(leakage: float, spread: float = 0.01) -> pd.DataFrame:
    """The table in which the attack on the sum also ran on FedAvg, with this mean over three seeds."""
    table = results()
    away = (table["defense"] == "fedavg") & (table["attack"] == SUM)
    ran = table[(table["defense"] == "secure_aggregation") & (table["attack"] == SUM) & (table["metric"] == "leakage")].assign(
        defense="fedavg"
    )
    ran["value"] = leakage + spread * (ran["seed"] - 1.0)
    ran["low"] = ran["high"] = ran["value"]
    return pd.concat([table[~away], ran], ignore_index=True)


def silent_secure_aggregation(table: pd.DataFrame) -> pd.DataFrame:
    rows = table["defense"].str.contains("secure") & (table["attack"] == SUM) & (table["metric"] == "leakage")
    return table.assign(**{name: table[name].where(~rows, table[name] - 0.6) for name in ("value", "low", "high")})


@pytest.mark.parametrize(("leakage", "spread"), [(0.5, 0.01), (0.02, 0.001), (0.02, 0.05), (-0.5, 0.01)])
def test_an_attack_has_power_if_its_interval_on_fedavg_lies_above_the_controls(leakage: float, spread: float) -> None:
    low, _ = t_interval([leakage - spread, leakage, leakage + spread])
    table = on_fedavg(leakage, spread)
    assert powers(table)["reconstruction", "server", SUM] == (low > 0)
    flagged = set(flag_results(table).query("metric == 'flag:no_power'")["attack"])
    assert (SUM in flagged) == (low <= 0)  # the warning and the verdict agree


def test_one_attack_that_works_is_enough_and_keys_are_left_out() -> None:
    held = silences(on_fedavg(-0.5))
    assert WHERE in held
    assert ("reconstruction", "server", "dp_sgd:epsilon=8", "without") not in held  # the closed form works on FedAvg
    assert not any(goal == "key" for goal, *_ in held)


def test_why_a_silence_means_nothing() -> None:
    said = silences(on_fedavg(-0.5))[WHERE]
    assert said == "the only attack that applies, Cosine inversion of the sum, is not shown to work on FedAvg either"
    assert "has no number on FedAvg" in silences(results())[WHERE]  # skipped there
    alone = on_fedavg(-0.5)
    assert silences(alone[alone["defense"] != "fedavg"])[WHERE].startswith("FedAvg was not run")
    weak = alone[~((alone["goal"] == "reconstruction") & (alone["attack"] != SUM))]
    said = silences(weak)["reconstruction", "server", "fedavg", "without"]
    assert said.endswith("is not shown to work even here, where nothing protects")
    two = pd.concat([alone, alone[alone["attack"] == SUM].assign(attack="second")])
    said = silences(two)[WHERE]
    assert said == "none of the attacks that apply (Cosine inversion of the sum and second) is shown to work on FedAvg either"
    half = two[(two["attack"] != "second") | (two["defense"] != "fedavg")]
    assert silences(half)[WHERE].endswith("is not shown to work on FedAvg either and second has no number there")


def said(table: pd.DataFrame) -> list[str]:
    return next(lines for title, lines in verdict.verdict(table) if title.startswith("Reconstruction"))


def test_the_verdict_says_that_the_silence_means_nothing() -> None:
    lines = said(silent_secure_aggregation(on_fedavg(-0.5)))
    assert not any("Secure aggregation" in line for line in lines if line.startswith(("Not told from", "By their means")))
    (line,) = [line for line in lines if "so the silence means nothing" in line]
    assert line.startswith("Not measured: the only attack that applies, Cosine inversion of the sum, is not shown to work on FedAvg either")
    assert "Secure aggregation 0, by guessing (Cosine inversion of the sum alone: −" in line  # whoever does worse than guessing can guess


def test_the_same_number_stands_once_the_attack_works_on_fedavg() -> None:
    lines = said(silent_secure_aggregation(on_fedavg(0.5)))
    assert any("Secure aggregation" in line for line in lines if line.startswith("No attack does better than guessing"))
    assert any("Secure aggregation" in line for line in lines if line.startswith("By their means"))
    assert not any("means nothing" in line for line in lines)


def test_what_leaks_is_told_whatever_the_attack_does_on_fedavg() -> None:
    table = on_fedavg(-0.5)
    rows = table["defense"].eq("secure_aggregation") & (table["attack"] == SUM) & (table["metric"] == "leakage")
    table.loc[rows, ["value", "low", "high"]] += 0.8
    assert standing(table, "reconstruction", "server", "without").set_index("defense").at["secure_aggregation", "silent"] == ""
    assert any("Secure aggregation" in line for line in said(table) if line.startswith("The worst attack takes"))


def grey(figure: Any) -> list[Any]:
    marks = [line for line in figure.axes[0].lines if line.get_marker() not in {"None", "", None}]
    return [line for line in marks if line.get_markeredgecolor() == style.MUTED and line.get_markerfacecolor() == style.PAPER]


def test_the_plane_sets_it_apart_hollow_and_grey_with_a_legend() -> None:
    table = silent_secure_aggregation(on_fedavg(-0.5))
    figure = plane(table, "reconstruction", "server", "without")
    held = grey(figure)
    assert len(held) == 2  # secure aggregation, alone and under INFL
    assert all(x > RIGHT + EDGE for line in held for x in line.get_xdata())
    notes = " ".join(text.get_text().strip() for text in figure.texts)
    assert "Not measured (hollow, grey): Secure aggregation, INFL published + Secure aggregation. The only attack" in notes
    assert "so the silence means nothing" in notes
    sound = plane(silent_secure_aggregation(on_fedavg(0.5)), "reconstruction", "server", "without")
    assert grey(sound) == []
    assert sound.axes[0].get_xlim()[1] == pytest.approx(RIGHT + EDGE)
    (picture,) = [p for p in gallery.planes(table, standings(table)) if p.name == "plane-reconstruction-server-without"]
    assert "leakage not measured" in picture.alt


def test_the_tables_say_so_in_columns() -> None:
    table = silent_secure_aggregation(on_fedavg(-0.5))
    stands, power = standings(table), powers(table)
    leakage = tables.leakage_table(stands, "leakage")
    shown = leakage.shown.set_index("Defense")
    assert shown.at["Secure aggregation", "Reconstruction of records: server, without the key"].startswith("not measured (")
    assert "is not shown to work on FedAvg" in shown.at["Secure aggregation", "silence that means nothing"]
    assert shown.at["FedAvg", "silence that means nothing"] == "–"
    assert "is not shown to work on FedAvg" in " ".join(leakage.data["silent"])
    made = tables.attack_table(summarise(table), "reconstruction", ("leakage",), "reconstruction", power)
    assert made is not None
    works = made.shown.set_index(["Defense", "attack"])["shown to work on FedAvg"]
    assert (works[:, "Cosine inversion of the sum"] == "no").all()
    assert (works[:, "Closed form, first layer"] == "yes").all()
    assert (works[:, "class mean"] == "–").all()
    quiet = tables.leakage_table(standings(silent_secure_aggregation(on_fedavg(0.5))), "leakage")
    assert "Reconstruction" not in " ".join(quiet.shown.get("silence that means nothing", pd.Series(dtype=object)))


def test_a_claim_is_not_set_beside_a_number_that_means_nothing() -> None:
    table = on_fedavg(-0.5)
    stands = standings(table)
    for at, stand in stands.items():
        if at[0] == "reconstruction":
            stand.loc[stand["defense"] == "dp_sgd:epsilon=8", "silent"] = "nothing works"
    made = tables.claims_table(table, stands, "claims")
    assert made is not None
    shown = made.shown.set_index("Defense")
    assert shown.at["DP-SGD ε 8", "measured reconstruction leakage"] == "not measured"
    assert np.isnan(made.data.set_index("defense").at["dp_sgd:epsilon=8", "reconstruction_leakage"])
    assert shown.at["DP-SGD ε 32", "measured reconstruction leakage"] != "not measured"


def test_the_heat_map_names_attacks_that_take_nothing_on_fedavg() -> None:
    written = [text.get_text() for text in heatmap(on_fedavg(-0.5)).axes[0].texts]
    assert written.count("server, no key; not shown to work on FedAvg") == 1
    assert not any("not shown to work" in text.get_text() for text in heatmap(on_fedavg(0.5)).axes[0].texts)


def test_names_of_measured_defenses_stay_out_of_the_part_for_the_others() -> None:
    table = silent_secure_aggregation(on_fedavg(-0.5))
    crowd = (table["metric"] == "accuracy") & ~table["defense"].str.contains("secure")  # in one line, most of them at the right end
    table.loc[crowd, ["value", "low", "high"]] = table.loc[crowd, ["value", "low", "high"]] * 0.05 + 0.7
    figure = plane(table, "reconstruction", "server", "without")
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    edge = axes.transData.transform((RIGHT + EDGE, 0))[0]
    boxes = {t.get_text(): t.get_window_extent(renderer) for t in axes.texts if t.get_zorder() == 6}
    aside = {name for name, box in boxes.items() if box.x0 >= edge}
    assert aside == {"Secure aggregation", "INFL published\n+ Secure aggregation"}
    assert all(box.x1 <= edge for name, box in boxes.items() if name not in aside)
