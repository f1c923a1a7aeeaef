"""What an attack's confidence is worth: calibrated on the other seeds, judged on the one left out.

Attacks say their confidence in units of their own (minus a loss, a kurtosis, an expected cosine). The curve ``confidence`` keeps one pair a
target or record: x = confidence, y = whether the guess was right. The chance of being right that a confidence stands for is fitted on the
pairs of all other seeds and read off for those of each seed in turn, so that no number is calibrated on itself.

Fit: Platt (1999), a logistic curve with his smoothed targets, over the normal score of the confidence's rank among the seeds that it is
fitted on. Ranks make it free of units; two numbers suit the tens of pairs of a run, where isotonic steps, which need about a thousand,
say 0 or 1 too soon (Niculescu-Mizil and Caruana 2005).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from reports.intervals import Floats, clopper_pearson
from reports.schema import CELL, UPPER_BOUND

CONFIDENCE: Final = "confidence"  # the curve
AREA: Final = "confidence_auc"
ERROR: Final = "expected_calibration_error"
SCORE: Final = "brier"
BINS: Final = 10
_DRAWS: Final = 400


class Bin(NamedTuple):
    """One bin of a reliability diagram: ``low`` and ``high`` are Clopper and Pearson's."""

    chance: float  # mean calibrated chance of its pairs
    right: float  # share that was right
    low: float
    high: float
    n: int


def calibrated(confidence: ArrayLike, right: ArrayLike, asked: ArrayLike) -> Floats:
    """The chance of being right of each confidence in ``asked`` [m], fitted on ``confidence`` [n] and ``right`` [n]."""
    held, hit = np.asarray(confidence, dtype=np.float64), np.asarray(right).astype(bool)
    yes, no = int(hit.sum()), int((~hit).sum())
    wanted = np.where(hit, (yes + 1) / (yes + 2), 1 / (no + 2))
    x = np.stack([np.ones(len(held)), _normal_scores(held, held)], axis=1)
    line = np.zeros(2)
    for _ in range(50):
        p = special.expit(x @ line)
        slope = x.T @ (p - wanted)
        bend = x.T @ (x * (p * (1 - p))[:, None]) + 1e-9 * np.eye(2)  # equal confidences have no slope
        step, size = np.linalg.solve(bend, slope), 1.0
        while size > 1e-6 and _missed(x, wanted, line - size * step) > _missed(x, wanted, line):
            size /= 2
        line = line - size * step
        if float(np.abs(step).max()) < 1e-10:
            break
    return np.asarray(special.expit(line[0] + line[1] * _normal_scores(held, np.asarray(asked, dtype=np.float64))))


def calibration_error(chance: ArrayLike, right: ArrayLike) -> float:
    """Expected calibration error (Naeini, Cooper and Hauskrecht 2015): over ``BINS`` equal bins the sum of n_b/n |share right - chance|."""
    stated, hit = np.asarray(chance, dtype=np.float64), np.asarray(right, dtype=np.float64)
    return float(np.abs(np.bincount(_bin(stated), weights=hit - stated, minlength=BINS)).sum() / len(stated))


def perfect_error(chance: ArrayLike) -> float:
    """The mean calibration error where every chance is exactly true: few pairs miss their shares by luck, so it is not 0."""
    stated = np.asarray(chance, dtype=np.float64)
    drawn = np.random.default_rng(20240229).random((_DRAWS, len(stated))) < stated
    return float(np.abs((drawn - stated) @ np.eye(BINS)[_bin(stated)]).sum(axis=1).mean() / len(stated))


def brier(chance: ArrayLike, right: ArrayLike) -> float:
    """Mean squared distance of chance and outcome (Brier 1950): 0 is certainty that is right, .25 what a constant half gets."""
    return float(np.mean((np.asarray(chance, dtype=np.float64) - np.asarray(right, dtype=np.float64)) ** 2))


def reliability(chance: ArrayLike, right: ArrayLike) -> list[Bin]:
    """The bins that hold a pair, in order."""
    stated, hit = np.asarray(chance, dtype=np.float64), np.asarray(right).astype(bool)
    place = _bin(stated)
    found = []
    for index in np.unique(place):
        own = place == index
        count, hits = int(own.sum()), int(hit[own].sum())
        found.append(Bin(float(stated[own].mean()), hits / count, *clopper_pearson(hits, count), count))
    return found


def unresolved(right: ArrayLike) -> str:
    """Why right and wrong guesses cannot be told apart, "" where they can."""
    hit = np.asarray(right).astype(bool)
    if len(hit) == 0:
        return "not resolvable: no guess came with a confidence"
    return "" if hit.any() and not hit.all() else f"not resolvable: every guess is {'right' if hit.all() else 'wrong'}"


