"""Confidence intervals and family-wise levels: which one is used when is decided here, once.

Proportions: Clopper-Pearson. Means: Student's t below ten repeats, BCa from ten up (on three repeats BCa covers 77 % instead of 95 %).
Several levels (seed, target, record): from single values the hierarchical bootstrap's standard error with Student's quantile for the
outermost level; from a table, which has one value a seed, ``over_seeds``.
Every interval is two-sided at ``level`` unless it says otherwise; where none can be given both ends are NaN.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]
Interval = tuple[float, float]
NO_INTERVAL: Interval = (float("nan"), float("nan"))
BCA_FROM = 10  # repeats


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion (Clopper and Pearson 1934); covers at least ``level`` for every true proportion."""
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials cannot be; give counts with 0 <= successes <= trials")
    if trials == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, tail))
    high = 1.0 if successes == trials else float(special.betaincinv(successes + 1, trials - successes, 1 - tail))
    return low, high


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's interval of a mean; NaN for fewer than two values."""
    held = _finite(values)
    if len(held) < 2:
        return NO_INTERVAL
    reach = float(student((1 + level) / 2, len(held) - 1) * held.std(ddof=1) / np.sqrt(len(held)))
    return float(held.mean()) - reach, float(held.mean()) + reach


@cache
def student(share: float, freedom: int) -> float:
    """Student's quantile: a report asks a few thousand times for the same few."""
    return float(special.stdtrit(freedom, share))


def student_tail(value: float, freedom: int) -> float:
    """The chance that Student's t exceeds ``value``."""
    return float(special.stdtr(freedom, -value))


def bca(
    *samples: ArrayLike,
    statistic: Callable[..., Floats] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    rng: np.random.Generator | None = None,
) -> Interval:
    """Bias-corrected accelerated bootstrap (Efron 1987) of a mean, or of ``statistic(*samples, axis=-1)`` of paired samples.

    ``rng`` defaults to a fixed stream, so that the same table gives the same report.
    """
    held = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if len(held[0]) < 2:
        return NO_INTERVAL
    measure: Callable[..., Floats] = np.mean if statistic is None else statistic
    point = float(measure(*held, axis=-1))
    if all(np.ptp(sample) == 0 for sample in held):
        return point, point
    from scipy import stats as distributions  # half a second, which only many repeats need

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate jackknife is answered below
        result = distributions.bootstrap(
            held,
            measure,
            n_resamples=resamples,
            confidence_level=level,
            method="BCa",
            vectorized=True,
            paired=len(held) > 1,
            rng=np.random.default_rng(20240229) if rng is None else rng,
        )
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    return (low, high) if np.isfinite([low, high]).all() else t_interval(held[0], level) if len(held) == 1 else NO_INTERVAL


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The interval of a mean by the number of its values: Student's t below ten, BCa from ten up."""
    held = _finite(values)
    return t_interval(held, level) if len(held) < BCA_FROM else bca(held, level=level)


