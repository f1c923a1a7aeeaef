"""Fixed point modulo 2^32: how a float update becomes words that can be masked, summed and read back exactly.

``word = round(u * weight * scale)`` in float64, half to even, as two's complement in uint32. The scale is the largest power of two with
which the sum over all sites cannot leave [-2^31, 2^31) while every weighted coordinate stays within ``bound``; each site checks its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from suites.contracts import Params, RequestError

Words = NDArray[np.uint32]

_HALF = 2**31
_BLOCK = 65_536  # doubles: 512 KiB of scratch stay in the second-level cache
# Adding 1.5 * 2^52 to a double below 2^51 rounds it to an integer, which then stands in the low bits as two's complement.
_ROUNDER = 1.5 * 2.0**52
_NUMPY = (torch.float64, torch.float32, torch.float16)


def scale(sites: int, bound: float) -> float:
    """The largest power of two at which ``sites`` values within ``bound``, each off by half a step, sum without wrapping."""
    return 2.0 ** math.floor(math.log2((_HALF - 1 - sites / 2) / (sites * bound)))


def quantise(values: NDArray[np.floating] | NDArray[np.integer], factor: float, limit: float, out: Words) -> bool:
    """Write ``round(values * factor)`` modulo 2^32 to ``out``; False where a product exceeds ``limit`` or is not a number."""
    scratch = np.empty(min(_BLOCK, len(values)))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        product = scratch[: len(block)]
        np.multiply(block, factor, out=product, dtype=np.float64, casting="unsafe")
        if not (product.max() <= limit and product.min() >= -limit):  # written so that NaN fails too
            return False
        product += _ROUNDER
        out[start : start + len(block)] = product.view(np.uint64)  # keeps the low 32 bits
    return True


def _array(tensor: torch.Tensor) -> NDArray[np.floating] | NDArray[np.integer]:
    """A flat array of the same numbers; types that numpy lacks (bfloat16) fit into float32 exactly."""
    if tensor.is_complex():
        raise RequestError("secure aggregation cannot carry complex values; send the real and the imaginary part as two tensors")
    flat = tensor.detach().cpu().reshape(-1)
    return (flat.float() if flat.is_floating_point() and flat.dtype not in _NUMPY else flat).numpy()


def signed(words: Words) -> NDArray[np.float64]:
    """The two's complement reading of words, as float64."""
    return words.view(np.int32).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Layout:
    """How named tensors lie in one flat vector of words; the weight is the last word. Public."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        return cls(tuple(params), tuple(t.shape for t in params.values()), tuple(t.dtype for t in params.values()))

    @property
    def length(self) -> int:
        return sum(shape.numel() for shape in self.shapes) + 1


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The public terms of the encoding.

    Parameters
    ----------
    sites : int
        How many sites may add up.
    bound : float
        The largest absolute coordinate of an update at the heaviest weight.
    heaviest : float
        A weight that no site exceeds (a power of two); weights are divided by it.
    """

    sites: int
    bound: float
    heaviest: float

    @classmethod
    def agreed(cls, weights: Sequence[float], bound: float) -> FixedPoint:
        if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
            raise RequestError(
                "secure aggregation needs weights that are finite, not negative and not all zero; a weight is a site's record count"
            )
        return cls(len(weights), bound, 2.0 ** math.ceil(math.log2(max(weights))))

    def encode(self, update: Params, weight: float, layout: Layout, site: int) -> Words:
        """``w u`` and ``w`` as [length] words; raises RequestError, naming no value, where a coordinate does not fit."""
        if Layout.of(update) != layout:
            raise RequestError(f"site {site}'s update has other names, shapes or types than site 0's and cannot be added; train one model")
        words: Words = np.empty(layout.length, dtype=np.uint32)
        step, start = scale(self.sites, self.bound), 0
        for name, tensor in update.items():
            flat = _array(tensor)
            if not flat.size:
                continue
            if not quantise(flat, weight / self.heaviest * step, self.bound * step, words[start : start + flat.size]):
                raise RequestError(
                    f"secure aggregation cannot carry site {site}'s update: {name} holds a value not finite or beyond {self.bound:g}, so "
                    f"the sum of {self.sites} sites could wrap; mend the training or widen the range (bound={4 * self.bound:g})"
                )
            start += flat.size
        quantise(np.array([weight]), scale(self.sites, 1.0) / self.heaviest, scale(self.sites, 1.0), words[-1:])
        return words

    def rounded(self, update: Params, weight: float, site: int) -> Params:
        """One site's update as it stands in the sum: what is left of it after rounding."""
        layout = Layout.of(update)
        return self.mean(self.encode(update, weight, layout, site), layout, next(iter(update.values())).device)

    def mean(self, total: Words, layout: Layout, device: torch.device) -> Params:
        """sum(w u) / sum(w) out of the summed words, in the updates' own types."""
        weight = float(signed(total[-1:])[0]) / scale(self.sites, 1.0)
        if not weight > 0:
            raise RequestError("the surviving sites' weights sum to zero, so their mean does not exist; give at least one of them records")
        values = torch.from_numpy(signed(total[:-1]) / (scale(self.sites, self.bound) * weight))
        mean, start = {}, 0
        for name, shape, dtype in zip(layout.names, layout.shapes, layout.dtypes, strict=True):
            part = values[start : start + shape.numel()].reshape(shape)
            mean[name] = (part if dtype.is_floating_point else part.round()).to(device, dtype)
            start += shape.numel()
        return mean
