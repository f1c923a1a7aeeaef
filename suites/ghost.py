"""How a network uses its parameters, seen while it runs: what one-pass clipping has to know.

Every torch operation of a forward pass is watched. Three uses of a parameter have per-record gradients in closed form: the weight and
bias of ``linear`` on [B, in], those of ``layer_norm`` on [B, width], and a vector added to [B, width]. At each such place the output is
*tapped*, to get its derivative d [B, width], record by record. Any other use of a parameter ends the watch.

A module with ``batch_shared = True`` computes one vector [m] for the whole batch, from its parameters and no record (a key encoder). It is
handed on as [B, m] and tapped, and record i's gradient of its parameters is J^T v_i, where v_i is the tapped derivative and J the
vector's Jacobian, one for the batch: its squared norm is v_i^T (J J^T) v_i. What follows such a module must take [m] and [B, m] alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from suites.contracts import Params

Tap = Callable[[str, Tensor], Tensor]  # name and output [B, width] of a use -> the same values, with which the network goes on
_ADDITIONS = (torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)


class DoesNotFit(Exception):
    """The network uses a parameter in a way whose per-record gradient has no closed form here."""


@dataclass(frozen=True, slots=True)
class Use:
    """One place where parameters meet the records: y = W a + b, y = w x̂ + b, or y = a + b. A name is None where nothing is trained."""

    kind: Literal["linear", "layer_norm", "shift"]
    weight: str | None
    bias: str | None
    eps: float = 0.0  # layer_norm's


@dataclass(frozen=True, slots=True)
class Alike:
    """Uses of one kind and shape, G of them, with inputs a (layer_norm: x̂) [G, ..., B, in] and derivatives d [G, ..., B, width]."""

    uses: tuple[Use, ...]
    a: Tensor | None  # None for shifts
    d: Tensor

    @classmethod
    def grouped(cls, uses: Mapping[str, Use], inputs: Params, deltas: Params) -> list[Alike]:
        """Equal shapes together: a keyed network has dozens of small layers, whose cost is the number of operations."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, use in uses.items():
            shape = (name in inputs and inputs[name].shape[-1], deltas[name].shape[-1])
            groups.setdefault((use.kind, use.bias is None, use.eps, *shape), []).append(name)

        def stack(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)

        def alike(names: list[str]) -> Alike:
            a = stack([inputs[name] for name in names]) if names[0] in inputs else None
            if a is not None and uses[names[0]].kind == "layer_norm":
                a = functional.layer_norm(a, a.shape[-1:], eps=uses[names[0]].eps)
            return cls(tuple(uses[name] for name in names), a, stack([deltas[name] for name in names]))

        return [alike(names) for names in groups.values()]

    def squared_norms(self) -> Tensor:
        """Sum of |g_i|^2 over the uses, [..., B]."""
        if self.a is None:
            return self.d.square().sum((0, -1))
        biased = 0 if self.uses[0].bias is None else 1
        if self.uses[0].kind == "layer_norm":
            return (self.d.square() * (self.a.square() + biased)).sum((0, -1))
        size: Tensor = torch.linalg.vector_norm(self.a, dim=-1)
        return (self.d.square().sum(-1) * (size.square() + biased)).sum(0)

    def products(self) -> Tensor:
        """Inner products of the records' gradients, summed over the uses, [..., B, B]."""
        slopes = self.d @ self.d.mT
        if self.a is None:
            return slopes.sum(0)
        biased = 0 if self.uses[0].bias is None else 1
        if self.uses[0].kind == "layer_norm":
            of_weights = self.d * self.a
            return (of_weights @ of_weights.mT + biased * slopes).sum(0)
        return (slopes * (self.a @ self.a.mT + biased)).sum(0)

    def sums(self, scale: Tensor) -> Params:
        """Gradients summed over records with weights ``scale`` [..., B, 1]."""
        scaled = self.d * scale
        total: Params = {}
        if self.a is not None:
            if self.uses[0].kind == "layer_norm":
                of_weights = (scaled * self.a).sum(-2)
            elif len(self.uses) == 1:  # for one lane an ordinary matrix product, which is faster than a batch of one
                of_weights = (scaled[0].mT @ self.a[0]).unsqueeze(0)
            else:
                of_weights = scaled.mT @ self.a
            total |= {use.weight: each for use, each in zip(self.uses, of_weights, strict=True) if use.weight is not None}
        if self.uses[0].bias is not None:
            total |= {use.bias: each for use, each in zip(self.uses, scaled.sum(-2), strict=True) if use.bias is not None}
        return total


