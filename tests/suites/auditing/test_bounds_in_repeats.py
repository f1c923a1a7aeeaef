"""How often the bounds err: over repeats of a mechanism whose epsilon is known, and of one that leaks nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from suites.auditing.bound import Bound
from suites.auditing.gaussian import epsilon_of
from suites.auditing.one_run import one_run, one_run_f_dp
from suites.auditing.thresholds import clopper_pearson, gaussian_family, multi_split, raw_counts

REPEATS, ERROR, FAMILY = 200, 0.05, 0.01
DELTA = 1e-5
BOUNDS: dict[str, Callable[[np.ndarray, np.ndarray], Bound]] = {
    "clopper_pearson": lambda i, o: clopper_pearson(i, o, delta=DELTA),
    "multi_split": lambda i, o: multi_split(i, o, delta=DELTA, splits=3),
    "one_run": lambda i, o: one_run(i, o, independent_inclusion=True, delta=DELTA, guesses=[60]),
    "one_run_f_dp": lambda i, o: one_run_f_dp(i, o, independent_inclusion=True, delta=DELTA, guesses=[60]),
    "one_run_gaussian": lambda i, o: one_run_f_dp(i, o, independent_inclusion=True, family="gaussian", delta=DELTA, guesses=[60]),
    "gaussian_family": lambda i, o: gaussian_family(i, o, delta=DELTA),
}
MECHANISMS = (0.0, 0.5, 2.0)  # mu; 0 leaks nothing
ALLOWED = int(stats.binom.ppf(1 - FAMILY / (len(BOUNDS) * len(MECHANISMS)), REPEATS, ERROR))  # one-sided, Bonferroni


def true_epsilon(mu: float) -> float:
    """By bisection of Balle and Wang's delta, written out again."""
    if mu == 0:
        return 0.0
    low, high = 0.0, 60.0
    for _ in range(100):
        e = (low + high) / 2
        delta = stats.norm.cdf(mu / 2 - e / mu) - math.exp(e) * stats.norm.cdf(-mu / 2 - e / mu)
        low, high = (e, high) if delta > DELTA else (low, e)
    return high


def one_gaussian_run(mu: float, canaries: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A noisy sum of orthogonal canaries, each included by its own coin, read off in each canary's direction."""
    included = draw.random(canaries) < 0.5
    read = mu * included + draw.normal(size=canaries)
    return read[included], read[~included]


@pytest.mark.parametrize("mu", MECHANISMS)
@pytest.mark.parametrize("name", BOUNDS)
def test_a_gaussian_mechanism_is_overstated_in_at_most_five_percent(name: str, mu: float) -> None:
    draw, truth = np.random.default_rng([7, int(10 * mu)]), true_epsilon(mu)
    told = [BOUNDS[name](*one_gaussian_run(mu, 300, draw)).epsilon for _ in range(REPEATS)]
    assert sum(epsilon > truth for epsilon in told) <= ALLOWED
    if mu >= 2:
        assert np.mean(np.array(told) > 0.3) > 0.9  # it does say something


def test_the_truth_itself_is_right() -> None:
    for mu in (0.5, 2.0):
        assert epsilon_of(mu, DELTA) == pytest.approx(true_epsilon(mu), abs=1e-6)


def test_an_estimate_is_no_bound_and_these_repeats_would_show_it() -> None:
    draw = np.random.default_rng(9)
    told = [raw_counts(*one_gaussian_run(0.0, 300, draw), delta=DELTA).epsilon for _ in range(REPEATS)]
    assert sum(epsilon > 0 for epsilon in told) > ALLOWED


def test_a_number_of_guesses_picked_on_the_same_scores_would_be_caught() -> None:
    """The control of the control: the largest bound over many numbers of guesses, uncorrected, errs far more often than it says."""
    draw, told = np.random.default_rng(10), []
    for _ in range(REPEATS):
        inside, outside = one_gaussian_run(0.0, 300, draw)
        tries = [one_run(inside, outside, independent_inclusion=True, delta=0.0, guesses=[r]).epsilon for r in range(10, 300, 12)]
        told.append(max(tries))
    assert sum(epsilon > 0 for epsilon in told) > ALLOWED


def test_a_shared_level_over_numbers_of_guesses_keeps_it() -> None:
    draw = np.random.default_rng(10)
    told = [one_run(*one_gaussian_run(0.0, 300, draw), independent_inclusion=True, delta=0.0).epsilon for _ in range(REPEATS)]
    assert sum(epsilon > 0 for epsilon in told) <= ALLOWED


def test_exact_halves_pass_for_nothing_without_the_callers_word() -> None:
    draw = np.random.default_rng(11)
    with pytest.raises(ValueError, match="fair coin"):
        one_run(draw.normal(size=100), draw.normal(size=100))


def test_a_tied_score_keeps_the_level() -> None:
    draw = np.random.default_rng(12)
    told = [clopper_pearson(draw.integers(0, 4, 150), draw.integers(0, 4, 150), delta=0.0).epsilon for _ in range(REPEATS)]
    assert sum(epsilon > 0 for epsilon in told) <= ALLOWED
