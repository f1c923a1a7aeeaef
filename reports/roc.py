"""ROC curves with ties kept honest, and what is read off them.

Convention, named on every row: *step*. A threshold t calls "member" every score >= t, so records with equal scores are called together;
no point between two realised points is interpolated (the convex hull reads .821 where the same scores give .814, and chords through a tied
block promise rates that no threshold reaches). The area alone counts a tied pair as one half (Mann-Whitney).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from reports.intervals import Floats, Interval, clopper_pearson, mean_intervals

CONVENTION = "step ROC, score >= threshold is a member, tied scores are called together; the area counts a tied pair one half"


class Area(NamedTuple):
    value: float
    low: float
    high: float


class Rate(NamedTuple):
    """TPR at a target FPR; ``threshold`` is NaN where no threshold keeps the target, and the TPR is then 0."""

    value: float
    low: float
    high: float
    fpr: float  # realised, at most the target
    threshold: float
    reason: str  # why there is no value, or ""


class Curve(NamedTuple):
    fpr: Floats
    tpr: Floats
    low: Floats  # pointwise Clopper-Pearson band of the TPR
    high: Floats


def auc(scores: ArrayLike, member: ArrayLike, groups: ArrayLike | None = None, level: float = 0.95) -> Area:
    """Area under the ROC curve, with the interval of DeLong et al. (1988) on the logit scale.

    With ``groups`` (the person or site of each record) the variance is that of Obuchowski (1997), since records of one person are not
    independent. Where the scores separate the two groups completely the variance estimate is zero, and Newcombe's (2006) method 5 is
    used. The interval is about records of *this* run; that of a claim about an attack goes over seeds.
    """
    inside, outside, unit_in, unit_out = _parts(scores, member, groups)
    m, n = len(inside), len(outside)
    ranks_all = _ranks(np.concatenate([inside, outside]))
    beaten_in = (ranks_all[:m] - _ranks(inside)) / n  # share of non-members below each member, ties one half
    beaten_out = 1 - (ranks_all[m:] - _ranks(outside)) / m
    value = float(beaten_in.mean())
    variance = _clustered(beaten_in - value, beaten_out - value, unit_in, unit_out)
    if variance <= 0 or not 0 < value < 1 or not math.isfinite(variance):
        return Area(value, *_newcombe(value, m, n, level))
    quantile = float(special.ndtri((1 + level) / 2))
    centre, reach = math.log(value / (1 - value)), quantile * math.sqrt(variance) / (value * (1 - value))
    return Area(value, 1 / (1 + math.exp(-(centre - reach))), 1 / (1 + math.exp(-(centre + reach))))


def roc_points(scores: ArrayLike, member: ArrayLike, points: int = 200, level: float = 0.95) -> Curve:
    """The corners of the step curve from (0, 0) to (1, 1), thinned to about ``points`` (evenly in log FPR), with a band of the TPR."""
    inside, outside, _, _ = _parts(scores, member, None)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    hits, alarms = _at_least(inside, thresholds), _at_least(outside, thresholds)
    hits, alarms = np.concatenate([[0], hits]), np.concatenate([[0], alarms])
    last = np.concatenate([alarms[1:] != alarms[:-1], [True]])  # of one FPR only the best TPR is a corner
    hits, alarms = hits[last], alarms[last]
    if len(alarms) > points:
        wanted = np.concatenate([[0], np.geomspace(1, len(outside), points)])
        keep = np.unique(np.searchsorted(alarms, wanted, side="right") - 1)
        hits, alarms = hits[keep], alarms[keep]
    ends = np.array([clopper_pearson(int(hit), len(inside), level) for hit in hits])
    return Curve(alarms / len(outside), hits / len(inside), ends[:, 0], ends[:, 1])


def tpr_at(scores: ArrayLike, member: ArrayLike, target: float, level: float = 0.95) -> Rate:
    """The largest TPR of any threshold whose realised FPR is at most ``target``.

    With n0 non-members the FPR moves in steps of 1/n0, so ``n0 * target < 3`` is not resolvable and gives NaN with its reason. The
    interval is Clopper-Pearson's for the TPR at the realised threshold, whose own FPR is as uncertain: hold it against that one's interval
    and not against ``target``, which it exceeds in a tenth of audits that leak nothing.
    """
    inside, outside, _, _ = _parts(scores, member, None)
    expected = len(outside) * target
    if expected < 3 - 1e-9:
        need = math.ceil(3 / target - 1e-9)
        reason = f"not resolvable: n0 x FPR = {math.floor(expected * 100 + 1e-9) / 100:g} < 3 (needs {need} non-members)"
        return Rate(math.nan, math.nan, math.nan, math.nan, math.nan, reason)
    thresholds = np.unique(np.concatenate([inside, outside]))  # ascending: alarms fall
    alarms = _at_least(outside, thresholds)
    allowed = np.flatnonzero(alarms <= math.floor(expected + 1e-9))
    if len(allowed) == 0:
        return Rate(0.0, *clopper_pearson(0, len(inside), level), 0.0, math.nan, "")
    first = int(allowed[0])
    hits = int(_at_least(inside, thresholds[first : first + 1])[0])
    return Rate(
        hits / len(inside), *clopper_pearson(hits, len(inside), level), float(alarms[first]) / len(outside), float(thresholds[first]), ""
    )


def advantage(scores: ArrayLike, member: ArrayLike) -> float:
    """TPR - FPR at a threshold chosen on every other record and scored on the rest, both ways (chosen on all, it would be optimistic)."""
    inside, outside, _, _ = _parts(scores, member, None)
    gains = []
    for half in (0, 1):
        tune_in, tune_out = inside[half::2], outside[half::2]
        test_in, test_out = inside[1 - half :: 2], outside[1 - half :: 2]
        if not (len(tune_in) and len(tune_out) and len(test_in) and len(test_out)):
            return math.nan
        thresholds = np.unique(np.concatenate([tune_in, tune_out]))
        gain = _at_least(tune_in, thresholds) / len(tune_in) - _at_least(tune_out, thresholds) / len(tune_out)
        best = thresholds[int(np.argmax(gain)) :][:1]
        gains.append(_at_least(test_in, best)[0] / len(test_in) - _at_least(test_out, best)[0] / len(test_out))
    return float(np.mean(gains))


def roc_band(curves: Sequence[tuple[ArrayLike, ArrayLike]], grid: ArrayLike, level: float = 0.95) -> Curve:
    """Mean TPR over several seeds' curves at each FPR of ``grid``, with the pointwise interval over seeds (step convention)."""
    at = np.asarray(grid, dtype=np.float64)
    read = np.stack([_step(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64), at) for x, y in curves])
    low, high = mean_intervals(read, level)
    return Curve(at, read.mean(axis=0), np.clip(low, 0, 1), np.clip(high, 0, 1))


