"""Intervals, ROC reading, worst case: against independent formulas, and by coverage on fixed streams."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions
from sklearn.metrics import roc_auc_score, roc_curve

from reports import intervals, roc, schema, stats, worst


def table(values: dict[str, list[float]], *, metric: str = "leakage", half: float = float("nan"), **more: Any) -> pd.DataFrame:
    """Rows of attacks by seed."""
    base = {
        "suite": "s", "task": "t", "data": "d", "defense": "fedavg", "goal": "membership", "view": "server", "key": "none", "n": 10,
        "direction": "higher", "role": "score", "status": "ok", "reason": "", "seconds": 1.0, "schema_version": schema.SCHEMA_VERSION,
    }  # fmt: skip
    rows = [
        {**base, "attack": attack, "seed": seed, "metric": metric, "value": value, "low": value - half, "high": value + half, **more}
        for attack, column in values.items()
        for seed, value in enumerate(column)
    ]
    return schema.validate(pd.DataFrame(rows))


# ------------------------------------------------------------------------------------------------------------- proportions, means


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (3, 7), (7, 7), (100, 600), (1, 1)])
def test_clopper_pearson_inverts_the_binomial_tails(successes: int, trials: int) -> None:
    low, high = stats.clopper_pearson(successes, trials)
    if successes:
        assert distributions.binom.sf(successes - 1, trials, low) == pytest.approx(0.025, abs=1e-9)
    else:
        assert low == 0
    if successes < trials:
        assert distributions.binom.cdf(successes, trials, high) == pytest.approx(0.025, abs=1e-9)
    else:
        assert high == 1


def test_clopper_pearson_covers_every_proportion_exactly_computed() -> None:
    trials = 30
    ends = np.array([stats.clopper_pearson(k, trials) for k in range(trials + 1)])
    for p in np.linspace(0.001, 0.999, 97):
        covered = (ends[:, 0] <= p) & (p <= ends[:, 1])
        assert distributions.binom.pmf(np.flatnonzero(covered), trials, p).sum() >= 0.95


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be"):
        stats.clopper_pearson(4, 3)


def test_t_interval_is_the_textbook_one_and_needs_two_values() -> None:
    values = [1.0, 2.0, 4.0]
    reach = 4.302652729911275 * np.std(values, ddof=1) / math.sqrt(3)
    assert stats.t_interval(values) == pytest.approx((7 / 3 - reach, 7 / 3 + reach))
    assert np.isnan(stats.t_interval([1.0])).all()


def test_means_of_three_seeds_are_covered_and_bca_from_ten() -> None:
    rng = np.random.default_rng(11)
    few = np.mean([low <= 0 <= high for low, high in (stats.mean_interval(rng.normal(size=3)) for _ in range(400))])
    many = np.mean([low <= 1 <= high for low, high in (stats.bca(rng.exponential(size=40), resamples=500) for _ in range(150))])
    assert few >= distributions.binom.ppf(0.001, 400, 0.95) / 400  # percentiles over three seeds would cover 77 %
    assert many >= 0.87
    held = rng.normal(size=12)
    assert stats.mean_interval(held) == stats.bca(held)
    assert stats.mean_interval(held[:9]) == stats.t_interval(held[:9])


def test_ratio_interval_covers_the_ratio_of_means() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(300):
        below = rng.normal(2, 0.3, 8)
        above = 0.4 * below + rng.normal(0, 0.2, 8)
        low, high = stats.ratio_interval(above, below)
        hits.append(low <= 0.4 <= high)
    assert np.mean(hits) >= 0.91


def test_hierarchical_interval_counts_seeds_not_records() -> None:
    rng = np.random.default_rng(3)
    seeds, targets, records = 4, 5, 6
    seed = np.repeat(np.arange(seeds), targets * records)
    target = np.tile(np.repeat(np.arange(targets), records), seeds)
    hierarchical, flat = [], []
    for _ in range(120):
        values = rng.normal(size=seeds)[seed] + 0.5 * rng.normal(size=(seeds, targets))[seed, target] + 0.3 * rng.normal(size=len(seed))
        low, high = stats.hierarchical(values, seed, target, resamples=150, rng=rng)
        hierarchical.append(low <= 0 <= high)
        low, high = stats.t_interval(values)
        flat.append(low <= 0 <= high)
    assert np.mean(hierarchical) >= 0.88
    assert np.mean(flat) <= 0.5  # what counting records as independent would do


def test_hierarchical_interval_of_one_record_a_seed_is_the_t_interval() -> None:
    values = np.random.default_rng(4).normal(size=4)
    low, high = stats.hierarchical(values, np.arange(4), resamples=4000)
    bottom, top = stats.t_interval(values)
    assert (high - low) / (top - bottom) == pytest.approx(1, abs=0.05)


def test_equal_seeds_never_claim_certainty() -> None:
    low, high = stats.over_seeds([1.0, 1.0, 1.0], [0.83, 0.83, 0.83], [1.0, 1.0, 1.0])
    assert low == pytest.approx(1 - 0.17 / math.sqrt(3))
    assert high == 1.0


# ------------------------------------------------------------------------------------------------------------- ROC


def scores(seed: int, members: int = 80, others: int = 60, shift: float = 1.0, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Coarsely rounded, so that many scores tie."""
    rng = np.random.default_rng(seed)
    held = np.round(np.concatenate([rng.normal(shift, 1, members), rng.normal(0, 1, others)]), digits)
    return held, np.arange(members + others) < members


