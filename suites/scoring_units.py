"""Membership of persons and of sites: did any of a donor's records take part, did this hospital?

The records' scores are summed within a unit, as independent evidence about one question: log-likelihood ratios as they are, other scores
after they were brought to one scale by their ranks among all candidates (normal scores, van der Waerden), of which the sum is the
log-likelihood ratio of a Gaussian shift. The unit has then one score and one membership, and every number and interval is over units.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from reports.roc import auc
from suites.scoring_measure import Measure, absent
from suites.scoring_membership import membership_measures

Floats = NDArray[np.float64]
RARE = 0.025  # a perfect order that comes about by chance more often than this says nothing


def summed(scores: ArrayLike, units: ArrayLike, *, log_ratio: bool) -> tuple[Floats, NDArray[np.intp]]:
    """One score a unit [U] and each record's place among the units [n].

    Parameters
    ----------
    scores : [n], higher for members; NaN says nothing and adds nothing
    units : [n] code of the person or site of each record
    log_ratio : whether the scores are log-likelihood ratios already
    """
    held = np.asarray(scores, dtype=np.float64).reshape(-1)
    _, place = np.unique(np.asarray(units), return_inverse=True)
    evidence = held if log_ratio else normal_scores(held)
    evidence = np.nan_to_num(evidence, nan=0.0, posinf=1e30, neginf=-1e30)
    totals: Floats = np.bincount(place, weights=evidence).astype(np.float64)
    return totals, place.astype(np.intp)


def normal_scores(scores: Floats) -> Floats:
    """The normal quantiles of the scores' ranks, ties at their mean rank; NaN stays."""
    out = np.full(len(scores), np.nan)
    known = ~np.isnan(scores)
    _, place, count = np.unique(scores[known], return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count + 1) / 2)[place] + 0.5
    out[known] = special.ndtri(ranks / max(int(known.sum()), 1))
    return out


def unit_measures(scores: ArrayLike, member: ArrayLike, units: ArrayLike, *, log_ratio: bool, name: str) -> list[Measure]:
    """The measures of ``membership_measures`` over units, and beside them the records' own AUC (``auc:record``).

    Parameters
    ----------
    scores, member : [n] as of ``membership_measures``; the records of a unit are all members or none is
    units : [n] code of the unit of each record
    log_ratio : whether the scores are log-likelihood ratios
    name : "person" or "site", for reasons

    Notes
    -----
    With fewer than two units on a side nothing is resolvable. Where even a perfect order of so few has a chance above ``RARE``, the value
    stands with the whole scale for its interval and says why.
    """
    inside = np.asarray(member).astype(bool).reshape(-1)
    codes = np.asarray(units).reshape(-1)
    totals, place = summed(scores, codes, log_ratio=log_ratio)
    share = np.bincount(place, weights=inside) / np.bincount(place)
    if not np.isin(share, (0.0, 1.0)).all():
        raise ValueError(f"a {name} has records both inside and outside training, so that its membership is no yes or no")
    member_units = share == 1.0
    ins, outs = int(member_units.sum()), int((~member_units).sum())
    if min(ins, outs) < 2:
        reason = f"not resolvable: {ins} {name}s took part and {outs} did not, and an order needs two of each"
        return [absent("leakage", reason), absent("auc", reason), *_records(scores, inside, codes)]
    measures = membership_measures(totals, member_units)
    chance = 1 / math.comb(ins + outs, ins)
    if chance > RARE:
        said = f"few {name}s: a perfect order of {ins} and {outs} has p = {chance:.2g} by chance, so the interval is the whole scale"
        ends = {"leakage": (-1.0, 1.0), "auc": (0.0, 1.0)}
        measures = [
            replace(one, low=ends[one.metric][0], high=ends[one.metric][1], reason=said) if one.metric in ends else one for one in measures
        ]
    return [*measures, *_records(scores, inside, codes)]


def _records(scores: ArrayLike, inside: NDArray[np.bool_], codes: NDArray[np.generic]) -> list[Measure]:
    """The AUC over records, its interval widened for records of one unit (Obuchowski 1997)."""
    held = np.asarray(scores, dtype=np.float64).reshape(-1)
    held = np.where(np.isnan(held), np.nanmedian(held) if not np.isnan(held).all() else 0.0, held)
    if inside.all() or not inside.any():
        return []
    area = auc(held, inside, codes)
    return [Measure("auc:record", area.value, area.low, area.high, len(held), "higher", "score")]
