"""Calibrated R²: what a reconstruction is worth to an adversary who knows from other runs how far to trust it.

R² punishes an attack for every record that it answers at full size and wrongly, so that one that recovers a tenth of the records and knows
which can stand below the public mean. Here each guess is shrunk towards the public mean by a factor c in [0, 1] before it is scored: c is a
non-decreasing function of the attack's confidence times a non-increasing one of the guess's length, which every guess shows. Both are
fitted on all other seeds (weighted isotonic regression, Barlow et al. 1972, by pooling adjacent violators: the least squares of truth minus
c times guess, over <truth, guess> and |guess|² of each record) and applied to the seed that is left out, so that no number is fitted on
itself. A guess that is worthless scores about 0, one that is right for a tenth of the records and says which about .1, the truth 1.

Curves (``suites.scoring_shrinkage``): ``shrink:<target>:<who>`` and ``shrink_by:<target>:<who>``; who is ``guess`` or a control.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from reports.intervals import Floats, mean_interval, ratio_interval
from reports.schema import CELL, UPPER_BOUND

SUMS: Final = "shrink"
STATED: Final = "shrink_by"
OWN: Final = "guess"
FIT: Final = "r2_calibrated"
LEAKAGE: Final = "leakage_calibrated"
BASE: Final = "r2"  # the row behind which these stand
ALONE: Final = "not resolvable: a calibration needs another seed to be fitted on"

Step = tuple[Floats, Floats]


class Answers(NamedTuple):
    """Of each record [n]: its target, <truth, guess> and |guess|² as shares of the target's |truth|², confidence, length."""

    target: NDArray[np.intp]
    inner: Floats
    energy: Floats
    confidence: Floats
    length: Floats


class Shrinkage(NamedTuple):
    """c = what ``by_confidence`` says times what ``by_length`` corrects, at most 1; each as (knots ascending, values)."""

    by_confidence: Step
    by_length: Step

    def of(self, held: Answers) -> Floats:
        """The factor of each record [n]; nothing of its truth is read."""
        return np.minimum(np.interp(held.confidence, *self.by_confidence) * np.interp(-held.length, *self.by_length), 1)


def fitted(held: Answers) -> Shrinkage:
    """The factors that would have scored best on ``held``."""
    first = isotonic(held.confidence, held.inner, held.energy)
    c = np.interp(held.confidence, *first)
    return Shrinkage(first, isotonic(-held.length, c * held.inner, c**2 * held.energy, top=math.inf))


def isotonic(x: Floats, inner: Floats, energy: Floats, top: float = 1.0) -> Step:
    """The non-decreasing c(x) in [0, ``top``] that minimises sum c² energy - 2 c inner: knots [k] and values [k]."""
    knots, place = np.unique(x, return_inverse=True)
    blocks: list[tuple[float, float, int]] = []
    for a, b in zip(np.bincount(place, inner).tolist(), np.bincount(place, energy).tolist()):
        own = (a, b, 1)
        while blocks and _ratio(*blocks[-1]) >= _ratio(*own):  # one that falls, or a block without a guess, is one with what is before
            last = blocks.pop()
            own = (last[0] + own[0], last[1] + own[1], last[2] + own[2])
        blocks.append(own)
    values = np.repeat([_ratio(*block) for block in blocks], [count for _, _, count in blocks])
    return knots, np.clip(values, 0, top)


def explained(held: Answers, c: Floats) -> Floats:
    """R² of c times the guess, one a target."""
    return np.asarray(np.bincount(held.target, 2 * c * held.inner - c**2 * held.energy), dtype=np.float64)


