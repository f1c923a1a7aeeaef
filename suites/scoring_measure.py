"""One number that the scorer says about a guess, with its interval and what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reports.intervals import clopper_pearson, mean_interval
from reports.schema import UPPER_BOUND

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Measure:
    """One row's worth of result: ``n`` counts what the interval is over; ``reason`` says why a value or an interval is missing."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    direction: Literal["higher", "lower"]
    role: Literal["score", "control", "utility", "cost", "claim", "flag"]
    reason: str = ""


def proportion(metric: str, successes: int, trials: int, *, role: Literal["score", "control", "utility"] = "score") -> Measure:
    """A share with Clopper and Pearson's interval."""
    if trials == 0:
        return absent(metric, "nothing to count", role=role)
    return Measure(metric, successes / trials, *clopper_pearson(successes, trials), trials, "higher", role)


def mean(
    metric: str,
    values: Sequence[float] | NDArray[np.float64],
    *,
    direction: Literal["higher", "lower"] = "higher",
    role: Literal["score", "control", "utility"] = "score",
    unit: str = "target",
) -> Measure:
    """A mean over independent units (targets, keys): Student's t below ten, BCa from ten up."""
    held = np.asarray(values, dtype=np.float64)
    if len(held) == 0:
        return absent(metric, f"no {unit}", role=role)
    return Measure(
        metric, float(held.mean()), *mean_interval(held), len(held), direction, role, f"no interval: one {unit}" if len(held) == 1 else ""
    )


def plain(
    metric: str,
    value: float,
    n: int,
    *,
    direction: Literal["higher", "lower"] = "higher",
    role: Literal["score", "control", "flag"] = "score",
) -> Measure:
    """A number without an interval of its own; the interval comes from the seeds."""
    return Measure(metric, value, NAN, NAN, n, direction, role, "" if math.isfinite(value) else "undefined")


def absent(metric: str, reason: str, *, role: Literal["score", "control", "utility"] = "score") -> Measure:
    """A metric that cannot be stated here, and why."""
    return Measure(metric, NAN, NAN, NAN, 0, "higher", role, reason)


def as_upper_bound(measures: Iterable[Measure], read: str) -> list[Measure]:
    """The same measures, marked as those of an attack that read the truth (``read`` says which part); they enter no headline."""
    return [replace(one, reason="; ".join(filter(None, (f"{UPPER_BOUND}: read {read}", one.reason)))) for one in measures]


def as_control(measures: Iterable[Measure]) -> list[Measure]:
    """The same measures as those of a control: printed beside the attacks, never the worst case."""
    return [replace(one, role="control") if one.role == "score" else one for one in measures]
