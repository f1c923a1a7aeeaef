"""The scorer: the only part that holds guess and truth together. Every scale runs from a control (0) to the oracle (1).

``leakage = (score - prior) / (oracle - prior)`` is unclipped here; pictures clip it. Guessed keys are scored in memory and stored nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from reports.intervals import clopper_pearson
from suites.contracts import Params
from suites.scoring_measure import NAN, Measure, absent, as_control, as_upper_bound, mean, plain
from suites.scoring_membership import membership_measures
from suites.scoring_reconstruction import match, score_reconstruction

__all__ = [
    "Measure",
    "as_control",
    "as_upper_bound",
    "match",
    "score_key",
    "score_membership",
    "score_reconstruction",
    "score_utility",
    "score_vectors",
]


def score_membership(scores: Tensor, member: Tensor, *, groups: Tensor | None = None) -> list[Measure]:
    """AUC, TPR at low FPR with its realised FPR and threshold, advantage, and leakage = 2 AUC - 1.

    Parameters
    ----------
    scores : [n], higher for members; NaN says nothing and is placed at the median (and flagged)
    member : [n] bool
    groups : [n] person or site of each record, where several records of one are asked: widens the interval (Obuchowski 1997)
    """
    held, inside = scores.detach().to("cpu", torch.float64).numpy(), member.detach().cpu().numpy()
    return membership_measures(held, inside, None if groups is None else groups.detach().cpu().reshape(-1).numpy())


def score_key(opened: Sequence[float], right: float, majority: float) -> list[Measure]:
    """Utility that guessed keys open, on a scale from the majority guess (0) to the right key (1); a wrong key that opens all scores 1.

    ``opened`` has the utility under each guessed key, on the records by which the right key was judged; the interval is over keys.
    """
    values = np.asarray(opened, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("the attack guessed no key; return at least one (None is the path without a key)")
    measures = [
        mean("opened", values, unit="key"),
        plain("opened_best", float(values.max()), len(values)),
        plain("opened:right_key", right, 1, role="control"),
        plain("opened:majority", majority, 1, role="control"),
    ]
    room = right - majority
    if room <= 0:
        reason = f"not resolvable: the right key opens {right:.3g}, no more than the majority guess's {majority:.3g}"
        return [absent("leakage", reason), *measures]
    return [mean("leakage", (values - majority) / room, unit="key"), *measures]


def score_vectors(guess: Mapping[str, Tensor], truth: Params) -> list[Measure]:
    """Guessed secret-derived tensors against the true ones: relative error and cosine of each and of all together.

    A guess counts for the tensor of its name if the shapes agree; the others are matched among equal shapes by the Hungarian method on
    squared error. A true tensor without a guess counts as guessed by zero. leakage = 1 - (relative error of all)², that is R² against zero.
    """
    if not truth:
        raise ValueError("the defense derives no tensor from its secret; Defense.derived names what a key attack aims for")
    said = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in _doubles(truth).items()}
    real, held = _doubles(truth), _doubles(guess)
    pairs = _pairs(held, real)
    for name, source in pairs.items():
        said[name] = torch.nan_to_num(held[source].reshape(real[name].shape), nan=0.0, posinf=0.0, neginf=0.0)
    error, cosine = _relative(list(said.values()), list(real.values()))
    count = sum(value.numel() for value in real.values())
    measures = [
        plain("leakage", 1 - error**2, count),
        plain("relative_error", error, count, direction="lower"),
        plain("cosine", cosine, count),
        plain("derived_guessed", len(pairs) / len(real), len(real)),
    ]
    for name in real:
        one_error, one_cosine = _relative([said[name]], [real[name]])
        measures += [
            plain(f"relative_error:{name}", one_error, real[name].numel(), direction="lower"),
            plain(f"cosine:{name}", one_cosine, real[name].numel()),
        ]
    return measures


def score_utility(metrics: dict[str, float], floor: dict[str, float], n: int, lower: frozenset[str] = frozenset()) -> list[Measure]:
    """A task's metrics on ``n`` test records, and beside each that of the best guess without features.

    ``lower`` names those of which less is better. Accuracy is a share of records and has its exact interval; the others take theirs from
    the seeds.
    """
    measures = []
    for name, value in metrics.items():
        if not math.isfinite(value):
            measures.append(absent(name, "undefined on these test records", role="utility"))
            continue
        low, high = clopper_pearson(round(value * n), n) if name == "accuracy" else (NAN, NAN)
        measures.append(Measure(name, value, low, high, n, "lower" if name in lower else "higher", "utility"))
    measures += [
        plain(f"{name}:floor", value, n, direction="lower" if name in lower else "higher", role="control")
        for name, value in floor.items()
        if name in metrics and math.isfinite(value)
    ]
    return measures


def _pairs(held: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> dict[str, str]:
    """True name -> guessed name."""
    pairs = {name: name for name in real if name in held and held[name].squeeze().shape == real[name].squeeze().shape}
    left = [name for name in held if name not in pairs.values()]
    for shape in {real[name].squeeze().shape for name in real if name not in pairs}:
        sources = [name for name in left if held[name].squeeze().shape == shape]
        targets = [name for name in real if name not in pairs and real[name].squeeze().shape == shape]
        cost = np.array([[float(((held[a].squeeze() - real[b].squeeze()) ** 2).sum().nan_to_num(1e300)) for b in targets] for a in sources])
        if cost.size:
            rows, columns = linear_sum_assignment(cost)
            pairs |= {targets[column]: sources[row] for row, column in zip(rows, columns)}
    return pairs


def _relative(said: Sequence[Tensor], real: Sequence[Tensor]) -> tuple[float, float]:
    a, b = torch.cat([one.reshape(-1) for one in said]), torch.cat([one.reshape(-1) for one in real])
    size = float(b.norm())
    cosine = float(a @ b) / max(float(a.norm()) * size, 1e-30)
    return float((a - b).norm()) / max(size, 1e-30), cosine


def _doubles(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", torch.float64) for name, value in held.items()}
