"""What a confidence is worth: known answers at both ends, fitted on other seeds, drawn, and silent where nothing can be told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from tables_fixture import curves, record, results

from reports import calibration, gallery, page, render, schema, stats
from reports.calibration import calibrated, calibration_error, held_out, perfect_error, reliability, with_calibration

CELL = {
    "suite": "quickstart", "task": "classification", "data": "pbmc68k", "defense": "fedavg", "attack": "row_space",
    "goal": "reconstruction", "view": "server", "key": "none",
}  # fmt: skip


def pairs(confidence: Any, right: Any, seed: int, **cell: str) -> pd.DataFrame:
    return pd.DataFrame(
        {**CELL, **cell, "seed": seed, "curve": "confidence", "x": np.asarray(confidence, float), "y": np.asarray(right, float)}
    )


def true_to_its_word(seeds: int, count: int, scale: float = 1.0, truth: float = 1.0) -> pd.DataFrame:
    """Confidence c, right with the chance ``truth`` * c in the last seed and c in the others; ``scale`` puts it in another unit."""
    rng = np.random.default_rng(7)
    parts = []
    for seed in range(seeds):
        chance = rng.random(count)
        right = rng.random(count) < chance * (truth if seed == seeds - 1 else 1)
        parts.append(pairs(-np.exp(-scale * chance), right, seed))
    return pd.concat(parts, ignore_index=True)


def rows(lines: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """A table with one row of ``confidence_auc`` a cell and seed, between two others."""
    base = results().query("attack == 'closed_form' and metric == 'r2'").iloc[:1].drop(columns=list(schema.CELL))
    made = []
    for at, own in lines.groupby([*schema.CELL, "seed"], sort=False):
        cell = dict(zip([*schema.CELL, "seed"], at, strict=True))
        given = {**base.iloc[0].to_dict(), **cell, "direction": "higher", **changes}
        made += [
            {**given, "metric": metric, "n": len(own), "value": 0.5, "low": 0.4, "high": 0.6}
            for metric in ("r2", "confidence_auc", "exact")
        ]
    return schema.validate(pd.DataFrame(made))


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_error_by_hand() -> None:
    chance = [0.05, 0.05, 0.95, 0.95, 1.0, 0.62]
    right = [False, True, True, True, False, True]
    by_hand = (abs((0 + 1) - 0.1) + abs((1 + 1 + 0) - 2.9) + abs(1 - 0.62)) / 6
    assert calibration_error(chance, right) == pytest.approx(by_hand)
    low, high, last = reliability(chance, right)[0], reliability(chance, right)[1], reliability(chance, right)[2]
    assert (low.n, high.n, last.n) == (2, 1, 3)
    assert last.chance == pytest.approx(2.9 / 3)
    assert (last.low, last.high) == stats.clopper_pearson(2, 3)
    assert calibration.brier([0.0, 1.0, 0.5], [False, True, True]) == pytest.approx(0.25 / 3)


def test_a_true_word_has_no_error_and_an_over_confident_one_has() -> None:
    rng = np.random.default_rng(3)
    chance = rng.random(5000)
    assert calibration_error(chance, rng.random(5000) < chance) < 0.03
    sure = 0.5 + chance / 2
    assert calibration_error(sure, rng.random(5000) < chance) == pytest.approx(np.mean(sure - chance), abs=0.02)


def test_few_pairs_miss_their_shares_by_luck_and_the_control_says_by_how_much() -> None:
    rng = np.random.default_rng(5)
    chance = rng.random(20)
    seen = [calibration_error(chance, rng.random(20) < chance) for _ in range(2000)]
    assert perfect_error(chance) == pytest.approx(np.mean(seen), rel=0.05)
    assert perfect_error(chance) > 0.1
    assert perfect_error(np.full(40, 1.0)) == 0


def test_the_fit_is_scikit_learns_on_platts_targets() -> None:
    rng = np.random.default_rng(11)
    held = rng.normal(size=60)
    right = rng.random(60) < 1 / (1 + np.exp(-2 * held))
    yes, no = right.sum(), (~right).sum()
    wanted = np.where(right, (yes + 1) / (yes + 2), 1 / (no + 2))
    from scipy.stats import norm, rankdata

    x = norm.ppf(rankdata(held) / 61)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.concatenate([x, x])[:, None], np.repeat([1, 0], 60), sample_weight=np.concatenate([wanted, 1 - wanted])
    )
    assert calibrated(held, right, held) == pytest.approx(fit.predict_proba(x[:, None])[:, 1], abs=1e-5)


@pytest.mark.parametrize("unit", [lambda c: c, lambda c: -np.exp(-20 * c), lambda c: 1e6 * c**3])
def test_the_fit_knows_no_units(unit: Any) -> None:
    rng = np.random.default_rng(13)
    held, asked = rng.random(50), rng.random(20)
    right = rng.random(50) < held
    assert np.allclose(calibrated(unit(held), right, unit(asked)), calibrated(held, right, asked))


def test_separable_and_equal_confidences_are_fitted_without_certainty() -> None:
    right = np.arange(40) >= 25
    apart = calibrated(np.arange(40.0), right, [-5.0, 100.0])
    assert 0 < apart[0] < 0.06
    assert 0.9 < apart[1] < 1
    flat = calibrated(np.ones(40), right, [1.0, 3.0])
    assert flat[0] == pytest.approx(15 / 40, abs=0.02)
    assert np.isfinite(flat).all()


# ------------------------------------------------------------------------------------------------------------- over seeds


def test_a_confidence_true_to_its_word_is_calibrated_whatever_its_unit() -> None:
    for scale in (1.0, 30.0):
        lines = true_to_its_word(4, 400, scale)
        table = with_calibration(rows(lines), lines).set_index(["metric", "seed"])["value"]
        error, perfect = table["expected_calibration_error"], table["expected_calibration_error:perfect"]
        assert error.max() < 0.09
        assert error.mean() < 1.5 * perfect.mean()
        assert table["brier"].mean() == pytest.approx(1 / 6, abs=0.01)  # the mean of c (1 - c)
        assert table["brier:share_alone"].mean() == pytest.approx(1 / 4, abs=0.01)


def test_a_seed_in_which_it_is_over_confident_shows_it_under_the_fit_of_the_others() -> None:
    lines = true_to_its_word(4, 400, truth=0.4)
    table = with_calibration(rows(lines), lines).set_index(["metric", "seed"])["value"]
    assert table["expected_calibration_error"][3] == pytest.approx(0.3, abs=0.05)  # half of 0.6
    assert table["expected_calibration_error"][3] > 3 * table["expected_calibration_error:perfect"][3]


def test_no_number_is_fitted_on_its_own_seed() -> None:
    """What is right in a seed moves the chances of the others, and none of its own."""
    lines = true_to_its_word(3, 30)
    changed = lines.assign(y=np.where(lines["seed"] == 1, 1 - lines["y"], lines["y"]))
    before, after = held_out(lines), held_out(changed)
    own = before["seed"] == 1
    assert (before.loc[own, "chance"] == after.loc[own, "chance"]).all()
    assert (before.loc[own, "base"] == after.loc[own, "base"]).all()
    assert not np.isclose(before.loc[~own, "chance"], after.loc[~own, "chance"]).any()


def test_a_confidence_that_says_nothing_is_as_good_as_the_share_alone() -> None:
    rng = np.random.default_rng(17)
    lines = pd.concat([pairs(rng.random(300), rng.random(300) < 0.3, seed) for seed in range(3)], ignore_index=True)
    table = with_calibration(rows(lines), lines).groupby("metric")["value"].mean()
    assert table["brier"] == pytest.approx(table["brier:share_alone"], abs=0.01)
    assert held_out(lines)["chance"].between(0.1, 0.5).all()


def test_the_rows_stand_behind_their_own_and_take_after_them() -> None:
    lines = pd.concat([true_to_its_word(3, 30), true_to_its_word(3, 30).assign(attack="dlg")], ignore_index=True)
    before = rows(lines, reason="upper bound: read the truth", role="control")
    after = schema.validate(with_calibration(before, lines))
    added = after[after["metric"].str.startswith(("expected", "brier"))]
    assert len(added) == 4 * 6
    pd.testing.assert_frame_equal(after.drop(added.index).reset_index(drop=True), before)
    assert (added["reason"] == "upper bound: read the truth").all()
    assert (added["role"] == "control").all()
    assert set(added["direction"]) == {"lower"}
    names = after["metric"].to_numpy().reshape(6, 7)
    assert (names == names[0]).all()
    assert list(names[0][[0, 1, 6]]) == ["r2", "confidence_auc", "exact"]
    assert (after["attack"].to_numpy().reshape(6, 7)[3:] == "dlg").all()
    assert [str(kind) for kind in after.dtypes] == [str(kind) for kind in before.dtypes]
    low, high = stats.summarise(after).set_index(["attack", "metric"]).loc[("dlg", "brier"), ["low", "high"]]
    assert 0 <= low < high <= 1  # over seeds


@pytest.mark.parametrize(
    ("right", "reason"),
    [
        ([[1, 1], [1, 1]], "not resolvable: every guess is right"),
        ([[0, 0], [0, 0]], "not resolvable: every guess is wrong"),
        ([[0, 1], [0, 0]], "not resolvable: every guess is wrong on the other seeds"),
        ([[0, 1]], "not resolvable: a calibration needs another seed to be fitted on"),
    ],
)
def test_what_cannot_be_told_says_so(right: list[list[int]], reason: str) -> None:
    lines = pd.concat([pairs([1, 2], own, seed) for seed, own in enumerate(right)], ignore_index=True)
    table = schema.validate(with_calibration(rows(lines), lines))
    first = table[(table["seed"] == 0) & table["metric"].isin(("expected_calibration_error", "brier"))]
    assert len(first) == 2
    assert first["value"].isna().all()
    assert (first["reason"] == reason).all()
    assert not (held_out(lines)["seed"] == 0).any() if len(held_out(lines)) else True


# ------------------------------------------------------------------------------------------------------------- the page


def small() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The fixture's FedAvg before the server: what is drawn in a page stays quick."""
    table, lines = results(), curves()
    kept = (table["defense"] == "fedavg") & (table["view"] != "outsider")
    return table[kept].reset_index(drop=True), lines[(lines["defense"] == "fedavg") & (lines["view"] == "server")]


