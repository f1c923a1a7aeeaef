"""The Gaussian mechanism's exact privacy: epsilon, delta and mu of Gaussian differential privacy (mu = sensitivity / noise).

Source: Balle and Wang 2018, "Improving the Gaussian mechanism for differential privacy" (theorem 8); Dong, Roth and Su 2022 (corollary 1).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr

MOST = 1e4  # of epsilon, beyond which nothing is told apart


def delta_of(epsilon: float, mu: float) -> float:
    """The smallest delta at which a mu-GDP mechanism is (epsilon, delta)-DP."""
    if mu <= 0:
        return 0.0
    # exp(eps) Phi(..) by logarithms: either factor alone leaves the range of floats.
    second = math.exp(min(epsilon + float(log_ndtr(-epsilon / mu - mu / 2)), 0.0))
    return max(0.0, float(ndtr(-epsilon / mu + mu / 2)) - second)


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 at which a mu-GDP mechanism is (epsilon, delta)-DP; infinite for delta = 0."""
    if mu <= 0 or delta_of(0.0, mu) <= delta:
        return 0.0
    if delta <= 0:
        return math.inf
    high = 1.0
    while delta_of(high, mu) > delta:
        high *= 2
        if high > MOST:
            return MOST
    return float(brentq(lambda epsilon: delta_of(epsilon, mu) - delta, 0.0, high, xtol=1e-12, rtol=4 * np.finfo(float).eps))