def with_shrinkage(results: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The results with calibrated rows behind each row of ``r2`` whose curves are there; the same table where there are none.

    ``r2_calibrated`` (interval over targets; over seeds where they are summarised), ``leakage_calibrated``, the share of what the best
    control leaves open, and the controls ``r2_calibrated:<name>`` under the same treatment.
    """
    own = results["metric"] == BASE
    points = curves[curves["curve"].str.startswith((SUMS + ":", STATED + ":"))] if own.any() else curves.iloc[:0]
    if points.empty:
        return results
    rows = {tuple(results.loc[index, [*CELL, "seed"]]): index for index in results.index[own]}
    added: dict[int, list[dict[str, Any]]] = {}
    for cell, part in points.groupby(list(CELL), sort=False):
        seeds = {int(str(seed)): _answers(one) for seed, one in part.groupby("seed")}
        for seed, held in seeds.items():
            index = rows.get((*cell, seed))
            if index is not None:
                given = {str(name): value for name, value in results.loc[index].items()}
                others = [other for number, other in seeds.items() if number != seed]
                added[index] = [{**given, **row} for row in _rows(given, held, others)]
    made = pd.DataFrame([row for found in added.values() for row in found], columns=results.columns).astype(results.dtypes.to_dict())
    made.index = pd.Index([index + 0.5 for index, found in added.items() for _ in found])
    return pd.concat([results, made]).sort_index(kind="stable").reset_index(drop=True)


def _rows(given: dict[str, Any], held: dict[str, Answers], others: list[dict[str, Answers]]) -> Iterator[dict[str, Any]]:
    mark = str(given["reason"]) if str(given["reason"]).startswith(UPPER_BOUND) else ""
    mark = mark.partition("; ")[0]
    if not others:
        for metric in (FIT, LEAKAGE):
            reason = "; ".join(filter(None, (mark, ALONE)))
            yield {"metric": metric, "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "reason": reason}
        return
    fits = {}
    for name, answers in held.items():
        elsewhere = [other[name] for other in others if name in other]
        if elsewhere:
            known = Answers(*(np.concatenate(column) for column in zip(*elsewhere, strict=True)))
            fits[name] = explained(answers, fitted(known).of(answers))
    own = fits.pop(OWN)
    alone = "no interval: one target" if len(own) == 1 else ""
    said = {"n": len(own), "reason": "; ".join(filter(None, (mark, alone)))}
    yield {**said, "metric": FIT, **_ends(float(own.mean()), mean_interval(own) if len(own) > 1 else (math.nan, math.nan))}
    floor = max([np.zeros(len(own)), *fits.values()], key=lambda fit: float(fit.mean()))
    room = float((1 - floor).mean())
    if room <= 1e-9:
        reason = "; ".join(filter(None, (mark, "a control is already exact: nothing is left to leak")))
        yield {"metric": LEAKAGE, "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "reason": reason}
    else:
        ends = ratio_interval(own - floor, 1 - floor) if len(own) > 1 else (math.nan, math.nan)
        yield {**said, "metric": LEAKAGE, **_ends(float((own - floor).mean()) / room, ends)}
    for name, fit in fits.items():
        yield {**said, "metric": f"{FIT}:{name}", "role": "control", **_ends(float(fit.mean()), (math.nan, math.nan))}


def _ends(value: float, ends: tuple[float, float]) -> dict[str, float]:
    return {"value": value, "low": ends[0], "high": ends[1]}


def _answers(points: pd.DataFrame) -> dict[str, Answers]:
    """What one seed of one cell holds, by who guessed."""
    named = points["curve"].str.split(":", n=2, expand=True)
    table = pd.DataFrame({"kind": named[0], "target": named[1].astype(int), "who": named[2], "x": points["x"], "y": points["y"]})
    found = {}
    for who, part in table.groupby("who", sort=False):
        sums, stated = (part[part["kind"] == kind] for kind in (SUMS, STATED))  # in the same order
        target = sums["target"].to_numpy()
        columns = (sums["x"], sums["y"], stated["x"], stated["y"])
        found[str(who)] = Answers(target, *(one.to_numpy(dtype=np.float64) for one in columns))
    return found


def _ratio(inner: float, energy: float, _: int) -> float:
    return inner / energy if energy > 0 else -math.inf