def test_auc_equals_scikit_learns_with_ties_and_flips_with_the_sign() -> None:
    for seed in range(5):
        held, member = scores(seed)
        area = stats.auc(held, member)
        assert area.value == pytest.approx(roc_auc_score(member, held), abs=1e-12)
        assert stats.auc(-held, member).value == pytest.approx(1 - area.value, abs=1e-12)
        assert area.low < area.value < area.high


def test_delong_variance_equals_the_sum_over_pairs() -> None:
    held, member = scores(1)
    inside, outside = held[member], held[~member]
    kernel = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    variance = kernel.mean(1).var(ddof=1) / len(inside) + kernel.mean(0).var(ddof=1) / len(outside)
    area = stats.auc(held, member)
    logit = lambda p: math.log(p / (1 - p))  # noqa: E731
    spread = (logit(area.high) - logit(area.low)) / (2 * 1.959963984540054) * area.value * (1 - area.value)
    assert spread**2 == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (1.0, 3.0), (2.0, 1.0)])
def test_auc_interval_covers(shift: float, spread: float) -> None:
    rng = np.random.default_rng(17)
    true = distributions.norm.cdf(shift / math.hypot(1, spread))
    member = np.arange(120) < 60
    areas = [stats.auc(np.concatenate([rng.normal(shift, spread, 60), rng.normal(size=60)]), member) for _ in range(300)]
    assert np.mean([area.low <= true <= area.high for area in areas]) >= 0.91


def test_auc_of_perfect_separation_is_not_certain() -> None:
    area = stats.auc(np.arange(20.0), np.arange(20) >= 10)
    assert area.value == area.high == 1
    assert 0.6 < area.low < 0.95


def test_records_of_one_person_widen_the_auc_interval_and_it_then_covers() -> None:
    rng = np.random.default_rng(23)
    person = np.repeat(np.arange(30), 8)
    member = person < 15
    hits = {True: [], False: []}
    for _ in range(200):
        held = rng.normal(size=30)[person] + 0.5 * rng.normal(size=len(person))
        for grouped, found in hits.items():
            area = stats.auc(held, member, person if grouped else None)
            found.append(area.low <= 0.5 <= area.high)
    assert np.mean(hits[True]) >= 0.9
    assert np.mean(hits[False]) <= 0.7


