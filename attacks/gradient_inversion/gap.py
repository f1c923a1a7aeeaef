"""How far a dense network's gradients are from a received message, and the slope of that distance, without forming either.

A weight's gradient is a product G = S^T V of slopes and values, so |G|^2 = sum(S S^T * V V^T) and <G, R> = sum(S R * V): products of B
records instead of a matrix a lane. The slope is written out by hand, one more pass down and up the layers, which costs a third of what
automatic differentiation of the same numbers does at small batches, where every operation costs its call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from suites.contracts import Params


def bias_of(weight: str) -> str:
    """The name of a layer's bias beside its weight's."""
    return weight.removesuffix("weight") + "bias"


class Gap:
    """Sum over tensors of the squared distance of gradients to ``received``, a fixed message, as a function of records.

    Each tensor's distance is relative to its own size, or all are in one ``unit``. ``first`` [L or 1, H, r] stands for the first weight.
    The lanes may have messages of their own, one each or one for several that follow each other: ``received`` then has a leading axis [P],
    of as many messages as divide the lanes, and ``first`` may have it too.
    """

    def __init__(self, names: Sequence[str], params: Params, first: Tensor, received: Params, unit: float | None = None) -> None:
        self.names = names
        self.weights = [first if index == 0 else params[name] for index, name in enumerate(names)]
        self.biases = [params[bias_of(name)] for name in names]
        self.there: list[Tensor] = []  # [.., out, in + 1]: the received weight and bias, each over its size
        self.over: list[tuple[Tensor, Tensor]] = []  # one over the sizes of weight and bias
        self.rest: Tensor | float = 0.0
        for name in names:
            weight, bias = received[name], received[bias_of(name)]
            long, short = weight.square().sum((-2, -1)), bias.square().sum(-1)
            sizes = [size.clamp_min(1e-300) if unit is None else size.new_full((), unit) for size in (long, short)]
            a, b = (1 / size[..., None, None] for size in sizes)
            self.there.append(torch.cat([weight * a, bias[..., None] * b], dim=-1))
            self.over.append((a, b))
            self.rest = self.rest + long / sizes[0] + short / sizes[1]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances [L] at records ``x`` [L, B, r] with probabilities ``y`` [L or 1, B, K]; differentiable once, in ``x`` and ``y``."""
        found: Tensor = _Distance.apply(x, y, self)  # type: ignore[no-untyped-call]
        return found

    def with_slopes(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances [L], their slopes by ``x`` [L, B, r] and by ``y`` [L, B, K]."""
        depth, batch = len(self.weights), x.shape[1]
        values, on = [x], []
        for index in range(depth - 1):
            inside = self._layer(values[-1], index)
            on.append((inside > 0).to(inside.dtype))  # once, not at each of four products
            values.append(inside.relu())
        share = self._layer(values[-1], depth - 1).softmax(-1)
        whole = y.sum(-1, keepdim=True)
        slope = (share * whole - y) / batch
        apart, by_slope, by_value = _for_lanes(self.rest, len(x)), [slope] * depth, list(values)
        for index in reversed(range(depth)):
            value, there = values[index], self.there[index]
            a, b = (_for_lanes(size, len(x)) for size in self.over[index])
            long = pad(value, (0, 1), value=1.0)  # the bias is the weight of a constant input
            among, between = slope @ slope.mT, value @ value.mT * a + b
            met = _times(slope, there)
            apart = apart + (among * between).sum((1, 2)) - 2 * (met * long).sum((1, 2))
            by_slope[index] = 2 * (between @ slope - _times(long, there.mT))
            by_value[index] = 2 * (a * (among @ value) - met[..., :-1])
            if index:
                slope = (slope @ self.weights[index]) * on[index - 1]
        assert isinstance(apart, Tensor)
        up = by_slope[0]
        for index in range(1, depth):  # the slopes of a lower layer are made of those above it
            up = by_slope[index] + (up * on[index - 1]) @ self.weights[index].mT
        shared = up * whole / batch
        down = share * (shared - (shared * share).sum(-1, keepdim=True))
        by_target = ((up * share).sum(-1, keepdim=True) - up) / batch
        for index in reversed(range(depth)):
            down = _times(down, self.weights[index]) + by_value[index]
            if index:
                down = down * on[index - 1]
        return apart, down, by_target

    def _layer(self, value: Tensor, index: int) -> Tensor:
        weight, bias = self.weights[index], self.biases[index]
        return linear(value, weight, bias) if weight.ndim == 2 else _times(value, weight.mT) + bias


def _times(value: Tensor, matrix: Tensor) -> Tensor:
    """Lanes [L, B, i] times one matrix [i, o], or times a matrix [P, i, o] for L / P of them each, read once for these."""
    if matrix.ndim == 2:
        return value @ matrix
    return (value.reshape(len(matrix), -1, value.shape[-1]) @ matrix).view(*value.shape[:2], -1)


def _for_lanes(size: Tensor | float, lanes: int) -> Tensor | float:
    """What each of P messages has, for each of its lanes."""
    if isinstance(size, Tensor) and size.ndim > 0 and 1 < len(size) < lanes:
        return size.repeat_interleave(lanes // len(size), 0)
    return size


class _Distance(torch.autograd.Function):
    """Hands the slopes found on the way forward to whoever asks for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gap: Gap) -> Tensor:
        apart, by_x, by_y = gap.with_slopes(x, y)
        ctx.save_for_backward(by_x, by_y)
        ctx.shared = y.shape[0] != x.shape[0]
        return apart

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor | None, None]:
        by_x, by_y = ctx.saved_tensors
        scale = slopes[0][:, None, None]
        if not ctx.needs_input_grad[1]:
            return by_x * scale, None, None
        by_target = by_y * scale
        return by_x * scale, by_target.sum(0, keepdim=True) if ctx.shared else by_target, None
