"""How far simulated gradients lie from a received one, from one plain pass over all lanes' records and without forming a gradient.

All lanes share the model, so their records are one large batch to it; and since a linear layer's gradient is the product of its slopes and
inputs, distances follow from products of a lane's few records (as in ``gap``). Inputs and outputs are noted while the public
model function runs, so any network of ``linear`` and ``layer_norm`` calls on its own parameters will do. Others (keyed layers, clipping)
are left to ``Observation.simulate``, against which whoever uses this checks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from suites.contracts import Observation, Params, Secret


@dataclass(frozen=True, slots=True)
class _Call:
    inside: Tensor  # input of a linear layer, or the normalised input of a layer norm [n, I]
    outside: Tensor  # its output [n, O]
    weight: Tensor
    bias: Tensor | None
    elementwise: bool


class _Notes(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is functional.linear:
            named = {**dict(zip(("input", "weight", "bias"), args)), **(kwargs or {})}
            self.calls.append(_Call(named["input"], out, named["weight"], named.get("bias"), False))
        elif func is functional.layer_norm:
            named = {**dict(zip(("input", "normalized_shape", "weight", "bias", "eps"), args)), **(kwargs or {})}
            if named.get("weight") is not None:
                plain = functional.layer_norm(named["input"], named["normalized_shape"], eps=named.get("eps", 1e-5))
                self.calls.append(_Call(plain, out, named["weight"], named.get("bias"), True))
        return out


class Noted:
    """Distances to one received gradient.

    ``params`` is the checkpoint with its first weight as the records' coordinates need it, ``soft`` [B, K] the records' labels.
    """

    def __init__(self, seen: Observation, params: Params, received: Params, soft: Tensor, key: Secret | None) -> None:
        self.seen, self.params, self.received, self.soft, self.key = seen, params, received, soft, key
        self.names = {id(tensor): name for name, tensor in params.items()}

    def distances(self, x: Tensor) -> Tensor:
        """Sum over tensors of the relative squared distance [L] for records ``x`` [L, B, r], differentiable in them.

        Raises ``KeyError`` where the network has parameters that no noted call read, or reads something else.
        """
        with torch.enable_grad():
            free = x if x.requires_grad else x.detach().requires_grad_()
            found = self._distances(free)
        return found if x.requires_grad else found.detach()

    def _distances(self, x: Tensor) -> Tensor:
        lanes, batch = x.shape[:2]
        with _Notes() as notes:
            outputs = self.seen.predict(self.params, x.flatten(0, 1), self.key)
        loss = self.seen.loss(outputs, self.soft.repeat(lanes, 1)).sum() / batch
        slopes = torch.autograd.grad(loss, [call.outside for call in notes.calls], create_graph=True)
        left, parts = set(self.received), []
        for call, flat in zip(notes.calls, slopes):
            slope, inside = flat.view(lanes, batch, -1), call.inside.view(lanes, batch, -1)
            name = self._take(call.weight, left)
            there, size = self.received[name], self.received[name].square().sum().clamp_min(1e-300)
            if call.elementwise:
                gap = ((slope * inside).sum(1) - there).square().sum(1)
            else:
                own = ((slope @ slope.mT) * (inside @ inside.mT)).sum((1, 2))
                gap = own - 2 * ((slope @ there) * inside).sum((1, 2)) + size
            parts.append(gap / size)
            if call.bias is not None:
                there = self.received[self._take(call.bias, left)]
                parts.append((slope.sum(1) - there).square().sum(1) / there.square().sum().clamp_min(1e-300))
        if left:
            raise KeyError(f"no noted call read {', '.join(sorted(left))}")
        return torch.stack(parts).sum(0)

    def _take(self, tensor: Tensor, left: set[str]) -> str:
        """The parameter's name; each may be read once."""
        name = self.names[id(tensor)]
        left.remove(name)
        return name
