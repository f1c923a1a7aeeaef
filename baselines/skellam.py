"""Distributed differential privacy: each site adds a share of integer noise, and secure aggregation shows the server only their sum.

The Skellam mechanism (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995). A site clips its update, rounds it at random to a grid, adds the
difference of two Poisson numbers to every coordinate, and hands the integers to the masked sum, which adds them exactly. Skellam noise
adds up to Skellam noise, so what the server reads is as noisy as if one party had drawn it all; nobody has to be trusted with that.

The noise is sized for the fewest sites whose sum secure aggregation will open, less the colluders, who know what they drew. ε by Rényi
orders (the paper's bound for several coordinates, in ``suites.integer_noise``): dp-accounting's Rényi accountant gives the same within
1 %, its loss distribution of Gaussian noise of this size 5 to 10 % less, and no proof says that this may be used.
"""

from __future__ import annotations

import copy
import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.fixed_point import scale
from baselines.secure_aggregation import MaskedSum, SecureAggregation
from suites import accounting
from suites.contracts import Card, Claim, Federation, Params, RequestError, Shape
from suites.integer_noise import epsilon, influence

Integers = NDArray[np.int64]

_EPSILON = 8.0
_FINE = 2**14  # grid steps in the clipping norm: rounding 600,000 coordinates then adds .06 % to a site's squared influence
_EXACT = 2**24  # integers that single precision holds
_TAILS = 10.0  # deviations of noise that the range has to hold: beyond 1e-23 a coordinate


def skellam(variance: float, count: int, rng: np.random.Generator) -> Integers:
    """Integers of mean 0 and this variance: the difference of two Poisson numbers."""
    drawn: Integers = rng.poisson(variance / 2, count) - rng.poisson(variance / 2, count)
    return drawn


def rounded(values: NDArray[np.float64], most: float, rng: np.random.Generator) -> Integers:
    """Each value up or down by chance, so that the mean stays; drawn again while the whole is longer than ``most``."""
    for _ in range(1000):
        whole: Integers = np.floor(values + rng.random(len(values))).astype(np.int64)
        if float(np.square(whole.astype(np.float64)).sum()) <= most**2:
            return whole
    raise RequestError("an update could not be rounded within its bound; it is longer than the clipping norm allows")


