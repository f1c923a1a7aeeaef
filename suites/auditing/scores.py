"""``audit_scores``: everything that two arrays of scores can say about membership and epsilon."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from suites.auditing.bound import check_level, two_sides
from suites.auditing.measures import epsilon_measures
from suites.auditing.result import Audit, Rows
from suites.scoring_membership import membership_measures


def audit_scores(
    scores_in: ArrayLike,
    scores_out: ArrayLike,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    independent_inclusion: bool = False,
    claimed: float | None = None,
    name: str = "model",
    attack: str = "scores",
) -> Audit:
    """Audit the scores that an attack gave to members and to non-members.

    Parameters
    ----------
    scores_in, scores_out : array
        Scores of members and of non-members, higher for members.
    delta, confidence : float
        Of every epsilon statement; bounds are one-sided.
    independent_inclusion : bool
        Whether each record was made a member by its own fair coin; only then do the one-run bounds hold, and only then are they given.
    claimed : float, optional
        An epsilon that somebody claims; a bound above it raises a flag.
    name, attack : str
        What was audited and who scored, as tables print them.

    Returns
    -------
    Audit
        AUC with interval, TPR at 1 % and 0.1 % FPR (or "not resolvable"), realised FPR, threshold, each epsilon statement with its kind.

    Raises
    ------
    RequestError
        Where an array is empty, not of numbers, or has NaN.
    """
    check_level(delta, confidence)
    inside, outside = two_sides(scores_in, scores_out)
    scores = np.concatenate([inside, outside])
    member = np.arange(len(scores)) < len(inside)
    rows = Rows(name, "outsider")
    bounds = epsilon_measures(
        inside,
        outside,
        delta=delta,
        confidence=confidence,
        independent_inclusion=independent_inclusion,
        claimed=claimed,
        sentence="as given",
    )
    rows.add(attack, membership_measures(scores, member) + bounds, scores=scores, member=member)
    return rows.finish(
        f"Audit of {name}: {len(inside)} members, {len(outside)} non-members", [about(delta, confidence, independent_inclusion)]
    )


def about(delta: float, confidence: float, independent: bool) -> str:
    one_run = "" if independent else " One-run bounds are left out: nobody said that each record was included by its own fair coin."
    return f"ε statements hold at δ = {delta:g}; a bound is one-sided at {confidence:.0%}, an assumption or estimate is no bound.{one_run}"
