"""Properties against imputation: known answers, both ends of each scale, and what cannot be resolved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from reports.intervals import clopper_pearson
from suites.scoring_property import BELOW, imputed_kinds, score_origin, score_shares


def named(found: Any) -> dict[str, Any]:
    return {one.metric: one for one in found}


def one_hot(codes: np.ndarray, count: int) -> np.ndarray:
    return np.eye(count)[codes]


def test_origin_runs_from_the_largest_site_to_the_truth() -> None:
    home = np.array([0] * 50 + [1] * 30 + [2] * 20 + [-1] * 40)
    said = home.clip(0).copy()
    said[:10] = 1  # ten of a hundred are wrong, and nobody asks about the forty others
    found = named(score_origin(one_hot(said, 3), home))
    assert found["accuracy_of_origin"].value == pytest.approx(0.9)
    assert (found["accuracy_of_origin"].low, found["accuracy_of_origin"].high) == pytest.approx(clopper_pearson(90, 100))
    assert found["accuracy_of_origin:largest_site"].value == 0.5
    assert found["accuracy_of_origin:chance"].value == pytest.approx(1 / 3)
    assert found["leakage"].value == pytest.approx((0.9 - 0.5) / 0.5)
    assert named(score_origin(one_hot(home.clip(0), 3), home))["leakage"].value == 1.0
    assert named(score_origin(one_hot(np.zeros(140, dtype=int), 3), home))["leakage"].value == 0.0


def test_imputation_is_the_prior_where_it_knows_more_than_the_largest_site() -> None:
    home = np.arange(100) % 4
    imputed = home.copy()
    imputed[:20] = (imputed[:20] + 1) % 4
    found = named(score_origin(one_hot(home, 4), home, imputed=one_hot(imputed, 4)))
    assert found["accuracy_of_origin:imputation"].value == pytest.approx(0.8)
    worse = home.copy()
    worse[:60] = (worse[:60] + 1) % 4
    below = named(score_origin(one_hot(worse, 4), home, imputed=one_hot(imputed, 4)))["leakage"]
    assert below.value == pytest.approx((0.4 - 0.8) / 0.2)
    assert BELOW in below.reason
    sure = named(score_origin(one_hot(worse, 4), home, imputed=one_hot(home, 4)))["leakage"]
    assert math.isnan(sure.value)
    assert "not resolvable" in sure.reason


def test_records_of_one_person_are_one_piece_of_evidence() -> None:
    home, person = np.repeat(np.arange(20) % 2, 10), np.repeat(np.arange(20), 10)
    said = np.where(person < 15, home, 1 - home)  # a person's records are all right or all wrong
    alone = named(score_origin(one_hot(said, 2), home))["accuracy_of_origin"]
    together = named(score_origin(one_hot(said, 2), home, groups=person))["accuracy_of_origin"]
    assert together.value == alone.value == 0.75
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_shares_run_from_imputation_to_the_truth_as_the_brier_skill_score() -> None:
    truth, public = np.array([[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]), np.array([0.5, 0.5])
    assert named(score_shares(truth, truth, public))["leakage"].value == 1.0
    assert named(score_shares(np.tile(public, (3, 1)), truth, public))["leakage"].value == 0.0
    half = (truth + public) / 2  # half of the way there leaves a quarter of the squared error
    found = named(score_shares(half, truth, public))
    assert found["leakage"].value == pytest.approx(0.75)
    assert found["share_error"].value == pytest.approx((0.1 + 0.15 + 0) / 3)
    assert found["share_error:imputation"].value == pytest.approx((0.2 + 0.3 + 0) / 3)
    assert found["share_error:imputation"].role == "control"
    worse = named(score_shares(1 - truth, truth, public))["leakage"]
    assert worse.value == pytest.approx(-3.0)
    assert BELOW in worse.reason


def test_a_site_that_wrote_nothing_down_is_not_asked_about() -> None:
    truth, public = np.array([[0.7, 0.3], [np.nan, np.nan], [0.2, 0.8]]), np.array([0.5, 0.5])
    found = named(score_shares(np.array([[0.7, 0.3], [0.9, 0.1], [0.2, 0.8]]), truth, public))
    assert found["leakage"].value == 1.0
    assert found["leakage"].n == 2
    none = named(score_shares(truth, np.full((3, 2), np.nan), public))["leakage"]
    assert math.isnan(none.value)
    assert "nobody wrote down" in none.reason


def test_the_interval_is_over_sites_and_one_site_has_none() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):  # errors of the same law: the skill is 1 - E ours / E theirs = .75
        truth = rng.normal(0.5, 0.1, (8, 1))
        real = np.hstack([truth, 1 - truth])
        guess = real + rng.normal(0, 0.05, (8, 1)) * [1, -1]
        one = named(score_shares(guess, real, np.array([0.5, 0.5])))["leakage"]
        covered += one.low <= 0.75 <= one.high
    assert covered >= 165
    alone = named(score_shares(real[:1], real[:1], np.array([0.1, 0.9])))["leakage"]
    assert math.isnan(alone.low)
    assert "one site" in alone.reason


def test_an_imputation_that_is_right_leaves_nothing_to_tell() -> None:
    truth = np.array([[0.5, 0.5], [0.51, 0.49]])
    found = named(score_shares(truth, truth, np.array([0.5, 0.5])))["leakage"]
    assert math.isnan(found.value)
    assert "not resolvable" in found.reason
    with pytest.raises(ValueError, match="one row a site"):
        score_shares(truth[:1], truth, np.array([0.5, 0.5]))


def test_public_records_impute_what_their_values_tell_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    kind, asked = rng.integers(0, 3, 300), rng.integers(0, 3, 300)
    told = rng.normal(size=(3, 40))
    known, records = rng.normal(size=(300, 40)), rng.normal(size=(300, 40))
    blind = (imputed_kinds(known, kind, records, 3).argmax(1) == asked).mean()
    seeing = (imputed_kinds(known + told[kind], kind, records + told[asked], 3).argmax(1) == asked).mean()
    assert seeing > 0.9
    assert blind < 0.45