class Skellam(SecureAggregation):
    """Secure aggregation of clipped updates with Skellam noise: site-level (ε, δ)-DP of the sum, without a trusted server.

    Parameters
    ----------
    epsilon : float, optional
        Target over all rounds (8 where neither this nor ``noise_multiplier`` is given).
    noise_multiplier : float, optional
        Deviation of the noise on the sum, in units of ``clip``, when everybody who may be missing is; 0 adds none, and claims nothing.
    delta, clip : float
        ``clip`` bounds a site's whole update.
    colluders, dropouts, threshold : int, optional
        As for ``secure_aggregation``; noise is sized for the fewest sites that it lets sum, less the colluders.
    parameters : int
        Coordinates of an update, at most; rounding them is part of what one site may change.
    """

    equal_weights = True
    card = Card(
        server="The sum of the surviving sites' clipped updates with Skellam noise, who took part and who vanished. No single update, "
        "while no more sites than the stated colluders side with it.",
        site="Each broadcast model and its own share of the noise, and so the others' sum with their shares.",
        outsider="The released model, as noised as the sum.",
        does_not_protect="Utility: with few sites the noise is as large as the updates. A site that sends a false update, or leaves out "
        "its share of the noise; more colluders than stated; the noise comes from a statistical generator, so a deployment has to draw it "
        "from a cryptographic one.",
    )

    def __init__(
        self,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        clip: float = 1.0,
        colluders: int | None = None,
        dropouts: int | None = None,
        threshold: int | None = None,
        *,
        parameters: int = 2_000_000,
    ) -> None:
        accounting.check("skellam", epsilon, noise_multiplier, delta, clip)
        if parameters < 1:
            raise RequestError(f"skellam got parameters={parameters}, but it counts the coordinates of an update; give 1 or more")
        super().__init__(colluders=colluders, dropouts=dropouts, threshold=threshold)
        self.epsilon = _EPSILON if epsilon is None and noise_multiplier is None else epsilon
        self.noise_multiplier = noise_multiplier
        self.delta, self.norm, self.parameters = float(delta), float(clip), int(parameters)
        self.bound = self.norm
        self._shares, self._grid = 0, 0.0  # set by plan: sites whose noise counts, grid steps in 1

    def plan(self, federation: Federation, shape: Shape) -> Self:
        planned = copy.copy(super().plan(federation, shape))
        public = self.sum.rules(max(1, round(federation.participation * len(shape.site_sizes))))
        planned._shares = public.least - public.colluders  # at least two, by the rules of the threshold
        if planned.noise_multiplier is None:
            assert self.epsilon is not None
            planned.noise_multiplier = _fitted(self.epsilon, federation.rounds, self.delta, self.parameters)
        share = planned.noise_multiplier / math.sqrt(planned._shares)
        reach = 2.0 ** math.ceil(math.log2(self.norm * (1 + _TAILS * share)))
        finest = min(_EXACT / reach, scale(public.sites, reach), 2.0 ** math.ceil(math.log2(_FINE / self.norm)))
        planned._grid = 2.0 ** math.floor(math.log2(finest))
        if planned._grid * self.norm < _FINE / 64:
            raise RequestError(
                f"skellam cannot fit a noise multiplier of {planned.noise_multiplier:.4g} and {public.sites} sites into 32 bits; "
                "give a larger epsilon, or fewer sites"
            )
        planned.sum = MaskedSum(reach, self.sum.colluders, self.sum.dropouts, self.sum.threshold)
        planned.channel = planned.sum
        if self.epsilon is not None:  # the grid is coarser than the fit supposed where the range had to be wide
            while (
                epsilon(planned.noise_multiplier, federation.rounds, self.delta, planned._grid * self.norm, self.parameters) > self.epsilon
            ):
                planned.noise_multiplier *= 1.0005
        return planned

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        if self.noise_multiplier is None or not self._grid:
            raise RequestError("skellam knows no noise before plan(federation, shape) has sized it; call plan first")
        for name, tensor in update.items():
            if not tensor.is_floating_point():
                raise RequestError(f"skellam cannot clip the counter '{name}' that BatchNorm sends, so no ε would hold; use norm: layer")
        flat = np.concatenate([tensor.detach().cpu().double().numpy().reshape(-1) for tensor in update.values()])
        if len(flat) > self.parameters:
            raise RequestError(
                f"skellam sized its claim for updates of at most {self.parameters} coordinates, and this network has {len(flat)}; "
                f"give skellam:parameters={len(flat)}"
            )
        seeds = torch.randint(2**62, (2, 4), generator=rng, device=rng.device).tolist()
        rounding, noise = (np.random.Generator(np.random.PCG64(seed)) for seed in seeds)
        flat *= min(1.0, self.norm / max(float(np.linalg.norm(flat)), 1e-30)) * self._grid
        whole = rounded(flat, influence(self._grid * self.norm, self.parameters)[0], rounding)
        share = self.noise_multiplier * self.norm * self._grid / math.sqrt(self._shares)
        if share > 0:
            whole = whole + skellam(share**2, len(whole), noise)
        parts = np.split(whole / self._grid, np.cumsum([tensor.numel() for tensor in update.values()])[:-1])
        return {
            name: torch.from_numpy(part).reshape(tensor.shape).to(tensor.device, tensor.dtype)
            for (name, tensor), part in zip(update.items(), parts, strict=True)
        }

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        if self.noise_multiplier is None or not self._grid:
            return self.plan(federation, shape).claim(federation, shape)
        masked = super().claim(federation, shape)
        if self.noise_multiplier == 0:
            return Claim(kind="none", unit="site", noise_multiplier=0.0, server_sees=masked.server_sees, sentence=masked.sentence)
        spent = epsilon(self.noise_multiplier, federation.rounds, self.delta, self._grid * self.norm, self.parameters)
        public = self.sum.rules(max(1, round(federation.participation * len(shape.site_sizes))))
        return Claim(
            kind="dp",
            epsilon=spent,
            delta=self.delta,
            unit="site",
            relation="add_remove",
            sampler="every site in every round",
            sampling_rate=1.0,
            noise_multiplier=self.noise_multiplier,
            steps=federation.rounds,
            per_site=(spent,) * len(shape.site_sizes),
            shares=self._shares,
            grid=self._grid * self.norm,
            coordinates=self.parameters,
            server_sees="only the sum of the sites' noised updates",
            sentence=(
                f"(ε = {spent:.4g}, δ = {self.delta:g})-DP for adding or removing one site, over all {federation.rounds} rounds without "
                f"amplification: updates clipped to {self.norm:g}, Skellam noise of multiplier {self.noise_multiplier:.4g} on the sum of "
                f"{public.least} of {public.sites} sites, {public.colluders} of them colluding ({self._shares} shares), by Rényi orders. "
                "No smaller sum is opened, and no single update is seen."
            ),
        )


def _fitted(target: float, steps: int, delta: float, parameters: int) -> float:
    """The least noise (to 0.1 % of ε) at which ``target`` holds on the finest grid."""
    if not 0.05 <= target <= 1000:
        raise RequestError(
            f"ε = {target:g} was asked for, but skellam fits one between 0.05 and 1000; ask for that, or give noise_multiplier"
        )
    low, high = 1e-3, 1e6
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon(middle, steps, delta, float(_FINE), parameters) > target else (low, middle)
        if high / low < 1.0005:
            break
    return high
