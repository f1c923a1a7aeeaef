"""The worst case over the attacks of a threat: what a defense is worth, and the only leakage that a headline prints.

The maximum over attacks, taken on the numbers that are then reported, is too high (the best of 12 null attacks has AUC .535). So the
worst attack is chosen on some seeds and scored on others: on one half and scored on the other, both ways, from four seeds up; on all but
one and scored on that one with two or three. Every seed is thus scored once, by an attack that it did not choose. An average over attacks
is never taken, and rows whose attack read the truth (upper bounds) and controls never enter.

Interval. What one fold scores, the other chose by, so their means are not independent: with twelve null attacks and three seeds the plain t
interval misses zero in 11 %. Where a rival is not clearly behind, the folds are therefore counted as wholly dependent, which widens the
interval by the square root of their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from reports.intervals import NO_INTERVAL, Floats, Interval, familywise, over_seeds, t_interval
from reports.schema import CAPPED, GOALS, HEADLINE_KEYS, upper_bound

LEAKAGES = ("leakage", "leakage_calibrated")  # on these, whoever guesses without looking has 0
WITHOUT = "without"  # key of a headline row: the worst over the adversaries who do not hold the key
GROUP = ["suite", "task", "data", "defense", "goal", "view", "key"]
GUESSES = "every attack does worse than guessing, so guessing is what this adversary would do"
BESIDE = ("best", "best_low", "best_high")  # the best attack by itself, where guessing is the worst case
COLUMNS = [*GROUP, "leakage", "low", "high", "n_seeds", "n_attacks", "attack", "attack_key", *BESIDE, "status", "reason"]


def worst_case(df: pd.DataFrame, metric: str = "leakage", level: float = 0.95) -> pd.DataFrame:
    """One row for each suite, task, data, defense, goal, view and key: the cross-fitted leakage of the worst attack.

    ``key`` is ``"without"`` for the worst over "none" and "wrong" (an adversary without the key: the headline); partial, right and leaked
    stand apart under their own names. ``attack`` is the one chosen most often and ``attack_key`` its key; ``n_attacks`` counts the
    candidates (attack, key, budget and checkpoint). With one seed nothing can be crossed: choice and score share it, the interval is
    widened to the family-wise level, and ``reason`` says so. Where no attack gave a number, leakage is NaN with the attacks' reasons.
    Where guessing does better than every attack, leakage is guessing's 0, and ``best``, ``best_low`` and ``best_high`` are what the best
    attack alone did (below 0), else NaN: an interval around a guess would say nothing about the attacks.
    """
    held = df[df["goal"].isin(GOALS) & (df["role"] == "score") & ~upper_bound(df)].copy()
    held["held_key"] = held["key"]
    held["key"] = held["key"].where(~held["key"].isin(HEADLINE_KEYS), WITHOUT)
    rows = [dict(zip(GROUP, key)) | _worst(part, metric, level) for key, part in held.groupby(GROUP, sort=False)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _worst(part: pd.DataFrame, metric: str, level: float) -> dict[str, object]:
    extra = [name for name in ("budget", "checkpoint") if name in part.columns]
    scored = part[(part["metric"] == metric) & (part["status"] == "ok") & np.isfinite(part["value"])]
    if len(scored) == 0:
        said = dict.fromkeys(reason for reason in part["reason"] if reason)  # one cell may give several, and two cells the same
        reasons = list(dict.fromkeys(single for reason in said for single in reason.split("; "))) or [f"no attack gave {metric}"]
        status = "failed" if (part["status"] == "failed").any() else "skipped"
        empty = {"leakage": np.nan, "low": np.nan, "high": np.nan, "n_seeds": 0, "n_attacks": 0, "attack": "", "attack_key": ""}
        empty |= dict.fromkeys(BESIDE, np.nan)
        return empty | {"status": status, "reason": "; ".join(reasons)}
    candidate = scored[["attack", "held_key", *extra]].astype(str).agg("\x1f".join, axis=1)
    scored = scored.assign(candidate=candidate)
    values, lows, highs = (_grid(scored, name) for name in ("value", "low", "high"))
    names = [name.split("\x1f") for name in dict.fromkeys(candidate)]
    attacks = len(names)
    summary: dict[str, object] = {"n_attacks": attacks, "status": "ok"}
    reasons = _failures(part)
    best, alone = -1, (np.nan, np.nan, np.nan)
    if metric in LEAKAGES:  # whoever does worse than guessing can guess, which is 0 on every seed
        best = int(np.nanargmax(_means(values)))
        known = np.isfinite(values[best])
        alone = (float(values[best][known].mean()), *over_seeds(values[best][known], lows[best][known], highs[best][known], level))
        seen = np.isfinite(values).any(0)
        guess = [np.where(seen, 0.0, np.nan), np.where(seen, 0.0, np.nan), np.where(seen, np.fmax(highs[best], 0.0), np.nan)]
        values, lows, highs = (np.vstack([grid, row]) for grid, row in zip((values, lows, highs), guess))
        names.append(names[best])
    chosen, seeds = crossfit(values)
    if len(seeds):
        scores = values[chosen, seeds]
        most = int(np.bincount(chosen).argmax())
        low, high = _interval(scores, lows[chosen, seeds], highs[chosen, seeds], widening(values, chosen), level)
    else:
        seeds = np.unique(np.argwhere(np.isfinite(values))[:, 1])[:1]  # nothing to cross: choice and score on one seed
        most = int(np.nanargmax(values[:, seeds[0]]))
        scores = values[most, seeds]
        low, high = _widened(float(scores[0]), (float(lows[most, seeds[0]]), float(highs[most, seeds[0]])), attacks, level)
        reasons.insert(0, f"one seed: the worst of {attacks} was chosen and scored on it, which overstates" if attacks > 1 else "one seed")
    if best >= 0 and most == len(names) - 1 and not scores.any():
        reasons.append(GUESSES)
        high = max(0.0, alone[2])
    else:
        alone = (np.nan, np.nan, np.nan)
    if metric in LEAKAGES and part["goal"].iloc[0] in CAPPED and scores.mean() <= 1:
        high = min(high, 1.0) if np.isfinite(high) else high
    summary |= {"leakage": float(scores.mean()), "low": low, "high": high, "n_seeds": len(seeds), **dict(zip(BESIDE, alone))}
    return summary | {"attack": names[most][0], "attack_key": names[most][1], "reason": "; ".join(reasons)}


def crossfit(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose the highest row on some columns and read it on the others.

    ``values`` [attacks, seeds] with NaN where an attack gave nothing. Returns, for each seed on which some attack could be both chosen and
    scored, the row chosen without that seed and the seed itself.
    """
    count = values.shape[1]
    chosen, seeds = [], []
    for fold in _folds(count):
        rest = np.setdiff1d(np.arange(count), fold)
        means = _means(values[:, rest])
        for seed in fold:
            open_to = np.isfinite(values[:, seed]) & np.isfinite(means)
            if open_to.any():
                chosen.append(int(np.argmax(np.where(open_to, means, -np.inf))))
                seeds.append(int(seed))
    return np.array(chosen, dtype=np.intp), np.array(seeds, dtype=np.intp)


