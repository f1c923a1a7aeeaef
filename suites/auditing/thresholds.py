"""Epsilon lower bounds from rates at thresholds: what (epsilon, delta) allows, against Clopper and Pearson's limits on the rates.

(epsilon, delta)-DP bounds every test of one record: TPR <= e^eps FPR + delta and, for the opposite test, 1 - FPR <= e^eps (1 - TPR) + delta
(Kairouz, Oh and Viswanath 2015; audits: Jagielski, Ullman and Oprea 2020; Nasr et al. 2021). One lower limit on TPR and one upper limit on
FPR serve both. Scores must be independent within each side: one run with one record a score gives that only approximately, many runs do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

from suites.auditing.bound import Bound, Floats, check_level, two_sides
from suites.auditing.gaussian import epsilon_of
from suites.errors import RequestError

SHARES = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)  # of excluded records above the threshold, fixed before any score is seen
SPLITS = 11  # odd, so that the median is one of them
CANDIDATES = 64  # thresholds tried on the half that chooses

_ONE_BY_ONE = "the records' scores are independent of each other and equally distributed within each side"


def clopper_pearson(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    thresholds: Sequence[float] | None = None,
) -> Bound:
    """The largest epsilon over thresholds, each at a Bonferroni share of the level.

    Parameters
    ----------
    scores_in, scores_out : scores of included and excluded records, higher for included
    thresholds : fixed without looking at these scores; by default fixed ranks among the excluded records (``SHARES``). A threshold at
        a fixed rank keeps Clopper and Pearson's level: the rate from the k-th largest of n up is Beta(k, n - k + 1), below their limit.
    """
    check_level(delta, confidence)
    inside, outside = two_sides(scores_in, scores_out)
    at = np.asarray(thresholds, dtype=np.float64) if thresholds is not None else _ranked(outside)
    if len(at) == 0 or np.isnan(at).any():
        raise RequestError("thresholds must be at least one number; leave them out for fixed ranks among the excluded records")
    epsilons = _at_thresholds(inside, outside, at, delta, (1 - confidence) / len(at))
    best = int(np.argmax(epsilons))
    assumes = f"{_ONE_BY_ONE}; {len(at)} thresholds share the level (Bonferroni)"
    return Bound("clopper_pearson", float(epsilons[best]), delta, "bound", confidence, len(inside) + len(outside), float(at[best]), assumes)


def multi_split(
    scores_in: ArrayLike, scores_out: ArrayLike, *, delta: float = 1e-5, confidence: float = 0.95, splits: int = SPLITS, seed: int = 0
) -> Bound:
    """The threshold is chosen on one half of the records and the bound taken on the other; the median over several random splits.

    Each split's bound is taken at half the error: that the median exceeds the truth then has at most the whole error (Markov's inequality
    on the share of splits that do).
    """
    check_level(delta, confidence)
    inside, outside = two_sides(scores_in, scores_out)
    if min(len(inside), len(outside)) < 4 or splits < 1:
        raise RequestError("multi_split needs at least 4 scores of either side and one split; use clopper_pearson for fewer")
    error = (1 - confidence) / (2 if splits > 1 else 1)
    found: list[tuple[float, float]] = []
    for tune_in, tune_out in halves(len(inside), len(outside), splits, seed):
        choose = np.unique(np.quantile(outside[tune_out], np.linspace(0, 1, CANDIDATES), method="higher"))
        choose = np.append(choose, np.nextafter(choose[-1], np.inf))
        threshold = choose[int(np.argmax(_at_thresholds(inside[tune_in], outside[tune_out], choose, delta, error)))]
        bound = _at_thresholds(inside[~tune_in], outside[~tune_out], np.array([threshold]), delta, error)[0]
        found.append((float(bound), float(threshold)))
    epsilon, threshold = sorted(found)[(splits - 1) // 2]
    assumes = f"{_ONE_BY_ONE}; the threshold was chosen on other records, median of {splits} splits at half the error"
    return Bound("multi_split", epsilon, delta, "bound", confidence, len(inside) + len(outside), threshold, assumes)


def halves(n_in: int, n_out: int, splits: int, seed: int) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """For each split, which included and which excluded records choose the threshold."""
    rng = np.random.default_rng(seed)

    def half(n: int) -> NDArray[np.bool_]:
        chosen = np.zeros(n, dtype=bool)
        chosen[rng.permutation(n)[: n // 2]] = True
        return chosen

    return [(half(n_in), half(n_out)) for _ in range(splits)]


def gaussian_family(
    scores_in: ArrayLike, scores_out: ArrayLike, *, delta: float = 1e-5, confidence: float = 0.95, thresholds: Sequence[float] | None = None
) -> Bound:
    """A bound on mu = Phi^-1(TPR) - Phi^-1(FPR) from the same limits, written as the epsilon of a mu-GDP mechanism at delta.

    True only if the mechanism *is* of the Gaussian family: moderate rates are then extrapolated to a delta they could never resolve.
    """
    check_level(delta, confidence)
    inside, outside = two_sides(scores_in, scores_out)
    at = np.asarray(thresholds, dtype=np.float64) if thresholds is not None else _ranked(outside)
    low, high = rate_limits(inside, outside, at, (1 - confidence) / len(at))
    with np.errstate(invalid="ignore"):
        mu = np.nan_to_num(ndtri(low) - ndtri(high), nan=0.0, neginf=0.0)
    best = int(np.argmax(mu))
    epsilon = epsilon_of(max(float(mu[best]), 0.0), delta) if delta > 0 else 0.0
    assumes = f"the mechanism is Gaussian (mu-GDP), which no data can show; and {_ONE_BY_ONE}"
    return Bound("gaussian_family", epsilon, delta, "assumption", confidence, len(inside) + len(outside), float(at[best]), assumes)


def raw_counts(scores_in: ArrayLike, scores_out: ArrayLike, *, delta: float = 1e-5) -> Bound:
    """The largest log ratio of observed rates over all thresholds: no bound (under no leakage at all it is nearly always positive)."""
    check_level(delta, 0.95)
    inside, outside = two_sides(scores_in, scores_out)
    at = np.unique(np.concatenate([inside, outside]))
    tpr, fpr = _above(inside, at) / len(inside), _above(outside, at) / len(outside)
    half_in, half_out = 1 - 0.5 / len(inside), 0.5 / len(outside)  # a rate of none counts as half a record, else every estimate is infinite
    epsilons = _allowed(np.where(tpr == 1, half_in, tpr), np.where(fpr == 0, half_out, fpr), delta)
    best = int(np.argmax(epsilons))
    assumes = "the observed rates are the true ones at the threshold where they look worst"
    return Bound("raw_counts", float(epsilons[best]), delta, "estimate", 0.0, len(inside) + len(outside), float(at[best]), assumes)


def rate_limits(inside: Floats, outside: Floats, at: Floats, error: float) -> tuple[Floats, Floats]:
    """Lower limit of TPR and upper limit of FPR at each threshold, jointly wrong with probability at most ``error``."""
    hits, false = _above(inside, at), _above(outside, at)
    n1, n0, tail = len(inside), len(outside), error / 2
    low = np.where(hits > 0, betaincinv(np.maximum(hits, 1), n1 - hits + 1, tail), 0.0)
    high = np.where(false < n0, betaincinv(false + 1, np.maximum(n0 - false, 1), 1 - tail), 1.0)
    return low, high


def _at_thresholds(inside: Floats, outside: Floats, at: Floats, delta: float, error: float) -> Floats:
    return _allowed(*rate_limits(inside, outside, at, error), delta)


def _allowed(tpr: Floats, fpr: Floats, delta: float) -> Floats:
    """The smallest epsilon >= 0 that allows these rates, for the test and for its opposite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        members = np.log(np.maximum(tpr - delta, 0)) - np.log(fpr)
        others = np.log(np.maximum(1 - fpr - delta, 0)) - np.log(1 - tpr)
    best: Floats = np.maximum(
        np.maximum(np.nan_to_num(members, nan=0.0, posinf=np.inf), np.nan_to_num(others, nan=0.0, posinf=np.inf)), 0.0
    )
    return best


def _above(scores: Floats, at: Floats) -> NDArray[np.intp]:
    return len(scores) - np.searchsorted(np.sort(scores), at, side="left")


def _ranked(outside: Floats) -> Floats:
    """Thresholds with fixed shares of the excluded records at or above them; the first lies above all."""
    ordered = np.sort(outside)[::-1]
    counts = sorted({max(1, round(share * len(ordered))) for share in SHARES if share > 0})
    return np.concatenate([[np.nextafter(ordered[0], np.inf)], ordered[np.array(counts) - 1]])
