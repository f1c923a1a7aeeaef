"""Whether an attack knows which of its guesses are right: its confidence beside the truth, one pair a target or a record.

Confidences come in units of the attacks' own (minus a loss, a kurtosis, an expected cosine), so only their order is read here. What chance
of being right a confidence stands for is learnt over seeds, each from the others: ``reports.calibration``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reports.calibration import AREA, unresolved
from reports.roc import auc
from suites.contracts import Guess
from suites.scoring_measure import Measure, absent
from suites.scoring_reconstruction import explained

RIGHT = 0.9  # R² against the public mean from which a guess counts as right: exact ones are, and so is whoever leaves a tenth open

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """``confidence`` [n], ``right`` [n] bool and ``target`` [n]: whose records are no independent repeats."""

    confidence: Floats
    right: NDArray[np.bool_]
    target: NDArray[np.intp]


def confidence_pairs(guess: Guess, truth: Sequence[Tensor]) -> Pairs | None:
    """The pairs of a reconstruction with one confidence a target, a record, or a record and feature (averaged over features); else None.

    A confidence of NaN says nothing and makes no pair; an infinite one is the largest there is.

    Parameters
    ----------
    guess : ``value`` as of ``score_reconstruction``; ``confidence`` [targets], [records of all targets] or [records of all targets, F]
    truth : one [b, F] a target

    Raises
    ------
    ValueError
        Where the confidences are as many as neither.
    """
    said = confidences(guess, truth)
    if said is None:
        return None
    sizes = [len(one) for one in truth]
    whole, each = explained(guess.value, truth)
    target = np.arange(len(truth)) if len(said) == len(truth) else np.repeat(np.arange(len(truth)), sizes)
    fit = whole if len(said) == len(truth) else each
    known = ~np.isnan(said)
    return Pairs(np.nan_to_num(said, posinf=1e30, neginf=-1e30)[known], (fit >= RIGHT)[known], target[known])


def confidences(guess: Guess, truth: Sequence[Tensor]) -> Floats | None:
    """One number a target or a record as the attack says it, or None; see ``confidence_pairs``."""
    if guess.confidence is None or guess.confidence.numel() == 0:
        return None
    held = guess.confidence.detach().to("cpu").double()
    said = np.asarray((held if held.ndim < 2 else held.reshape(len(held), -1).mean(dim=1)).reshape(-1).numpy())
    records = sum(len(one) for one in truth)
    if len(said) not in (len(truth), records):
        raise ValueError(f"confidence says {len(said)} things, but there are {len(truth)} targets with {records} records; say either")
    return said


def confidence_measures(pairs: Pairs) -> list[Measure]:
    """How well the confidence ranks right guesses above wrong ones (area under the ROC curve; records of one target widen its interval)."""
    count, reason = len(pairs.right), unresolved(pairs.right)
    if reason:
        return [absent(AREA, reason)]
    area = auc(pairs.confidence, pairs.right, pairs.target)
    return [Measure(AREA, area.value, area.low, area.high, count, "higher", "score")]
