"""Public units: what is learnt from the auxiliary records alone and applied to everybody's.

Standardising by training records would make every input depend on all others (swapping one of 70 moved the rest by 2.9 %), outside
any DP accounting. So the mean and scale come from public auxiliary records; test data, re-identification and the adversary use
the same ones. Missing values become the public mean; a site may put its own in their place where it trains (``suites.gaps``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suites.errors import RequestError

_BLOCK = 1 << 20  # values looked at a time: several doubles of each are held at once
_FLOOR = 0.1  # of the median scale


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """x -> (x - mean) / scale per feature, missing values -> 0, which is the auxiliary mean; build it with ``fit``.

    ``scale`` is the standard deviation among auxiliary records, raised to a tenth of the median feature's where it is smaller (a
    nearly constant feature would else outweigh all others). A feature that is constant there tells nothing about its scale and gets
    the median one; one that is missing in every auxiliary record gets the median mean as well.
    """

    mean: Tensor  # [F] float32
    scale: Tensor  # [F] float32, positive

    @classmethod
    def fit(cls, x_aux: NDArray[np.float32] | Tensor) -> Preprocessor:
        """Learn from auxiliary records [n, F], NaN where missing; n of two or more."""
        x = x_aux.numpy() if isinstance(x_aux, Tensor) else x_aux
        if len(x) < 2:
            raise RequestError(f"{len(x)} auxiliary records give no scale to standardise by; give split.auxiliary a larger share")
        mean, scale = np.empty(x.shape[1]), np.empty(x.shape[1])
        for start in range(0, x.shape[1], step := max(1, _BLOCK // len(x))):
            block = x[:, start : start + step].astype(np.float64)
            known = ~np.isnan(block)
            count = known.sum(0)
            safe = np.maximum(count, 1)
            centre = np.where(known, block, 0.0).sum(0) / safe
            spread = np.sqrt(np.where(known, (block - centre) ** 2, 0.0).sum(0) / safe)
            mean[start : start + step] = np.where(count > 0, centre, np.nan)
            scale[start : start + step] = spread
        mean = np.where(np.isnan(mean), np.nanmedian(mean) if not np.isnan(mean).all() else 0.0, mean)
        constant = scale <= 1e-6 * np.maximum(np.abs(mean), 1.0)
        typical = float(np.median(scale[~constant])) if not constant.all() else 1.0
        scale = np.where(constant, typical, np.maximum(scale, _FLOOR * typical))
        return cls(torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32)))

    def transform(self, x: NDArray[np.float32] | Tensor, *, in_place: bool = False) -> Tensor:
        """Records [n, F] in raw values -> public units, float32; a new tensor, or ``x``'s own memory where nobody reads it any more."""
        held = x if isinstance(x, Tensor) else torch.as_tensor(x)
        out = held.to(torch.float32, copy=not in_place)
        step = max(1, _BLOCK // max(1, out.shape[1]))
        for start in range(0, len(out), step):
            out[start : start + step].sub_(self.mean).div_(self.scale).nan_to_num_(nan=0.0)
        return out
