"""What an audit says about epsilon, and how far it may be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from suites.errors import RequestError

Floats = NDArray[np.float64]
Kind = Literal["bound", "estimate", "assumption"]


@dataclass(frozen=True, slots=True)
class Bound:
    """A statement "epsilon is at least this" at a given delta.

    ``kind``: a *bound* errs with probability at most ``1 - confidence`` for any mechanism; an *assumption* does so only for mechanisms of a
    named family; an *estimate* has no error probability at all. ``n`` counts the records or canaries behind it, ``threshold`` is the score
    from which a record was called a member (NaN where several were used), ``assumes`` says in one sentence what it stands on.
    """

    method: str
    epsilon: float
    delta: float
    kind: Kind
    confidence: float
    n: int
    threshold: float
    assumes: str

    def refutes(self, claimed: float) -> bool:
        """Whether this contradicts a claimed epsilon (at the same or a larger delta); an estimate refutes nothing."""
        return self.kind != "estimate" and self.epsilon > claimed


def two_sides(scores_in: ArrayLike, scores_out: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of included and excluded records as vectors; raises ``RequestError`` where nothing could be counted."""
    sides = []
    for name, given in (("scores_in", scores_in), ("scores_out", scores_out)):
        try:
            held = np.asarray(given, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{name} is not an array of numbers ({error}); give one score a record") from error
        if len(held) == 0:
            raise RequestError(f"{name} is empty, so no rate can be counted; give at least one score of either kind")
        if np.isnan(held).any():
            raise RequestError(f"{name} has {int(np.isnan(held).sum())} NaN, which no threshold can place; drop or fill these scores")
        sides.append(held)
    return sides[0], sides[1]


def check_level(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise RequestError(f"delta is {delta}, but it is a probability below one; give for example 1e-5")
    if not 0.5 <= confidence < 1:
        raise RequestError(f"confidence is {confidence}, but a one-sided level lies between 0.5 and 1; give for example 0.95")