def held_out(curves: pd.DataFrame) -> pd.DataFrame:
    """Every pair whose chance can be stated: the cell's columns, ``seed chance right base``; ``base`` is the other seeds' share right."""
    parts = [
        pd.DataFrame({**dict(zip((*CELL, "seed"), at, strict=True)), "chance": chance, "right": right, "base": base})
        for at, chance, right, base, reason in _seeds(curves)
        if not reason
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*CELL, "seed", "chance", "right", "base"])


def with_calibration(results: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The results with the calibration's rows behind each row of ``confidence_auc``; the same table where no attack gives a confidence.

    ``expected_calibration_error`` and ``brier`` of each seed under the fit of the others, and beside them the controls
    ``expected_calibration_error:perfect`` (a perfect calibration on as many pairs) and ``brier:share_alone`` (the share of the other seeds'
    guesses that were right, for every guess). Their interval is that over seeds.
    """
    own = results["metric"] == AREA
    if not own.any():
        return results
    rows = {tuple(results.loc[index, [*CELL, "seed"]]): index for index in results.index[own]}
    added: dict[int, list[dict[str, Any]]] = {}
    for at, chance, right, base, reason in _seeds(curves):
        if at in rows:
            given = {str(name): value for name, value in results.loc[rows[at]].items()}
            added[rows[at]] = [{**given, **row} for row in _rows(given, chance, right, base, reason)]
    made = pd.DataFrame([row for found in added.values() for row in found], columns=results.columns).astype(results.dtypes.to_dict())
    made.index = pd.Index([index + 0.5 for index, found in added.items() for _ in found])
    return pd.concat([results, made]).sort_index(kind="stable").reset_index(drop=True)


def _rows(given: dict[str, Any], chance: Floats, right: NDArray[np.bool_], base: float, reason: str) -> Iterator[dict[str, Any]]:
    mark = str(given["reason"]) if str(given["reason"]).startswith(UPPER_BOUND) else ""
    blank = {"low": math.nan, "high": math.nan, "direction": "lower", "n": len(right), "reason": mark}
    if reason:
        for metric in (ERROR, SCORE):
            yield {**blank, "metric": metric, "value": math.nan, "reason": "; ".join(filter(None, (mark, reason))), "n": 0}
        return
    yield {**blank, "metric": ERROR, "value": calibration_error(chance, right)}
    yield {**blank, "metric": f"{ERROR}:perfect", "value": perfect_error(chance), "role": "control"}
    yield {**blank, "metric": SCORE, "value": brier(chance, right)}
    yield {**blank, "metric": f"{SCORE}:share_alone", "value": brier(np.full(len(right), base), right), "role": "control"}


Held = tuple[tuple[Any, ...], Floats, NDArray[np.bool_], float, str]


def _seeds(curves: pd.DataFrame) -> Iterator[Held]:
    """Each cell and seed with pairs: (cell, seed), chances under the other seeds' fit, outcomes, the others' share right; or a reason."""
    pairs = curves[curves["curve"] == CONFIDENCE]
    for cell, own in pairs.groupby(list(CELL), sort=False):
        confidence, right = own["x"].to_numpy(float), own["y"].to_numpy(float) > 0.5
        seeds = own["seed"].to_numpy()
        for seed in np.unique(seeds):
            here = seeds == seed
            at, others = (*cell, int(seed)), right[~here]
            if here.all():
                yield at, np.array([]), right[here], math.nan, "not resolvable: a calibration needs another seed to be fitted on"
            elif said := unresolved(others):
                yield at, np.array([]), right[here], math.nan, f"{said} on the other seeds" if not unresolved(right) else said
            else:
                chance = calibrated(confidence[~here], others, confidence[here])
                yield at, chance, right[here], float(others.mean()), ""


def _normal_scores(held: Floats, asked: Floats) -> Floats:
    """Normal quantiles of the ranks that ``asked`` take among ``held``, ties in the middle."""
    order = np.sort(held)
    below, upto = np.searchsorted(order, asked, side="left"), np.searchsorted(order, asked, side="right")
    return np.asarray(special.ndtri(((below + upto) / 2 + 0.5) / (len(held) + 1)))


def _missed(x: Floats, wanted: Floats, line: Floats) -> float:
    """The negative log-likelihood."""
    z = x @ line
    return float((np.logaddexp(0, z) - wanted * z).sum())


def _bin(chance: Floats) -> NDArray[np.intp]:
    return np.minimum((chance * BINS).astype(np.intp), BINS - 1)
