"""Epsilon statements as rows: each under a name that says its kind, the claim beside them, and a flag where a bound contradicts it."""

from __future__ import annotations

from numpy.typing import ArrayLike

from suites.auditing.bound import Bound, two_sides
from suites.auditing.epsilons import epsilons
from suites.auditing.one_run import one_run, one_run_f_dp
from suites.auditing.thresholds import clopper_pearson
from suites.errors import RequestError
from suites.scoring_measure import NAN, Measure

NAMES = {"bound": "epsilon_lower", "assumption": "epsilon_assumed", "estimate": "epsilon_estimate"}


def epsilon_measures(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    delta: float,
    confidence: float = 0.95,
    independent_inclusion: bool = False,
    claimed: float | None = None,
    sentence: str = "",
) -> list[Measure]:
    """``epsilon_lower`` (the largest of the bounds, at one error for all) and every single statement; with ``claimed``, claim and flag."""
    if claimed is not None and not claimed >= 0:
        raise RequestError(f"the claimed ε is {claimed:g}, but an ε is at least 0; give the one that is promised")
    inside, outside = two_sides(scores_in, scores_out)
    count = len(inside) + len(outside)
    best = best_bound(inside, outside, delta=delta, confidence=confidence, independent_inclusion=independent_inclusion)
    said = f"bound: the largest of several at {confidence:.0%} together ({best.method}); {best.assumes}"
    measures = [Measure("epsilon_lower", best.epsilon, best.epsilon, NAN, count, "higher", "score", said)]
    for one in epsilons(inside, outside, delta=delta, confidence=confidence, independent_inclusion=independent_inclusion):
        low = NAN if one.kind == "estimate" else one.epsilon
        measures.append(
            Measure(f"{NAMES[one.kind]}:{one.method}", one.epsilon, low, NAN, count, "higher", "score", f"{one.kind}: {one.assumes}")
        )
    if claimed is not None:
        measures.append(Measure("epsilon", claimed, NAN, NAN, 1, "lower", "claim", sentence))
        if best.refutes(claimed):
            contradicts = (
                f"the audit's lower bound ε ≥ {best.epsilon:.3g} ({best.method}, {confidence:.0%}) lies above the claimed ε = {claimed:.3g}"
            )
            measures.append(Measure("flag:claim_refuted", 1.0, NAN, NAN, count, "lower", "flag", contradicts))
    return measures


def best_bound(
    scores_in: ArrayLike, scores_out: ArrayLike, *, delta: float, confidence: float = 0.95, independent_inclusion: bool = False
) -> Bound:
    """The largest bound, each taken at its share of the error: together they err at most as often as one would."""
    each = 1 - (1 - confidence) / (3 if independent_inclusion else 1)
    bounds = [clopper_pearson(scores_in, scores_out, delta=delta, confidence=each)]
    if independent_inclusion:
        bounds += [
            bound(scores_in, scores_out, independent_inclusion=True, delta=delta, confidence=each) for bound in (one_run, one_run_f_dp)
        ]
    return max(bounds, key=lambda bound: bound.epsilon)
