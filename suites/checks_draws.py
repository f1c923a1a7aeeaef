"""Watches what an attack draws: a start that resembles the truth was seeded like the data, and every score after it is an artefact.

Measured elsewhere: data and start both from seed 0, and a failing attack "reconstructs" four records to relative error 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor
from torch.overrides import TorchFunctionMode

SIMILAR = 0.2  # cosine of a start and a true record that is no accident, where features are many

_SOURCES: frozenset[Any] = frozenset(
    {
        torch.randn, torch.rand, torch.randn_like, torch.rand_like, torch.normal, Tensor.normal_, Tensor.uniform_, Tensor.exponential_,
        torch.from_numpy, torch.tensor, torch.as_tensor,
    }
)  # fmt: skip


class Draws(TorchFunctionMode):
    """Keeps every tensor of at least one record's width that is drawn, or brought in from numpy, while it is active."""

    def __init__(self, features: int, rows: int = 4096) -> None:
        super().__init__()
        self.features, self.rows = features, rows
        self.kept: list[Tensor] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOURCES and isinstance(result, Tensor) and result.is_floating_point() and result.ndim:
            wide = result.shape[-1] == self.features or (result.ndim == 1 and result.numel() % self.features == 0)
            if wide and result.numel() and sum(len(kept) for kept in self.kept) < self.rows:
                self.kept.append(result.detach().reshape(-1, self.features)[: self.rows].cpu().double())
        return result

    def similarity(self, truth: Sequence[Tensor]) -> tuple[float, float]:
        """The largest absolute cosine of anything drawn with a true record, and the level above which it is no accident."""
        if not self.kept:
            return 0.0, SIMILAR
        return similarity(torch.cat(self.kept), torch.cat([one.reshape(-1, self.features) for one in truth]))


def similarity(start: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest absolute cosine between rows of ``start`` [n, F] and ``truth`` [m, F], and the level that chance hardly reaches.

    The level is at least .2. Cosines of independent standard normal rows have standard deviation 1/sqrt(F), so with few features .2
    alone would cry wolf.
    """
    a, b = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (start, truth))
    found = float((a @ b.T).abs().nan_to_num(0.0).max())
    chance = float(norm.isf(0.5e-4 / (len(a) * len(b)))) / math.sqrt(a.shape[1])
    return found, min(max(SIMILAR, chance), 0.999)
