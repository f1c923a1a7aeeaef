"""A second opinion on ε: the privacy loss of one step on a grid, composed over all steps by a Fourier transform.

Koskela, Jälkö and Honkela 2020 (arXiv 1906.03049). It shares no line with the accountant that claims rest on (Opacus' PRV, in
``suites.accounting``), so that a slip in either shows. Losses are split between the two nearest grid points, which keeps the mean: an
estimate, within 1e-4 of dp-accounting's PLD in the tests, and not a bound. Nothing is claimed on it.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]

_GRID = 1 << 18
_POINTS = 50_000  # of one step's outcome
_REACH = 14.0  # deviations of the outcome beyond which mass is below 1e-43
_RARE = 1e-13  # one step's losses rarer than this may fold over the grid's edge


@lru_cache(maxsize=512)
def epsilon(rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """ε at ``delta`` of ``steps`` Poisson-sampled Gaussian steps, when one unit is added or removed; infinite without noise."""
    if noise_multiplier == 0:
        return math.inf
    if steps == 0 or rate == 0:
        return 0.0
    return max(composed(*one, steps, delta) for one in _sampled_gaussian(rate, noise_multiplier))


def composed(losses: Floats, masses: Floats, steps: int, delta: float) -> float:
    """ε at ``delta`` of ``steps`` independent draws of a loss that is ``losses`` [n] with probabilities ``masses`` [n]."""
    mean = float(losses @ masses)
    spread = math.sqrt(max(float((losses - mean) ** 2 @ masses), 1e-30))
    order = np.argsort(losses)
    above, below = np.cumsum(masses[order][::-1])[::-1], np.cumsum(masses[order])
    top = losses[order][np.searchsorted(-above, -_RARE / steps, side="right") - 1]
    bottom = losses[order][min(int(np.searchsorted(below, _RARE / steps)), len(losses) - 1)]
    half = 14 * spread * math.sqrt(steps) + 2 * max(abs(top - mean), abs(bottom - mean))
    step = 2 * half / _GRID
    place = (losses - mean) / step
    left = np.floor(place)
    share = place - left
    grid = np.zeros(_GRID)
    np.add.at(grid, left.astype(np.int64) % _GRID, masses * (1 - share))
    np.add.at(grid, (left.astype(np.int64) + 1) % _GRID, masses * share)
    total = np.maximum(np.fft.irfft(np.fft.rfft(grid) ** steps, _GRID), 0.0)
    index = np.arange(_GRID)
    at = np.where(index < _GRID // 2, index, index - _GRID) * step + steps * mean
    return _solve(at, total, delta)


def _solve(losses: Floats, masses: Floats, delta: float) -> float:
    """The least ε ≥ 0 with E[(1 - exp(ε - loss))+] ≤ delta."""

    def spent(budget: float) -> float:
        over = losses > budget
        return float(-np.expm1(budget - losses[over]) @ masses[over])

    low, high = 0.0, float(max(losses.max(), 0.0))
    if spent(0.0) <= delta:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _sampled_gaussian(rate: float, noise: float) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """(loss, probability) of one step with the unit against without it, and the other way round; outcomes in units of the norm."""
    edges = np.linspace(-_REACH * noise, 1 + _REACH * noise, _POINTS + 1)
    x = (edges[1:] + edges[:-1]) / 2
    without, taken = _masses(edges, 0.0, noise), _masses(edges, 1.0, noise)
    ratio = (2 * x - 1) / (2 * noise**2)  # log density of N(1, noise²) over N(0, noise²)
    loss = ratio if rate == 1 else np.logaddexp(math.log1p(-rate), math.log(rate) + ratio)
    return (loss, (1 - rate) * without + rate * taken), (-loss, without)


def skellam(deviation: float, shift: float, steps: int, delta: float) -> float:
    """ε at ``delta`` by Rényi orders of ``steps`` sums with Skellam noise, of which one unit moves a coordinate by ``shift``; grid steps.

    No theorem: the divergence is summed over the law of the noise, at every whole order to 1,024, and is that of one coordinate moved
    so far.
    """
    orders = np.arange(2.0, 1025.0)[:, None]
    stride = max(1.0, math.floor(deviation / 16))  # a sum over a smooth law loses nothing by it
    # The integrand is a bell of the noise's own width about ``order * shift``.
    k = np.round(orders * shift) + stride * np.arange(-np.ceil(14 * deviation / stride), np.ceil(14 * deviation / stride) + 1)
    logs = orders * _skellam_log(k - shift, deviation**2) + (1 - orders) * _skellam_log(k, deviation**2)
    divergences = (special.logsumexp(logs, axis=1) + math.log(stride)) / (orders[:, 0] - 1)

    def spent(budget: float) -> float:  # log δ at the best order (Bun and Steinke 2016, lemma 3.5, as sharpened by Canonne et al. 2020)
        a = orders[:, 0]
        return float(np.min((a - 1) * (steps * divergences - budget + np.log1p(-1 / a)) - np.log(a)))

    low, high = 0.0, 1.0
    if spent(0.0) <= math.log(delta):
        return 0.0
    while spent(high) > math.log(delta) and high < 1e9:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > math.log(delta) else (low, middle)
    return high


def _skellam_log(k: Floats, variance: float) -> Floats:
    """Log probability of ``k``: exp(-v) I_k(v) by Debye's uniform expansion (DLMF 10.41.3), to 1e-6 from a variance of 100 on."""
    root = np.hypot(k, variance)
    t = (k / root) ** 2
    exponent = k**2 / (root + variance) - k * np.arcsinh(k / variance)
    small = (3 - 5 * t) / (24 * root) + (81 - 462 * t + 385 * t**2) / (1152 * root**2)
    logs: Floats = exponent - 0.5 * np.log(2 * np.pi * root) + np.log1p(small)
    return logs


def _masses(edges: Floats, mean: float, noise: float) -> Floats:
    """Probabilities of the cells under N(mean, noise²), from the nearer tail so that small ones keep their digits."""
    z = (edges - mean) / noise
    upper = z[:-1] > 0
    masses: Floats = np.where(upper, special.ndtr(-z[:-1]) - special.ndtr(-z[1:]), special.ndtr(z[1:]) - special.ndtr(z[:-1]))
    return masses
