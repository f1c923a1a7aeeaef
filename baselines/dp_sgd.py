"""Record-level differential privacy inside every site (DP-SGD: Abadi et al. 2016, arXiv 1607.00133).

A site draws each step's batch by Poisson sampling, clips every record's gradient to ``clip``, adds Gaussian noise to the sum and divides
by the *expected* batch, so the server and everybody after it see only noised updates. The noise is fitted to the site for which ε is
worst, over all rounds together; ε for one round, or for one trainer object, says nothing about the released model.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from suites import accounting
from suites.contracts import Card, Claim, Clip, Defense, Federation, Local, Params, RequestError, Shape

_EPSILON = 8.0  # plain "dp_sgd"


class DPSGD(Defense):
    """Per-record clipping and noise at each site, under add-or-remove-one-record (ε, δ)-DP.

    Parameters
    ----------
    epsilon : float, optional
        Target over all rounds, met by the worst site (8 where neither this nor ``noise_multiplier`` is given).
    noise_multiplier : float, optional
        Standard deviation of the noise in units of ``clip``; 0 clips only, and claims nothing.
    delta : float
        Below 1 / records of every site.
    clip : float
        L2 bound on one record's gradient, over all parameters together.
    epochs, lr : optional
        Local epochs a round and learning rate in place of the federation's: at a given ε, noise wants fewer and longer steps.
    optimiser : "adam" or "sgd", optional
        In place of the federation's. Adam divides by the size of what it is given, which here is noise: every weight then walks at full
        step, and plain SGD keeps more of the signal.
    weight_decay : float, optional
        In place of the federation's; one that suits short steps shrinks the model along a long path.
    path : float, optional
        lr × local epochs × rounds, in place of ``lr``. At a given ε the noise multiplier grows with the root of the number of steps T, so
        what noise adds to a weight over the whole run grows with lr·T: with a fixed lr a longer run only walks farther from the optimum.
    unit : "record" or "person"
        Whose membership is protected. By person, persons are drawn, the gradients of all records of one are summed, and that sum is
        clipped; the federation's ``batch`` then counts persons. Needs the data's person column, and no person at two sites.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update, made of clipped gradient sums with Gaussian noise; sizes of sites in the clear",
        site="the broadcast model, as noised as what the server sees",
        outsider="the released model, as noised as what the server sees",
        does_not_protect="facts about a site as a whole (the unit is one record, so a person with many records has k times the ε unless "
        "unit=person is asked for, and a site has no bound at all); what noise_multiplier=0 or a large ε lets through; the noise comes "
        "from a statistical generator, "
        "so a deployment has to draw it from a cryptographic one",
    )

    def __init__(
        self,
        epsilon: float | None = None,
        noise_multiplier: float | None = None,
        delta: float = 1e-5,
        clip: float = 1.0,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        optimiser: Literal["adam", "sgd"] | None = None,
        weight_decay: float | None = None,
        path: float | None = None,
        unit: Literal["record", "person"] = "record",
    ) -> None:
        accounting.check("dp_sgd", epsilon, noise_multiplier, delta, clip)
        if epochs is not None and epochs < 1:
            raise RequestError(f"dp_sgd got epochs={epochs}, but a site trains at least once a round; give 1 or more")
        if lr is not None and not 0 < lr < math.inf:
            raise RequestError(f"dp_sgd got lr={lr:g}, but a learning rate is above 0 and finite; give 0.01, say")
        if optimiser not in (None, "adam", "sgd"):
            raise RequestError(f"dp_sgd got optimiser={optimiser}, but sites train by adam or sgd; give one of them")
        if path is not None and not 0 < path < math.inf:
            raise RequestError(f"dp_sgd got path={path:g}, but lr x epochs x rounds is above 0 and finite; give 30, say")
        if path is not None and lr is not None:
            raise RequestError("dp_sgd got both lr and path, but path / (epochs x rounds) is the learning rate; give one of them")
        if weight_decay is not None and not 0 <= weight_decay < math.inf:
            raise RequestError(f"dp_sgd got weight_decay={weight_decay:g}, but a decay is at least 0 and finite; give 0, say")
        self.epochs, self.lr, self.optimiser, self.path, self.weight_decay = epochs, lr, optimiser, path, weight_decay
        self.epsilon = _EPSILON if epsilon is None and noise_multiplier is None else epsilon
        self.noise_multiplier = noise_multiplier
        self.delta = float(delta)
        if unit not in ("record", "person"):
            raise RequestError(f"dp_sgd got unit={unit}, but it protects records or persons; give record or person")
        self.unit = unit
        self.clip = Clip(norm=float(clip), unit=unit)

    def local(self, local: Local) -> Local:
        return replace(
            local,
            epochs=self.epochs or local.epochs,
            lr=self.lr or local.lr,
            optimiser=self.optimiser or local.optimiser,
            weight_decay=local.weight_decay if self.weight_decay is None else self.weight_decay,
        )

    def protocol(self, federation: Federation) -> Federation:
        if self.path is None:
            return federation
        local = federation.local
        return replace(federation, local=replace(local, lr=self.path / (local.epochs * federation.rounds)))

    def plan(self, federation: Federation, shape: Shape) -> DPSGD:
        planned = copy.copy(self)
        if self.noise_multiplier is None:
            assert self.epsilon is not None
            self._check_delta(shape)
            planned.noise_multiplier = accounting.noise_multiplier(self._sites(federation, shape), self.epsilon, self.delta)
        return planned

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        if self.noise_multiplier is None:
            raise RequestError("dp_sgd knows no noise before plan(federation, shape) has fitted it to ε; call plan first")
        if self.noise_multiplier == 0:
            return clipped_sum
        assert self.clip is not None
        deviation = self.noise_multiplier * self.clip.norm
        tensors = list(clipped_sum.values())
        sizes = [tensor.numel() for tensor in tensors]
        # Drawn where the generator lives, so that every device adds the same; at once, since many small draws take longer.
        drawn = torch.empty(sum(sizes), dtype=tensors[0].dtype, device=rng.device).normal_(0.0, deviation, generator=rng)
        noisy = [part.view(tensor.shape) for tensor, part in zip(tensors, torch.split(drawn.to(tensors[0].device), sizes), strict=True)]
        torch._foreach_add_(noisy, tensors)
        return dict(zip(clipped_sum, noisy, strict=True))

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        if self.noise_multiplier is None:
            return self.plan(federation, shape).claim(federation, shape)
        assert self.clip is not None
        if self.noise_multiplier == 0:
            return Claim(
                kind="none", noise_multiplier=0.0, sentence=f"gradients are clipped to {self.clip.norm:g} without noise: no ε holds"
            )
        self._check_delta(shape)
        sites = self._sites(federation, shape)
        per_site = tuple(accounting.epsilon(rate, self.noise_multiplier, steps, self.delta) for rate, steps in sites)
        worst = max(range(len(sites)), key=per_site.__getitem__)
        rate, steps = sites[worst]
        whole = " with all of its records" if self.unit == "person" else ""
        clipped = "the summed gradient of each drawn person" if self.unit == "person" else "gradients"
        sees = "every site's noised updates each round; the guarantee holds against the server as against everybody after it"
        return Claim(
            kind="dp",
            epsilon=per_site[worst],
            delta=self.delta,
            unit=self.unit,
            relation="add_remove",
            sampler="poisson",
            sampling_rate=rate,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            per_site=per_site,
            server_sees=sees,
            sentence=(
                f"(ε = {per_site[worst]:.4g}, δ = {self.delta:g})-DP for adding or removing one {self.unit}{whole} of one site, over all "
                f"{federation.rounds} rounds: {steps} Poisson-sampled steps of rate {rate:.4g} at the worst site"
                f"{' (the whole site in each step: no amplification)' if rate == 1 else ''}, {clipped} clipped to {self.clip.norm:g}, "
                f"noise multiplier {self.noise_multiplier:.4g}, by Opacus' PRV accountant. The server sees {sees}. Sizes of sites are "
                "taken as public; the referee's own probe messages are not counted."
            ),
        )

    def _check_delta(self, shape: Shape) -> None:
        most = max(self._units(shape))
        if self.delta * most >= 1:
            raise RequestError(
                f"dp_sgd got delta={self.delta:g} for a site of {most} {self.unit}s, but a mechanism that publishes one {self.unit} "
                f"whole would meet that; give a delta well below 1 / {self.unit}s, such as 1e-5"
            )

    def _units(self, shape: Shape) -> tuple[int, ...]:
        if self.unit == "record":
            return shape.site_sizes
        if shape.persons is None:
            raise RequestError("dp_sgd:unit=person needs to know who gave each record; name the person column, or protect records")
        return shape.persons

    def _sites(self, federation: Federation, shape: Shape) -> tuple[tuple[float, int], ...]:
        """(sampling rate, steps over all rounds) a site; a site that sits rounds out is counted as if it did not."""
        sizes = (sum(self._units(shape)),) if federation.topology == "centralized" else self._units(shape)
        local = federation.local
        plans = [accounting.sampling(units, local.batch) for units in sizes]
        return tuple((rate, federation.rounds * local.epochs * steps) for rate, steps in plans)
