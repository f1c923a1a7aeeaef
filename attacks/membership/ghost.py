"""Inner products of updates with every record's gradient, without ever forming a gradient.

A linear layer's gradient of record i is ``d_i a_i^T`` with input a_i and output derivative d_i, so its inner product with a weight
delta D is ``d_i . (D a_i)`` and its squared norm ``|d_i|^2 |a_i|^2``. Inputs and outputs are noted while the public model function
runs, so any model built from ``linear`` and ``layer_norm`` calls will do, keyed ones included: there the *effective* weight of the call
is compared before and after the update. Parameters that enter no such call stay out of both products and norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from suites.contracts import Params, Skip
from suites.room import by_rows

Predict = Callable[[Params], Tensor]  # parameters -> outputs [n, K] of fixed records


@dataclass(slots=True)
class _Call:
    inside: Tensor  # a: input of a linear layer, or the normalised input of a layer norm [n, I]
    outside: Tensor  # its output [n, O]
    weight: Tensor
    bias: Tensor | None
    elementwise: bool


class _Notes(TorchFunctionMode):
    """Writes down the linear and layer-norm calls of one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and out.ndim == 2:
            named = {**dict(zip(("input", "weight", "bias"), args)), **(kwargs or {})}
            self.calls.append(_Call(named["input"], out, named["weight"], named.get("bias"), False))
        elif func is torch.nn.functional.layer_norm and out.ndim == 2:
            named = {**dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args)), **(kwargs or {})}
            if named.get("weight") is not None:
                with torch.no_grad():
                    plain = torch.nn.functional.layer_norm(named["input"], named["normalized_shape"], eps=named.get("eps", 1e-5))
                self.calls.append(_Call(plain, out, named["weight"], named.get("bias"), True))
        return out


@dataclass(frozen=True, slots=True)
class Products:
    """Of S updates u and n records' *negative* gradients g: u . g, |g|^2 and |u|^2, and the same over bias vectors alone."""

    dot: Tensor  # [S, n]
    record: Tensor  # [n]
    update: Tensor  # [S]
    bias_dot: Tensor  # [S, n]
    bias_record: Tensor  # [n]
    bias_update: Tensor  # [S]

    def cosine(self) -> Tensor:
        """[S, n]; higher for members."""
        return self.dot / (self.record.sqrt()[None] * self.update.sqrt()[:, None]).clamp_min(1e-30)

    def bias_cosine(self) -> Tensor:
        """[S, n], over bias vectors alone."""
        return self.bias_dot / (self.bias_record.sqrt()[None] * self.bias_update.sqrt()[:, None]).clamp_min(1e-30)


def cosines(predict: Predict, loss: Callable[[Tensor], Tensor], params: Params, updates: Sequence[Params]) -> Tensor:
    """Cosine [S, n] of each update with the negative gradient of each record's loss at ``params``; see ``products``."""
    return products(predict, loss, params, updates).cosine()