def widening(values: Floats, chosen: NDArray[np.intp]) -> float:
    """sqrt(number of folds) where the choice was close, 1 where one attack leads every other by more than its paired t interval.

    A rival with the very same numbers (an attack that reads no key, under two keys) is the same attack: to choose it is no choice.
    """
    count = values.shape[1]
    folds = float(np.sqrt(len(_folds(count))))
    if len(np.unique(chosen)) > 1:
        return folds
    rivals = values[[not np.array_equal(row, values[chosen[0]], equal_nan=True) for row in values]]
    leads = values[chosen[0]] - rivals  # [rivals, seeds]
    close = [not t_interval(lead)[0] > 0 for lead in leads if np.isfinite(lead).any()]
    return folds if any(close) else 1.0


def _interval(scores: Floats, lows: Floats, highs: Floats, stretch: float, level: float) -> Interval:
    """Student's t over seeds, stretched, and never narrower than the seeds' own intervals allow (see ``over_seeds``)."""
    low, high = t_interval(scores, level)
    centre, reach = float(scores.mean()), stretch * (high - low) / 2
    bottom, top = over_seeds(scores, lows, highs, level)
    return float(np.fmin(centre - reach, bottom)), float(np.fmax(centre + reach, top))


def _grid(scored: pd.DataFrame, name: str) -> Floats:
    """[candidates, seeds], both in order of appearance."""
    rows, columns = pd.factorize(scored["candidate"])[0], pd.factorize(scored["seed"], sort=True)[0]
    grid = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    grid[rows, columns] = scored[name].to_numpy(dtype=np.float64)
    return grid


def _folds(count: int) -> list[NDArray[np.intp]]:
    if count == 1:
        return []
    if count < 4:
        return [np.array([seed]) for seed in range(count)]
    return [np.arange(0, count, 2), np.arange(1, count, 2)]


def _means(values: Floats) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _widened(value: float, own: Interval, candidates: int, level: float) -> Interval:
    """A single seed's interval stretched from ``level`` to the level at which the best of several candidates is still covered."""
    if not np.isfinite(own).all():
        return NO_INTERVAL
    tails = np.array([familywise(1 - level, candidates), 1 - level]) / 2
    stretch = float(np.divide(*special.ndtri(tails)))
    return value - stretch * (value - own[0]), value + stretch * (own[1] - value)


def _failures(part: pd.DataFrame) -> list[str]:
    """Attacks that broke, since a worst case without them may be too mild."""
    broken: Sequence[str] = sorted(part.loc[part["status"] == "failed", "attack"].unique())
    return [f"failed: {', '.join(broken)}"] if broken else []