class Watch(TorchFunctionMode):
    """Records each use of the parameters ``names`` (by identity) and taps its output.

    Parameters
    ----------
    names : id of a tensor -> parameter name.
    tap : called with the use's name and its output.
    records : B.
    """

    def __init__(self, names: Mapping[int, str], tap: Tap, records: int) -> None:
        super().__init__()
        self._names, self._tap, self._records = names, tap, records
        self._taken: set[str | None] = set()
        self.uses: dict[str, Use] = {}
        self.inputs: Params = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._touches(args) and not (kwargs and self._touches(kwargs.values())):
            return func(*args, **kwargs)
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func is functional.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if func in _ADDITIONS and not kwargs and len(args) == 2:
            return self._shift(*args)
        result = func(*args, **kwargs)
        if any(isinstance(part, Tensor) for part in (result if isinstance(result, list | tuple) else (result,))):
            raise DoesNotFit(getattr(func, "__name__", str(func)))
        return result  # a shape, a type: no gradient runs through it

    def _touches(self, values: Iterable[Any]) -> bool:
        found = False
        for value in values:  # no any(...): a generator would double the cost of every operation
            found = found or id(value) in self._names or (isinstance(value, list | tuple) and self._touches(value))
        return found

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        use = Use("linear", self._name(weight), self._name(bias))
        return self._used(use, input, functional.linear(input, weight, bias))

    def _layer_norm(
        self, input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        if len(normalized_shape) != 1:
            raise DoesNotFit("layer_norm over several axes")
        use = Use("layer_norm", self._name(weight), self._name(bias), eps)
        return self._used(use, input, functional.layer_norm(input, normalized_shape, weight, bias, eps))

    def _shift(self, left: Tensor, right: Tensor) -> Tensor:
        vector, other = (left, right) if id(left) in self._names else (right, left)
        if not isinstance(other, Tensor) or other.shape[-1:] != vector.shape:
            raise DoesNotFit("a parameter is added to something that is not [B, width]")
        return self._used(Use("shift", None, self._name(vector)), other, other + vector)

    def _used(self, use: Use, input: Tensor, output: Tensor) -> Tensor:
        mine = {use.weight, use.bias} - {None}
        # A bias without its weight is no use of ours: the weight would then be something computed.
        place = use.bias if use.kind == "shift" else use.weight
        if place is None or mine & self._taken or id(input) in self._names or input.dim() != 2 or len(input) != self._records:
            raise DoesNotFit(str(place))
        self._taken |= mine
        self.uses[place] = use
        if use.kind != "shift":
            self.inputs[place] = input
        return self._tap(place, output)

    def _name(self, tensor: Tensor | None) -> str | None:
        return self._names.get(id(tensor))


@contextmanager
def expanded(modules: Mapping[str, nn.Module], tap: Tap, records: int, outputs: Params) -> Iterator[None]:
    """While open, each batch-shared module hands on [B, m], tapped; its own vector [m] is left in ``outputs``."""

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor | None], Tensor | None]:
        def hand_on(_: nn.Module, __: Any, output: Tensor | None) -> Tensor | None:
            if output is None:  # no key
                return None
            if output.dim() != 1:
                raise DoesNotFit(name)
            if name not in outputs:  # called again, it says the same
                outputs[name] = output
                handed[name] = tap(name, output.detach().expand(records, -1))
            return handed[name]

        return hand_on

    handed: Params = {}
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
        count = vector.shape[-1]
        rows: Sequence[Tensor | None] = [None] * len(parameters)
        if vector.requires_grad:
            basis = torch.eye(count, dtype=vector.dtype, device=vector.device)
            basis = basis.unsqueeze(1).expand(-1, len(vector), -1)  # lanes do not touch each other: one vector asks all of them at once
            rows = torch.autograd.grad(vector, list(parameters.values()), basis, is_grads_batched=True, allow_unused=True)
        found = zip(parameters.items(), rows, strict=True)
        return cls({name: p.new_zeros(count, *p.shape) if row is None else row for (name, p), row in found})

    def squared_norms(self, v: Tensor) -> Tensor:
        """v_i^T (J J^T) v_i, [L, B] from v [L, B, m]."""
        return ((v @ self._gram(v)) * v).sum(-1)

    def products(self, v: Tensor) -> Tensor:
        """v_i^T (J J^T) v_j, [L, B, B] from v [L, B, m]."""
        return v @ self._gram(v) @ v.mT

    def _gram(self, v: Tensor) -> Tensor:
        gram = v.new_zeros(len(v), v.shape[-1], v.shape[-1])
        for rows in self.rows.values():
            gram = gram + torch.einsum("mlp,nlp->lmn", rows.flatten(2), rows.flatten(2))
        return gram

    def sums(self, v: Tensor) -> Params:
        """J^T v, [L, ...] by name, from v [L, m] summed over records."""
        return {name: torch.einsum("lm,ml...->l...", v, rows) for name, rows in self.rows.items()}
