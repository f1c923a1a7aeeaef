"""Latent semantic indexing of open chromatin: a few numbers for a cell in place of a hundred thousand peaks, nearly all of them zero.

TF-IDF and a truncated singular value decomposition (Cusanovich et al. 2015, Science 348, 910; the weights are those of Signac: Stuart et
al. 2021, Nat. Methods 18, 1333, eq. in "Normalization"). Weights and axes are learnt on public auxiliary cells alone, so that no training
cell moves another's input. The first axis follows how many fragments a cell has rather than what it is, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suites.errors import RequestError

SCALE = 1e4  # fragments a cell is scaled to
_BLOCK = 2048  # cells weighted at a time


@dataclass(frozen=True, slots=True)
class Indexing:
    """``weight`` [P], how rare a peak is among auxiliary cells; ``axes`` [P, k]; ``unit``, their coordinates' root mean square."""

    weight: NDArray[np.float64]
    axes: NDArray[np.float64]
    unit: float

    @classmethod
    def fit(cls, public: Any, width: int) -> Self:
        """Learn from the auxiliary cells' counts (CSR [n, P])."""
        from sklearn.utils.extmath import randomized_svd

        if min(public.shape) < width + 2:
            raise RequestError(
                f"{public.shape[0]} auxiliary cells with {public.shape[1]} peaks give no {width} components; ask for fewer (lsi=…), or "
                "give split.auxiliary a larger share"
            )
        open_in = np.asarray((public > 0).sum(0), dtype=np.float64).ravel()
        weight = np.where(open_in > 0, public.shape[0] / np.maximum(open_in, 1.0), 0.0)  # a peak that is closed in all says nothing
        _, _, rows = randomized_svd(_weighted(public, weight), width + 1, random_state=0)
        axes = np.ascontiguousarray(rows[1:].T)
        found = np.asarray(_weighted(public, weight) @ axes)
        return cls(weight, axes, float(np.sqrt((found**2).mean())) or 1.0)

    def transform(self, counts: Any) -> Tensor:
        """Counts (CSR [n, P]) -> coordinates [n, k] float32, in multiples of ``unit``; a cell's depend on that cell alone."""
        parts = [_weighted(counts[i : i + _BLOCK], self.weight) @ self.axes for i in range(0, counts.shape[0], _BLOCK)]
        return torch.from_numpy((np.concatenate(parts) / self.unit).astype(np.float32))


def _weighted(counts: Any, weight: NDArray[np.float64]) -> Any:
    """log(1 + 10,000 x / total of the cell x weight of the peak); zeros stay zeros."""
    from scipy import sparse

    total = np.maximum(np.asarray(counts.sum(1), dtype=np.float64).ravel(), 1.0)
    return (sparse.diags(SCALE / total) @ counts @ sparse.diags(weight)).tocsr().log1p()