def test_tpr_is_the_best_of_all_realised_thresholds_within_the_target() -> None:
    held, member = scores(2, 100, 400)
    fpr, tpr, _ = roc_curve(member, held, drop_intermediate=False)
    for target in (0.01, 0.0123, 0.033, 0.05, 0.2):
        rate = stats.tpr_at(held, member, target)
        assert rate.value == pytest.approx(tpr[fpr <= target + 1e-12].max())
        assert rate.fpr == np.mean(held[~member] >= rate.threshold) <= target
        assert rate.value == np.mean(held[member] >= rate.threshold)
        assert (rate.low, rate.high) == stats.clopper_pearson(round(rate.value * 100), 100)


def test_a_tied_block_is_called_together() -> None:
    """Half the members share the top score with 5 of 100 non-members: at 1 % nothing can be called."""
    held = np.concatenate([np.ones(50), np.zeros(50), np.ones(5), np.zeros(95)])
    member = np.arange(200) < 100
    rate = stats.tpr_at(held, member, 0.04)
    assert (rate.value, rate.fpr) == (0.0, 0.0)
    assert math.isnan(rate.threshold)
    assert stats.tpr_at(held, member, 0.05).value == 0.5


def test_a_target_below_three_expected_alarms_is_not_resolvable() -> None:
    held, member = scores(3, 100, 299)
    rate = stats.tpr_at(held, member, 0.01)
    assert math.isnan(rate.value)
    assert rate.reason == "not resolvable: n0 x FPR = 2.99 < 3 (needs 300 non-members)"
    assert stats.tpr_at(*scores(3, 100, 300), 0.01).reason == ""
    assert "n0 x FPR = 1.4 < 3" in stats.tpr_at(*scores(3, 100, 1400), 0.001).reason


def test_roc_points_are_corners_of_scikit_learns_curve() -> None:
    held, member = scores(4, 300, 700, digits=3)
    curve = stats.roc_points(held, member)
    assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
    assert len(curve.fpr) <= 202
    assert (np.diff(curve.fpr) > 0).all()
    assert (np.diff(curve.tpr) >= 0).all()
    fpr, tpr, _ = roc_curve(member, held, drop_intermediate=False)
    for x, y, low, high in zip(*curve):
        assert y == pytest.approx(tpr[fpr <= x + 1e-12].max())
        assert low <= y <= high


def test_roc_band_steps_and_averages_over_seeds() -> None:
    band = stats.roc_band([([0.0, 0.5, 1.0], [0.2, 0.8, 1.0]), ([0.0, 0.1, 1.0], [0.0, 0.4, 1.0])], [0.0, 0.1, 0.49, 0.5])
    assert band.tpr == pytest.approx([0.1, 0.3, 0.3, 0.6])


def test_advantage_is_not_chosen_on_what_it_scores() -> None:
    rng = np.random.default_rng(8)
    member = np.arange(60) < 30
    gains = [stats.advantage(rng.normal(size=60), member) for _ in range(200)]
    assert abs(np.mean(gains)) < 3 * np.std(gains) / math.sqrt(200) + 1e-9
    assert stats.advantage(np.where(member, 1.0, 0.0), member) == 1


def test_nan_scores_and_single_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        stats.auc([1.0, float("nan")], [True, False])
    with pytest.raises(ValueError, match="all of one kind"):
        stats.auc([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match="one length"):
        stats.auc([1.0, 2.0], [True])


# ------------------------------------------------------------------------------------------------------------- families of tests


def test_holm_adjusts_as_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])


def test_null_test_keeps_the_family_wise_level_and_sees_one_real_attack() -> None:
    rng = np.random.default_rng(29)
    null = [stats.null_test({f"a{k}": rng.normal(size=5) for k in range(12)})["rejected"].any() for _ in range(400)]
    assert np.mean(null) <= distributions.binom.ppf(0.999, 400, 0.05) / 400
    naive = [any(stats.t_interval(rng.normal(size=5))[0] > 0 for _ in range(12)) for _ in range(400)]
    assert np.mean(naive) > 0.15
    real = stats.null_test({"null": rng.normal(size=5), "real": 5 + rng.normal(size=5), "inverted": -5 + rng.normal(size=5)}, level=0.05)
    assert real.set_index("name")["rejected"].to_dict() == {"null": False, "real": True, "inverted": False}


