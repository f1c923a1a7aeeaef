"""An audit's scores of canaries against who was included: lower bounds on epsilon, beside what the defense claims."""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from suites.auditing.bound import Bound
from suites.auditing.epsilons import epsilons
from suites.auditing.one_run import one_run, one_run_f_dp
from suites.auditing.thresholds import clopper_pearson
from suites.contracts import Claim
from suites.scoring import score_membership
from suites.scoring_measure import NAN, Measure

DELTA = 1e-5  # where nothing is claimed
NAMES = {"bound": "epsilon_lower", "assumption": "epsilon_assumed", "estimate": "epsilon_estimate"}


def score_audit(scores: Tensor, included: Tensor, claim: Claim | None, site: int, *, confidence: float = 0.95) -> list[Measure]:
    """``epsilon_lower`` (the largest of three bounds, each at a third of the error), every single statement by its kind, and the claim.

    A flag ``claim_refuted`` says that ``epsilon_lower`` lies above what is claimed for the canaries' ``site``. Inclusion was by fair
    coins, so the one-run bounds hold. ``leakage`` and AUC of the canaries stand beside, as for membership.

    Parameters
    ----------
    scores : [n] one a canary, higher for included ones
    included : [n] bool, the referee's coins
    """
    count = len(included)
    measures = score_membership(scores, included)
    if bool(included.all()) or not bool(included.any()):
        raise ValueError("all canaries fell on one side; insert more of them")
    held = torch.nan_to_num(scores.detach().double().cpu(), nan=0.0).numpy()
    mask = included.cpu().numpy()
    inside, outside = held[mask], held[~mask]
    claimed = _claimed(claim, site)
    delta = DELTA if claim is None or claim.delta is None else claim.delta
    best = best_bound(inside, outside, delta, confidence)
    sentence = (
        f"bound: the largest of clopper_pearson, one_run and one_run_f_dp at {confidence:.0%} together ({best.method}); {best.assumes}"
    )
    measures.append(Measure("epsilon_lower", best.epsilon, best.epsilon, NAN, count, "higher", "score", sentence))
    for one in epsilons(inside, outside, delta=delta, confidence=confidence, independent_inclusion=True):
        low = NAN if one.kind == "estimate" else one.epsilon
        measures.append(
            Measure(f"{NAMES[one.kind]}:{one.method}", one.epsilon, low, NAN, count, "higher", "score", f"{one.kind}: {one.assumes}")
        )
    if claim is not None and claimed is not None:
        measures.append(Measure("epsilon", claimed, NAN, NAN, 1, "lower", "claim", claim.sentence))
        if best.refutes(claimed):
            said = (
                f"the audit's lower bound ε ≥ {best.epsilon:.3g} ({best.method}, {confidence:.0%}) lies above the claimed ε = {claimed:.3g}"
            )
            measures.append(Measure("flag:claim_refuted", 1.0, NAN, NAN, count, "lower", "flag", said))
    return measures


def best_bound(inside: ArrayLike, outside: ArrayLike, delta: float, confidence: float) -> Bound:
    """The largest of three bounds at a third of the error each: together they err at most as often as one would."""
    each = 1 - (1 - confidence) / 3
    bounds = [
        clopper_pearson(inside, outside, delta=delta, confidence=each),
        one_run(inside, outside, independent_inclusion=True, delta=delta, confidence=each),
        one_run_f_dp(inside, outside, independent_inclusion=True, delta=delta, confidence=each),
    ]
    return max(bounds, key=lambda bound: bound.epsilon)


def _claimed(claim: Claim | None, site: int) -> float | None:
    if claim is None or claim.kind != "dp" or claim.epsilon is None:
        return None
    return claim.per_site[site] if site < len(claim.per_site) else claim.epsilon
