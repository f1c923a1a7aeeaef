"""Site-level differential privacy (DP-FedAvg: McMahan et al. 2018, arXiv 1710.06963): a site's whole update is clipped and noised.

Two settings, which must not be confused. Alone, every site adds all the noise that its own message needs, so the server need not be
trusted: local differential privacy, under replacing a site's records by any others. With ``shared=true`` the sites only add a share each,
and the claim is about their sum under adding or removing a site: it holds behind secure aggregation only. The other sites know their
own shares, so the noise is sized for the sites of one round minus ``colluders``.

Every site takes part with weight 1: with weights n_k the sensitivity of the mean would be the largest weight, and n_k would be sent in the
clear.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch

from suites import accounting
from suites.contracts import Card, Claim, Defense, Federation, Params, RequestError, Shape

_EPSILON = 8.0


class DPFedAvg(Defense):
    """Each site's update is clipped to L2 norm ``clip`` over all tensors together, and gets Gaussian noise.

    Parameters
    ----------
    epsilon : float, optional
        Target over all rounds (8 where neither this nor ``noise_multiplier`` is given).
    noise_multiplier : float, optional
        Noise on what an adversary sees (a message; with ``shared`` the sum), in units of ``clip``; 0 clips only, and claims nothing.
    delta, clip : float
    shared : bool
        Noise shared between the sites; needs a channel that hides single messages.
    colluders : int
        Sites whose shares do not count, since they drop out or tell what they drew.
    """

    equal_weights = True
    card: ClassVar[Card | None] = Card(
        server="every site's update, clipped and noised (with shared=true: only their sum, through the channel)",
        site="the broadcast model; with shared=true also its own share of the noise",
        outsider="the released model, as noised as the sum",
        does_not_protect="utility: with few sites the noise is as large as the updates; one record or person needs no more noise than a "
        "whole site gets here, so dp_sgd is the cheaper way to protect records. The noise comes from a statistical generator, so a "
        "deployment has to draw it from a cryptographic one. With shared=true nothing is promised beyond the stated colluders, each of "
        "whom can take its own share off the sum, nor where a site leaves its share out",
    )

    def __init__(
        self,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        clip: float = 1.0,
        *,
        shared: bool = False,
        colluders: int = 1,
    ) -> None:
        accounting.check("dp_fedavg", epsilon, noise_multiplier, delta, clip)
        if colluders < 0:
            raise RequestError(f"dp_fedavg got colluders={colluders}, but it counts sites; give 0 or more")
        self.epsilon = _EPSILON if epsilon is None and noise_multiplier is None else epsilon
        self.noise_multiplier = noise_multiplier
        self.delta, self.norm = float(delta), float(clip)
        self.bound = self.norm
        self.needs_channel, self.colluders = shared, int(colluders)
        self._shares = 1  # the messages whose noise adds up in what an adversary sees

    def plan(self, federation: Federation, shape: Shape) -> DPFedAvg:
        planned = copy.copy(self)
        if self.needs_channel:
            if self.colluders < federation.vanishing:
                raise RequestError(
                    f"dp_fedavg with shared=true sizes its noise without {self.colluders} sites, and {federation.vanishing} vanish in "
                    f"every round and take theirs along; give colluders={federation.vanishing} or more"
                )
            together = max(1, round(federation.participation * len(shape.site_sizes)))  # only who takes part in a round adds its share
            planned._shares = together - self.colluders
            if planned._shares < 1:
                raise RequestError(
                    f"dp_fedavg with shared=true has {together} sites in a round and {self.colluders} colluders, so nobody's noise is "
                    "left to hide behind; give fewer colluders, have more sites take part, or leave shared out"
                )
        if self.noise_multiplier is None:
            assert self.epsilon is not None
            fitted = accounting.noise_multiplier(((1.0, federation.rounds),), self.epsilon, self.delta)
            planned.noise_multiplier = fitted * self._sensitivity
        return planned

    @property
    def _sensitivity(self) -> float:
        """In units of the clipping norm: a message may turn from u to -u; a sum gains or loses one term."""
        return 1.0 if self.needs_channel else 2.0

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        if self.noise_multiplier is None:
            raise RequestError("dp_fedavg knows no noise before plan(federation, shape) has fitted it to ε; call plan first")
        for name, tensor in update.items():
            if not tensor.is_floating_point():
                raise RequestError(f"dp_fedavg cannot clip the counter '{name}' that BatchNorm sends, so no ε would hold; use norm: layer")
        flat = torch.cat([tensor.reshape(-1) for tensor in update.values()])
        flat = flat * min(1.0, self.norm / max(float(torch.linalg.vector_norm(flat)), 1e-30))
        deviation = self.noise_multiplier * self.norm / math.sqrt(self._shares)
        if deviation > 0:
            flat += torch.empty(flat.shape, dtype=flat.dtype, device=rng.device).normal_(0.0, deviation, generator=rng).to(flat.device)
        parts = torch.split(flat, [tensor.numel() for tensor in update.values()])
        return {name: part.view(tensor.shape) for (name, tensor), part in zip(update.items(), parts, strict=True)}

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        if self.noise_multiplier is None:
            return self.plan(federation, shape).claim(federation, shape)
        if self.noise_multiplier == 0:
            return Claim(kind="none", unit="site", noise_multiplier=0.0, sentence=f"updates are clipped to {self.norm:g} without noise")
        epsilon = accounting.epsilon(1.0, self.noise_multiplier / self._sensitivity, federation.rounds, self.delta)
        sees = "only the sum of the sites' noised updates" if self.needs_channel else "every site's noised update"
        change = "adding or removing one site" if self.needs_channel else "replacing all records of one site"
        return Claim(
            kind="dp",
            epsilon=epsilon,
            delta=self.delta,
            unit="site",
            relation="add_remove" if self.needs_channel else "replace_one",
            sampler="every site in every round",
            sampling_rate=1.0,
            noise_multiplier=self.noise_multiplier,
            steps=federation.rounds,
            per_site=(epsilon,) * len(shape.site_sizes),
            shares=self._shares,
            server_sees=sees,
            sentence=(
                f"(ε = {epsilon:.4g}, δ = {self.delta:g})-DP for {change}, over all {federation.rounds} rounds without amplification: "
                f"updates clipped to {self.norm:g}, noise multiplier {self.noise_multiplier:.4g}"
                + (f" on the sum, also where {self.colluders} sites drop out or collude" if self.needs_channel else " on each message")
                + f", by Opacus' PRV accountant. The server sees {sees}."
            ),
        )
