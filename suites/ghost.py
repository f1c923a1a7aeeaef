"""How a network uses its parameters, seen while it runs: what one-pass clipping has to know.

Every torch operation of a forward pass is watched. Three uses of a parameter have per-record gradients in closed form: the weight and
bias of ``linear`` on [B, in], those of ``layer_norm`` on [B, width], and a vector added to [B, width]. At each such place a zero *probe* is
added to the output; its gradient is the output's derivative d [B, width], record by record. Any other use of a parameter ends the watch.

A module with ``batch_shared = True`` computes one vector [m] for the whole batch, from its parameters and no record (a key encoder). It is
handed on as [B, m] with a probe, and record i's gradient of its parameters is J^T v_i, where v_i is the probe's gradient and J the
vector's Jacobian, one for the batch: its squared norm is v_i^T (J J^T) v_i. What follows such a module must take [m] and [B, m] alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from suites.contracts import Params

Probes = Callable[[str, int], Tensor]
_ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


class DoesNotFit(Exception):
    """The network uses a parameter in a way whose per-record gradient has no closed form here."""


@dataclass(frozen=True, slots=True)
class Use:
    """One place where parameters meet the records: y = W a + b, y = w x̂ + b, or y = a + b. Names are None where nothing is trained."""

    kind: Literal["linear", "layer_norm", "shift"]
    weight: str | None
    bias: str | None

    def squared_norms(self, a: Tensor | None, d: Tensor) -> Tensor:
        """|g_i|^2 [..., B] of weight and bias, from inputs a (x̂) and output derivatives d [..., B, width]."""
        squared = d.square().sum(-1)
        total = torch.zeros_like(squared) if self.bias is None else squared
        if self.weight is None or a is None:
            return total
        if self.kind == "layer_norm":
            return total + (a * d).square().sum(-1)
        size: Tensor = torch.linalg.vector_norm(a, dim=-1)
        return total + size.square() * squared

    def sums(self, a: Tensor | None, d: Tensor) -> Params:
        """Gradients summed over records."""
        total: Params = {}
        if self.weight is not None and a is not None:
            total[self.weight] = d.mT @ a if self.kind == "linear" else (a * d).sum(-2)
        if self.bias is not None:
            total[self.bias] = d.sum(-2)
        return total


class Watch(TorchFunctionMode):
    """Records each use of the parameters ``names`` (by identity) and adds the probe that carries the use's name.

    Parameters
    ----------
    names : id of a tensor -> parameter name.
    probes : a probe [B, width] for the use of that name and width.
    records : B.
    """

    def __init__(self, names: Mapping[int, str], probes: Probes, records: int) -> None:
        super().__init__()
        self._names, self._probes, self._records = names, probes, records
        self.uses: dict[str, Use] = {}
        self.inputs: Params = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        touched = [self._names[id(tensor)] for tensor in _tensors((args, kwargs)) if id(tensor) in self._names]
        if not touched:
            return func(*args, **kwargs)
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if func in _ADDITIONS and not kwargs and len(args) == 2:
            return self._shift(*args)
        result = func(*args, **kwargs)
        if any(True for _ in _tensors(result)):
            raise DoesNotFit(f"{', '.join(touched)} in {getattr(func, '__name__', func)}")
        return result  # a shape, a type: no gradient runs through it

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        use = Use("linear", self._name(weight), self._name(bias))
        return self._probed(use, input, functional.linear(input, weight, bias), keep=input)

    def _layer_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        if len(normalized_shape) != 1:
            raise DoesNotFit("layer_norm over several axes")
        use = Use("layer_norm", self._name(weight), self._name(bias))
        output = functional.layer_norm(input, normalized_shape, weight, bias, eps)
        return self._probed(use, input, output, keep=functional.layer_norm(input.detach(), normalized_shape, eps=eps))

    def _shift(self, left: Tensor, right: Tensor) -> Tensor:
        vector, other = (left, right) if id(left) in self._names else (right, left)
        if not isinstance(other, Tensor) or vector.dim() != 1 or other.shape[-1:] != vector.shape:
            raise DoesNotFit("a parameter is added to something that is not [B, width]")
        return self._probed(Use("shift", None, self._name(vector)), other, other + vector, keep=None)

    def _probed(self, use: Use, input: Tensor, output: Tensor, keep: Tensor | None) -> Tensor:
        place = use.weight or use.bias
        known = {name for each in self.uses.values() for name in (each.weight, each.bias)}
        per_record = input.dim() == 2 and len(input) == self._records and id(input) not in self._names
        # A bias without its weight is no use of ours: the weight would then be something computed.
        whole = use.kind == "shift" or use.weight is not None
        if place is None or not per_record or not whole or {use.weight, use.bias} & (known - {None}):
            raise DoesNotFit(place)
        self.uses[place] = use
        if keep is not None:
            self.inputs[place] = keep.detach()
        return output + self._probes(place, output.shape[-1])

    def _name(self, tensor: Tensor | None) -> str | None:
        return self._names.get(id(tensor))


@contextmanager
def expanded(modules: Mapping[str, nn.Module], probes: Probes, records: int, outputs: Params) -> Iterator[None]:
    """While open, each batch-shared module hands on [B, m] plus its probe; its own vector [m] is left in ``outputs``."""

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor | None], Tensor | None]:
        def hand_on(_: nn.Module, __: Any, output: Tensor | None) -> Tensor | None:
            if output is None:  # no key
                return None
            if output.dim() != 1:
                raise DoesNotFit(name)
            outputs.setdefault(name, output)  # called again, it says the same
            return outputs[name].detach().expand(records, -1) + probes(name, len(output))

        return hand_on

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True)
class Jacobian:
    """Of the batch-shared vectors [L, m] by their parameters [L, ...]: ``rows[name]`` is [m, L, ...]."""

    rows: Params

    @classmethod
    def of(cls, vector: Tensor, parameters: Params) -> Jacobian:
        basis = torch.eye(vector.shape[-1], dtype=vector.dtype, device=vector.device)
        basis = basis.unsqueeze(1).expand(-1, len(vector), -1)  # lanes do not touch each other: one vector asks all of them at once
        rows = torch.autograd.grad(vector, list(parameters.values()), basis, is_grads_batched=True, materialize_grads=True)
        return cls(dict(zip(parameters, rows, strict=True)))

    def squared_norms(self, v: Tensor) -> Tensor:
        """v_i^T (J J^T) v_i, [L, B] from v [L, B, m]."""
        gram = sum(torch.einsum("mlp,nlp->lmn", j.flatten(2), j.flatten(2)) for j in self.rows.values())
        return ((v @ gram) * v).sum(-1)

    def sums(self, v: Tensor) -> Params:
        """Sum over records of J^T v_i, [L, ...] by name."""
        return {name: torch.einsum("lm,ml...->l...", v.sum(-2), rows) for name, rows in self.rows.items()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
