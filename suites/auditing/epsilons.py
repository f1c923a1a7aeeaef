"""Every epsilon statement that a pair of score arrays supports, each with its kind."""

from __future__ import annotations

from numpy.typing import ArrayLike

from suites.auditing.bound import Bound, two_sides
from suites.auditing.one_run import one_run, one_run_f_dp
from suites.auditing.thresholds import clopper_pearson, gaussian_family, multi_split, raw_counts


def epsilons(
    scores_in: ArrayLike, scores_out: ArrayLike, *, delta: float = 1e-5, confidence: float = 0.95, independent_inclusion: bool = False
) -> list[Bound]:
    """Bounds first, then what rests on an assumption, then the bare estimate; the one-run bounds only where inclusion was independent.

    Each statement has its own error probability: the largest of several bounds is not a bound at the same confidence.
    """
    inside, outside = two_sides(scores_in, scores_out)
    found = [clopper_pearson(inside, outside, delta=delta, confidence=confidence)]
    if min(len(inside), len(outside)) >= 4:
        found.append(multi_split(inside, outside, delta=delta, confidence=confidence))
    if independent_inclusion:
        found.append(one_run(inside, outside, independent_inclusion=True, delta=delta, confidence=confidence))
        found.append(one_run_f_dp(inside, outside, independent_inclusion=True, delta=delta, confidence=confidence))
        found.append(one_run_f_dp(inside, outside, independent_inclusion=True, family="gaussian", delta=delta, confidence=confidence))
    found.append(gaussian_family(inside, outside, delta=delta, confidence=confidence))
    found.append(raw_counts(inside, outside, delta=delta))
    return found
