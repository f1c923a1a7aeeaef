"""Reconstructions against the truth, on a scale from the best control to the oracle.

Public units are residuals already: standardised per feature by the public mean and scale, so 0 is the public mean and predicting it gives
R² = 0, where raw profiles would give Pearson .95 for nothing. Guesses are matched to the records of their target by the Hungarian method on
squared L2 distance, which alone lifts a similarity, so the level that random records reach by the same matching is printed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reports.intervals import ratio_interval
from suites.contracts import Guess, Records
from suites.scoring_matching import Floats, answers, array, integers, matched, nearest_rows, order_for, rows_of
from suites.scoring_measure import NAN, Measure, absent, mean, plain, proportion

EXACT = 1e-3  # relative L2 error below which a record counts as reconstructed
TOP = 50  # features compared by rank
CHANCE_DRAWS = 10  # random guesses a target for the chance level of matching


def score_reconstruction(
    guess: Guess,
    truth: Sequence[Tensor],
    pool: Tensor,
    auxiliary: Records,
    controls: Mapping[str, Sequence[Tensor]],
    rng: torch.Generator,
    *,
    raw: tuple[Tensor, Tensor] | None = None,
    drawn: Mapping[str, Sequence[Sequence[Tensor]]] | None = None,
) -> list[Measure]:
    """Score one guess a target; intervals are over targets, those of shares over records.

    Parameters
    ----------
    guess : ``value`` a list with one [b, F] tensor a target, in the order of ``truth``, in public units
    truth : one [b, F] a target
    pool : [N, F], the records among which a reconstruction must point at the true one
    auxiliary : the adversary's public records, for the chance level and the control "nearest auxiliary record to its own guess"
    controls : guesses of the same shapes made without looking (class mean, random record, ...); the best is the prior
    drawn : several answers each of controls that draw; their R² and the share that points at the right record are means over these
    raw : (mean [F], scale [F]) of the public units, for the columns that others print (raw Pearson and top-50 overlap)

    Raises
    ------
    ValueError
        Where the guess has other targets or shapes than the truth.
    """
    true = [array(one) for one in truth]
    said, undefined = answers(guess.value, true)
    found = [matched(a, b) for a, b in zip(said, true)]
    fit = _r2(found, true)
    named = {name: answers(value, true, name)[0] for name, value in controls.items()}
    public = auxiliary.x
    named["nearest_auxiliary"] = [rows_of(public, nearest_rows(one, public)[:, 0]) for one in said]
    fits = {"public_mean": np.zeros(len(true))} | {
        name: _r2([matched(a, b) for a, b in zip(value, true)], true) for name, value in named.items()
    }
    draws = {name: [_placed(one, true, name) for one in several] for name, several in (drawn or {}).items()}
    fits |= {name: np.mean([_r2(one, true) for one in several], axis=0) for name, several in draws.items()}
    prior = max(fits, key=lambda name: float(fits[name].mean()))
    flat, real = np.concatenate(found), np.concatenate(true)
    error = np.linalg.norm(flat - real, axis=1) / np.maximum(np.linalg.norm(real, axis=1), 1e-30)
    exact = error < EXACT
    hit = _points_at(flat, real, pool)
    measures = [
        _leakage(fit, fits[prior], prior),
        mean("r2", fit),
        mean("cosine", _by_target(_cosine(flat, real), true)),
        mean("pearson", _by_target(_cosine(_centred(flat), _centred(real)), true)),
        mean("relative_error", _by_target(error, true), direction="lower"),
        mean(f"top{TOP}_overlap", _by_target(_overlap(flat, real), true)),
        proportion("exact", int(exact.sum()), len(exact)),
        proportion("reidentified", int(hit.sum()), len(hit)),
        plain("r2_worst_quarter", _worst_quarter(flat, real), len(flat)),
    ]
    if raw is not None:
        centre, scale = array(raw[0]), array(raw[1])
        flat_raw, real_raw = flat * scale + centre, real * scale + centre
        measures += [
            mean("pearson_raw", _by_target(_cosine(_centred(flat_raw), _centred(real_raw)), true)),
            mean(f"top{TOP}_overlap_raw", _by_target(_overlap(flat_raw, real_raw), true)),
        ]
    measures += _certified(guess, exact, true, said)
    measures += [mean(f"r2:{name}", value, role="control") for name, value in fits.items()]
    measures += [
        plain(
            f"reidentified:{name}",
            float(np.mean([_points_at(np.concatenate(one), real, pool).mean() for one in several])),
            len(real),
            role="control",
        )
        for name, several in draws.items()
    ]
    measures += _chance(true, public, len(pool), rng)
    if undefined:
        measures.append(plain("undefined_guesses", undefined, len(real), direction="lower", role="flag"))
    return measures


def match(guess: Tensor, truth: Tensor) -> Tensor:
    """``guess`` [b, F] in the order of the records of ``truth`` [b, F] to which it lies nearest in all (for drawing)."""
    return torch.from_numpy(matched(array(guess), array(truth)))


def explained(value: object, truth: Sequence[Tensor]) -> tuple[Floats, Floats]:
    """R² against the public mean: one a target [targets], over all its records, and one a record, in the guess's order [records]."""
    true = [array(one) for one in truth]
    said, _ = answers(value, true)
    each = []
    for guess, real in zip(said, true):
        order = order_for(guess, real)
        own = np.empty(len(real))
        own[order] = 1 - ((guess[order] - real) ** 2).sum(1) / np.maximum((real**2).sum(1), 1e-30)
        each.append(own)
    return _r2([matched(a, b) for a, b in zip(said, true)], true), np.concatenate(each)


