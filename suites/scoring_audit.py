"""An audit's scores of canaries against who was included: lower bounds on epsilon, beside what the defense claims."""

from __future__ import annotations

import torch
from torch import Tensor

from suites.auditing.measures import epsilon_measures
from suites.contracts import Claim
from suites.scoring import score_membership
from suites.scoring_measure import Measure

DELTA = 1e-5  # where nothing is claimed


def score_audit(scores: Tensor, included: Tensor, claim: Claim | None, site: int, *, confidence: float = 0.95) -> list[Measure]:
    """Leakage and AUC of the canaries, every epsilon statement by its kind, and the claim for the canaries' ``site``.

    A flag ``claim_refuted`` says that the lower bound lies above the claim. Inclusion was by fair coins, so the one-run bounds hold.

    Parameters
    ----------
    scores : [n] one a canary, higher for included ones
    included : [n] bool, the referee's coins
    """
    if bool(included.all()) or not bool(included.any()):
        raise ValueError("all canaries fell on one side; insert more of them")
    said = scores.detach().double().cpu()
    silent = said.isnan()
    middle = said[~silent].median() if not bool(silent.all()) else torch.zeros((), dtype=torch.float64)
    held = torch.where(silent, middle, said).numpy()
    mask = included.cpu().numpy()
    stated = claim is not None and claim.kind == "dp"
    return score_membership(scores, included) + epsilon_measures(
        held[mask],
        held[~mask],
        delta=DELTA if claim is None or claim.delta is None else claim.delta,
        confidence=confidence,
        independent_inclusion=True,
        claimed=_claimed(claim, site) if claim is not None and stated else None,
        sentence=claim.sentence if claim is not None else "",
    )


def _claimed(claim: Claim, site: int) -> float | None:
    return claim.per_site[site] if site < len(claim.per_site) else claim.epsilon
