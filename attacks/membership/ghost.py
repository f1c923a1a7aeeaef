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

from attacks.membership.per_record import COPIES
from suites.contracts import Observation, Params, Records, Secret, Skip
from suites.room import by_rows

Predict = Callable[[Params, Tensor], Tensor]  # parameters, records [n, F] -> outputs [n, K]
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [n, K], labels [n] -> losses [n]


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


class RecordGradients:
    """What a model function's activations say of the gradients of ``records``; many wide ones pass through it a part at a time.

    ``predict`` maps parameters and records [n, F] to outputs [n, K], ``loss`` outputs and labels to losses [n]; a record's outputs must not
    depend on the others. Raises ``Skip`` where the model function calls no linear layer on the records, or calls others for other records.
    """

    def __init__(self, predict: Predict, loss: Loss, records: Records) -> None:
        self.predict, self.loss, self.records = predict, loss, records
        self._found: dict[int, int | None] = {}  # place among the calls -> width that a linear layer reads, None for a layer norm
        self._made = 0  # calls of one run

    @classmethod
    def of_candidates(cls, seen: Observation, key: Secret | None) -> RecordGradients:
        """Of the records that an adversary is asked about, through the model as ``key`` makes it."""
        return cls(lambda params, x: seen.predict(params, x, key), seen.loss, seen.candidates)

    def products(self, params: Params, updates: Sequence[Params]) -> Products:
        """Inner products of updates and records' negative gradients at ``params``."""
        leaves = _leaves(params)
        reading = list(self._reading(leaves))
        deltas = self._deltas(leaves, updates, reading)

        def of(x: Tensor, y: Tensor) -> Tensor:
            calls, slopes = self._pass(leaves, x, y, reading)
            dot, bias_dot = x.new_zeros(2, len(x), len(updates))
            norm, bias_norm = x.new_zeros(2, len(x), 1)
            for call, slope, (weight, bias) in zip(calls, slopes, deltas, strict=True):
                a, norms = call.inside.detach(), slope.square()
                if call.elementwise:
                    dot = dot + (slope * a) @ weight.T
                    norm = norm + (norms * a.square()).sum(1, keepdim=True)
                else:
                    moved = (a @ weight.flatten(0, 1).T).view(len(a), *weight.shape[:2])
                    dot = dot + torch.einsum("nso,no->ns", moved, slope)
                    norm = norm + norms.sum(1, keepdim=True) * a.square().sum(1, keepdim=True)
                if bias is not None:
                    bias_dot, bias_norm = bias_dot + slope @ bias.T, bias_norm + norms.sum(1, keepdim=True)
            return torch.cat([dot + bias_dot, bias_dot, norm + bias_norm, bias_norm], 1)

        found = by_rows(of, self.records.x, self.records.y, copies=COPIES).T
        dot, bias_dot, norm, bias_norm = torch.split(found, [len(updates), len(updates), 1, 1])
        bias_size = torch.stack([_size(bias) for _, bias in deltas if bias is not None] or [self.records.x.new_zeros(len(updates))]).sum(0)
        size = torch.stack([_size(weight) for weight, _ in deltas]).sum(0)
        return Products(dot, norm[0], size + bias_size, bias_dot, bias_norm[0], bias_size)

    def first_slopes(self, params: Params, width: int | None = None) -> Tensor:
        """Minus the derivative [n, H] of each record's loss by the output of the first linear layer that reads records (``width`` wide)."""
        leaves = _leaves(params)
        linear = {index: read for index, read in self._reading(leaves).items() if read is not None}
        first = [index for index, read in linear.items() if width is None or read == width][:1]
        if not first:
            raise _no_linear_layer()
        return by_rows(lambda x, y: self._pass(leaves, x, y, first)[1][0], self.records.x, self.records.y, copies=COPIES)

    def _reading(self, leaves: Params) -> dict[int, int | None]:
        """Which of the model function's calls see records and reach their loss, counted from its first on, and how wide they read.

        Their length follows that of the records. A keyed model also runs layers on its key's points, whose gradients no record has to
        itself, and there may be as many points as records.
        """
        if not len(self.records):
            raise Skip("there are no records to ask about")
        if not self._found:
            x, y = self.records.x[[0, 0]], self.records.y[[0, 0]]
            short, long = _noted(self.predict, leaves, x[:1])[1], _noted(self.predict, leaves, x)[1]
            both, self._made = enumerate(zip(short, long, strict=True)), len(long)
            follow = [index for index, (a, b) in both if (len(a.outside), len(b.outside)) == (1, 2) and b.outside.requires_grad]
            if follow:
                calls, slopes = self._pass(leaves, x, y, follow)
                told = [None if call.elementwise else call.inside.shape[1] for call in calls]
                self._found = {index: read for index, read, slope in zip(follow, told, slopes, strict=True) if slope is not None}
        if not self._found:
            raise _no_linear_layer()
        return self._found

    def _pass(self, leaves: Params, x: Tensor, y: Tensor, which: Sequence[int]) -> tuple[list[_Call], list[Tensor]]:
        """Some calls of one run of the model function, and minus the derivative of each record's loss by their outputs (None: no path)."""
        outputs, made = _noted(self.predict, leaves, x)
        if len(made) != self._made:
            raise Skip("the model function calls other layers for other records, so its activations cannot be told apart")
        calls = [made[index] for index in which]
        with torch.enable_grad():
            slopes = torch.autograd.grad(self.loss(outputs, y).sum(), [call.outside for call in calls], allow_unused=True)
        return calls, [slope if slope is None else -slope for slope in slopes]

    def _deltas(self, leaves: Params, updates: Sequence[Params], reading: Sequence[int]) -> list[tuple[Tensor, Tensor | None]]:
        """How weight [S, O, I] and bias [S, O] of each call change with each update.

        That is the update itself where they are parameters; else it is read off runs with one record.
        """
        names = {id(tensor): name for name, tensor in leaves.items()}
        one = self.records.x[[0]]
        first = _noted(self.predict, leaves, one)[1]
        before = [first[index] for index in reading]
        after: list[list[_Call]] = []
        if any(id(t) not in names for call in before for t in (call.weight, call.bias) if t is not None):
            for update in updates:
                moved = _leaves({name: t + update[name] if name in update else t for name, t in leaves.items()})
                made = _noted(self.predict, moved, one)[1]
                after.append([made[index] for index in reading])

        def delta(old: Tensor, new: list[Tensor]) -> Tensor:
            name = names.get(id(old))
            if not updates:
                return old.new_zeros(0, *old.shape)
            if name is None:
                return torch.stack([tensor - old for tensor in new]).detach()
            return torch.stack([update[name] if name in update else torch.zeros_like(old) for update in updates]).detach()

        return [
            (
                delta(call.weight, [calls[index].weight for calls in after]),
                None if call.bias is None else delta(call.bias, [_given(calls[index].bias) for calls in after]),
            )
            for index, call in enumerate(before)
        ]


def _noted(predict: Predict, params: Params, x: Tensor) -> tuple[Tensor, list[_Call]]:
    with torch.enable_grad(), _Notes() as notes:
        outputs = predict(params, x)
    return outputs, notes.calls


def _leaves(params: Params) -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_() if t.is_floating_point() else t for name, t in params.items()}


def _size(delta: Tensor) -> Tensor:
    """Squared norms [S], without a square of the size of all."""
    sizes: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1).square()
    return sizes


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # the same model function called the same layer with a bias
    return tensor


def _no_linear_layer() -> Skip:
    return Skip("the model function calls no linear layer on [n, width] inputs, so gradients cannot be read from activations")
