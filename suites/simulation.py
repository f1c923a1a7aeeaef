"""Kerckhoffs made executable: the public client algorithm as a differentiable function of records, labels and key.

Dropout and noise are random and not simulated; clipping is. Everything is functional, so ``torch.func.vmap`` batches it over restarts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from suites.contracts import Clip, Params, Target

Loss = Callable[[Tensor, Tensor], Tensor]
_ADAM = (0.9, 0.999, 1e-8)  # torch's defaults, which the engine uses


def simulate(module: nn.Module, loss: Loss, target: Target, x: Tensor, y: Tensor, clip: Clip | None) -> Params:
    """The message at ``target`` if ``x`` [B, F'] and ``y`` were the batch: a gradient, or the update after its full-batch steps."""
    named = dict(module.named_parameters())
    fixed: Params = {name: buffer for name, buffer in module.named_buffers() if name not in target.params}
    fixed |= {name: value.detach() for name, value in target.params.items() if name not in named}
    start = {name: target.params[name].detach() for name in named}
    # An attack may compute in double precision; the key's and the masks' buffers follow.
    precision = next((value.dtype for value in start.values()), x.dtype)
    fixed = {name: value.to(precision) if value.is_floating_point() else value for name, value in fixed.items()}

    def gradient(params: Params) -> Params:
        if clip is None:
            return _mean_gradient(module, loss, params, fixed, x, y)
        return _clipped_gradient(module, loss, params, fixed, x, y, clip.norm)

    if target.optimiser == "gradient":
        return gradient(start)
    moved = _sgd(gradient, start, target) if target.optimiser == "sgd" else _adam(gradient, start, target)
    return {name: moved[name] - start[name] for name in start}


def _mean_gradient(module: nn.Module, loss: Loss, params: Params, fixed: Params, x: Tensor, y: Tensor) -> Params:
    def objective(p: Params) -> Tensor:
        return loss(functional_call(module, {**p, **fixed}, (x,)), y).mean()

    result: Params = grad(objective)(params)
    return result


def _clipped_gradient(module: nn.Module, loss: Loss, params: Params, fixed: Params, x: Tensor, y: Tensor, norm: float) -> Params:
    def record(p: Params, one_x: Tensor, one_y: Tensor) -> Tensor:
        return loss(functional_call(module, {**p, **fixed}, (one_x[None],)), one_y[None]).sum()

    each: Params = vmap(grad(record), in_dims=(None, 0, 0))(params, x, y)
    norms = torch.stack([g.flatten(1).pow(2).sum(1) for g in each.values()]).sum(0).clamp_min(1e-24).sqrt()
    factor = (norm / norms).clamp_max(1.0)
    return {name: torch.einsum("b,b...->...", factor, g) / len(x) for name, g in each.items()}


def _sgd(gradient: Callable[[Params], Params], params: Params, target: Target) -> Params:
    for _ in range(target.steps):
        step = gradient(params)
        params = {name: value - target.lr * step[name] for name, value in params.items()}
    return params


def _adam(gradient: Callable[[Params], Params], params: Params, target: Target) -> Params:
    first, second, epsilon = _ADAM
    m = {name: torch.zeros_like(value) for name, value in params.items()}
    v = dict(m)
    for t in range(1, target.steps + 1):
        g = gradient(params)
        m = {name: first * m[name] + (1 - first) * g[name] for name in g}
        v = {name: second * v[name] + (1 - second) * g[name] ** 2 for name in g}
        scale = target.lr / (1 - first**t)
        # The square root's slope at zero is infinite; parameters that the batch does not touch stay where they are.
        root = {name: (v[name] / (1 - second**t)).clamp_min(1e-30).sqrt() + epsilon for name in g}
        params = {name: value - scale * m[name] / root[name] for name, value in params.items()}
    return params
