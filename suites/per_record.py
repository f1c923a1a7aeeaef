"""Clipped sums the slow and sure way: every record's own gradient, whatever the network.

Each record gets a copy of the parameters and runs alone, so one backward pass gives each its own gradient, also where the network would
mix the records of a batch. Costs memory and time of B networks: 50 times a plain step at 9,105 inputs and batch 100.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import vmap  # not grad: its first call imports sympy and dynamo, 1.4 s

from suites.contracts import Params
from suites.functional_call import outputs_of

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [B, K], y [B] or [B, K] -> [B]

_FLOATS_AT_ONCE = 1 << 26  # gradients that are held together: 256 MB


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's arguments; ``lane`` has no leading axis any more."""

    params: Params
    private: Params
    x: Tensor
    y: Tensor
    weight: Tensor
    norm: float
    group: Tensor | None = None  # whose records are clipped as one; None: each by itself

    def lane(self, k: int) -> Batch:
        params, private = pick(self.params, k), pick(self.private, k)
        group = None if self.group is None else self.group[k]
        return Batch(params, private, self.x[k], self.y[k], self.weight[k].to(self.x.dtype), self.norm, group)


class EachRecord:
    """Sum over records of ``min(1, norm / |g_i|) g_i`` and the norms, as ``suites.clipping.ClippedSum`` gives them."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._module = module
        self._loss = loss
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} - set(self._shapes)
        self._own_buffers = {name: buffer.shape for name, buffer in module.named_buffers()}

    def __call__(self, batch: Batch) -> tuple[Params, Tensor]:
        done = [self._lane(batch.lane(k)) for k in range(len(batch.x))]
        return {name: torch.stack([total[name] for total, _ in done]) for name in self._shapes}, torch.stack([norms for _, norms in done])

    def _lane(self, lane: Batch) -> tuple[Params, Tensor]:
        parameters = {name: lane.params[name].detach() for name in self._shapes}
        shared = {name: tensor.detach() for name, tensor in {**lane.params, **lane.private}.items() if name not in parameters}
        shared = {name: tensor for name, tensor in shared.items() if name not in self._tied}  # they follow the parameter they are tied to
        own = {name: shared.pop(name) for name in self.belonging_to_records(lane.private, leading=0)}

        def of_one(parameters: Params, own: Params, x: Tensor) -> Tensor:
            tensors = {**shared, **parameters, **{name: tensor.unsqueeze(0) for name, tensor in own.items()}}
            return outputs_of(self._module, tensors, x.unsqueeze(0)).squeeze(0)

        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        norms = torch.zeros_like(lane.weight)
        for one in () if lane.group is None else torch.unique(lane.group[lane.weight != 0]):
            rows = ((lane.group == one) & (lane.weight != 0)).nonzero().squeeze(1)
            with torch.enable_grad():  # the records share one set of parameters, so the backward pass sums their gradients
                single = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
                mine = {name: tensor[rows] for name, tensor in own.items()}
                outputs = vmap(of_one, in_dims=(None, 0, 0), randomness="different")(single, mine, lane.x[rows])
                loss = (self._loss(outputs, lane.y[rows]) * lane.weight[rows]).sum()
                slopes = torch.autograd.grad(loss, list(single.values()), materialize_grads=True)
            norms[rows] = torch.stack([slope.square().sum() for slope in slopes]).sum().sqrt()
            for name, slope in zip(single, slopes, strict=True):
                total[name] += (lane.norm / norms[rows[0]]).clamp(max=1) * slope
        if lane.group is not None:
            return total, norms
        at_once = max(1, _FLOATS_AT_ONCE // max(1, sum(tensor.numel() for tensor in parameters.values())))
        for start in range(0, len(lane.x), at_once):
            part = slice(start, start + at_once)
            x, y, weight = lane.x[part], lane.y[part], lane.weight[part]
            with torch.enable_grad():  # every record has a copy of the parameters, so one backward pass gives each its own gradient
                copies = {name: tensor.expand(len(x), *tensor.shape).requires_grad_() for name, tensor in parameters.items()}
                outputs = vmap(of_one, randomness="different")(copies, {name: tensor[part] for name, tensor in own.items()}, x)
                slopes = torch.autograd.grad(self._loss(outputs, y).sum(), list(copies.values()), materialize_grads=True)
            norms[part] = sum((slope.flatten(1).square().sum(1) for slope in slopes), torch.zeros_like(weight)).sqrt()
            scale = weight * (lane.norm / norms[part]).clamp(max=1)
            for name, slope in zip(copies, slopes, strict=True):
                total[name] += torch.tensordot(scale, slope, dims=1)
        return total, norms * (lane.weight != 0)

    def belonging_to_records(self, private: Params, leading: int) -> list[str]:
        def per_record(name: str, tensor: Tensor) -> bool:
            if tensor.shape[leading:] == self._own_buffers.get(name):
                return name.rpartition(".")[2] == "mask" and tensor.dim() > leading + 1  # a mask as built, [1], drops nothing
            return True

        return [name for name, tensor in private.items() if per_record(name, tensor)]


def pick(tensors: Params, k: int) -> Params:
    return {name: tensor[k] for name, tensor in tensors.items()}