def test_null_test_of_constants() -> None:
    found = stats.null_test({"at prior": [0.5, 0.5], "above": [0.6, 0.6]}, prior=0.5).set_index("name")["rejected"]
    assert found.to_dict() == {"at prior": False, "above": True}


# ------------------------------------------------------------------------------------------------------------- worst case


def test_worst_case_picks_the_strongest_never_the_average_and_never_an_upper_bound() -> None:
    df = table({"weak": [0.1, 0.12, 0.08], "strong": [0.6, 0.62, 0.58]})
    oracle = table({"cheat": [1.0, 1.0, 1.0]}, reason=f"{schema.UPPER_BOUND}: read the truth")
    control = table({"control": [0.99, 0.99, 0.99]}, role="control")
    worst_row = stats.worst_case(pd.concat([df, oracle, control], ignore_index=True)).iloc[0]
    assert worst_row["attack"] == "strong"
    assert worst_row["leakage"] == pytest.approx(0.6)
    assert worst_row["low"] == pytest.approx(stats.t_interval([0.6, 0.62, 0.58])[0])
    assert (worst_row["n_seeds"], worst_row["n_attacks"]) == (3, 2)


def test_every_seed_is_scored_by_an_attack_chosen_without_it() -> None:
    """A lucky seed makes an attack be chosen elsewhere, never where it was lucky."""
    values = {"a": [5.0, 0.0, 0.0, 0.0], "b": [0.0, 5.0, 0.0, 0.0]}
    row = stats.worst_case(table(values)).iloc[0]
    assert row["leakage"] == 0.0  # the plain maximum of means would say 1.25
    chosen, seeds = worst.crossfit(np.array(list(values.values())))
    assert dict(zip(seeds, chosen)) == {0: 1, 2: 1, 1: 0, 3: 0}


@pytest.mark.parametrize("seeds", [2, 3, 4, 7, 12])
def test_worst_of_twelve_null_attacks_is_null(seeds: int) -> None:
    rng = np.random.default_rng(100 + seeds)
    repeats, above, means, naive = 300, 0, [], []
    for _ in range(repeats):
        values = rng.normal(size=(12, seeds))
        chosen, scored = worst.crossfit(values)
        held = values[chosen, scored]
        nothing = np.full(len(held), np.nan)
        low, _ = worst._interval(held, nothing, nothing, worst.widening(values, chosen), 0.95)
        above += low > 0
        means.append(held.mean())
        naive.append(values.mean(1).max())
    assert above / repeats <= 0.06
    assert abs(np.mean(means)) < 4 * np.std(means) / math.sqrt(repeats)
    assert np.mean(naive) > 0.4  # what is avoided


def test_clear_leads_cost_no_width() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0, 0.01, size=(5, 3))
    values[2] += 1
    assert worst.widening(values, worst.crossfit(values)[0]) == 1.0
    assert worst.widening(values - values.mean(1, keepdims=True), np.array([0, 0, 0])) == pytest.approx(math.sqrt(3))


def test_keys_none_and_wrong_are_one_threat_and_the_others_stand_apart() -> None:
    parts = [
        table({"a": [v, v, v]}, key=key)
        for key, v in (("none", 0.1), ("wrong", 0.9), ("partial:0.5", 0.95), ("right", 1.0), ("leaked", 1.0))
    ]
    rows = stats.worst_case(pd.concat(parts, ignore_index=True)).set_index("key")
    assert set(rows.index) == {"without", "partial:0.5", "right", "leaked"}
    assert (rows.loc["without", "leakage"], rows.loc["without", "attack_key"]) == (pytest.approx(0.9), "wrong")


