"""Tables and sentences hold the numbers of the results, each with its interval."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tables_fixture import DEFENSES, MAJORITY, SITES, results

from reports import tables, verdict, words
from reports.plots.plane import allowed
from reports.standing import standings
from reports.stats import summarise, t_interval


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return results()


def test_utility_is_the_mean_over_seeds_with_an_interval_no_narrower_than_students(table: pd.DataFrame) -> None:
    made = tables.utility_table(table, "utility")
    rows = table[(table["defense"] == "fedavg") & (table["metric"] == "accuracy") & (table["role"] == "utility")]
    held = made.data[(made.data["defense"] == "fedavg") & (made.data["metric"] == "accuracy")].iloc[0]
    low, high = t_interval(rows["value"])
    assert held["value"] == pytest.approx(rows["value"].mean())
    assert held["low"] <= low + 1e-12
    assert held["high"] >= high - 1e-12
    assert held["n"] == 3
    assert made.shown.iloc[-1]["Defense"] == "largest class alone"
    assert words.number(MAJORITY) in made.shown.iloc[-1]["accuracy"]


def test_an_audits_lower_bound_stands_beside_the_claim(table: pd.DataFrame) -> None:
    assert "audited_epsilon" not in tables.claims_table(table, standings(table), "claims").data
    row = table[(table["goal"] == "membership") & (table["defense"] == "dp_sgd:epsilon=8") & (table["metric"] == "leakage")].iloc[0]
    added = [
        dict(row)
        | {
            "goal": "audit",
            "attack": attack,
            "metric": "epsilon_lower",
            "value": value,
            "low": value,
            "high": np.nan,
            "role": role,
            "seed": seed,
        }
        for attack, value, role, seed in (("a", 1.0, "score", 0), ("a", 2.0, "score", 1), ("b", 1.2, "score", 0), ("c", 9.0, "control", 0))
    ]
    both = pd.concat([table, pd.DataFrame(added)], ignore_index=True)
    made = tables.claims_table(both, standings(both), "claims")
    assert made.data.set_index("defense")["audited_epsilon"]["dp_sgd:epsilon=8"] == 1.5
    assert made.shown.set_index("Defense")["audited ε at least"][words.defense("dp_sgd:epsilon=8")] == "1.50"


def test_claims_state_every_site_and_the_maximum_beside_what_was_measured(table: pd.DataFrame) -> None:
    stands = standings(table)
    made = tables.claims_table(table, stands, "claims")
    assert made is not None
    row = made.data.set_index("defense").loc["dp_sgd:epsilon=8"]
    assert len(row["per_site"].split()) == len(SITES)
    assert row["epsilon"] == max(float(part) for part in row["per_site"].split())
    assert row["allowed_leakage"] == pytest.approx(allowed(row["epsilon"], 1e-3))
    both = [stands["membership", view, "without"].set_index("defense").at["dp_sgd:epsilon=8", "leakage"] for view in ("server", "outsider")]
    assert row["membership_leakage"] == pytest.approx(max(both))
    assert tables.claims_table(table[table["role"] != "claim"], stands, "claims") is None


def test_the_claimed_maximum_is_that_of_the_sites_even_where_the_row_says_less(table: pd.DataFrame) -> None:
    lower = table.copy()
    lower.loc[lower["metric"] == "epsilon", "value"] = 1.0
    made = tables.claims_table(lower, standings(lower), "claims")
    assert made is not None
    assert made.data.set_index("defense").at["dp_sgd:epsilon=8", "epsilon"] > 7.9


def test_missing_cells_are_gathered_by_reason_and_none_is_lost(table: pd.DataFrame) -> None:
    made = tables.missing_table(table, "missing")
    assert made is not None
    assert made.data["cells"].sum() == (table["status"] != "ok").sum()
    assert set(made.data["reason"]) == set(table.loc[table["status"] != "ok", "reason"])
    assert tables.missing_table(table[table["status"] == "ok"], "missing") is None


def test_a_number_that_cannot_be_resolved_is_said_so(table: pd.DataFrame) -> None:
    made = tables.attack_table(summarise(table), "membership", ("auc", "tpr@1%"), "membership")
    assert made is not None
    assert set(made.shown["tpr@1%"]) == {"not resolvable"}
    assert made.shown["AUC"].str.contains(r"\[").all()


def test_csv_gives_all_digits_back(table: pd.DataFrame, tmp_path: Path) -> None:
    made = tables.scores_table(summarise(table), "scores")
    tables.save(made, tmp_path)
    back = pd.read_csv(
        io.StringIO((tmp_path / "scores.csv").read_text()),
        keep_default_na=False,
        na_values={"value": "", "low": "", "high": ""},
        float_precision="round_trip",
    )
    assert np.array_equal(back["value"].astype(float), made.data["value"], equal_nan=True)
    assert list(back["defense"]) == list(made.data["defense"])


def test_tex_escapes_and_closes_what_it_opens() -> None:
    odd = pd.DataFrame({"Defense": ["a_b & 50 %", "{x}\\$#"], "ε ≤": ["−1.5·10⁻⁸", "–"]})
    text = tables.tex(tables.Table("odd", "100 % of ~^", odd, odd, ("ε ≤",)))
    assert r"a\_b \& 50 \%" in text
    assert r"\{x\}\textbackslash{}\$\#" in text
    assert r"$-$1.5$\cdot$10$^{-}$$^{8}$" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert r"\begin{tabular}{lr}" in text
    assert text.isascii()


def test_costs_are_told_in_units(table: pd.DataFrame) -> None:
    made = tables.cost_table(table, "cost")
    fedavg = made.shown.set_index("Defense").loc["FedAvg"]
    assert fedavg["sent by sites a round"] == "5.40 MB"
    assert fedavg["peak memory"] == "451 MB"
    assert fedavg["arithmetic a round"] == "32.0 GFLOP"
    assert "ms [" in fedavg["training time"]


# --------------------------------------------------------------------------------------------------- sentences


def said(table: pd.DataFrame) -> str:
    return "\n".join(f"{title}\n" + "\n".join(lines) for title, lines in verdict.verdict(table))


def test_the_verdict_is_made_from_the_numbers(table: pd.DataFrame) -> None:
    text = said(table)
    stand = standings(table)["reconstruction", "server", "without"].set_index("defense")
    row = stand.loc["fedavg"]
    assert f"FedAvg {words.interval(row['leakage'], row['leakage_low'], row['leakage_high'], 2)} (Closed form, first layer)" in text
    assert "n = 3 seeds" in text
    assert "Not measured: Centralized, Local only; no update crosses a wire here" in text


def test_the_verdict_turns_with_the_numbers(table: pd.DataFrame) -> None:
    """The same sentence names secure aggregation as leaking once its rows do."""
    quiet = next(line for line in said(table).split("\n") if line.startswith("Not measured: none") or "so the silence" in line)
    assert "Secure aggregation" in quiet
    loud = table.copy()
    rows = (loud["attack"] == "cosine_inversion_of_sum") & (loud["metric"] == "leakage")
    loud.loc[rows, ["value", "low", "high"]] += 0.8
    takes = next(line for line in said(loud).split("\n") if line.startswith("The worst attack takes"))
    assert "Secure aggregation 0.8" in takes


def test_differences_of_utility_are_paired_by_seed(table: pd.DataFrame) -> None:
    gaps = verdict.paired(table, "fedavg", "accuracy").set_index("defense")
    rows = table[(table["metric"] == "accuracy") & (table["role"] == "utility")].pivot_table(
        index="seed", columns="defense", values="value"
    )
    gap = (rows["infl:published"] - rows["fedavg"]).to_numpy()
    assert gaps.at["infl:published", "difference"] == pytest.approx(gap.mean())
    assert (gaps.at["infl:published", "low"], gaps.at["infl:published", "high"]) == pytest.approx(t_interval(gap))


def test_a_wrong_key_that_opens_the_model_is_called_so_and_one_that_does_not_is_not(table: pd.DataFrame) -> None:
    opens = "\n".join(verdict.key_findings(table, "infl:published"))
    assert "A wrong key opens the model" in opens
    shut = table.copy()
    rows = (shut["attack"] == "open_with_wrong_keys") & (shut["metric"] == "opened")
    shut.loc[rows, "value"] = MAJORITY
    closed = verdict.key_findings(shut, "infl:published")[0]
    assert "does not open the model" in closed
    assert words.number(MAJORITY) in closed


def test_infl_as_published_is_told_in_numbers(table: pd.DataFrame) -> None:
    found = "\n".join(verdict.key_findings(table, "infl:published"))
    rows = table[(table["defense"] == "infl:published") & (table["attack"] == "key_vector") & (table["metric"] == "relative_error")]
    assert words.scientific(rows["value"].mean()) in found
    assert words.scientific(rows["value"].max()) in found
    assert "inputs come out of the first layer with no key: cosine to the true record 0.99998" in found.lower()
    assert verdict.key_findings(table, "infl:published+secure_aggregation")[0].startswith("A wrong key")


def test_a_key_that_is_not_found_and_inputs_that_stay_hidden_are_told_so(table: pd.DataFrame) -> None:
    held = table.copy()
    held.loc[held["metric"].str.startswith("relative_error"), "value"] = 1.3
    held.loc[held["metric"] == "cosine", "value"] = 0.04
    found = "\n".join(verdict.key_findings(held, "infl:published"))
    assert "does not find the secret-derived key tensors" in found
    assert "Inputs do not come out of the first layer with no key: cosine to the true record 0.04000" in found


def test_wrong_key_difference_is_that_of_the_twenty_keys_paired_by_seed(table: pd.DataFrame) -> None:
    own = table[table["defense"] == "infl:published"]
    found = verdict.wrong_key(own)
    rows = own[own["attack"] == "open_with_wrong_keys"].pivot_table(index="seed", columns="metric", values="value")
    gap = rows["opened"] - rows["opened:right_key"]
    assert found is not None
    assert found["difference"] == pytest.approx(gap.mean())
    assert (found["low"], found["high"]) == pytest.approx(t_interval(gap))


def test_a_measurement_above_its_claim_is_flagged(table: pd.DataFrame) -> None:
    assert verdict.contradictions(standings(table)) == []
    tight = table.copy()
    tight.loc[tight["metric"].str.startswith("epsilon"), "value"] = 0.01
    flagged = verdict.contradictions(standings(tight))
    assert any("DP-SGD ε 100 claims ε 0.01" in line and "wrong" in line for line in flagged)
    assert not any("FedAvg" in line for line in flagged)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dp_sgd:epsilon=8+secure_aggregation", "DP-SGD ε 8 + Secure aggregation"),
        ("dp_sgd:noise_multiplier=0", "DP-SGD clip only"),
        ("infl:published:strength=5", "INFL published (strength 5)"),
        ("my_defense:tau=0.1", "my defense (tau 0.1)"),
    ],
)
def test_defenses_in_words(name: str, said: str) -> None:
    assert words.defense(name) == said


def test_settings_are_left_out_where_nobody_needs_them_to_tell_defenses_apart() -> None:
    names = [
        "dp_sgd:epochs=2:epsilon=8:lr=0.01",
        "dp_sgd:epochs=4:epsilon=32:lr=0.01",
        "infl:published:strength=5",
        "infl:published:strength=20",
    ]
    with words.among(names, ["cosine:budget=80"]):
        assert [words.defense(name) for name in names[:3]] == ["DP-SGD ε 8", "DP-SGD ε 32", "INFL published (strength 5)"]
        assert words.attack("cosine:budget=80") == "cosine"
    assert words.defense(names[0]) == "DP-SGD ε 8 (epochs 2, lr 0.01)"


def test_numbers_in_words() -> None:
    assert words.number(-0.12345) == "−0.123"
    assert words.number(3.2e-8) == "3.2·10⁻⁸"
    assert words.number(float("nan")) == words.MISSING
    assert words.scientific(0.0) == "0"
    assert words.interval(0.5, float("nan"), 0.6) == "0.500"
    assert words.amount(1234.0, "B") == "1.23 kB"
    assert words.amount(0.0, "B") == "0 B"
    assert words.key("partial:0.25") == "25\N{NO-BREAK SPACE}% of the key"


def test_every_defense_is_in_every_table_of_defenses(table: pd.DataFrame) -> None:
    for made in (tables.utility_table(table, "u"), tables.cost_table(table, "c"), tables.leakage_table(standings(table), "l")):
        assert {words.defense(name) for name in DEFENSES} <= set(made.shown["Defense"])
