"""Which genes a perturbation changes beyond the cells' own spread: Welch's t of perturbed against control cells, gene by gene.

GEARS (Roohani, Huang & Leskovec 2024) takes the top 20 of scanpy's ``rank_genes_groups`` (t-test, by absolute value) against the control
cells of the same cell line; by the mean change alone, genes whose expression is large and noisy would come first.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suites.tasks.layout import blocks


def squared_error(cells: NDArray[np.float32]) -> NDArray[np.float64]:
    """The squared standard error of the mean of ``cells`` [n, T], [T]: sample variance over n; 0 for one cell, which tells no spread."""
    n = len(cells)
    if n < 2:
        return np.zeros(cells.shape[1])
    rows = list(blocks(n, cells.shape[1]))
    mean = sum((cells[some].sum(0, dtype=np.float64) for some in rows), np.zeros(cells.shape[1])) / n
    spread = sum((((cells[some] - mean) ** 2).sum(0) for some in rows), np.zeros(cells.shape[1]))
    found: NDArray[np.float64] = spread / (n - 1) / n
    return found


def squared_errors(cells: Tensor, index: Tensor, mean: Tensor) -> Tensor:
    """The same of several groups [G, T]: ``index`` [n] is the group of each of ``cells`` [n, T], ``mean`` [G, T] that of the groups."""
    spread = torch.zeros_like(mean)
    for some in blocks(len(cells), cells.shape[1]):
        spread.index_add_(0, index[some], (cells[some].double() - mean[index[some]]).square())
    n = torch.bincount(index, minlength=len(mean))[:, None]
    return spread / (n - 1).clamp_min(1) / n.clamp_min(1)


def top(change: Tensor, squared: Tensor, count: int) -> Tensor:
    """The ``count`` genes [G, k] of largest |t| = |mean change| / sqrt(summed squared errors), both [G, T] (Welch 1947, Biometrika 34, 28).

    A gene that changes in no cell has t = 0; one that changes in all alike and by no chance comes first.
    """
    t = torch.nan_to_num(change.abs() / squared.sqrt(), nan=0.0)
    return t.topk(min(count, change.shape[1]), dim=1).indices
