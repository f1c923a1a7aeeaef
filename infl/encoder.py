"""The key encoder of INFL: secret coordinates in the plane become one key vector that all keyed layers read.

Zhang et al., arXiv 2603.28334 (2026), as in the authors' public code of August 2026 (RoyZry98/INFL-Pytorch).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from infl.graft import Withheld, refuse_recording

KEY_WIDTH = 16


def default_linear(linear: nn.Linear, generator: torch.Generator | None) -> None:
    """Torch's default for ``nn.Linear`` (weights and bias uniform within 1/sqrt(inputs)), drawn from ``generator``."""
    bound = 1 / math.sqrt(linear.in_features)
    with torch.no_grad():
        linear.weight.uniform_(-bound, bound, generator=generator)
        if linear.bias is not None:
            linear.bias.uniform_(-bound, bound, generator=generator)


def reset(module: nn.Module, generator: torch.Generator | None) -> None:
    """Give every Linear and LayerNorm below ``module`` its default start; a layer with a rule of its own keeps that."""
    for layer in module.modules():
        if isinstance(layer, NearIdentity):
            layer.initialise(generator)
        elif isinstance(layer, nn.Linear):
            default_linear(layer, generator)
        elif isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()


class NearIdentity(nn.Linear):
    """The last layer of a modulator: weights N(0, 0.02^2) and bias 0, so that modulation starts close to doing nothing."""

    def initialise(self, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.weight.normal_(0.0, 0.02, generator=generator)
            self.bias.zero_()


class Encoder(Withheld):
    """Coordinates C [M, 2] -> key vector k [16]: a small network on each point, then the mean over points.

    The mean is why wrong keys open the model: over 128 independent points it hardly depends on which points they are.
    ``coordinates`` is a non-persistent buffer: it follows the module to a device and can be swapped by
    ``torch.func.functional_call``, but no ``state_dict`` holds it (``persistent=True`` reproduces the reference's fault).
    """

    coordinates: Tensor
    lane_axis = True  # suites.stacked: C [L, M, 2] gives k [L, 16]
    batch_shared = True  # suites.ghost: k belongs to the batch, so per-record clipping hands it on as [B, 16]

    def __init__(self, coordinates: Tensor, *, persistent: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, KEY_WIDTH), nn.SiLU(), nn.Linear(KEY_WIDTH, KEY_WIDTH), nn.SiLU(), nn.LayerNorm(KEY_WIDTH))
        self.register_buffer("coordinates", coordinates, persistent=persistent)
        self.enabled = True
        self._memo: Tensor | None = None  # k, only while the model that owns this encoder is in its forward pass

    def forward(self) -> Tensor | None:
        """k [16], or None on the path without a key."""
        if not self.enabled:
            return None
        refuse_recording()
        return self._encode() if self._memo is None else self._memo

    def _encode(self) -> Tensor:
        key: Tensor = self.net(self.coordinates).mean(dim=-2)
        return key

    def remember(self) -> None:
        """Encode once for all layers of the forward pass that now begins."""
        self._memo = self._encode() if self.enabled else None

    def forget(self) -> None:
        self._memo = None

    def initialise(self, generator: torch.Generator | None) -> None:
        reset(self.net, generator)
