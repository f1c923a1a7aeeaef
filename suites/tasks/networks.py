"""The networks of the classification task, written so that torch.func can stack and differentiate them.

Every parameterised module is a plain ``nn.Linear``, ``nn.LayerNorm`` or ``nn.BatchNorm1d`` called exactly once a forward pass, and
nothing is changed in place; so the engine can run many federations under vmap, clipping can read each layer's input and
output gradient, and a defense can replace single ``nn.Linear`` layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from suites.errors import RequestError

Norm = Literal["layer", "batch", "none"]


def first_width(net: nn.Module, features: int) -> int:
    """Units of a network's widest linear layer that fits records of ``features``; of the first defined where none does, 0 without any."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    fitting = [layer.out_features for layer in layers if layer.in_features == features]
    return max(fitting or [layer.out_features for layer in layers[:1]], default=0)


class Dropout(nn.Module):
    """Multiplies by ``mask``, a non-persistent buffer: ones here, drawn anew by the engine for each training step.

    The engine supplies the mask [B, width] (Bernoulli(1 - p) / (1 - p)) through ``functional_call``, from a stream of its own; so a
    forward pass is a pure function and an attacker's simulation has no hidden randomness. Without one, nothing is dropped.
    """

    lane_axis = True  # suites.stacked: a mask [L, B, width] acts on [L, B, width]
    mask: Tensor

    def __init__(self, p: float, width: int) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise RequestError(f"dropout must lie in [0, 1), not {p:g}, since it is the share of units that a step leaves out; try 0.2")
        self.p = p
        self.width = width
        self.register_buffer("mask", torch.ones(1), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return h * self.mask

    def extra_repr(self) -> str:
        return f"p={self.p}, width={self.width}"


def _norm(kind: Norm, width: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(width)
    if kind == "batch":
        return nn.BatchNorm1d(width)
    if kind == "none":
        return nn.Identity()
    raise RequestError(f"unknown norm {kind!r}: the network can have norm=layer, batch or none")


class ResidualBlock(nn.Module):
    """[B, W] -> [B, W]: norm(linear2(dropout(relu(norm1(linear1 h)))) + h), with no ReLU after the sum."""

    def __init__(self, width: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, width)
        self.norm1 = _norm(norm, width)
        self.dropout = Dropout(dropout, width)
        self.linear2 = nn.Linear(width, width)
        self.norm2 = _norm(norm, width)

    def forward(self, h: Tensor) -> Tensor:
        inner: Tensor = self.dropout(torch.relu(self.norm1(self.linear1(h))))
        out: Tensor = self.norm2(self.linear2(inner) + h)
        return out


class ResidualMLP(nn.Module):
    """The ProCanFDL-like network of the reference: embedding, residual blocks, a small head; [B, F] -> [B, outputs].

    Linear(F, hidden) -> ``blocks`` residual blocks -> Linear(hidden, head) -> ReLU -> Linear(head, outputs). The published network
    has BatchNorm; LayerNorm is the default so that DP, which BatchNorm rules out, is compared like with like.
    """

    def __init__(
        self, features: int, outputs: int, *, hidden: int = 64, blocks: int = 2, head: int = 32, dropout: float = 0.2, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, hidden)
        self.blocks = nn.ModuleList(ResidualBlock(hidden, dropout, norm) for _ in range(blocks))
        self.fc1 = nn.Linear(hidden, head)
        self.fc2 = nn.Linear(head, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        for block in self.blocks:
            h = block(h)
        out: Tensor = self.fc2(torch.relu(self.fc1(h)))
        return out


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them; [B, F] -> [B, outputs]."""

    def __init__(self, features: int, outputs: int, widths: Sequence[int] = (64, 64), dropout: float = 0.0) -> None:
        super().__init__()
        inputs = [features, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(inputs, [*widths, outputs]))
        self.dropouts = nn.ModuleList(Dropout(dropout, width) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer, dropout in zip(self.layers, self.dropouts):
            h = dropout(torch.relu(layer(h)))
        out: Tensor = self.layers[-1](h)
        return out
