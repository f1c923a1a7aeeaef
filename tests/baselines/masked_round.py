"""One secure-aggregation round's inputs, and the slow, obvious quantiser it is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from suites.contracts import Exchange, Params
from suites.randomness import keys, stream


def updates(sites: int, width: int = 200, spread: float = 0.05) -> list[Params]:
    """Updates as training gives them: a matrix, a bias and a counter."""
    rng = stream("updates", sites, width)
    return [
        {
            "layer.weight": spread * torch.randn(width, 3, generator=rng),
            "layer.bias": spread * torch.randn(3, generator=rng),
            "batches": torch.tensor(7 + site % 5),
        }
        for site in range(sites)
    ]


def weights(sites: int) -> list[float]:
    return [float(70 + 13 * site) for site in range(sites)]


def exchange(sites: int, *, index: int = 0, dropouts: Mapping[int, str] | None = None, draw: int = 0) -> Exchange:
    broadcast = {"layer.weight": torch.ones(4, 3), "layer.bias": torch.zeros(3)}
    sources = tuple(keys("masked round", draw, site) for site in range(sites))
    return Exchange(index, b"a federation", broadcast, sources, dropouts or {})


def plain_words(update: Params, weight: float, sites: int, heaviest: float, bound: float = 64.0) -> NDArray[np.int64]:
    """The integers that a site means to send: every coordinate, then the weight."""
    step = 2.0 ** math.floor(math.log2((2**31 - 1 - sites / 2) / (sites * bound)))
    one = 2.0 ** math.floor(math.log2((2**31 - 1 - sites / 2) / sites))
    flat = torch.cat([tensor.reshape(-1).double() for tensor in update.values()]).numpy()
    return np.append(np.rint(flat * (weight / heaviest * step)), np.rint(weight * (one / heaviest))).astype(np.int64)


def plain_sum(given: Sequence[Params], shares: Sequence[float], among: Sequence[int]) -> NDArray[np.int64]:
    heaviest = 2.0 ** math.ceil(math.log2(max(shares)))
    return sum((plain_words(given[s], shares[s], len(given), heaviest) for s in among), start=np.zeros(1, dtype=np.int64))