def test_where_every_attack_does_worse_the_worst_case_is_guessing_and_the_best_attack_stands_beside_it() -> None:
    row = stats.worst_case(table({"a": [-0.5, -0.4, -0.6], "b": [-2.0, -2.1, -1.9]}, half=0.1)).iloc[0]
    assert (row["leakage"], row["low"], row["high"], row["attack"]) == (0.0, 0.0, 0.0, "a")
    assert row["best"] == pytest.approx(-0.5)
    assert row["best_low"] < -0.5 < row["best_high"] < 0
    assert worst.GUESSES in row["reason"]


def test_a_worst_case_of_guessing_reaches_as_high_as_the_best_attack_may() -> None:
    row = stats.worst_case(table({"a": [-0.1, -0.05, -0.15]}, half=0.4)).iloc[0]
    assert row["leakage"] == 0.0
    assert row["high"] == pytest.approx(row["best_high"])
    assert row["high"] > 0


def test_above_guessing_nothing_stands_beside_the_worst_case() -> None:
    row = stats.worst_case(table({"a": [0.5, 0.4, 0.6], "b": [-2.0, -2.1, -1.9]}, half=0.1)).iloc[0]
    assert row["leakage"] == pytest.approx(0.5)
    assert row[list(worst.BESIDE)].isna().all()


def test_one_seed_is_widened_and_says_so() -> None:
    row = stats.worst_case(table({"a": [0.2], "b": [0.3], "c": [0.1]}, half=0.1)).iloc[0]
    assert row["leakage"] == pytest.approx(0.3)
    assert row["low"] == pytest.approx(0.3 - 0.1 * distributions.norm.isf(0.025 / 3) / distributions.norm.isf(0.025))
    assert "overstates" in row["reason"]


def test_skipped_attacks_leave_a_row_with_their_reason_and_failures_are_named() -> None:
    skipped = table({"a": [np.nan]}, metric="", status="skipped", reason="masked sums only")
    row = stats.worst_case(skipped).iloc[0]
    assert math.isnan(row["leakage"])
    assert (row["status"], row["reason"]) == ("skipped", "masked sums only")
    failed = table({"b": [np.nan]}, metric="", status="failed", reason="out of memory")
    mixed = stats.worst_case(pd.concat([table({"a": [0.1, 0.2]}), failed], ignore_index=True)).iloc[0]
    assert "failed: b" in mixed["reason"]


def test_an_attack_missing_on_some_seeds_is_still_counted() -> None:
    values = np.array([[0.9, np.nan, 0.9], [0.1, 0.1, 0.1]])
    chosen, seeds = worst.crossfit(values)
    assert dict(zip(seeds, chosen)) == {0: 0, 1: 1, 2: 0}


# ------------------------------------------------------------------------------------------------------------- summaries


def test_summarise_takes_seeds_as_repeats_and_keeps_reasons() -> None:
    df = pd.concat(
        [table({"a": [0.1, 0.2, 0.6]}), table({"b": [np.nan]}, metric="", status="skipped", reason="no probes")], ignore_index=True
    )
    rows = stats.summarise(df).set_index("attack")
    assert rows.loc["a", "value"] == pytest.approx(0.3)
    assert tuple(rows.loc["a", ["low", "high"]]) == pytest.approx(stats.t_interval([0.1, 0.2, 0.6]))
    assert (rows.loc["a", "n"], rows.loc["a", "n_seeds"]) == (30, 3)
    assert (rows.loc["b", "status"], rows.loc["b", "reason"]) == ("skipped", "no probes")
    assert math.isnan(rows.loc["b", "value"])


