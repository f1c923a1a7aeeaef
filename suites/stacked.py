"""One network run for many lanes at once: every parameter carries a leading lane axis and activations are [L, B, ...].

Under ``torch.func.vmap`` each operation of a small network is unpacked and repacked in Python, and a linear layer's weight gradient comes
out transposed; on a CPU both cost as much as the mathematics. Where a network consists of layers that can take the lane axis themselves
it runs without vmap, which one forward pass of both decides: ``stacked`` gives None where they differ.

A layer with parameters takes the lane axis if it is an ``nn.Linear`` or an ``nn.LayerNorm`` over one axis, or if its class says
``lane_axis = True``: its forward then finds its own tensors and those of its children as [L, ...] and is called on [L, B, ...].
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from suites.contracts import Params
from suites.functional_call import outputs_of
from suites.randomness import stream

_CHECKED_LANES, _CHECKED_RECORDS = 2, 3


class _Batched(torch.autograd.Function):
    """[L, B, in], [L, out, in], [L, out] -> [L, B, out], with the weight's gradient in the weight's own layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            torch.bmm(delta, weight) if of_x else None,
            torch.bmm(delta.mT, x) if of_weight else None,
            delta.sum(1) if of_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``functional.linear``, also for weights [L, out, in] on inputs [L, B, in]."""
    if weight.dim() == 2:
        return functional.linear(x, weight, bias)
    out: Tensor = _Batched.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    out = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]  # torch types neither as optional
    if weight is None:
        return out
    return out * weight.unsqueeze(1) if bias is None else torch.addcmul(bias.unsqueeze(1), out, weight.unsqueeze(1))


class Stacked:
    """A copy of a module that runs for L lanes; ``hold`` gives it tensors [L, ...] by name, a call runs it on [L, B, ...]."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module)
        self._places = places(self.module)
        for layer in self.module.modules():
            own = _FORWARDS.get(type(layer).forward)
            if own is not None:
                layer.forward = partial(own, layer)

    def hold(self, tensors: Params) -> None:
        for name, tensor in tensors.items():
            for store, key in self._places[name]:
                store[key] = tensor

    def __call__(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.module(x)
        return outputs


_FORWARDS: dict[Any, Callable[[Any, Tensor], Tensor]] = {nn.Linear.forward: _linear, nn.LayerNorm.forward: _layer_norm}


def places(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Where a module keeps each parameter and buffer: by its first name, every place that holds it."""
    names = {id(tensor): name for name, tensor in [*module.named_buffers(), *module.named_parameters()]}
    found: dict[str, list[tuple[dict[str, Any], str]]] = {name: [] for name in names.values()}
    for part in module.modules():
        stores: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for store in stores:
            for key, tensor in store.items():
                if tensor is not None:
                    found[names[id(tensor)]].append((store, key))
    return found


def stacked(module: nn.Module, private: Params, x: Tensor) -> Stacked | None:
    """``module`` for many lanes, or None where it has to go through vmap.

    Parameters
    ----------
    private : non-persistent buffers by name, [L, ...]; the network is tried with those of its first two lanes.
    x : Tensor
        Some inputs [n, F].
    """
    if not all(_takes_lanes(layer) for layer in module.modules()):
        return None
    lanes = min(_CHECKED_LANES, *(len(tensor) for tensor in private.values())) if private else _CHECKED_LANES
    draw = stream("stacked", "check")  # not a small seed: another's data may be drawn from it

    def shifted(tensor: Tensor) -> Tensor:  # a zero start must not hide a difference
        noise = torch.randn(lanes, *tensor.shape, generator=draw, dtype=tensor.dtype).to(tensor.device)
        return tensor.detach() + 0.1 * noise

    tensors = {name: shifted(tensor) for name, tensor in module.named_parameters()}
    tensors |= {name: tensor[:lanes] for name, tensor in private.items()}
    inputs = torch.stack([x[:_CHECKED_RECORDS]] * lanes)
    candidate = Stacked(module)
    with torch.no_grad():
        expected = torch.func.vmap(partial(outputs_of, module))(tensors, inputs)
        try:
            candidate.hold(tensors)
            found = candidate(inputs)
        except (RuntimeError, IndexError, ValueError):  # its own forward reads the record axis by position
            return None
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    return candidate if same else None


def _takes_lanes(layer: nn.Module) -> bool:
    if getattr(layer, "lane_axis", False) or type(layer).forward is nn.Linear.forward:
        return True
    if type(layer).forward is nn.LayerNorm.forward:
        return len(layer.normalized_shape) == 1  # type: ignore[arg-type]
    return not layer._parameters and not layer._buffers
