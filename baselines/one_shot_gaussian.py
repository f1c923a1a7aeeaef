"""The noise of a published evaluation: the formula for one release, used at every step, under the ε of that one release.

As read in the INFL authors' public code (RoyZry98/INFL-Pytorch, August 2026): the Gaussian mechanism's sufficient condition
sigma = sqrt(2 ln(1.25 / delta)) / epsilon (Dwork and Roth 2014, theorem A.1, for one query and epsilon below 1) is the noise of each
step, and its epsilon is what the evaluation announces. Composed over the steps that are taken it is some hundred times as much. Two of
that evaluation's faults are not repeated, since the engine has no such step: clipping a batch instead of a record, and replayed noise.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from suites import accounting
from suites.contracts import Card, Claim, Clip, Defense, Federation, Params, Secret, Shape


class OneShotGaussian(Defense):
    """Per-record clipping and noise whose announced ε ignores all steps but one; it claims nothing, and says what the composed ε is.

    Parameters
    ----------
    epsilon : float
        As announced (the published tables have 1.29 and 2.36).
    delta, clip : float
        Of the formula, and the L2 bound on a record's gradient.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update, made of clipped gradient sums with Gaussian noise; sizes of sites in the clear",
        site="the broadcast model, as noised as what the server sees",
        outsider="the released model, as noised as what the server sees",
        does_not_protect="what it announces: its ε is that of a single step, and the steps of all epochs and rounds add up",
    )

    def __init__(self, *, epsilon: float = 2.36, delta: float = 1e-5, clip: float = 1.0) -> None:
        accounting.check("one_shot_gaussian", epsilon, None, delta, clip)
        self.epsilon, self.delta = float(epsilon), float(delta)
        self.clip = Clip(norm=float(clip), sampling="shuffle")
        self.noise_multiplier = math.sqrt(2 * math.log(1.25 / delta)) / epsilon

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        """BatchNorm, under which records share a gradient, becomes LayerNorm, as in the published runs with noise."""
        return _layer_normed(net)

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        assert self.clip is not None
        deviation = self.noise_multiplier * self.clip.norm

        def drawn(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=rng.device).normal_(0.0, deviation, generator=rng).to(tensor.device)

        return {name: tensor + drawn(tensor) for name, tensor in clipped_sum.items()}

    def composed(self, federation: Federation, shape: Shape) -> float:
        """ε of all steps at the site for which it is worst, were its batches Poisson samples (shuffled ones have no better known bound)."""
        local = federation.local
        plans = [accounting.sampling(records, local.batch) for records in shape.site_sizes]
        steps = federation.rounds * local.epochs
        return max(accounting.epsilon(rate, self.noise_multiplier, each * steps, self.delta) for rate, each in plans)

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        return Claim(
            kind="none",
            noise_multiplier=self.noise_multiplier,
            server_sees="every site's noised updates each round",
            sentence=f"Announced as ε = {self.epsilon:g} by the formula for one release, and repeated at every step. Composed over "
            f"{federation.rounds} rounds of {federation.local.epochs} epochs it is ε = {self.composed(federation, shape):.3g} at "
            f"δ = {self.delta:g} for the worst site, were each batch a Poisson sample. No ε is claimed here.",
        )


def _layer_normed(net: nn.Module) -> nn.Module:
    if isinstance(net, nn.BatchNorm1d):
        return nn.LayerNorm(net.num_features)
    changed = copy.copy(net)
    changed._modules = {name: None if child is None else _layer_normed(child) for name, child in net._modules.items()}
    return changed