def products(predict: Predict, loss: Callable[[Tensor], Tensor], params: Params, updates: Sequence[Params]) -> Products:
    """Inner products of updates and records' negative gradients at ``params``.

    ``loss`` maps outputs [n, K] to per-record losses [n]. Raises ``Skip`` where the model function has no linear layer.
    """
    leaves = {name: t.detach().requires_grad_() if t.is_floating_point() else t for name, t in params.items()}
    with torch.enable_grad(), _Notes() as notes:
        outputs = predict(leaves)
    calls = _on_records(notes.calls, len(outputs))
    if not calls:
        raise Skip("the model function calls no linear layer on [n, width] inputs, so gradients cannot be read from activations")
    with torch.enable_grad():
        slopes = torch.autograd.grad(loss(outputs).sum(), [call.outside for call in calls], allow_unused=True)
    used = [(index, call, -slope) for index, (call, slope) in enumerate(zip(calls, slopes)) if slope is not None]
    names = {id(tensor): name for name, tensor in leaves.items()}
    with torch.no_grad():
        deltas = _Deltas(predict, params, updates, calls, names)
        zero = torch.zeros(())
        dot, record, size, bias_dot, bias_record, bias_size = zero, zero, zero, zero, zero, zero
        for index, call, slope in used:
            a, norms = call.inside, slope.square()
            weight, bias = deltas.of(index, call)  # [S, O, I] or [S, O], [S, O]
            if call.elementwise:
                dot = dot + weight @ (slope * a).T
                record = record + (norms * a.square()).sum(1)
            else:
                dot = dot + torch.einsum("nso,no->sn", (a @ weight.flatten(0, 1).T).view(len(a), *weight.shape[:2]), slope)
                record = record + norms.sum(1) * by_rows(lambda part: part.square().sum(1), a)
            size = size + weight.flatten(1).square().sum(1)
            if bias is not None:
                bias_dot, bias_record, bias_size = bias_dot + bias @ slope.T, bias_record + norms.sum(1), bias_size + bias.square().sum(1)
        return Products(dot + bias_dot, record + bias_record, size + bias_size, bias_dot, bias_record, bias_size)


def first_slopes(predict: Predict, loss: Callable[[Tensor], Tensor], params: Params, width: int | None = None) -> Tensor:
    """Minus the derivative [n, H] of each record's loss by the output of the first linear layer that the model calls.

    ``width`` of that layer's input tells it from a keyed layer's own, which may read as many points as there are records.
    """
    leaves = {name: t.detach().requires_grad_() if t.is_floating_point() else t for name, t in params.items()}
    with torch.enable_grad(), _Notes() as notes:
        outputs = predict(leaves)
    read = [call for call in notes.calls if not call.elementwise and len(call.inside) == len(outputs)]
    outside = [call.outside for call in read if width is None or call.inside.shape[1] == width]
    if not outside:
        raise Skip("the model function calls no linear layer on [n, width] inputs, so gradients cannot be read from activations")
    with torch.enable_grad():
        slope: Tensor = torch.autograd.grad(loss(outputs).sum(), outside[0])[0]
    return -slope


class _Deltas:
    """How each call's weight and bias change with each update: the update itself where they are parameters, else by a second run."""

    def __init__(self, predict: Predict, params: Params, updates: Sequence[Params], calls: Sequence[_Call], names: dict[int, str]) -> None:
        self.updates, self.names = updates, names
        self.after: list[list[_Call]] = []
        if any(id(t) not in names for call in calls for t in (call.weight, call.bias) if t is not None):
            for update in updates:
                moved = {name: (t + update[name] if name in update else t).detach() for name, t in params.items()}
                for tensor in moved.values():
                    tensor.requires_grad_(tensor.is_floating_point())
                with torch.enable_grad(), _Notes() as notes:
                    outputs = predict(moved)
                self.after.append(_on_records(notes.calls, len(outputs)))

    def of(self, index: int, call: _Call) -> tuple[Tensor, Tensor | None]:
        weight = self._delta(call.weight, [calls[index].weight for calls in self.after])
        if call.bias is None:
            return weight, None
        return weight, self._delta(call.bias, [_given(calls[index].bias) for calls in self.after])

    def _delta(self, before: Tensor, after: list[Tensor]) -> Tensor:
        name = self.names.get(id(before))
        if name is not None:
            return torch.stack([update[name] for update in self.updates]) if name in self.updates[0] else _zeros(before, len(self.updates))
        return torch.stack([tensor - before for tensor in after]).detach()


def _on_records(calls: Sequence[_Call], records: int) -> list[_Call]:
    """The calls that saw the records; a keyed model also runs layers on its key's points, whose gradients no record has to itself."""
    return [call for call in calls if call.outside.requires_grad and len(call.outside) == records]


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # the same model function called the same layer with a bias
    return tensor


def _zeros(like: Tensor, count: int) -> Tensor:
    return torch.zeros(count, *like.shape, dtype=like.dtype, device=like.device)
