"""Scores of guessed properties: where a record belongs, and which shares a site's records have. Always against imputation.

Whoever sees no model can still guess: the largest site, or the site that records like this one come from; the public shares. That guess is
the prior, so leakage is what the messages add to it: 0 for the imputation, 1 for the truth. A leakage below 0 says that the attack does
worse than imputing, in its reason.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reports.intervals import hierarchical, ratio_interval
from suites.scoring_measure import Measure, absent, plain, proportion

Floats = NDArray[np.float64]
NEAR = 0.02  # of an imputation that errs by less, what is left is the sites' rounding
BELOW = "worse than imputation without the model"


def score_origin(scores: ArrayLike, home: ArrayLike, *, imputed: ArrayLike | None = None, groups: ArrayLike | None = None) -> list[Measure]:
    """Accuracy of the site of origin, beside chance, the largest site and imputation; leakage = (accuracy - prior) / (1 - prior).

    Parameters
    ----------
    scores : [n, S], higher for the site that a record is said to come from
    home : [n] the site of each record, negative for records of no site (left out)
    imputed : [n, S], the same of a model of public records alone
    groups : [n] person of each record: resampled whole
    """
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(home)
    asked = truth >= 0
    table, truth = table[asked], truth[asked]
    if len(truth) == 0 or table.shape[1] < 2:
        return [absent("leakage", "no record of two sites or more was asked about")]
    hits = table.argmax(1) == truth
    found = proportion("accuracy_of_origin", int(hits.sum()), len(hits))
    if groups is not None:
        own = np.asarray(groups)[asked]
        if len(np.unique(own)) < len(own):
            low, high = hierarchical(hits.astype(float), own)
            found = replace(found, low=max(low, 0.0), high=min(high, 1.0))
    sizes = np.bincount(truth, minlength=table.shape[1]) / len(truth)
    priors = {"largest_site": float(sizes.max())}
    if imputed is not None:
        priors["imputation"] = float((np.asarray(imputed)[asked].argmax(1) == truth).mean())
    prior = max(priors.values())
    controls = [plain(f"accuracy_of_origin:{name}", value, len(truth), role="control") for name, value in priors.items()]
    controls.append(plain("accuracy_of_origin:chance", 1 / table.shape[1], len(truth), role="control"))
    if prior >= 1:
        return [absent("leakage", "not resolvable: imputation is never wrong, so nothing can be added to it"), found, *controls]
    ends = [(value - prior) / (1 - prior) for value in (found.value, found.low, found.high)]
    return [_told(Measure("leakage", ends[0], ends[1], ends[2], len(truth), "higher", "score")), found, *controls]


def score_shares(guess: ArrayLike, truth: ArrayLike, baseline: ArrayLike) -> list[Measure]:
    """Guessed shares [S, C] against the true ones, on a scale from imputation (0) to the truth (1).

    ``leakage = 1 - sum |guess - truth|² / sum |baseline - truth|²`` (the Brier skill score); ``share_error`` is half the L1 distance
    (total variation), mean over sites. ``baseline`` is [C] or [S, C]: what is guessed without the model. Intervals are over sites. A site
    whose true shares are NaN, since nobody wrote them down, is left out.
    """
    said, real = np.atleast_2d(np.asarray(guess, dtype=np.float64)), np.atleast_2d(np.asarray(truth, dtype=np.float64))
    if said.shape != real.shape:
        raise ValueError(f"the guess has shares {said.shape}, but {real.shape} were asked (sites by kinds); give one row a site, in order")
    public = np.broadcast_to(np.asarray(baseline, dtype=np.float64), real.shape)
    known = ~np.isnan(real).any(1)
    if not known.any():
        return [absent("leakage", "nobody wrote down the property of any site's records")]
    said, real, public = said[known], real[known], public[known]
    ours, theirs = np.square(said - real).sum(1), np.square(public - real).sum(1)
    count = len(real)
    distance = [np.abs(one - real).sum(1) / 2 for one in (said, public)]
    beside = [
        replace(plain("share_error", float(distance[0].mean()), count), direction="lower"),
        replace(plain("share_error:imputation", float(distance[1].mean()), count, role="control"), direction="lower"),
    ]
    if distance[1].mean() < NEAR:
        reason = f"not resolvable: imputation is within {float(distance[1].mean()):.2g} of the truth (total variation)"
        return [absent("leakage", reason), *beside]
    low, high = (math.nan, math.nan) if count < 2 else ratio_interval(ours, theirs)
    reason = "no interval: one site" if count < 2 else ""
    skill = 1 - float(ours.sum() / theirs.sum())
    return [_told(Measure("leakage", skill, 1 - high, min(1 - low, 1.0), count, "higher", "score", reason)), *beside]


def shares_of(kind: Tensor, count: int) -> Tensor:
    """Shares [count] of each kind among records whose kind is known (not negative); NaN where it is of none."""
    known = kind[kind >= 0]
    return torch.bincount(known, minlength=count).double() / len(known)


def imputed_kinds(known: ArrayLike, kinds: ArrayLike, asked: ArrayLike, count: int, components: int = 20) -> Floats:
    """Scores [n, count] of each record's kind from a model that saw public records alone: ridge on their principal components.

    ``known`` [m, F] are auxiliary records of ``kinds`` [m]; ``asked`` is [n, F]. What messages add to this is leakage.
    """
    x, y = np.asarray(known, dtype=np.float64), np.asarray(kinds)
    middle = x.mean(0)
    _, _, rows = np.linalg.svd(x - middle, full_matrices=False)
    basis = rows[: min(components, max(len(x) // 4, 1))]
    inputs, wanted = (x - middle) @ basis.T, np.eye(count)[y]
    rates = wanted.mean(0)
    penalty = np.eye(len(basis)) * inputs.var() * 2
    weight = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ (wanted - rates))
    return np.asarray((np.asarray(asked, dtype=np.float64) - middle) @ basis.T @ weight + rates)


def _told(measure: Measure) -> Measure:
    """The reason of a leakage below the baseline: it is printed as it is, and said."""
    if not measure.value < 0:
        return measure
    return replace(measure, reason="; ".join(filter(None, (measure.reason, BELOW))))
