"""What a calibrated R² is made of: for each guessed record its inner product with the truth and its energy, beside what its attacker knows.

An attack answers every record, also those where it failed, and at full size. Whoever knows how far to trust an answer shrinks it towards
the public mean, c times the guess with 0 <= c <= 1, for which 1 - R² changes by 2 c <truth, guess> - c² |guess|². How far c goes with the
attack's confidence and with the guess's length is learnt from the other seeds: ``reports.shrinkage``. Two curves a target and guesser:

- ``shrink:<target>:<who>``: x = <truth, guess>, y = |guess|², both as shares of the target's |truth|².
- ``shrink_by:<target>:<who>``: x = the attack's confidence (0 where it says none), y = the guess's length in public records' median.

A guess longer than nearly every public record is cut to that length first, which needs no truth: one wild answer would otherwise take the
place of a good one where guesses are matched to records. Of controls, records of like length are summed up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from reports.shrinkage import OWN, STATED, SUMS
from suites.contracts import Guess
from suites.scoring_confidence import confidences
from suites.scoring_matching import Floats, answers, array, nearest_rows, order_for, rows_of

LONG = 0.99  # quantile of public records' lengths to which a longer guess is cut
_GROUPS = 8  # of a control's records, by length

Point = dict[str, object]


def shrinkage_points(
    guess: Guess,
    truth: Sequence[Tensor],
    public: Tensor,
    controls: Mapping[str, Sequence[Tensor]],
    drawn: Mapping[str, Sequence[Sequence[Tensor]]],
) -> list[Point]:
    """The points of both curves, of the attack and of each control; arguments as those of ``score_reconstruction``."""
    true = [array(one) for one in truth]
    parts = torch.split(public, max(1, 2**21 // max(1, public.shape[-1])))  # in double precision all together would be most of a matrix
    lengths = np.concatenate([np.linalg.norm(array(part), axis=1) for part in parts]) if len(public) else np.array([np.inf])
    limit, unit = float(np.quantile(lengths, LONG)), float(np.median(lengths)) if len(public) else 1.0
    said, trust = answers(guess.value, true)[0], _trust(guess, truth)
    points: list[Point] = []
    for target, (one, real, own) in enumerate(zip(said, true, _split(trust, true))):
        held = _cut(one, limit)
        order = order_for(held, real)
        inner, energy = _sums(held[order], real)
        length = np.linalg.norm(one[order], axis=1) / unit
        points += list(_points(target, OWN, inner, energy, own[order], length))
        others = {name: [array(value[target])] for name, value in controls.items()}
        others |= {name: [array(value[target]) for value in several] for name, several in drawn.items()}
        if len(public):
            others["nearest_auxiliary"] = [rows_of(public, nearest_rows(held, public)[:, 0])]
        for name, several in others.items():
            points += _grouped(target, name, several, real, limit, unit)
    return points


def _grouped(target: int, name: str, several: Sequence[Floats], real: Floats, limit: float, unit: float) -> Iterator[Point]:
    """A control's sums, the mean over its draws, by groups of like length."""
    placed = [np.nan_to_num(_cut(one, limit)) for one in several]
    placed = [one[order_for(one, real)] for one in placed]
    inner, energy = (np.concatenate(each) / len(several) for each in zip(*(_sums(one, real) for one in placed)))
    length = np.linalg.norm(np.concatenate(placed), axis=1) / unit
    groups = [own for own in np.array_split(np.argsort(length, kind="stable"), _GROUPS) if len(own)]
    inner, energy = (np.array([each[own].sum() for own in groups]) for each in (inner, energy))
    yield from _points(target, name, inner, energy, np.zeros(len(groups)), np.array([length[own].mean() for own in groups]))


def _points(target: int, who: str, inner: Floats, energy: Floats, trust: Floats, length: Floats) -> Iterator[Point]:
    for curve, x, y in ((SUMS, inner, energy), (STATED, trust, length)):
        for a, b in zip(x.tolist(), y.tolist()):
            yield {"curve": f"{curve}:{target}:{who}", "x": a, "y": b}


def _sums(placed: Floats, real: Floats) -> tuple[Floats, Floats]:
    """<truth, guess> and |guess|² of each record, as shares of the target's |truth|²."""
    whole = max(float((real**2).sum()), 1e-30)
    return (placed * real).sum(1) / whole, (placed**2).sum(1) / whole


def _cut(said: Floats, limit: float) -> Floats:
    return np.asarray(said * np.minimum(1, limit / np.maximum(np.linalg.norm(said, axis=1, keepdims=True), 1e-30)))


def _trust(guess: Guess, truth: Sequence[Tensor]) -> Floats | None:
    """What the attack says of each target or record: its confidence, or else which of them it could certify."""
    mark = guess.certified if guess.confidence is None else guess.confidence
    return confidences(replace(guess, confidence=None if mark is None else mark.double()), truth)


def _split(trust: Floats | None, true: Sequence[Floats]) -> list[Floats]:
    """The confidence of each record, in the guess's order; those that say nothing are the least."""
    sizes = [len(one) for one in true]
    if trust is None:
        return [np.zeros(size) for size in sizes]
    held = np.nan_to_num(trust, nan=-1e30, posinf=1e30, neginf=-1e30)
    each = np.repeat(held, sizes) if len(held) == len(true) else held
    return list(np.split(each, np.cumsum(sizes)[:-1]))
