"""Epsilon lower bounds from a single training run, in which each of m canaries was included by its own fair coin.

Source: Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run" (their main result for delta > 0); Mahloujifar, Melis
and Chaudhuri 2024, "Auditing f-differential privacy in one run" (arXiv 2410.22235). Both need *independent* inclusion: with exactly half of
the records included one inclusion says something about another, and the bound is none. So a caller has to state it.

The auditor calls the highest scores included and the lowest excluded, a number of guesses fixed in advance, and abstains from the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, gammaln, ndtr, ndtri

from suites.auditing.bound import Bound, Floats, check_level, two_sides
from suites.auditing.gaussian import epsilon_of
from suites.errors import RequestError

SHARES = (1.0, 0.3, 0.1, 0.03)  # of the canaries that are guessed; each is tried at a Bonferroni share of the level
LARGEST = 50.0  # of epsilon and of mu that is looked for
_STATED = "each canary was included by a fair coin of its own, the number of guesses was fixed in advance, all scores are from one run"


def one_run(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    independent_inclusion: bool = False,
    delta: float = 1e-5,
    confidence: float = 0.95,
    guesses: Sequence[int] | None = None,
    seed: int = 0,
) -> Bound:
    """Steinke, Nasr and Jagielski's bound.

    Parameters
    ----------
    independent_inclusion : the caller's word that each canary was included by its own fair coin; without it the bound is refused.
    guesses : numbers of guesses, fixed in advance and sharing the level; by default ``SHARES`` of the canaries.
    seed : orders tied scores, independently of who was included.
    """
    inside, outside, tries = _prepared(scores_in, scores_out, independent_inclusion, delta, confidence, guesses)
    m, error = len(inside) + len(outside), (1 - confidence) / len(tries)
    found = [(_steinke(m, r, correct(inside, outside, r, seed), delta, error), r) for r in tries]
    epsilon, best = max(found)
    return Bound("one_run", epsilon, delta, "bound", confidence, m, _cut(inside, outside, best), _STATED)


def one_run_f_dp(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    independent_inclusion: bool = False,
    family: Literal["dp", "gaussian"] = "dp",
    delta: float = 1e-5,
    confidence: float = 0.95,
    guesses: Sequence[int] | None = None,
    seed: int = 0,
) -> Bound:
    """Mahloujifar, Melis and Chaudhuri's bound.

    ``family`` names the trade-off functions that are tried: "dp" those of (epsilon, delta)-DP, a bound for any mechanism; "gaussian" those
    of mu-GDP, sharper but true only for mechanisms of that family.
    """
    inside, outside, tries = _prepared(scores_in, scores_out, independent_inclusion, delta, confidence, guesses)
    m, error = len(inside) + len(outside), (1 - confidence) / len(tries)
    found = [(_largest_refuted(m, r, correct(inside, outside, r, seed), delta, error, family), r) for r in tries]
    largest, best = max(found)
    gaussian = family == "gaussian"
    epsilon = (epsilon_of(largest, delta) if delta > 0 else 0.0) if gaussian else largest
    assumes = f"the mechanism is Gaussian (mu-GDP), which no data can show; and {_STATED}" if gaussian else _STATED
    name = "one_run_gaussian" if gaussian else "one_run_f_dp"
    return Bound(name, epsilon, delta, "assumption" if gaussian else "bound", confidence, m, _cut(inside, outside, best), assumes)


def correct(inside: Floats, outside: Floats, guesses: int, seed: int) -> int:
    """Right guesses when the upper half of ``guesses`` is called included and the lower half excluded; ties fall by a coin."""
    scores = np.concatenate([inside, outside])
    included = np.arange(len(scores)) < len(inside)
    shuffled = np.random.default_rng(seed).permutation(len(scores))  # a stable sort alone would favour whoever is listed first
    ordered = included[shuffled][np.argsort(scores[shuffled], kind="stable")]
    above = guesses - guesses // 2
    return int(ordered[len(ordered) - above :].sum()) + int((~ordered[: guesses // 2]).sum())


def steinke_p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """An upper limit on the probability of at least ``right`` of ``guesses`` under (epsilon, delta)-DP."""
    if right == 0:
        return 1.0
    share = 1 / (1 + math.exp(-epsilon))
    beta = float(betainc(right, guesses - right + 1, share))  # P[Binomial(guesses, share) >= right]
    if delta == 0:
        return beta
    below = np.arange(right - 1, -1, -1)
    ways = gammaln(guesses + 1) - gammaln(below + 1) - gammaln(guesses - below + 1)
    mass = np.exp(ways + below * math.log(share) - (guesses - below) * (epsilon + math.log1p(math.exp(-epsilon))))
    steps = np.cumsum(mass) / np.arange(1, right + 1)
    return min(1.0, beta + 2 * m * delta * float(steps.max()))


def _steinke(m: int, guesses: int, right: int, delta: float, error: float) -> float:
    if steinke_p_value(m, guesses, right, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, LARGEST
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if steinke_p_value(m, guesses, right, middle, delta) <= error else (low, middle)
    return low


def refuted(m: int, guesses: int, right: int, strengths: Floats, delta: float, error: float, family: str) -> np.ndarray:
    """For each strength (epsilon, or mu), whether ``right`` of ``guesses`` has probability below ``error`` under its trade-off function.

    With p_i the probability of i right guesses, r_i = sum_{j >= i} j p_j / m and h_i = sum_{j >= i} (guesses - j) p_j / m obey
    r_{i+1} <= 1 - f(h_i). Starting from a tail of mass ``error`` at ``right``, h and r are grown as slowly as that allows; if they still
    end above the mass that there is, guesses / m, no such mechanism has that tail.
    """
    r = np.full(len(strengths), error * right / m)
    h = np.full(len(strengths), error * (guesses - right) / m)
    for i in range(right - 1, -1, -1):
        needed = np.maximum(h, _least(np.minimum(r, 1.0), strengths, delta, family))
        r = r + i / (guesses - i) * (needed - h)
        h = needed
    return np.asarray(r + h > guesses / m)


def _least(r: Floats, strengths: Floats, delta: float, family: str) -> Floats:
    """The least h with r <= 1 - f(h)."""
    if family == "gaussian":
        return np.asarray(ndtr(ndtri(r) - strengths))
    return np.maximum(np.maximum((r - delta) * np.exp(-strengths), 1 - delta - np.exp(strengths) * (1 - r)), 0.0)


def _largest_refuted(m: int, guesses: int, right: int, delta: float, error: float, family: str) -> float:
    """The largest strength refuted; a grid is narrowed, so that one pass of the recursion serves many strengths."""
    low, high = 0.0, LARGEST
    while high - low > 1e-9:
        grid = np.linspace(low, high, 33)
        said = refuted(m, guesses, right, grid, delta, error, family)
        if not said[0]:
            return low
        last = int(np.argmin(said)) - 1 if not said.all() else len(grid) - 1
        if last == len(grid) - 1:
            return high
        low, high = float(grid[last]), float(grid[last + 1])
    return low


def _prepared(
    scores_in: ArrayLike, scores_out: ArrayLike, stated: bool, delta: float, confidence: float, guesses: Sequence[int] | None
) -> tuple[Floats, Floats, list[int]]:
    if not stated:
        raise RequestError(
            "a one-run bound holds only if each record was included by its own fair coin (a split into exact halves is not enough); "
            "say so with independent_inclusion=True, or use clopper_pearson"
        )
    check_level(delta, confidence)
    inside, outside = two_sides(scores_in, scores_out)
    m = len(inside) + len(outside)
    tries = sorted({max(1, round(share * m)) for share in SHARES} if guesses is None else set(guesses), reverse=True)
    if not tries or min(tries) < 1 or max(tries) > m:
        raise RequestError(f"guesses must lie between 1 and the number of canaries, {m}, but are {list(tries)}")
    return inside, outside, tries


def _cut(inside: Floats, outside: Floats, guesses: int) -> float:
    """The lowest score that was called included."""
    ordered = np.sort(np.concatenate([inside, outside]))
    return float(ordered[len(ordered) - (guesses - guesses // 2)])
