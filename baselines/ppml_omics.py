"""PPML-Omics as its authors' code has it, and a version of it that earns an ε (Zhou et al. 2024, Science Advances 10, eadh8601).

As read in the cancer application of JoshuaChou2018/PPML-Omics: each site makes one pass of plain SGD; the server averages and adds
Gaussian noise once, to the mean, sized by the analytic Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530) for one round. A
clipping optimiser is defined but not used, so nothing bounds what a record changes. "Shuffling" permutes the list of models, which changes
no sum, and on its strength ε is multiplied by the number of sites, so that less noise is added. No ε holds, whatever was asked for.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import ClassVar

import torch
from scipy.special import log_ndtr, ndtr

from baselines.dp_fedavg import DPFedAvg
from suites import accounting
from suites.contracts import Card, Claim, Defense, Federation, Local, Params, RequestError, Shape


def gaussian_deviation(epsilon: float, delta: float) -> float:
    """The least deviation, in units of the sensitivity, at which one Gaussian release is (ε, δ)-DP (Balle and Wang 2018, theorem 8)."""

    def spent(deviation: float) -> float:
        a, b = 1 / (2 * deviation), epsilon * deviation
        return float(ndtr(a - b) - math.exp(min(epsilon + float(log_ndtr(-a - b)), 0.0)))

    low, high = 1e-6, 1.0
    while spent(high) > delta:
        high *= 2
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


def _one_pass(local: Local, lr: float | None) -> Local:
    return replace(local, optimiser="sgd", epochs=1, momentum=0.0, weight_decay=0.0, lr=lr or local.lr)


class PPMLOmics(Defense):
    """One pass of SGD a round, and noise on the server's mean that was sized for a sensitivity that nothing enforces.

    Parameters
    ----------
    epsilon, delta : float
        As asked for, of one round; they are not claimed.
    clip : float
        The sensitivity that the noise assumes, of the sum of a site's gradients. Nothing is clipped to it.
    shuffle : bool
        Multiplies ε by the number of sites, as the reference does.
    lr : float, optional
        Learning rate in place of the federation's.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update in the clear: the noise comes after it has looked",
        site="the broadcast model, noised once a round",
        outsider="the released model, noised once a round",
        does_not_protect="anything by a proof: no gradient is clipped, so the noise is sized for a sensitivity that does not hold; the "
        "cost of rounds is not added up; shuffling a handful of sites amplifies nothing. The server is trusted with every update",
    )

    def __init__(
        self, *, epsilon: float = 5.0, delta: float = 1e-3, clip: float = 5.0, shuffle: bool = True, lr: float | None = None
    ) -> None:
        accounting.check("ppml_omics", epsilon, None, delta, clip)
        _check_lr(lr)
        self.epsilon, self.delta, self.clip_assumed, self.shuffle, self.lr = float(epsilon), float(delta), float(clip), shuffle, lr
        self._deviation: float | None = None  # of the noise on the mean update

    def local(self, local: Local) -> Local:
        return _one_pass(local, self.lr)

    def plan(self, federation: Federation, shape: Shape) -> PPMLOmics:
        planned = copy.copy(self)
        epsilon = self.epsilon * (len(shape.site_sizes) if self.shuffle else 1)
        # The reference noises the gradient that the update stands for, (old - new) / lr.
        planned._deviation = federation.local.lr * self.clip_assumed * gaussian_deviation(epsilon, self.delta)
        return planned

    def release(self, mean: Params, rng: torch.Generator) -> Params:
        if self._deviation is None:
            raise RequestError("ppml_omics knows no noise before plan(federation, shape) has sized it; call plan first")
        deviation = self._deviation

        def noised(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return tensor
            drawn = torch.empty(tensor.shape, dtype=tensor.dtype, device=rng.device).normal_(0.0, deviation, generator=rng)
            return tensor + drawn.to(tensor.device)

        return {name: noised(tensor) for name, tensor in mean.items()}

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        return Claim(
            kind="none",
            server_sees="every site's update in the clear",
            sentence=f"The method's authors ask for (ε = {self.epsilon:g}, δ = {self.delta:g}) and report it; since nothing is clipped, "
            "rounds are not added up and shuffling is taken to divide the noise, no ε holds.",
        )


class Corrected(DPFedAvg):
    """The same training with an ε that holds: sites clip and noise their own updates, and all rounds count (see ``dp_fedavg``).

    No gain is claimed for shuffling: the theorem (Feldman et al. 2021, arXiv 2012.12803) gives none for the few sites of a consortium.

    Parameters
    ----------
    epsilon, delta : float
        Of all rounds together.
    clip : float
        L2 bound on a site's whole update.
    lr : float, optional
        Learning rate in place of the federation's.
    shared, colluders : as for ``dp_fedavg``
    """

    def __init__(
        self,
        *,
        epsilon: float = 5.0,
        delta: float = 1e-5,
        clip: float = 1.0,
        lr: float | None = None,
        shared: bool = False,
        colluders: int = 1,
    ) -> None:
        super().__init__(epsilon=epsilon, delta=delta, clip=clip, shared=shared, colluders=colluders)
        _check_lr(lr)
        self.lr = lr

    def local(self, local: Local) -> Local:
        return _one_pass(local, self.lr)


def _check_lr(lr: float | None) -> None:
    if lr is not None and not 0 < lr < math.inf:
        raise RequestError(f"ppml_omics got lr={lr:g}, but a learning rate is above 0 and finite; give 0.05, say")
