"""What any adversary reads off one message first: its first linear layer, its output bias, its gradient, and a certificate.

Everything here follows from names and shapes on the wire, so it holds for any architecture whose layers are called
``<layer>.weight`` and ``<layer>.bias``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from suites.contracts import Fact, Observation, Params, Secret, Skip, Target

CERTIFIED = 1e-6  # relative L2 distance below which a simulated message counts as the received one


@dataclass(frozen=True, slots=True)
class Layer:
    """Names of one linear layer's tensors on the wire; ``bias`` is None where the layer has none."""

    weight: str
    bias: str | None


def known_count(known: Mapping[str, Fact], name: str) -> int:
    """A public count such as ``features`` or ``classes``."""
    value = known[name].value
    return value if isinstance(value, int) else len(value)


def blocks(known: Mapping[str, Fact]) -> list[slice]:
    """The columns of a record that each first layer reads: all of them, or the blocks of a structured record (one a modality, say)."""
    if "layout" not in known:
        return [slice(0, known_count(known, "features"))]
    found, start = [], 0
    for width in known["layout"].value.blocks:
        found.append(slice(start, start + width))
        start += width
    return found


def widest(known: Mapping[str, Fact]) -> slice:
    """The widest of these blocks."""
    return max(blocks(known), key=width)


def width(columns: slice) -> int:
    return int(columns.stop - columns.start)


def unlabelled(known: Mapping[str, Fact]) -> bool:
    """Whether the loss reads no label: that of a structured record is about the record itself."""
    return "layout" in known


def _layers(update: Params) -> list[Layer]:
    found = []
    for name, tensor in update.items():
        if tensor.ndim == 2 and name.endswith("weight"):
            bias = name.removesuffix("weight") + "bias"
            found.append(Layer(name, bias if bias in update and update[bias].shape == tensor.shape[:1] else None))
    return found


def first_linear(update: Params, features: int) -> Layer:
    """The layer that reads the records: the first as wide as they are, else (a key may change the width) the widest one.

    Raises ``Skip`` where the message holds no linear layer.
    """
    layers = _layers(update)
    if not layers:
        raise Skip("the message holds no linear layer, so nothing can be read off a first one")
    exact = [layer for layer in layers if update[layer.weight].shape[1] == features]
    return exact[0] if exact else max(layers, key=lambda layer: update[layer.weight].shape[1])


def output_bias(gradient: Params, classes: int) -> str | None:
    """The bias of the output layer, or None: it is as long as there are classes, and its cross-entropy gradient sums to zero."""
    named = [layer.bias for layer in _layers(gradient) if layer.bias is not None and len(gradient[layer.bias]) == classes]
    balanced = [name for name in named if gradient[name].sum().abs() <= 1e-3 * gradient[name].abs().sum()]
    if balanced:
        return balanced[-1]
    return min(reversed(named), key=lambda name: name.count(".")) if named else None  # sub-modules (modulators) are nested deeper


def as_gradient(target: Target) -> Params:
    """The message as a gradient of the mean loss: exact for gradients and one SGD step, else its mean over the steps (Adam: its sign).

    Under momentum m a gradient counts 1 + m + m² + … for the steps that follow it.
    """
    update = {name: tensor for name, tensor in target.update.items() if tensor.is_floating_point()}
    if target.optimiser == "gradient":
        return update
    counts = (sum(target.momentum**later for later in range(left)) for left in range(1, target.steps + 1))
    rate = target.lr * sum(counts) or 1.0
    return {name: tensor / -rate for name, tensor in update.items()}


def distance(simulated: Params, received: Params) -> Tensor:
    """Relative L2 distance of two messages; what was received but not simulated counts as missed (running statistics apart)."""
    names = [name for name, tensor in received.items() if tensor.is_floating_point() and "running_" not in name]
    missed = {name: simulated[name].double() if name in simulated else torch.zeros_like(received[name]).double() for name in names}
    gap = torch.stack([(missed[name] - received[name].double()).square().sum() for name in names]).sum()
    size = torch.stack([received[name].double().square().sum() for name in names]).sum()
    return (gap / size.clamp_min(1e-300)).sqrt()


def certified(seen: Observation, target: Target, x: Tensor, y: Tensor, key: Secret | None, order: Tensor | None = None) -> bool:
    """Whether records ``x`` [B, F] with labels ``y``, in the ``order`` [steps, B] of their mini-batches, reproduce the received message.

    Needs no truth. Simulated in double precision, since a second single-precision rounding would double the received message's own; and
    else in single, which repeats the rounding of a client's model after each of its small steps.
    """
    for kind in (torch.float64, torch.float32):
        params = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in target.params.items()}
        there, records = replace(target, params=params), x.to(kind)
        simulated = seen.simulate(there, records, y, key) if order is None else seen.simulate(there, records, y, key, order=order)
        if distance(simulated, target.update) <= CERTIFIED:
            return True
    return False


def least_squares(matrix: Tensor, values: Tensor) -> Tensor:
    """The solution [n, k] of ``matrix`` [m, n] x = ``values`` [m, k] in the least squares, the same bytes each time.

    ``torch.linalg.lstsq`` differs in its last bits with where its arguments lie in memory, and a search carries that far.
    """
    q, r = torch.linalg.qr(matrix)
    found: Tensor = torch.linalg.solve_triangular(r, q.mT @ values, upper=True)
    return found.nan_to_num(0.0, 0.0, 0.0)  # of a matrix whose columns depend on each other


def in_lanes(client: Callable[[Tensor, Tensor], Params], x: Tensor, y: Tensor) -> Params:
    """``client`` over the lanes of records [L, B, F] and labels [L, B, K]: by vmap where it allows it, else one after the other."""
    try:
        message: Params = torch.func.vmap(client)(x, y)
    except (RuntimeError, NotImplementedError):  # an operation without a batching rule
        lanes = [client(records, labels) for records, labels in zip(x, y)]
        return {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}
    return message


def to_compare_by(*shape: int) -> Tensor:
    """Values at which two ways to the same message are compared: on a curve, not drawn, so that no seed of the data's can meet them."""
    return (1.7 * torch.arange(math.prod(shape)).double()).sin().view(*shape)
