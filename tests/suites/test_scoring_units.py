"""Membership of persons and sites by summed evidence: known answers, both ends, too few to say, and rows of real cells."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from attacks.membership.lira import LiRA
from suites.bench import Bench
from suites.config import ThreatSpec
from suites.contracts import Skip, Threat
from suites.referee import attack_cell, train_cell
from suites.scoring_units import normal_scores, summed, unit_measures
from suites.sight import goal_of
from suites.trial import Trial


def gaussians(units: int, records: int, shift: float, seed: int = 0) -> tuple[Any, Any, Any]:
    """Scores N(±shift / 2, 1), member, unit: every other unit took part."""
    unit = np.repeat(np.arange(units), records)
    member = unit % 2 == 0
    scores = np.random.default_rng(seed).normal(np.where(member, shift / 2, -shift / 2))
    return scores, member, unit


def named(found: Any) -> dict[str, Any]:
    return {one.metric: one for one in found}


@pytest.mark.parametrize("records", [1, 4, 16])
def test_summed_log_ratios_reach_the_area_that_theory_gives(records: int) -> None:
    """The log ratio of N(±d/2, 1) at s is d s; summed over k records units are sqrt(k) d apart: AUC = Phi(d sqrt(k / 2))."""
    shift, values = 0.4, []
    for seed in range(5):
        scores, member, unit = gaussians(400, records, shift, seed)
        values.append(named(unit_measures(shift * scores, member, unit, log_ratio=True, name="person"))["auc"].value)
    assert np.mean(values) == pytest.approx(norm.cdf(shift * math.sqrt(records / 2)), abs=0.02)


def test_a_score_that_is_no_log_ratio_is_summed_on_one_scale_whatever_its_units() -> None:
    scores, member, unit = gaussians(60, 8, 0.5)
    by_ranks = named(unit_measures(scores, member, unit, log_ratio=False, name="person"))["auc"].value
    bent = named(unit_measures(np.exp(5 * scores), member, unit, log_ratio=False, name="person"))["auc"].value
    raw = named(unit_measures(np.exp(5 * scores), member, unit, log_ratio=True, name="person"))["auc"].value
    assert by_ranks == bent
    assert by_ranks > raw + 0.05


def test_normal_scores_are_the_quantiles_of_mean_ranks() -> None:
    found = normal_scores(np.array([5.0, 1.0, 1.0, np.nan, 9.0]))
    expected = norm.ppf([2.5 / 4, 1.0 / 4, 1.0 / 4, np.nan, 3.5 / 4])
    np.testing.assert_allclose(found, expected)


def test_sums_by_hand_and_silence_adds_nothing() -> None:
    totals, place = summed([1.0, 2.0, np.nan, -4.0], [7, 7, 3, 3], log_ratio=True)
    assert totals.tolist() == [-4.0, 3.0]
    assert place.tolist() == [1, 1, 0, 0]


def test_intervals_are_over_units_and_not_over_records() -> None:
    """Records of a person that all say the same thing are one piece of evidence: 20 copies do not narrow the interval."""
    scores, member, unit = gaussians(40, 1, 0.5)
    once = named(unit_measures(scores, member, unit, log_ratio=True, name="person"))
    copied = named(unit_measures(np.repeat(scores, 20), np.repeat(member, 20), np.repeat(unit, 20), log_ratio=True, name="person"))
    assert copied["auc"].n == once["auc"].n == 40
    assert (copied["auc"].low, copied["auc"].high) == pytest.approx((once["auc"].low, once["auc"].high))
    assert copied["auc:record"].n == 800
    assert copied["auc:record"].high - copied["auc:record"].low > 0.9 * (once["auc"].high - once["auc"].low)


def test_the_interval_covers_a_null_of_units_that_differ() -> None:
    """Persons with an effect of their own and no membership signal: the interval over persons holds .5, that of blind records would not."""
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(30), 10)
        scores = rng.normal(size=30)[unit] + 0.3 * rng.normal(size=300)
        area = named(unit_measures(scores, unit < 15, unit, log_ratio=True, name="person"))["auc"]
        covered += area.low <= 0.5 <= area.high
    assert covered >= 180


@pytest.mark.parametrize(("inside", "outside"), [(1, 9), (9, 1), (5, 0), (0, 5)])
def test_one_unit_on_a_side_is_not_resolvable(inside: int, outside: int) -> None:
    unit = np.repeat(np.arange(inside + outside), 3)
    found = named(unit_measures(np.arange(len(unit), dtype=float), unit < inside, unit, log_ratio=True, name="person"))
    assert math.isnan(found["leakage"].value)
    assert math.isnan(found["auc"].value)
    assert f"not resolvable: {inside} persons took part and {outside} did not" in found["auc"].reason


@pytest.mark.parametrize(("inside", "outside", "said"), [(3, 3, True), (4, 2, True), (4, 4, False), (6, 3, False)])
def test_few_units_are_no_evidence_and_the_interval_says_so(inside: int, outside: int, said: bool) -> None:
    """A perfect order of 3 and 3 has p = 1/20, of 4 and 4 1/70; .025 is the level."""
    unit = np.arange(inside + outside)
    found = named(unit_measures(-unit.astype(float), unit < inside, unit, log_ratio=True, name="site"))
    assert found["auc"].value == 1.0
    assert ((found["auc"].low, found["auc"].high) == (0.0, 1.0)) is said
    assert ("few sites" in found["auc"].reason) is said
    assert found["leakage"].low == (-1.0 if said else pytest.approx(2 * found["auc"].low - 1))


def test_a_unit_on_both_sides_is_no_question() -> None:
    with pytest.raises(ValueError, match="both inside and outside"):
        unit_measures(np.arange(4.0), [True, False, True, False], [0, 0, 1, 1], log_ratio=True, name="person")


def test_goals_of_rows() -> None:
    assert goal_of("membership", "person") == "membership:person"
    assert goal_of("membership", "record") == "membership"
    assert goal_of("reconstruction", "site") == "reconstruction"
    assert ThreatSpec(unit="site").unit == "site"
    with pytest.raises(ValueError, match="not measured yet"):
        ThreatSpec(unit="condition")


# ------------------------------------------------------------------------------------------------------------------ whole cells


def spec(**changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": "classification:dropout=0",
        "data": {"name": "synthetic", "params": {"records": 800, "features": 80, "sites": 16, "donors": 80}},
        "split": {"unit": "person", "train": 0.45, "validation": 0.0, "test": 0.35, "auxiliary": 0.2},
        "partition": {"kind": "iid", "sites": 4},
        "federation": {"rounds": 4, "local": {"epochs": 3, "lr": 2e-3}},
        "engine": {"chunk": 1},
        "defense": "fedavg",
        "seed": 0,
        **changes,
    }


def attacked(folder: Path, given: dict[str, Any], attack: str, unit: str, view: str = "server") -> dict[str, dict[str, Any]]:
    trained = folder / "train" / "target"
    if not trained.is_dir():
        trained.mkdir(parents=True)
        train_cell(given, trained)
    out = folder / "attack" / f"{attack}-{unit}-{view}"
    out.mkdir(parents=True)
    attack_cell({**given, "attack": attack, "threat": {"view": view, "unit": unit}, "budget": 1.0}, out, {"train": trained})
    return {row["metric"]: row for row in json.loads((out / "rows.json").read_text())}


def test_persons_leak_more_than_their_records_and_a_blind_attack_nothing(tmp_path: Path) -> None:
    records = attacked(tmp_path, spec(), "round_cosine", "record")
    persons = attacked(tmp_path, spec(), "round_cosine", "person")
    blind = attacked(tmp_path, spec(), "blind", "person")
    assert persons["auc"]["goal"] == "membership:person"
    assert persons["auc"]["n"] == 64  # 36 and 28 of 80 donors
    assert persons["auc:record"]["value"] == pytest.approx(records["auc"]["value"])
    assert persons["auc"]["low"] > records["auc"]["high"]
    assert blind["auc"]["low"] < 0.5 < blind["auc"]["high"]
    assert blind["auc"]["role"] == "control"


def test_a_hospital_that_took_part_is_told_from_one_that_did_not(tmp_path: Path) -> None:
    given = spec(
        partition={"kind": "column", "held_out": 8}, data={"name": "synthetic", "params": {"records": 800, "features": 80, "sites": 16}}
    )
    given["split"] = {**given["split"], "unit": "record"}
    found = attacked(tmp_path, given, "round_cosine", "site")
    blind = attacked(tmp_path, given, "blind", "site")
    assert found["auc"]["n"] == 16
    assert found["auc"]["low"] > 0.5
    assert found["auc"]["goal"] == "membership:site"
    trial = Trial(Bench(given, tmp_path / "prepared"), Threat(unit="site"), tmp_path / "train" / "target", [])
    with pytest.raises(Skip, match="leave none out"):  # references leave out records, never a site
        trial.run(LiRA(), "lira", {"goal": "membership:site"})
    assert blind["auc"]["low"] < 0.5


@pytest.mark.parametrize(
    ("unit", "changes", "reason"),
    [
        ("site", {}, "every site takes part"),
        ("person", {"split": {"unit": "record", "train": 0.5, "validation": 0.0, "test": 0.3, "auxiliary": 0.2}}, "split by person"),
    ],
)
def test_units_that_are_no_question_are_skipped_with_the_reason(tmp_path: Path, unit: str, changes: dict[str, Any], reason: str) -> None:
    rows = attacked(tmp_path, spec(federation={"rounds": 1, "local": {"epochs": 1}}, **changes), "round_cosine", unit)
    assert rows[""]["status"] == "skipped"
    assert reason in rows[""]["reason"]
