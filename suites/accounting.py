"""What a differentially private step costs in ε: Opacus' PRV accountant, asked so that an answer takes milliseconds.

Poisson sampling, Gaussian noise, add-or-remove-one-record relation (Gopi et al. 2021, arXiv 2106.02848). No accountant of our own:
``_quick`` only tells Opacus' accountant how wide its grid must be, from integer Rényi orders instead of fractional ones, which took nine
tenths of its time. Importing Opacus costs more than a second, so it is imported when the first question is asked.
"""

from __future__ import annotations

import math
import warnings
from functools import cache, lru_cache
from typing import Any

from suites.contracts import RequestError

_RELATIVE_ERROR = 2e-3  # of the reported ε, which is an upper bound
_CLOSE_ENOUGH = 0.995  # a calibrated ε lies in [0.995, 1] of its target
_PRV_LIMIT = 300.0  # above it exp(ε) leaves the doubles; Rényi's bound is reported, and protects nothing either way


def check(defense: str, epsilon: float | None, noise_multiplier: float | None, delta: float, clip: float) -> None:
    """Refuse parameters under which no claim makes sense."""
    if epsilon is not None and noise_multiplier is not None:
        raise RequestError(f"{defense} got both epsilon and noise_multiplier, but each fixes the other; give one of them")
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise RequestError(f"{defense} got epsilon={epsilon:g}, but a budget is above 0 and finite; give 8, say, or noise_multiplier=0")
    if noise_multiplier is not None and not 0 <= noise_multiplier < math.inf:
        raise RequestError(f"{defense} got noise_multiplier={noise_multiplier:g}, but a deviation is finite and at least 0; give 1, say")
    if not 0 < delta < 1:
        raise RequestError(f"{defense} got delta={delta:g}, but δ is a probability above 0 and below 1; give 1e-5, say")
    if not 0 < clip < math.inf:
        raise RequestError(f"{defense} got clip={clip:g}, but only a finite bound above 0 limits what one unit changes; give 1.0, say")


def sampling(records: int, batch: int) -> tuple[float, int]:
    """Poisson rate q and steps an epoch for a site of ``records``: q = min(1, batch / records), ceil(records / batch) steps.

    A site with at most ``batch`` records uses all of them in every step (q = 1): no amplification is claimed. It would gain nothing
    from a smaller rate at the same number of epochs, since then more and noisier steps are taken.
    """
    return min(1.0, batch / records), math.ceil(records / batch)


@lru_cache(maxsize=4096)
def epsilon(rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """ε at ``delta`` after ``steps`` Poisson-sampled Gaussian steps; infinite without noise, 0 without steps."""
    if noise_multiplier == 0:
        return math.inf
    if steps == 0 or rate == 0:
        return 0.0
    rough = _renyi(rate, noise_multiplier, steps, delta)
    if rough > _PRV_LIMIT:
        return rough
    import numpy as np

    accountant = _quick()()
    accountant.history = [(noise_multiplier, rate, steps)]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # rate 1: log(1 - rate) is -inf, and right
        return min(float(accountant.get_epsilon(delta, eps_error=_RELATIVE_ERROR * rough)), rough)


@lru_cache(maxsize=256)
def noise_multiplier(sites: tuple[tuple[float, int], ...], target: float, delta: float) -> float:
    """The least noise (in units of the clipping norm, to 0.5 % of ε) at which every site of (rate, steps) stays within ``target``."""
    if not 0.05 <= target <= 1000:
        raise RequestError(
            f"ε = {target:g} was asked for, but below 0.05 the accountant's grid outgrows memory and above 1000 nothing is protected; "
            "ask for one between, or give noise_multiplier"
        )
    noise = 0.0
    for rate, steps in sorted(set(sites), key=lambda site: site[0] * math.sqrt(site[1]), reverse=True):
        if steps > 0 and (noise == 0 or epsilon(rate, noise, steps, delta) > target):
            noise = _calibrate(rate, steps, target, delta)
    return noise


def _calibrate(rate: float, steps: int, target: float, delta: float) -> float:
    """Secant on log ε against log noise, from the central-limit guess; both are close to a line."""
    at = math.log(_guess(rate, steps, target, delta))
    slope = -1.2
    aim = math.log(target * (1 + _CLOSE_ENOUGH) / 2)
    known: tuple[float, float] | None = None
    for _ in range(40):
        reached = math.log(epsilon(rate, math.exp(at), steps, delta))
        if math.log(target * _CLOSE_ENOUGH) <= reached <= math.log(target):
            return math.exp(at)
        if known is not None and abs(at - known[0]) > 1e-6:
            slope = min(-0.3, max(-4.0, (reached - known[1]) / (at - known[0])))
        known = (at, reached)
        at += max(-1.0, min(1.0, (aim - reached) / slope))
    raise RequestError(
        f"no noise was found that gives ε = {target:g} at δ = {delta:g} for sampling rate {rate:g} and {steps} steps; give noise_multiplier"
    )


def _guess(rate: float, steps: int, target: float, delta: float) -> float:
    """Noise at which the steps would be μ-Gaussian-DP (Dong et al. 2019, arXiv 1905.02383) with this ε, if infinitely many."""
    _quick()
    from opacus.accountants.analysis.gdp import delta_eps_mu

    low, high = 1e-4, 40.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if delta_eps_mu(eps=min(target, 600.0), mu=middle) > delta else (middle, high)
    if rate == 1:
        return math.sqrt(steps) / low
    return 1 / math.sqrt(math.log1p((low / rate) ** 2 / steps))


def _renyi(rate: float, noise: float, steps: int, delta: float) -> float:
    """An upper bound on ε by Rényi orders; those below 2 are slow, and matter only where ε is large."""
    _quick()
    from opacus.accountants.analysis import rdp

    def bound(orders: list[float]) -> float:
        spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
        return float(rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])

    with warnings.catch_warnings():  # "optimal order is the largest": the bound is loose there, not wrong
        warnings.simplefilter("ignore")
        loose = bound([*range(2, 13), 14, 16, 20, 24, 32, 48, 64, 128, 256, 512])
        return loose if loose <= 40 else min(loose, bound([1.1, 1.25, 1.5, 1.75]))


@cache
def _quick() -> Any:
    """Opacus' PRV accountant with a quicker bound on its grid; where Opacus renames the hook, it is only slower again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant
        from opacus.accountants.analysis.prv import Domain

    class Quick(PRVAccountant):  # type: ignore[misc]
        def _get_domain(self, prvs: Any, num_self_compositions: Any, eps_error: float, delta_error: float) -> Any:
            ((noise, rate, steps),) = self.history
            # Gopi et al., remark 5.6: mass beyond ±reach is below delta_error
            reach = 3 + max(_renyi(rate, noise, steps, delta_error / 4), _renyi(rate, noise, 1, delta_error / (8 * steps)), eps_error)
            return Domain.create_aligned(-reach, reach, eps_error / math.sqrt(steps * math.log(12 / delta_error) / 2))

    return Quick
