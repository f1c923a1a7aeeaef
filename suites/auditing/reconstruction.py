"""ReRo: how often any reconstruction may succeed under a privacy claim, beside how often it would succeed without looking.

Source: Balle, Cherubin and Hayes 2022, "Reconstructing training data with informed adversaries"; Hayes, Mahloujifar and Balle
2023, "Bounding training data reconstruction in DP-SGD": success <= the blow-up 1 - f(kappa) of the mechanism's trade-off
function f, kappa being the prior's chance to succeed without any message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import ndtr, ndtri

from suites.errors import RequestError


def rero_dp(kappa: float, epsilon: float, delta: float = 0.0) -> float:
    """The largest chance of success under (epsilon, delta)-DP; one claim of a curve (``rero_curve`` takes several)."""
    _check(kappa)
    if epsilon < 0 or not 0 <= delta <= 1:
        raise RequestError(f"epsilon {epsilon} and delta {delta} are no privacy claim; give epsilon >= 0 and delta between 0 and 1")
    grown = kappa * math.exp(epsilon) if epsilon < 700 else math.inf
    return max(kappa, min(1.0, (grown if kappa > 0 else 0.0) + delta, 1 - math.exp(-epsilon) * (1 - delta - kappa)))


def rero_curve(kappa: float, claims: Sequence[tuple[float, float]]) -> float:
    """The same under every (epsilon, delta) that an accountant gives at once; with the whole curve this is 1 - f(kappa) exactly."""
    if not claims:
        raise RequestError("a ReRo bound needs at least one (epsilon, delta); give the accountant's curve")
    return min(rero_dp(kappa, epsilon, delta) for epsilon, delta in claims)


def rero_gaussian(kappa: float, mu: float) -> float:
    """The largest chance of success against a Gaussian mechanism with mu = sensitivity / noise: Phi(Phi^-1(kappa) + mu)."""
    _check(kappa)
    return kappa if mu <= 0 else float(ndtr(ndtri(kappa) + mu))


def _check(kappa: float) -> None:
    if not 0 <= kappa <= 1:
        raise RequestError(f"kappa is {kappa}, but it is the chance to succeed without looking: give a number between 0 and 1")
