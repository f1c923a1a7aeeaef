"""What Skellam noise over rounded updates costs in ε, by the theorem on which its claim rests.

Agarwal, Kairouz and Liu 2021 (arXiv 2110.04995): the Rényi bound for several coordinates, and how far conditional rounding lets an update
grow. A proven upper bound, at whole orders only. ``suites.loss_distribution.skellam`` finds the same divergence by summing the noise's
law, as a second opinion.
"""

from __future__ import annotations

import math
from functools import lru_cache

ORDERS = (*range(2, 65), *range(72, 257, 8), 320, 384, 512, 768, 1024)  # the theorem holds for whole orders
_BETA = math.exp(-0.5)  # chance with which a rounding is drawn again


def influence(norm: float, parameters: int) -> tuple[float, float]:
    """L2 and L1 bound on a rounded update, in grid steps, whose norm was ``norm`` steps (their conditional rounding, there section 4)."""
    slack = math.sqrt(2 * math.log(1 / _BETA)) * (norm + math.sqrt(parameters) / 2)
    squared = min(norm**2 + parameters / 4 + slack, (norm + math.sqrt(parameters)) ** 2)
    return math.sqrt(squared), min(math.sqrt(parameters * squared), squared)


def renyi(order: int, variance: float, l2: float, l1: float) -> float:
    """Rényi divergence of whole ``order`` > 1 between Skellam noise of this variance and the same shifted by at most ``l2`` and ``l1``."""
    rest = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return order * l2**2 / (2 * variance) + rest


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, steps: int, delta: float, norm: float, parameters: int) -> float:
    """ε at ``delta`` of ``steps`` sums with noise of ``noise_multiplier * norm`` grid steps, when one site is added or removed."""
    if noise_multiplier == 0:
        return math.inf
    l2, l1 = influence(norm, parameters)
    variance = (noise_multiplier * norm) ** 2

    def spent(order: int) -> float:  # Canonne, Kamath and Steinke 2020, proposition 12
        return steps * renyi(order, variance, l2, l1) + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    return max(0.0, min(spent(order) for order in ORDERS))
