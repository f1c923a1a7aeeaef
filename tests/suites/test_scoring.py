"""The scorer: known answers, both ends of every scale, and faults that it must not forgive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

from suites.contracts import Guess, Records
from suites.randomness import stream
from suites.scoring import (
    Measure,
    as_control,
    as_upper_bound,
    match,
    score_key,
    score_membership,
    score_reconstruction,
    score_utility,
    score_vectors,
)

FEATURES = 64


def by_name(measures: list[Measure]) -> dict[str, Measure]:
    assert len({one.metric for one in measures}) == len(measures), "a metric was given twice"
    return {one.metric: one for one in measures}


def normal(*shape: int, at: str = "") -> torch.Tensor:
    return torch.randn(*shape, generator=stream("test scoring", at, *shape))


class World:
    """12 targets of ``batch`` records, a pool that holds them, auxiliary records that do not."""

    def __init__(self, batch: int = 1, targets: int = 12) -> None:
        self.truth = list(normal(targets, batch, FEATURES, at="truth"))
        self.pool = torch.cat([*self.truth, normal(150, FEATURES, at="pool")])
        self.auxiliary = Records(normal(80, FEATURES, at="auxiliary"), torch.zeros(80, dtype=torch.int64))
        self.controls = {"random_guess": list(normal(targets, batch, FEATURES, at="control"))}

    def score(self, value: list[torch.Tensor], **more: object) -> dict[str, Measure]:
        guess = Guess(value, certified=more.pop("certified", None))  # type: ignore[arg-type]
        return by_name(score_reconstruction(guess, self.truth, self.pool, self.auxiliary, self.controls, stream("s"), **more))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- reconstruction


@pytest.mark.parametrize("batch", [1, 4])
def test_the_oracle_scores_one_in_any_order(batch: int) -> None:
    world = World(batch)
    found = world.score([one[torch.randperm(batch, generator=stream("order", k))] for k, one in enumerate(world.truth)])
    for metric in ("leakage", "r2", "cosine", "pearson", "exact", "reidentified", "top50_overlap"):
        assert found[metric].value == pytest.approx(1), metric
    assert found["relative_error"].value == 0
    assert found["exact"].low == pytest.approx(0.025 ** (1 / (12 * batch)))  # Clopper-Pearson, all successes


def test_the_public_mean_is_the_prior_and_scores_zero() -> None:
    world = World(4)
    found = world.score([torch.zeros_like(one) for one in world.truth])
    assert (found["leakage"].value, found["r2"].value, found["exact"].value) == (0, 0, 0)
    assert found["r2:random_guess"].value == pytest.approx(-1, abs=0.2)
    assert found["r2:random_guess"].role == "control"


def test_r2_and_leakage_by_independent_formulas() -> None:
    world = World(1)
    guess = [0.7 * one + 0.3 * normal(1, FEATURES, at="noise") for one in world.truth]
    found = world.score(guess)
    each = [1 - ((g - t) ** 2).sum().item() / (t**2).sum().item() for g, t in zip(guess, world.truth)]
    assert found["r2"].value == pytest.approx(np.mean(each))
    assert found["leakage"].value == pytest.approx(found["r2"].value)  # the best control is the public mean, at 0
    assert found["r2"].low < found["r2"].value < found["r2"].high
    against_zero = [r2_score(np.append(t, -t), np.append(g, -g)) for g, t in zip(map(np.ravel, guess), map(np.ravel, world.truth))]
    assert found["r2"].value == pytest.approx(np.mean(against_zero))


def test_a_control_that_knows_more_raises_the_prior() -> None:
    world = World(1)
    world.controls["class_mean"] = [0.5 * one for one in world.truth]  # R² .75
    found = world.score([0.8 * one for one in world.truth])  # R² .96
    assert found["r2:class_mean"].value == pytest.approx(0.75)
    assert found["leakage"].value == pytest.approx((0.96 - 0.75) / 0.25)
    assert world.score([torch.zeros_like(one) for one in world.truth])["leakage"].value == pytest.approx(-3)  # unclipped


def test_nearest_auxiliary_is_nearest_to_the_guess_not_to_the_truth() -> None:
    world = World(1)
    world.auxiliary = Records(torch.cat([world.truth[0], world.auxiliary.x]), torch.zeros(81, dtype=torch.int64))
    at_truth = world.score(world.truth)["r2:nearest_auxiliary"].value
    elsewhere = world.score([world.auxiliary.x[5:6]] * 12)["r2:nearest_auxiliary"].value
    assert at_truth == pytest.approx(np.mean([1, *([-0.6] * 11)]), abs=0.3)
    assert elsewhere < at_truth
    errors = [((world.auxiliary.x[5] - one[0]) ** 2).sum() / (one**2).sum() for one in world.truth]
    assert elsewhere == pytest.approx(1 - float(torch.stack(errors).mean()), rel=1e-5)


def test_a_sign_error_cannot_pass() -> None:
    world = World(4)
    found = world.score([-one for one in world.truth])
    assert found["leakage"].high < 0
    world = World(1)
    alone = world.score([-one for one in world.truth])
    assert (alone["cosine"].value, alone["reidentified"].value) == (pytest.approx(-1), 0)


def test_scale_is_seen_where_cosine_is_blind() -> None:
    world = World(1)
    found = world.score([5 * one for one in world.truth])
    assert found["cosine"].value == pytest.approx(1)
    assert found["r2"].value == pytest.approx(-15)


def test_exact_means_below_a_thousandth() -> None:
    world = World(1)
    unit = [one / one.norm() for one in world.truth]
    near = [one + size * one.norm() * u for one, u, size in zip(world.truth, unit, [0.99e-3] * 5 + [1.01e-3] * 7)]
    assert world.score(near)["exact"].value == pytest.approx(5 / 12)


def test_matching_by_chance_is_printed_and_is_what_random_records_reach() -> None:
    world = World(8, 10)
    found = world.score([normal(8, FEATURES, at=f"blind {k}") for k in range(10)])
    assert found["chance_match"].value == pytest.approx(found["cosine"].value, abs=0.03)
    assert found["chance_match"].value > 0.08  # without matching it would be 0
    assert found["chance_r2"].value == pytest.approx(found["r2"].value, abs=0.1)
    assert found["reidentified"].value < 0.1
    assert found["chance_reidentified"].value == pytest.approx(8 / 230)


def test_matching_minimises_the_distance_over_all_orders() -> None:
    import itertools

    truth, guess = normal(4, 6, at="a"), normal(4, 6, at="b")
    best = min(float(((guess[list(order)] - truth) ** 2).sum()) for order in itertools.permutations(range(4)))
    assert float(((match(guess, truth) - truth) ** 2).sum()) == pytest.approx(best)


def test_reidentification_needs_the_true_record_to_be_strictly_nearest() -> None:
    world = World(1)
    nearer = [0.4 * one + 0.6 * world.pool[100] for one in world.truth]
    assert world.score(nearer)["reidentified"].value == 0
    closer = [0.6 * one + 0.4 * world.pool[100] for one in world.truth]
    assert world.score(closer)["reidentified"].value == 1
    world.pool = torch.cat([world.pool, *world.truth])  # the same record twice is the same person
    assert world.score(closer)["reidentified"].value == 1
    halfway = [(one + other) / 2 for one, other in zip(world.truth, world.truth[1:] + world.truth[:1])]
    assert world.score(halfway)["reidentified"].value < 0.9


def test_reidentification_by_brute_force() -> None:
    world = World(2)
    guess = [one + 1.6 * normal(2, FEATURES, at=f"n{k}") for k, one in enumerate(world.truth)]
    found = world.score(guess)["reidentified"]
    hits = 0
    for said, true in zip(guess, world.truth):
        pairs = [(g, t) for g, t in zip(match(said, true), true)]
        hits += sum(float((world.pool - g).norm(dim=1).min()) == pytest.approx(float((t - g).norm()), abs=1e-9) for g, t in pairs)
    assert 0 < found.value < 1
    assert found.value == hits / 24


def test_raw_pearson_is_high_for_nothing_where_the_mean_is_public() -> None:
    """The trap that standardised residuals avoid (predicting the mean: Pearson .95 on log-intensities)."""
    world = World(1)
    centre, scale = 3 * normal(FEATURES, at="centre"), torch.full((FEATURES,), 0.7)
    found = world.score([torch.zeros_like(one) for one in world.truth], raw=(centre, scale))
    assert found["pearson_raw"].value > 0.9
    assert found["leakage"].value == 0


def test_certified_counts_targets_or_records_and_how_many_were_right() -> None:
    world = World(2)
    guess = [one if k < 6 else torch.zeros_like(one) for k, one in enumerate(world.truth)]
    found = world.score(guess, certified=torch.arange(12) < 8)
    assert (found["certified"].value, found["certified_exact"].value) == (pytest.approx(16 / 24), pytest.approx(12 / 16))
    assert world.score(guess, certified=torch.arange(24) < 12)["certified_exact"].value == 1
    assert math.isnan(world.score(guess, certified=torch.zeros(24))["certified_exact"].value)
    with pytest.raises(ValueError, match="certified marks 5 things"):
        world.score(guess, certified=torch.zeros(5))


def test_guesses_with_nan_say_nothing_and_are_flagged() -> None:
    world = World(1)
    guess = [torch.full_like(one, math.nan) if k < 3 else one for k, one in enumerate(world.truth)]
    found = world.score(guess)
    assert found["undefined_guesses"].value == 3
    assert found["undefined_guesses"].role == "flag"
    assert found["r2"].value == pytest.approx(9 / 12)


def test_wrong_shapes_are_refused_in_words() -> None:
    world = World(2)
    with pytest.raises(ValueError, match="one tensor for each of 12 targets"):
        world.score(world.truth[:3])
    with pytest.raises(ValueError, match="target 0 has shape"):
        world.score([one[:1] for one in world.truth])
    with pytest.raises(ValueError, match="not a Tensor"):
        world.score(torch.zeros(12))  # type: ignore[arg-type]


def test_one_target_has_no_interval_and_says_so() -> None:
    found = World(4, 1).score([torch.zeros(4, FEATURES)])
    assert math.isnan(found["leakage"].low)
    assert found["leakage"].reason == "no interval: one target"


def test_guesses_independent_of_the_truth_leak_nothing_at_a_family_wise_level() -> None:
    """20 null attacks: no lower bound lies above the prior at a family-wise 5 % (one-sided)."""
    from reports.stats import null_test

    samples = {}
    for attack in range(20):
        leaks = []
        for seed in range(4):
            world = World(2, 6)
            world.truth = list(normal(6, 2, FEATURES, at=f"t{attack}.{seed}"))
            leaks.append(world.score([0.1 * normal(2, FEATURES, at=f"g{attack}.{seed}.{k}") for k in range(6)])["leakage"].value)
        samples[str(attack)] = leaks
    assert not null_test(samples)["rejected"].any()


def test_leakage_interval_covers_the_expected_leakage() -> None:
    """Guesses of known quality: R² is 1 - (1 - a)² - b² in expectation."""
    hits = []
    for repeat in range(120):
        world = World(1, 8)
        world.truth = list(normal(8, 1, 400, at=f"cover {repeat}"))
        world.controls, world.auxiliary = {}, Records(normal(5, 400, at="few"), torch.zeros(5))
        world.pool = normal(10, 400, at="p")
        found = world.score([0.5 * one + 0.3 * normal(1, 400, at=f"n{repeat}.{k}") for k, one in enumerate(world.truth)])["leakage"]
        hits.append(found.low <= 1 - 0.25 - 0.09 <= found.high)
    assert np.mean(hits) >= 0.88


# ------------------------------------------------------------------------------------------------------------- membership


def membership(shift: float, members: int = 300, others: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    scores = normal(members + others, at=f"membership {shift}")
    member = torch.arange(members + others) < members
    return scores + shift * member, member


def test_membership_by_scikit_learn_and_on_its_scale() -> None:
    scores, member = membership(1.0)
    found = by_name(score_membership(scores, member))
    area = roc_auc_score(member, scores)
    assert found["auc"].value == pytest.approx(area)
    assert found["leakage"].value == pytest.approx(2 * area - 1)
    assert found["leakage"].low == pytest.approx(2 * found["auc"].low - 1)
    at = found["threshold@1%"].value
    assert found["fpr@1%"].value == pytest.approx(float((scores[300:] >= at).float().mean()))
    assert found["tpr@1%"].value == pytest.approx(float((scores[:300] >= at).float().mean()))
    assert (found["tpr@1%"].low, found["tpr@1%"].n) == (pytest.approx(found["tpr@1%"].low), 300)


def test_a_sign_error_planted_in_a_membership_score_is_caught() -> None:
    scores, member = membership(1.0)
    found = by_name(score_membership(-scores, member))
    assert found["leakage"].high < 0
    assert found["auc"].value < 0.4


def test_membership_ends_of_the_scale() -> None:
    member = torch.arange(1000) < 500
    oracle = by_name(score_membership(member.float(), member))
    assert (oracle["leakage"].value, oracle["tpr@1%"].value, oracle["fpr@1%"].value, oracle["advantage"].value) == (1, 1, 0, 1)
    constant = by_name(score_membership(torch.zeros(1000), member))
    assert (constant["leakage"].value, constant["tpr@1%"].value, constant["advantage"].value) == (0, 0, 0)
    assert "no threshold" in constant["threshold@1%"].reason


def test_low_rates_are_not_resolvable_with_few_non_members() -> None:
    scores, member = membership(1.0, 300, 1400)
    found = by_name(score_membership(scores, member))
    for metric in ("tpr@0.1%", "fpr@0.1%", "threshold@0.1%"):
        assert math.isnan(found[metric].value)
        assert found[metric].reason.startswith("not resolvable: n0 x FPR = 1.4 < 3")
    assert math.isfinite(found["tpr@1%"].value)


def test_scores_of_nan_say_nothing_and_infinite_ones_are_ranked() -> None:
    scores, member = membership(3.0)
    scores[:30] = math.nan
    scores[30] = math.inf
    found = by_name(score_membership(scores, member))
    assert found["undefined_scores"].value == 30
    assert 0.85 < found["auc"].value < by_name(score_membership(*membership(3.0)))["auc"].value
    with pytest.raises(ValueError, match="600 candidates"):
        score_membership(scores[:5], member)


def test_groups_widen_the_interval() -> None:
    person = torch.arange(600) // 20
    scores = normal(30, at="person")[person] + 0.1 * normal(600, at="record")
    member = person < 15
    alone, grouped = (by_name(score_membership(scores, member, groups=g))["auc"] for g in (None, person))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


# ------------------------------------------------------------------------------------------------------------- keys and vectors


def test_a_wrong_key_that_opens_the_model_scores_one() -> None:
    opens = by_name(score_key([0.8] * 20, right=0.8, majority=0.3))
    closed = by_name(score_key([0.3] * 20, right=0.8, majority=0.3))
    half = by_name(score_key([0.5, 0.6], right=0.8, majority=0.3))
    assert (opens["leakage"].value, closed["leakage"].value, half["leakage"].value) == (pytest.approx(1), 0, pytest.approx(0.5))
    assert half["opened_best"].value == 0.6
    assert (opens["opened:right_key"].value, opens["opened:majority"].value) == (0.8, 0.3)


def test_a_model_that_learnt_nothing_has_no_key_scale() -> None:
    found = by_name(score_key([0.3], right=0.29, majority=0.3))
    assert math.isnan(found["leakage"].value)
    assert "not resolvable: the right key opens 0.29" in found["leakage"].reason
    with pytest.raises(ValueError, match="no key"):
        score_key([], 0.8, 0.3)


def test_vectors_by_name_by_shape_and_missing() -> None:
    truth = {"one": normal(16, at="1"), "two": normal(16, at="2"), "three": normal(8, at="3")}
    right = by_name(score_vectors({"two": truth["two"], "x": truth["one"], "y": truth["three"]}, truth))
    assert (right["leakage"].value, right["relative_error"].value, right["cosine"].value) == (pytest.approx(1), 0, pytest.approx(1))
    assert right["derived_guessed"].value == 1
    part = by_name(score_vectors({"a": 1.01 * truth["one"]}, truth))
    assert part["relative_error:one"].value == pytest.approx(0.01, rel=1e-5)
    assert (part["relative_error:two"].value, part["cosine:two"].value) == (1, 0)
    missing = 1 - float(truth["one"].norm() ** 2 * (1 - 0.01**2)) / sum(float(v.norm() ** 2) for v in truth.values())
    assert part["relative_error"].value == pytest.approx(math.sqrt(missing), rel=1e-5)
    flipped = by_name(score_vectors({name: -value for name, value in truth.items()}, truth))
    assert (flipped["cosine"].value, flipped["leakage"].value) == (pytest.approx(-1), pytest.approx(-3))


def test_a_name_is_the_attacks_own_word_and_is_not_reassigned() -> None:
    truth = {"one": normal(16, at="1"), "two": normal(16, at="2")}
    swapped = by_name(score_vectors({"one": truth["two"], "two": truth["one"]}, truth))
    assert swapped["cosine:one"].value < 0.9
    assert by_name(score_vectors({"one": torch.full((16,), math.nan)}, truth))["relative_error:one"].value == 1


# ------------------------------------------------------------------------------------------------------------- utility and marks


def test_utility_keeps_its_floor_beside_it() -> None:
    found = by_name(score_utility({"accuracy": 0.8, "auc": math.nan}, {"accuracy": 0.3, "auc": 0.5}, 50))
    assert found["accuracy"].low < 0.8 < found["accuracy"].high
    assert (found["accuracy:floor"].value, found["accuracy:floor"].role) == (0.3, "control")
    assert "undefined" in found["auc"].reason


def test_marks_of_upper_bounds_and_controls() -> None:
    from reports.schema import UPPER_BOUND

    measures = score_key([0.8], 0.8, 0.3)
    assert all(one.reason.startswith(UPPER_BOUND) for one in as_upper_bound(measures, "the truth"))
    assert {one.role for one in as_control(measures)} == {"control"}