def test_paired_differences_cancel_what_seeds_share() -> None:
    rng = np.random.default_rng(31)
    shared = rng.normal(size=6)
    a = table({"lira": list(shared + 0.1 + 0.01 * rng.normal(size=6))}, defense="infl")
    b = table({"lira": list(shared + 0.01 * rng.normal(size=6))})
    row = stats.paired_difference(pd.concat([a, b], ignore_index=True), {"defense": "infl"}, {"defense": "fedavg"}).iloc[0]
    assert row["difference"] == pytest.approx(0.1, abs=0.02)
    assert row["low"] > 0.05
    assert row["p_holm"] < 0.001
    back = stats.paired_difference(pd.concat([a, b], ignore_index=True), {"defense": "fedavg"}, {"defense": "infl"}).iloc[0]
    assert back["difference"] == pytest.approx(-row["difference"])
    with pytest.raises(ValueError, match="same columns"):
        stats.paired_difference(a, {"defense": "infl"}, {"attack": "lira"})


# ------------------------------------------------------------------------------------------------------------- schema


def test_the_schema_names_every_column_of_the_design() -> None:
    named = "suite task data defense attack goal view key seed metric value low high n direction role status reason seconds schema_version"
    assert list(schema.RESULTS) == named.split()
    assert list(schema.CURVES) == ["suite", "task", "data", "defense", "attack", "goal", "view", "key", "seed", "curve", "x", "y"]
    assert len(schema.validate(schema.empty())) == 0
    assert len(schema.validate_curves(schema.empty_curves())) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"goal": "privacy"}, "column goal holds 'privacy'"),
        ({"key": "partial:2"}, "column key holds 'partial:2'"),
        ({"key": "half"}, "column key holds 'half'"),
        ({"role": "result"}, "column role"),
        ({"attack": ""}, "needs an attack"),
        ({"metric": ""}, "no metric"),
        ({"status": "skipped"}, "gives no reason"),
        ({"value": float("nan")}, "no value and no reason"),
        ({"value": float("inf")}, "infinite"),
        ({"low": 2.0, "high": 1.0}, "low end lies above"),
        ({"n": -1}, "fewer than zero"),
        ({"seed": 0.5}, "column seed"),
        ({"reason": None}, "column reason"),
        ({"schema_version": 99}, "another version"),
        ({"goal": "utility"}, "names an attack although"),
    ],
)
def test_validate_says_in_one_sentence_what_is_wrong(change: dict[str, Any], sentence: str) -> None:
    good = table({"a": [0.5]})
    with pytest.raises(schema.SchemaError, match=sentence) as caught:
        schema.validate(good.assign(**change))
    assert "\n" not in str(caught.value)
    assert len(schema.validate(good.assign(key="partial:0.5"))) == 1


def test_validate_refuses_missing_columns() -> None:
    with pytest.raises(schema.SchemaError, match="lacks the columns metric, n"):
        schema.validate(table({"a": [0.5]}).drop(columns=["metric", "n"]))


def test_tables_survive_parquet(tmp_path: Any) -> None:
    df = table({"a": [0.5, 0.6]})
    df.to_parquet(tmp_path / "r.parquet")
    assert len(schema.validate(pd.read_parquet(tmp_path / "r.parquet"))) == 2


def test_statistics_import_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, reports.stats, reports.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reexports_are_complete() -> None:
    assert all(hasattr(stats, name) for name in stats.__all__)
    assert set(itertools.chain(vars(intervals), vars(roc))) >= set(stats.__all__) - {"worst_case", "summarise", "paired_difference"}


def test_intervals_stay_within_what_a_metric_can_be() -> None:
    """Two seeds far apart: the t interval of an AUC would reach beyond 1, and that of an accuracy below 0."""
    rows = table({"a": [0.8, 0.99]}, metric="auc")
    row = stats.summarise(rows).iloc[0]
    assert row["low"] >= 0
    assert row["high"] == 1
    low = stats.summarise(table({"a": [0.02, 0.3]}, metric="tpr@1%")).iloc[0]
    assert low["low"] == 0
    worst_of = stats.worst_case(table({"a": [0.8, 0.99]})).iloc[0]
    assert worst_of["high"] == 1
    free = stats.summarise(table({"a": [3.0, 9.0]}, metric="relative_error")).iloc[0]
    assert free["low"] < 0  # a metric without a known range is left alone
