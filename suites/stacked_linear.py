"""A linear layer for many lanes at once, with gradients in the layout of its weights.

Under ``torch.func.vmap`` torch adds the bias in a pass of its own and returns the weight's gradient transposed, so that every step copies
it once more; on a CPU that is a quarter of the layer's time. Batched inputs take ``torch.baddbmm`` here, everything else
``torch.nn.functional.linear``.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Batched(torch.autograd.Function):
    """[L, B, in], [L, out, in], [L, out] -> [L, B, out]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(delta, weight) if of_x else None,
            torch.bmm(delta.mT, x) if of_weight else None,
            delta.sum(1) if of_bias else None,
        )


class _Linear(torch.autograd.Function):
    """``functional.linear`` whose batching rule is ``_Batched``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return delta @ weight, delta.mT @ x, delta.sum(0)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        lanes = info.batch_size
        x, weight, bias = (t.expand(lanes, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, in_dims, strict=True))
        out: Tensor = _Batched.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out, 0


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    if x.dim() != 2:
        return functional.linear(x, layer.weight, layer.bias)
    out: Tensor = _Linear.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return out


def stackable(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose plain linear layers with a bias are fast under vmap; parameter names and values are the same."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if type(layer) is nn.Linear and layer.bias is not None:
            layer.forward = partial(_forward, layer)  # type: ignore[method-assign]
    return module
