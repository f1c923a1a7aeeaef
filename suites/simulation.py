"""Kerckhoffs made executable: the public client algorithm as a differentiable function of records, labels and key.

Dropout and noise are random and not simulated; clipping is. Everything is functional, so ``torch.func.vmap`` batches it over restarts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from suites.contracts import Clip, Params, Target
from suites.functional_call import outputs_of

Loss = Callable[[Tensor, Tensor], Tensor]
_ADAM = (0.9, 0.999, 1e-8)  # torch's defaults, which the engine uses


def simulate(module: nn.Module, loss: Loss, target: Target, x: Tensor, y: Tensor, clip: Clip | None, order: Tensor | None = None) -> Params:
    """The message at ``target`` if ``x`` [B, F'] and ``y`` were the batch: a gradient, or the update after its steps.

    A step takes all records, or those that its row of ``order`` [steps, B] marks with 1. A clipped sum of a minibatch is divided by what
    the protocol calls one, which the last of an epoch may not fill.
    """
    named = dict(module.named_parameters())
    fixed: Params = {name: buffer for name, buffer in module.named_buffers() if name not in target.params}
    fixed |= {name: value.detach() for name, value in target.params.items() if name not in named}
    start = {name: target.params[name].detach() for name in named}
    # An attack may compute in double precision; the key's and the masks' buffers follow.
    precision = next((value.dtype for value in start.values()), x.dtype)
    fixed = {name: value.to(precision) if value.is_floating_point() else value for name, value in fixed.items()}

    def gradient(params: Params, step: int = 0) -> Params:
        taken = None if order is None else order[step].to(x)
        if clip is None:
            return _mean_gradient(module, loss, params, fixed, x, y, taken)
        full = len(x) if taken is None or target.minibatch is None else min(target.minibatch, len(x))
        return _clipped_gradient(module, loss, params, fixed, x, y, taken, clip.norm, full)

    if target.optimiser == "gradient":
        return gradient(start)
    moved = _sgd(gradient, start, target) if target.optimiser == "sgd" else _adam(gradient, start, target)
    return {name: moved[name] - start[name] for name in start}


class _NormThenScale(TorchFunctionMode):
    """A layer norm and its affine part as two calls.

    Under ``vmap`` torch 2.13 differentiates the gradient of the one fused call wrongly (by some per cent, silently), which sends every
    search that batches its starts astray; of the two calls it is right.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.layer_norm:
            return func(*args, **(kwargs or {}))
        named = {**dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args)), **(kwargs or {})}
        out = functional.layer_norm(named["input"], named["normalized_shape"], eps=named.get("eps", 1e-5))
        out = out if named.get("weight") is None else out * named["weight"]
        return out if named.get("bias") is None else out + named["bias"]


def _outputs(module: nn.Module, params: Params, x: Tensor) -> Tensor:
    with _NormThenScale():
        return outputs_of(module, params, x)


def _mean_gradient(module: nn.Module, loss: Loss, params: Params, fixed: Params, x: Tensor, y: Tensor, taken: Tensor | None) -> Params:
    def objective(p: Params) -> Tensor:
        each = loss(_outputs(module, {**p, **fixed}, x), y)
        return each.mean() if taken is None else (each * taken).sum() / taken.sum()

    result: Params = grad(objective)(params)
    return result


def _clipped_gradient(
    module: nn.Module, loss: Loss, params: Params, fixed: Params, x: Tensor, y: Tensor, taken: Tensor | None, norm: float, full: int
) -> Params:
    def record(p: Params, one_x: Tensor, one_y: Tensor) -> Tensor:
        return loss(_outputs(module, {**p, **fixed}, one_x[None]), one_y[None]).sum()

    each: Params = vmap(grad(record), in_dims=(None, 0, 0))(params, x, y)
    norms = torch.stack([g.flatten(1).pow(2).sum(1) for g in each.values()]).sum(0).clamp_min(1e-24).sqrt()
    factor = (norm / norms).clamp_max(1.0) * (1.0 if taken is None else taken)
    return {name: torch.einsum("b,b...->...", factor, g) / full for name, g in each.items()}


def _sgd(gradient: Callable[[Params, int], Params], params: Params, target: Target) -> Params:
    step = {name: torch.zeros_like(value) for name, value in params.items()}
    for t in range(target.steps):
        slope = gradient(params, t)
        step = {name: target.momentum * step[name] + slope[name] for name in params} if target.momentum else slope
        params = {name: value - target.lr * step[name] for name, value in params.items()}
    return params


def _adam(gradient: Callable[[Params, int], Params], params: Params, target: Target) -> Params:
    first, second, epsilon = _ADAM
    m = {name: torch.zeros_like(value) for name, value in params.items()}
    v = dict(m)
    for t in range(1, target.steps + 1):
        g = gradient(params, t - 1)
        m = {name: first * m[name] + (1 - first) * g[name] for name in g}
        v = {name: second * v[name] + (1 - second) * g[name] ** 2 for name in g}
        scale = target.lr / (1 - first**t)
        # The square root's slope at zero is infinite; parameters that the batch does not touch stay where they are.
        root = {name: (v[name] / (1 - second**t)).clamp_min(1e-30).sqrt() + epsilon for name in g}
        params = {name: value - scale * m[name] / root[name] for name, value in params.items()}
    return params