def _leakage(fit: Floats, floor: Floats, name: str) -> Measure:
    """(R² - prior) / (1 - prior), unclipped, paired over targets."""
    room = float((1 - floor).mean())
    if room <= 1e-9:
        return absent("leakage", f"the control {name} is already exact: nothing is left to leak")
    value = float((fit - floor).mean()) / room
    low, high = ratio_interval(fit - floor, 1 - floor) if len(fit) > 1 else (NAN, NAN)
    return Measure("leakage", value, low, high, len(fit), "higher", "score", "no interval: one target" if len(fit) == 1 else "")


def _certified(guess: Guess, exact: NDArray[np.bool_], true: Sequence[Floats], said: Sequence[Floats]) -> list[Measure]:
    """What share the attack verified without the truth, and how much of that is exact."""
    if guess.certified is None:
        return []
    mark = guess.certified.detach().cpu().reshape(-1).bool().numpy()
    if len(mark) == len(true):
        mark = np.repeat(mark, [len(one) for one in true])
    elif len(mark) == len(exact):  # of records: in the guess's order, while ``exact`` is in the truth's
        parts = np.split(mark, np.cumsum([len(one) for one in true])[:-1])
        mark = np.concatenate([part[order_for(a, b)] for part, a, b in zip(parts, said, true)])
    else:
        raise ValueError(f"certified marks {len(mark)} things, but there are {len(true)} targets with {len(exact)} records; mark either")
    return [proportion("certified", int(mark.sum()), len(mark)), proportion("certified_exact", int((mark & exact).sum()), int(mark.sum()))]


def _chance(true: Sequence[Floats], public: Tensor, pool: int, rng: torch.Generator) -> list[Measure]:
    """The level that random auxiliary records reach through the same matching."""
    cosine, fit = [], []
    for one in true:
        draws = [rows_of(public, integers(len(public), len(one), rng)) for _ in range(CHANCE_DRAWS)]
        placed = [matched(draw, one) for draw in draws]
        cosine.append(float(np.mean([_cosine(draw, one).mean() for draw in placed])))
        fit.append(float(np.mean(_r2(placed, [one] * len(placed)))))
    share = float(np.mean([min(len(one) / max(pool, 1), 1.0) for one in true]))
    return [
        mean("chance_match", cosine, role="control"),
        mean("chance_r2", fit, role="control"),
        plain("chance_reidentified", share, pool, role="control"),
    ]


def _placed(value: object, true: Sequence[Floats], who: str) -> list[Floats]:
    return [matched(a, b) for a, b in zip(answers(value, true, who)[0], true)]


def _r2(said: Sequence[Floats], true: Sequence[Floats]) -> Floats:
    """One R² a target against the public mean (zero), all its records and features together."""
    return np.array([1 - ((a - b) ** 2).sum() / max(float((b**2).sum()), 1e-30) for a, b in zip(said, true)])


def _worst_quarter(flat: Floats, real: Floats) -> float:
    """Mean R² of the quarter of records that were recovered best: what the unluckiest people lose."""
    each = np.sort(1 - ((flat - real) ** 2).sum(1) / np.maximum((real**2).sum(1), 1e-30))
    return float(each[-max(len(each) // 4, 1) :].mean())


def _points_at(flat: Floats, real: Floats, pool: Tensor) -> NDArray[np.bool_]:
    """Whether the true record is strictly nearer to its guess than every different record of the pool."""
    near = nearest_rows(flat, pool, 8)
    own = np.linalg.norm(flat - real, axis=1)
    hit = np.ones(len(flat), dtype=bool)
    for place, candidates in enumerate(near):
        others = rows_of(pool, candidates)
        others = others[(others != real[place]).any(axis=1)]
        hit[place] = len(others) == 0 or float(own[place]) < float(np.linalg.norm(others - flat[place], axis=1).min())
    return hit


def _cosine(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30))


def _centred(rows: Floats) -> Floats:
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))


def _overlap(a: Floats, b: Floats) -> Floats:
    """Share of the ``TOP`` largest features of each record that are also the guess's."""
    count = min(TOP, a.shape[1])
    first, second = (np.argpartition(-rows, count - 1, axis=1)[:, :count] for rows in (a, b))
    return np.array([len(np.intersect1d(x, y)) / count for x, y in zip(first, second)])


def _by_target(each: Floats, true: Sequence[Floats]) -> Floats:
    """Record values averaged within their target, the independent unit."""
    return np.array([part.mean() for part in np.split(each, np.cumsum([len(one) for one in true])[:-1])])