def mean_intervals(values: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """``mean_interval`` of every column of ``values`` [repeats, columns], all finite: the lower ends and the upper ones."""
    count = len(values)
    if count >= BCA_FROM or count < 2:
        ends = np.array([mean_interval(column, level) for column in values.T]).reshape(-1, 2)
        return ends[:, 0], ends[:, 1]
    reach = student((1 + level) / 2, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return values.mean(axis=0) - reach, values.mean(axis=0) + reach


def over_seeds(values: ArrayLike, lows: ArrayLike, highs: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of a mean over seeds, from the seeds' values and their own intervals.

    One seed keeps its own. From two up: Student's t (BCa from ten), and never narrower than the seeds' own intervals allow (the root of
    their half-widths' summed squares over the number of seeds): three seeds that all recover 20 of 20 records say ">= .9", not "exactly 1".

    It is hierarchical without a term for each level. Seed s says m + b_s + e_s, b_s what sets seeds apart and e_s what its records (or
    targets, or persons) do; the mean of S seeds has variance (var b + mean var e_s) / S, and the seeds' sample variance over S estimates
    just that sum, without bias also where var e_s differs. So Student's t with S - 1 degrees of freedom holds both levels; it is Hartung
    and Knapp's (2001) interval with equal weights. To add the seeds' own variances would count the records twice; to weigh by them, as
    DerSimonian and Laird (1986) do, takes a variance estimated from three seeds for the truth: simulated with 60 + 60 records, where seeds
    differ it covers .80 with three and .86 with five, this one .94 and .94 (tests/reports/test_two_levels.py).
    """
    value, low, high = (np.asarray(one, dtype=np.float64) for one in (values, lows, highs))
    if len(value) == 0:
        return NO_INTERVAL
    if len(value) == 1:
        return float(low[0]), float(high[0])
    bottom, top = mean_interval(value, level)
    below, above = (float(np.sqrt(np.nansum(np.square(gap)))) / len(value) for gap in (value - low, high - value))
    return min(bottom, float(value.mean()) - below), max(top, float(value.mean()) + above)


def ratio_interval(above: ArrayLike, below: ArrayLike, level: float = 0.95) -> Interval:
    """Interval of ``mean(above) / mean(below)`` of paired values: delta method with Student's t below ten pairs, BCa from ten up."""
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if len(top) >= BCA_FROM:
        return bca(top, bottom, statistic=_ratio, level=level)
    share = float(top.mean() / bottom.mean())
    low, high = t_interval((top - share * bottom) / bottom.mean(), level)
    return share + low, share + high


def hierarchical(
    values: ArrayLike,
    *levels: Sequence[object] | NDArray[np.generic],
    statistic: Callable[[NDArray[np.intp]], float] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
) -> Interval:
    """Interval of a statistic under resampling of nested units, outermost first (seed, target); records are drawn innermost.

    The bootstrap's standard error is multiplied by sqrt(S / (S - 1)) and by Student's quantile with S - 1 degrees of freedom, S counting
    the outermost units: percentiles of a bootstrap over three seeds are far too narrow.

    Parameters
    ----------
    values : [n] one value a record
    levels : each [n], the unit of each record; ``hierarchical(x, seed, target)``
    statistic : of the drawn records' positions; the mean of ``values`` by default
    """
    held = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(20240229) if rng is None else rng
    measure = (lambda index: float(held[index].mean())) if statistic is None else statistic
    codes = [pd.factorize(np.asarray(unit))[0] for unit in levels]
    outer = len(np.unique(codes[0])) if codes else len(held)
    if outer < 2:
        return NO_INTERVAL
    tree = _nest(np.arange(len(held)), codes)
    draws = np.array([measure(_draw(tree, rng)) for _ in range(resamples)])
    spread = float(draws.std(ddof=1) * np.sqrt(outer / (outer - 1)))
    reach = student((1 + level) / 2, outer - 1) * spread
    centre = measure(np.arange(len(held)))
    return centre - reach, centre + reach


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values: rejecting those below a level keeps the family-wise error under it, whatever the dependence."""
    held = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(held, kind="stable")
    stepped = np.maximum.accumulate((len(held) - np.arange(len(held))) * held[order])
    adjusted = np.empty_like(held)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def familywise(level: float, comparisons: int) -> float:
    """Bonferroni's level of one test, so that ``comparisons`` tests together err at most at ``level``."""
    return level / max(comparisons, 1)


def null_test(samples: Mapping[str, ArrayLike], prior: float = 0.0, level: float = 0.05) -> pd.DataFrame:
    """One-sided tests that no mean lies above the prior, at a family-wise level (Holm): what a null workload must pass.

    Returns one row a name: mean, lower (one-sided bound at the Bonferroni level), p, p_holm, rejected. Values below the prior never reject.
    """
    rows = []
    for name, sample in samples.items():
        held = _finite(sample)
        if len(held) < 2:
            raise ValueError(f"the null test of {name} needs at least two repeats, it has {len(held)}; run more seeds")
        error = float(held.std(ddof=1) / np.sqrt(len(held)))
        gap = float(held.mean()) - prior
        quantile = student(1 - familywise(level, len(samples)), len(held) - 1)
        p = student_tail(gap / error, len(held) - 1) if error > 0 else float(gap <= 0)
        rows.append({"name": name, "mean": float(held.mean()), "lower": float(held.mean()) - quantile * error, "p": p, "n": len(held)})
    table = pd.DataFrame(rows, columns=["name", "mean", "lower", "p", "n"])
    table["p_holm"] = holm(table["p"].to_numpy())
    table["rejected"] = table["p_holm"] < level
    return table


Tree = list["Tree"] | NDArray[np.intp]


def _nest(index: NDArray[np.intp], codes: Sequence[NDArray[np.intp]]) -> Tree:
    if not codes:
        return index
    own = codes[0][index]
    return [_nest(index[own == unit], codes[1:]) for unit in np.unique(own)]


def _draw(tree: Tree, rng: np.random.Generator) -> NDArray[np.intp]:
    chosen = rng.integers(len(tree), size=len(tree))
    if isinstance(tree, np.ndarray):
        return tree[chosen]
    return np.concatenate([_draw(tree[unit], rng) for unit in chosen])


def _ratio(above: Floats, below: Floats, axis: int = -1) -> Floats:
    return np.asarray(np.mean(above, axis=axis) / np.mean(below, axis=axis))


def _finite(values: ArrayLike) -> Floats:
    held = np.asarray(values, dtype=np.float64).reshape(-1)
    return held[np.isfinite(held)]
