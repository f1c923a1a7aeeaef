"""Every epsilon statement against a second formula, written from the paper's definition and by brute force."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from suites.auditing import thresholds
from suites.auditing.bound import Bound
from suites.auditing.gaussian import delta_of, epsilon_of
from suites.auditing.one_run import correct, one_run, one_run_f_dp, refuted, steinke_p_value
from suites.auditing.reconstruction import rero_curve, rero_dp, rero_gaussian
from suites.auditing.thresholds import clopper_pearson, gaussian_family, halves, multi_split, raw_counts
from suites.errors import RequestError

DELTA = 1e-5


def scores(mu: float, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(mu, 1, n), draw.normal(0, 1, n)


def largest_p(hits: int, n: int, tail: float) -> float:
    """Clopper and Pearson's upper limit by solving the binomial tail itself."""
    if hits == n:
        return 1.0
    return optimize.brentq(lambda p: stats.binom.cdf(hits, n, p) - tail, 0, 1, xtol=1e-14)


def by_counting(inside: np.ndarray, outside: np.ndarray, at: float, delta: float, error: float) -> float:
    hits, false = sum(s >= at for s in inside), sum(s >= at for s in outside)
    high = largest_p(false, len(outside), error / 2)
    low = 1 - largest_p(len(inside) - hits, len(inside), error / 2)
    members = math.log((low - delta) / high) if low > delta else 0.0
    others = math.log((1 - high - delta) / (1 - low)) if 1 - high > delta else 0.0
    return max(members, others, 0.0)


@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0])
def test_clopper_pearson_at_given_thresholds(mu: float) -> None:
    inside, outside = scores(mu, 300, 1)
    at = [-1.0, 0.5, 2.0, 3.5]
    told = clopper_pearson(inside, outside, delta=DELTA, thresholds=at)
    assert told.epsilon == pytest.approx(max(by_counting(inside, outside, t, DELTA, 0.05 / 4) for t in at), abs=1e-6)
    assert (told.kind, told.confidence, told.n) == ("bound", 0.95, 600)


def test_clopper_pearson_by_ranks_of_the_excluded() -> None:
    inside, outside = scores(2.0, 400, 2)
    ordered = sorted(outside, reverse=True)
    at = [ordered[0] + 1e-9] + [ordered[max(1, round(share * 400)) - 1] for share in thresholds.SHARES[1:]]
    told = clopper_pearson(inside, outside, delta=DELTA)
    assert told.epsilon == pytest.approx(max(by_counting(inside, outside, t, DELTA, 0.05 / len(at)) for t in at), abs=1e-6)


def test_multi_split_is_the_median_over_splits() -> None:
    inside, outside = scores(2.0, 200, 3)
    told = multi_split(inside, outside, delta=DELTA, splits=5, seed=7)
    found = []
    for tune_in, tune_out in halves(200, 200, 5, 7):
        choose = np.quantile(outside[tune_out], np.linspace(0, 1, thresholds.CANDIDATES), method="higher")
        choose = [*sorted(set(choose)), max(choose) + 1e-9]
        tuned = [by_counting(inside[tune_in], outside[tune_out], t, DELTA, 0.025) for t in choose]
        found.append(by_counting(inside[~tune_in], outside[~tune_out], choose[int(np.argmax(tuned))], DELTA, 0.025))
    assert told.epsilon == pytest.approx(float(np.median(found)), abs=1e-6)
    assert any(f != found[0] for f in found)