def test_without_a_confidence_nothing_changes() -> None:
    table, lines = small()
    assert with_calibration(table, lines) is table
    assert gallery.confidences(lines) == []
    names = [block.value.name for part in page.sections(table, lines, record()) for block in part.blocks if block.kind == "table"]
    assert "confidence" not in names


def test_the_picture_and_its_table_are_in_the_page(tmp_path: Path) -> None:
    lines = pd.concat([true_to_its_word(3, 40), true_to_its_word(3, 40).assign(attack="dlg")], ignore_index=True)
    sure = pd.concat([pairs([1, 2], [1, 1], seed, attack="spear") for seed in range(3)], ignore_index=True)
    wrong_key = lines.assign(key="wrong")
    base, drawn = small()
    every = pd.concat([drawn, lines, sure, wrong_key], ignore_index=True)
    table = pd.concat([base, with_calibration(rows(pd.concat([lines, sure])), every)], ignore_index=True)
    table.loc[(table["attack"] == "spear") & (table["metric"] == "confidence_auc"), ["value", "low", "high"]] = math.nan
    table.loc[(table["attack"] == "spear") & table["value"].isna(), "reason"] = "not resolvable: every guess is right"
    text = render.render(table, schema.validate_curves(every), record(), tmp_path).read_text(encoding="utf-8")
    assert 'id="confidence-server-none"' in text
    assert "confidence-server-wrong" not in text  # repeats it
    (picture,) = gallery.confidences(every)
    assert picture.title in text.replace("&#39;", "'")
    assert "120 guesses" in picture.alt
    panels = [axes for axes in picture.figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["DLG", "Row space,\nfirst layer"]  # SPEAR has nothing to show
    counts = [int(one.get_text()) for one in panels[0].texts if one.get_text().isdigit()]
    assert sum(counts) == 120
    bars = [line.get_ydata() for line in panels[0].lines if len(line.get_ydata()) == 2][1:]  # the first is the diagonal
    own = held_out(lines[lines["attack"] == "dlg"])
    assert np.allclose(np.array(bars, dtype=float), [(b.low, b.high) for b in reliability(own["chance"], own["right"])])
    shown = pd.read_csv(tmp_path / "report" / "tables" / "confidence.csv")
    assert {"confidence_auc", "expected_calibration_error", "brier"} <= set(shown["metric"])
    assert "not resolvable" in (tmp_path / "report" / "tables" / "confidence.md").read_text()


def test_a_run_of_one_seed_has_no_picture() -> None:
    assert gallery.confidences(true_to_its_word(1, 50)) == []