def _parts(
    scores: ArrayLike, member: ArrayLike, groups: ArrayLike | None
) -> tuple[Floats, Floats, NDArray[np.generic], NDArray[np.generic]]:
    held, inside = np.asarray(scores, dtype=np.float64), np.asarray(member).astype(bool)
    if held.ndim != 1 or held.shape != inside.shape:
        raise ValueError(f"scores {held.shape} and membership {inside.shape} must be one value a record; give two vectors of one length")
    if np.isnan(held).any():
        raise ValueError(
            f"{int(np.isnan(held).sum())} scores are NaN, which no threshold can place; say what the attack knows about these records"
        )
    if inside.all() or not inside.any():
        raise ValueError("a ROC curve needs members and non-members; these records are all of one kind")
    unit = np.arange(len(held)) if groups is None else np.asarray(groups)
    return held[inside], held[~inside], unit[inside], unit[~inside]


def _ranks(scores: Floats) -> Floats:
    """From 1 up; tied scores share the mean of their ranks."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place], dtype=np.float64)


def _at_least(scores: Floats, thresholds: Floats) -> NDArray[np.intp]:
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def _clustered(inner: Floats, outer: Floats, unit_in: NDArray[np.generic], unit_out: NDArray[np.generic]) -> float:
    """Variance of the area from centred placements summed within units; with one record a unit it is DeLong's."""
    names, codes = np.unique(np.concatenate([unit_in, unit_out]), return_inverse=True)
    m, n, units = len(inner), len(outer), len(names)
    sum_in = np.bincount(codes[:m], weights=inner, minlength=units)
    sum_out = np.bincount(codes[m:], weights=outer, minlength=units)
    has_in, has_out = len(np.unique(codes[:m])), len(np.unique(codes[m:]))
    if min(has_in, has_out) < 2:
        return math.nan
    own_in = has_in / (has_in - 1) * float(sum_in @ sum_in) / m**2
    own_out = has_out / (has_out - 1) * float(sum_out @ sum_out) / n**2
    shared = 2 * units / (units - 1) * float(sum_in @ sum_out) / (m * n)
    return own_in + own_out + shared


def _newcombe(value: float, m: int, n: int, level: float) -> Interval:
    """The areas theta with |theta - value| <= z sqrt(V(theta)), V after Hanley and McNeil with both sizes replaced by their mean."""
    square, half = float(special.ndtri((1 + level) / 2)) ** 2, (m + n) / 2 - 1
    grid = np.linspace(0, 1, 20001)
    variance = grid * (1 - grid) * (1 + half * ((1 - grid) / (2 - grid) + grid / (1 + grid))) / (m * n)
    inside = grid[(grid - value) ** 2 <= square * variance + 1e-18]
    return min(float(inside.min()), value), max(float(inside.max()), value)


def _step(x: Floats, y: Floats, at: Floats) -> Floats:
    order = np.lexsort((y, x))
    best = np.maximum.accumulate(y[order])
    place = np.searchsorted(x[order], at, side="right") - 1
    return np.where(place >= 0, best[np.maximum(place, 0)], 0.0)
