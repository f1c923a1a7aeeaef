"""Scores of membership against the truth, on plain arrays: what the referee, the one-call audit and the command line all print."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reports.intervals import clopper_pearson
from reports.roc import advantage, auc, tpr_at
from suites.scoring_measure import NAN, Measure, plain

FALSE_POSITIVE_RATES = {"1%": 0.01, "0.1%": 0.001}


def membership_measures(scores: ArrayLike, member: ArrayLike, groups: NDArray[np.generic] | None = None) -> list[Measure]:
    """AUC, TPR at low FPR with its realised FPR and threshold, advantage, and leakage = 2 AUC - 1.

    Parameters
    ----------
    scores : [n], higher for members; NaN says nothing and is placed at the median (and flagged)
    member : [n] bool
    groups : [n] person or site of each record, where several records of one are asked: widens the interval (Obuchowski 1997)
    """
    held, inside = np.asarray(scores, dtype=np.float64).reshape(-1), np.asarray(member).astype(bool).reshape(-1)
    if len(held) != len(inside):
        raise ValueError(
            f"the guess scores {len(held)} records, but {len(inside)} candidates were asked; give one score a candidate, in order"
        )
    silent = np.isnan(held)
    if silent.any():
        held = np.where(silent, float(np.median(held[~silent])) if not silent.all() else 0.0, held)
    area = auc(held, inside, groups)
    count = len(held)
    measures = [
        Measure("leakage", 2 * area.value - 1, 2 * area.low - 1, 2 * area.high - 1, count, "higher", "score"),
        Measure("auc", area.value, area.low, area.high, count, "higher", "score"),
        plain("advantage", advantage(held, inside), count),
    ]
    outside = int((~inside).sum())
    for label, target in FALSE_POSITIVE_RATES.items():
        rate = tpr_at(held, inside, target)
        measures += [
            Measure(f"tpr@{label}", rate.value, rate.low, rate.high, int(inside.sum()), "higher", "score", rate.reason),
            _realised(f"fpr@{label}", rate.fpr, outside, rate.reason),
        ]
        unreached = (
            "" if math.isfinite(rate.threshold) else rate.reason or "no threshold keeps the target: the top score is shared by non-members"
        )
        measures.append(
            Measure(f"threshold@{label}", rate.threshold if not unreached else NAN, NAN, NAN, count, "higher", "score", unreached)
        )
    if silent.any():
        measures.append(plain("undefined_scores", int(silent.sum()), count, direction="lower", role="flag"))
    return measures


def _realised(metric: str, rate: float, outside: int, reason: str) -> Measure:
    if not math.isfinite(rate):
        return Measure(metric, NAN, NAN, NAN, outside, "lower", "score", reason)
    return Measure(metric, rate, *clopper_pearson(round(rate * outside), outside), outside, "lower", "score")
