"""A guess beside its truth: as arrays, row by row, and which guess stands for which record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Floats = NDArray[np.float64]


def answers(value: object, true: Sequence[Floats], who: str = "the guess") -> tuple[list[Floats], int]:
    """The guess as arrays, records with NaN or Inf replaced by the public mean (they say nothing), and how many those were."""
    if not isinstance(value, (list, tuple)) or len(value) != len(true):
        held = f"{len(value)}" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise ValueError(f"{who} must be a list with one tensor for each of {len(true)} targets, not {held}; answer seen.targets in order")
    said, undefined = [], 0
    for place, (one, real) in enumerate(zip(value, true)):
        held_one = array(one)
        if held_one.shape != real.shape:
            raise ValueError(f"{who} for target {place} has shape {held_one.shape}, its records have {real.shape}; give one row a record")
        broken = np.asarray(~np.isfinite(held_one).all(axis=1))
        undefined += int(broken.sum())
        said.append(np.where(broken[:, None], 0.0, held_one))
    return said, undefined


def matched(said: Floats, true: Floats) -> Floats:
    return said if len(true) == 1 else said[order_for(said, true)]


def order_for(said: Floats, true: Floats) -> NDArray[np.intp]:
    """Which guess stands for each true record."""
    if len(true) == 1:
        return np.zeros(1, dtype=np.intp)
    distance = ((said[:, None] - true[None]) ** 2).sum(-1) if said.size * len(true) < 2**24 else squared(said, true)
    rows, columns = linear_sum_assignment(distance.T)
    return np.asarray(columns[np.argsort(rows)])


def nearest_rows(queries: Floats, among: Tensor, count: int = 1) -> NDArray[np.intp]:
    """Positions of the ``count`` nearest rows, nearest first; a block of rows at a time, since a pool can hold 10^8 numbers."""
    block = max(2**21 // max(among.shape[1], 1), 1)
    distance = np.concatenate([squared(queries, array(among[start : start + block])) for start in range(0, len(among), block)], axis=1)
    count = min(count, len(among))
    near = np.argpartition(distance, count - 1, axis=1)[:, :count]
    order = np.argsort(np.take_along_axis(distance, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)


def squared(a: Floats, b: Floats) -> Floats:
    """Squared distances without the [a, b, F] array."""
    return np.asarray((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * (a @ b.T))


def integers(below: int, count: int, rng: torch.Generator) -> NDArray[np.intp]:
    return np.asarray(torch.randint(below, (count,), generator=rng).numpy())


def rows_of(held: Tensor, positions: NDArray[np.intp]) -> Floats:
    return array(held[torch.from_numpy(np.asarray(positions)).to(held.device)])


def array(held: Tensor) -> Floats:
    return held.detach().to("cpu", torch.float64).numpy()
