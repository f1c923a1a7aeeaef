"""Two accountants of the same mechanism that share no code, and what of a claim's ε they do not give.

Gaussian noise: Opacus' PRV, and the privacy loss on a grid. Skellam noise on rounded updates: the theorem's Rényi bound, and the same
divergence summed over the law of the noise. Where dp-accounting is installed it is the third. All of one mechanism must agree within one
percent, and none may give more than the claim by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from suites import accounting, integer_noise, loss_distribution
from suites.contracts import Claim, Defense
from suites.randomness import stream

AGREE = 0.01  # relative difference of accountants that counts as agreement; PRV's own bound is 0.2 % above
_FAR = 300.0  # above it Opacus' PRV leaves the doubles and a Rényi bound stands in its place
_BITS = 21  # below the noise: numbers without finer ones are rounded, since of single precision's own one in four at most has none

Accountant = Callable[[float, float, int, float], float]  # rate, noise multiplier, steps, δ


def epsilons(claim: Claim, ran: Sequence[tuple[float, int]], drawn: float) -> dict[str, float]:
    """ε by each accountant at the worst (rate, steps) that ran, for this noise."""
    noise = drawn / (2.0 if claim.relation == "replace_one" else 1.0)
    accountants = _gaussian() if not claim.grid else _skellam(claim)
    delta = claim.delta or math.nan
    return {name: max((one(rate, noise, steps, delta) for rate, steps in sorted(set(ran))), default=math.inf) for name, one in accountants}


def of_accounts(claim: Claim, found: Mapping[str, float]) -> Iterator[str]:
    claimed = claim.epsilon or 0.0
    for name, value in found.items():
        if not value <= claimed * (1 + AGREE):
            yield f"ε = {claimed:.4g} is claimed, and {name} gives {value:.4g} for what was drawn"
    finite = [value for value in found.values() if value <= _FAR]
    if len(finite) == len(found) and max(finite) > min(finite) * (1 + AGREE):
        yield f"the accountants do not agree: {', '.join(f'{name} {value:.4g}' for name, value in found.items())}"


def of_grid(layer: Defense, claim: Claim, module: nn.Module) -> Iterator[str]:
    """Whether whole numbers were accounted for as such, on the grid of the claim and with all of their coordinates."""
    if layer.bound is None:
        if claim.grid:
            yield "the claim is about whole numbers, and its noise was added to gradients"
        return
    like = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    sent = torch.cat([tensor.double().flatten() for tensor in layer.encode(like, stream("receipt", "grid")).values()])
    if claim.grid:
        if not _whole(sent * (claim.grid / layer.bound), 1e-3):
            yield f"what was sent does not lie on the grid of {claim.grid:.4g} steps in the bound that was accounted for"
        if claim.coordinates < len(sent):
            yield f"the claim counts {claim.coordinates} rounded coordinates, and {len(sent)} were sent"
    elif (spread := float(sent.square().mean().sqrt())) > 0 and _whole(sent * 2.0 ** (_BITS - math.floor(math.log2(spread))), 0.0):
        yield "the noise is of whole steps of a grid, and was accounted for as Gaussian"


def _whole(values: Tensor, away: float) -> bool:
    return float((values - values.round()).abs().max()) <= away


def notes(claim: Claim, ran: Sequence[tuple[float, int]], drawn: float, found: Mapping[str, float]) -> Iterator[str]:
    """Which accountant's ε is the claim's, and why it lies above another that one might ask."""
    claimed, most = claim.epsilon or 0.0, max(found.values(), default=math.inf)
    if claim.grid and math.isfinite(most):
        shift = integer_noise.influence(claim.grid, claim.coordinates)[0] / claim.grid
        delta = claim.delta or math.nan
        other = max((loss_distribution.epsilon(rate, drawn / shift, steps, delta) for rate, steps in ran), default=math.inf)
        yield (
            f"ε = {claimed:.4g} is claimed by the Rényi bound for Skellam noise; Gaussian noise of its size would have ε = {other:.4g} "
            f"by its loss distribution, {1 - other / claimed:.1%} less, but no proof carries that over to Skellam "
            "noise in many coordinates"
        )
    if most > 0 and most * (1 + AGREE) < claimed:
        counted = max((steps for _, steps in ran), default=0)
        why = f", since it counts {claim.steps} steps and {counted} ran" if counted < (claim.steps or 0) else ""
        yield f"ε = {claimed:.4g} is claimed, {claimed / most - 1:.1%} above the {most:.4g} that the accountants give at most{why}"


def _gaussian() -> list[tuple[str, Accountant]]:
    found: list[tuple[str, Accountant]] = [("Opacus PRV", accounting.epsilon), ("loss distribution", loss_distribution.epsilon)]
    return [*found, ("dp-accounting PLD", _dp_accounting)] if find_spec("dp_accounting") is not None else found


def _skellam(claim: Claim) -> list[tuple[str, Accountant]]:
    """Every site is in every sum (``rate`` is 1). Noise multipliers are in units of the bound."""
    shift = integer_noise.influence(claim.grid, claim.coordinates)[0]

    def theorem(rate: float, noise: float, steps: int, delta: float) -> float:
        return integer_noise.epsilon(noise, steps, delta, claim.grid, claim.coordinates)

    def summed(rate: float, noise: float, steps: int, delta: float) -> float:
        return loss_distribution.skellam(noise * claim.grid, shift, steps, delta) if noise > 0 else math.inf

    def library(rate: float, noise: float, steps: int, delta: float) -> float:
        """Of Gaussian noise, at the same orders: what Skellam noise tends to as the grid grows fine."""
        from dp_accounting import NeighboringRelation, dp_event, rdp

        if noise == 0:
            return math.inf
        accountant = rdp.RdpAccountant(list(integer_noise.ORDERS), NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(dp_event.GaussianDpEvent(noise * claim.grid / shift), steps)
        return float(accountant.get_epsilon(delta))

    found: list[tuple[str, Accountant]] = [("Skellam's Rényi bound", theorem), ("Rényi divergence, summed", summed)]
    return [*found, ("dp-accounting RDP", library)] if find_spec("dp_accounting") is not None else found


def _dp_accounting(rate: float, noise: float, steps: int, delta: float) -> float:
    from dp_accounting import NeighboringRelation, dp_event, pld

    if noise == 0:
        return math.inf
    event = dp_event.GaussianDpEvent(noise)
    accountant = pld.PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    return float(accountant.get_epsilon(delta))