def steinke_by_hand(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """P[B >= v] + 2 m delta max_i P[v > B >= v - i] / i with every probability summed from binomial coefficients."""
    q = math.exp(epsilon) / (math.exp(epsilon) + 1)
    pmf = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    worst = max((sum(pmf[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, sum(pmf[v:]) + 2 * m * delta * worst)


@pytest.mark.parametrize(("m", "r", "v"), [(400, 400, 260), (400, 120, 100), (400, 40, 40), (400, 12, 3), (60, 60, 60)])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
def test_one_run(m: int, r: int, v: int, delta: float) -> None:
    for epsilon in (0.0, 0.4, 2.0):
        assert steinke_p_value(m, r, v, epsilon, delta) == pytest.approx(steinke_by_hand(m, r, v, epsilon, delta), abs=1e-9)


def test_one_run_epsilon_solves_the_p_value() -> None:
    inside, outside = scores(2.5, 500, 4)
    told = one_run(inside, outside, independent_inclusion=True, delta=DELTA, guesses=[100])
    ranked = sorted([(s, 1) for s in inside] + [(s, 0) for s in outside])
    right = sum(kind for _, kind in ranked[-50:]) + sum(1 - kind for _, kind in ranked[:50])
    solved = optimize.brentq(lambda e: steinke_by_hand(1000, 100, right, e, DELTA) - 0.05, 0, 20, xtol=1e-12)
    assert told.epsilon == pytest.approx(solved, abs=1e-6)


@pytest.mark.parametrize("bound", [one_run, one_run_f_dp])
def test_a_second_number_of_guesses_is_paid_for(bound: Callable[..., Bound]) -> None:
    inside, outside = scores(2.5, 500, 4)
    given = {"independent_inclusion": True, "delta": DELTA}
    each = [bound(inside, outside, guesses=[r], confidence=0.975, **given).epsilon for r in (100, 30)]
    assert bound(inside, outside, guesses=[100, 30], **given).epsilon == pytest.approx(max(each), abs=1e-6)


def largest_tail(m: int, guesses: int, right: int, blow_up: list[tuple[float, float]]) -> float:
    """max P(at least ``right`` of ``guesses``) as a linear programme over the distribution p of right guesses.

    ``blow_up`` lists the lines (slope, level) whose minimum is 1 - f. The constraint for each j is
    sum_{i >= j} i p_i / m <= 1 - f(sum_{i >= j - 1} (guesses - i) p_i / m).
    """
    count = np.arange(guesses + 1)
    rows, limits = [], []
    for j in range(1, guesses + 1):
        taken = np.where(count >= j, count, 0) / m
        fed = np.where(count >= j - 1, guesses - count, 0) / m
        for slope, level in blow_up:
            rows.append(taken - slope * fed)
            limits.append(level)
    solution = optimize.linprog(
        -(count >= right).astype(float), A_ub=np.array(rows), b_ub=limits, A_eq=np.ones((1, guesses + 1)), b_eq=[1], method="highs"
    )
    return float(-solution.fun)


@pytest.mark.parametrize(("m", "guesses", "right"), [(60, 60, 42), (60, 20, 17), (200, 30, 30), (40, 40, 40)])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_one_run_f_dp_is_the_linear_programme_s_answer(m: int, guesses: int, right: int, delta: float) -> None:
    def tail(epsilon: float) -> float:
        grown = math.exp(epsilon)
        return largest_tail(m, guesses, right, [(0.0, 1.0), (grown, delta), (1 / grown, 1 - (1 - delta) / grown)])

    solved = optimize.brentq(lambda e: tail(e) - 0.05, 0, 12, xtol=1e-10) if tail(0.0) < 0.05 else 0.0
    around = np.array([max(solved - 1e-6, 0.0), solved + 1e-6])
    said = refuted(m, guesses, right, around, delta, 0.05, "dp")
    assert (bool(said[0]), bool(said[1])) == (solved > 0, False)


def test_one_run_of_the_gaussian_family_agrees_with_tangents_of_its_blow_up() -> None:
    m, guesses, right, mu = 60, 30, 27, 1.3
    at = np.concatenate([np.geomspace(1e-6, 0.5, 250), 1 - np.geomspace(1e-6, 0.5, 250)])
    blow_up = stats.norm.cdf(stats.norm.ppf(at) + mu)
    slope = np.exp(-mu * stats.norm.ppf(at) - mu**2 / 2)
    tail = largest_tail(m, guesses, right, [*zip(slope, blow_up - slope * at), (0.0, 1.0)])
    assert bool(refuted(m, guesses, right, np.array([mu]), 0.0, tail * 1.01, "gaussian")[0])
    assert not bool(refuted(m, guesses, right, np.array([mu]), 0.0, tail * 0.99, "gaussian")[0])


def test_ties_are_broken_without_looking_at_membership() -> None:
    flat = np.zeros(400)
    assert one_run(flat, flat, independent_inclusion=True).epsilon == 0
    assert clopper_pearson(flat, flat).epsilon == 0
    assert abs(np.mean([correct(flat, flat, 400, seed) for seed in range(50)]) - 200) < 10


@pytest.mark.parametrize("mu", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_delta_of_a_gaussian_is_the_integral(mu: float, epsilon: float) -> None:
    def excess(x: float) -> float:
        return max(stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x), 0.0)

    from_here = (epsilon + mu**2 / 2) / mu
    wanted = integrate.quad(excess, from_here, from_here + 20, epsabs=1e-13, limit=200)[0]
    assert delta_of(epsilon, mu) == pytest.approx(wanted, abs=1e-9)


def test_epsilon_of_a_gaussian_inverts_delta() -> None:
    for mu in (0.05, 1.0, 8.0, 30.0):
        assert delta_of(epsilon_of(mu, DELTA), mu) == pytest.approx(DELTA, rel=1e-6)
    assert epsilon_of(0.0, DELTA) == 0
    assert epsilon_of(1.0, 0.0) == math.inf


def test_gaussian_family_reads_mu_from_the_limits() -> None:
    inside, outside = scores(1.5, 400, 5)
    at = [0.0, 0.75, 1.5]
    told = gaussian_family(inside, outside, delta=DELTA, thresholds=at)
    error = 0.05 / 3 / 2
    mus = []
    for t in at:
        low = 1 - largest_p(int((inside < t).sum()), 400, error)
        high = largest_p(int((outside >= t).sum()), 400, error)
        mus.append(stats.norm.ppf(low) - stats.norm.ppf(high))
    assert told.epsilon == pytest.approx(epsilon_of(max(mus), DELTA), abs=1e-6)
    assert told.kind == "assumption"


def test_raw_counts_are_the_largest_ratio_and_only_an_estimate() -> None:
    inside, outside = scores(1.0, 100, 6)
    ratios = []
    for t in [*inside, *outside]:
        tpr, fpr = min(np.mean(inside >= t), 1 - 0.5 / 100), max(np.mean(outside >= t), 0.5 / 100)
        ratios += [
            math.log((tpr - DELTA) / fpr) if tpr > DELTA else 0.0,
            math.log((1 - fpr - DELTA) / (1 - tpr)) if fpr < 1 - DELTA else 0.0,
        ]
    told = raw_counts(inside, outside, delta=DELTA)
    assert told.epsilon == pytest.approx(max(*ratios, 0.0), abs=1e-6)
    assert told.kind == "estimate"
    assert not told.refutes(0.0)
    assert raw_counts(np.ones(50), np.zeros(50)).epsilon == pytest.approx(
        math.log(100 * 0.99), abs=0.1
    )  # perfect separation is not "nothing"


def test_one_run_bounds_are_refused_without_independent_inclusion() -> None:
    for bound in (one_run, one_run_f_dp):
        with pytest.raises(RequestError, match="fair coin"):
            bound([1.0, 2.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("inside", "outside", "settings", "says"),
    [
        ([], [1.0], {}, "empty"),
        ([np.nan], [1.0], {}, "NaN"),
        (["a"], [1.0], {}, "numbers"),
        ([1.0], [0.0], {"delta": 1.5}, "delta"),
        ([1.0], [0.0], {"confidence": 0.2}, "confidence"),
        ([1.0], [0.0], {"thresholds": []}, "thresholds"),
    ],
)
def test_bad_input_is_one_sentence(inside: list, outside: list, settings: dict, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        clopper_pearson(inside, outside, **settings)


def test_infinite_scores_are_scores() -> None:
    inside, outside = np.full(100, np.inf), np.full(100, -np.inf)
    assert clopper_pearson(inside, outside).epsilon > 2
    assert one_run(inside, outside, independent_inclusion=True).epsilon > 2


# ---- reconstruction robustness


def test_rero_of_a_pure_claim_is_kappa_times_e_to_the_epsilon() -> None:
    assert rero_dp(0.01, 1.0) == pytest.approx(0.01 * math.e, abs=1e-12)
    assert rero_dp(0.01, 0.0) == 0.01
    assert rero_dp(0.01, 50.0) == pytest.approx(1.0)


def test_rero_is_the_best_test_s_power() -> None:
    """1 - f(kappa) of randomised response by enumeration of its likelihood-ratio tests."""
    epsilon, delta = 1.2, 0.05
    grown = math.exp(epsilon)
    # The pair of distributions that (epsilon, delta)-DP is tight for: four outcomes (Kairouz, Oh and Viswanath 2015).
    q = np.array([0.0, (1 - delta) / (1 + grown), (1 - delta) * grown / (1 + grown), delta])
    p = np.array([delta, (1 - delta) * grown / (1 + grown), (1 - delta) / (1 + grown), 0.0])
    for kappa in (0.001, 0.1, 0.3, 0.7, 0.99):
        power = -optimize.linprog(-p, A_ub=q[None], b_ub=[kappa], bounds=[(0, 1)] * 4).fun
        assert rero_dp(kappa, epsilon, delta) == pytest.approx(power, abs=1e-6)


def test_rero_of_a_gaussian_is_its_curve_s() -> None:
    for kappa, mu in ((0.001, 0.5), (0.1, 1.0), (0.5, 2.0)):
        curve = [(e, delta_of(e, mu)) for e in np.linspace(0, 12, 4000)]
        assert rero_curve(kappa, curve) == pytest.approx(rero_gaussian(kappa, mu), abs=1e-5)
    assert rero_gaussian(0.2, 0.0) == 0.2


def test_no_simulated_guess_beats_rero() -> None:
    """Ten equally likely records, a Gaussian message of the record's one-hot code: the best guess stays below the bound."""
    draw, count, n = np.random.default_rng(8), 10, 20_000
    for sigma in (0.5, 1.0, 3.0):
        truth = draw.integers(count, size=n)
        message = np.eye(count)[truth] + sigma * draw.normal(size=(n, count))
        success = float(np.mean(message.argmax(1) == truth))
        assert 1 / count < success < rero_gaussian(1 / count, 1 / sigma) + 3 * math.sqrt(0.25 / n)


def test_rero_refuses_what_is_no_probability() -> None:
    for call in (lambda: rero_dp(1.5, 1.0), lambda: rero_dp(0.1, -1.0), lambda: rero_curve(0.1, []), lambda: rero_gaussian(-0.1, 1.0)):
        with pytest.raises(RequestError):
            call()
