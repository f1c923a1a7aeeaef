"""What was done to a message on its way, seen from the message alone, and the same done to messages of the adversary's own making.

The public client algorithm says what records send, not what a compression or a noise makes of it. Both leave marks: coordinates that are
zero, values that repeat or lie on a grid, directions in the first layer beyond those of the records.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradient_inversion.message import first_linear
from suites.contracts import Params

_FEWER = 0.8  # coordinates left, relative to a clean message's, from which the largest were sent alone
_SPREAD = 4  # coordinates a value, on average, from which values repeat by design
_OFF_GRID = 0.01  # of a step
_NOISE = 1e-4  # entries' noise, relative to their size, below which it is rounding


@dataclass(frozen=True, slots=True)
class Wear:
    """``kept`` coordinates are sent (None: all), on ``levels`` steps up to the largest (0: only signs; None: any value), plus ``noise``."""

    kept: int | None = None
    levels: int | None = None
    noise: float = 0.0

    @classmethod
    def of(cls, received: Params, clean: Params, batch: int, features: int) -> Wear:
        """That of a message of ``batch`` records, held against clean ones [N, ...] of other records."""
        flat, others = _flat(received, 0), _flat(clean, 1)
        there, usual = int((flat != 0).sum()), float((others != 0).sum(1).double().mean())
        levels = _levels(torch.unique(flat.abs()[flat != 0]), there)
        levels = 1 if levels == 0 and there < _FEWER * usual else levels  # signs alone leave no zeros
        kept = there if levels is None and 0 < there < _FEWER * usual else None  # rounding to a grid gives zeros of its own
        rough = kept is not None or levels is not None  # which also gives more directions than records
        return cls(kept, levels, 0.0 if rough else _noise(received, clean, batch, features))

    def put_on(self, messages: Params, rng: torch.Generator) -> Params:
        """The same done to messages with a leading axis."""
        if self.kept is None and self.levels is None and self.noise == 0:
            return messages
        flat = _flat(messages, 1)
        if self.kept is not None:
            largest = flat.abs().topk(min(self.kept, flat.shape[1]), dim=1).indices
            flat = torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest))
        if self.levels == 0:
            flat = flat.sign() * flat.abs().mean(1, keepdim=True)
        elif self.levels is not None:
            step = (flat.abs().amax(1, keepdim=True) / self.levels).clamp_min(1e-30)
            flat = (flat / step + torch.rand(flat.shape, generator=rng).to(flat)).floor() * step
        if self.noise > 0:
            flat = flat + self.noise * torch.randn(flat.shape, generator=rng).to(flat)
        named = [(name, tensor) for name, tensor in messages.items() if tensor.is_floating_point()]
        parts = torch.split(flat, [tensor[0].numel() for _, tensor in named], 1)
        return {name: part.reshape(tensor.shape) for (name, tensor), part in zip(named, parts)}


def _flat(message: Params, axes: int) -> Tensor:
    """One vector, or one a message [N, P]."""
    return torch.cat([tensor.flatten(axes) for tensor in message.values() if tensor.is_floating_point()], axes)


def _levels(sizes: Tensor, there: int) -> int | None:
    """Steps of the grid on which all ``sizes`` (ascending, no two alike) lie; 0 where there is but one size; None without a grid."""
    if not len(sizes) or there < _SPREAD * len(sizes):
        return None
    low, high = float(sizes[0]), float(sizes[-1])
    if high - low <= 1e-5 * high:
        return 0
    step = min(low, float(sizes.double().diff().max() if len(sizes) < 2 else sizes.double().diff()[sizes.diff() > 1e-5 * high].min()))
    steps = sizes.double() / step
    return round(high / step) if bool(((steps - steps.round()).abs() <= _OFF_GRID * steps.clamp_min(1)).all()) else None


def _noise(received: Params, clean: Params, batch: int, features: int) -> float:
    """The standard deviation of what an entry has beyond the directions of ``batch`` records, less what clean messages have there."""
    name = first_linear(received, features).weight

    def beyond(weight: Tensor) -> Tensor:
        rows, columns = weight.shape[-2:]
        energy = torch.linalg.eigvalsh(weight.double() @ weight.double().mT).flip(-1).clamp_min(0)
        left: Tensor = energy[..., batch:].sum(-1) / max((rows - batch) * columns, 1)
        return left

    if name not in clean or received[name].shape[0] <= batch:
        return 0.0
    usual = float(beyond(clean[name][:16]).mean())
    found = max(float(beyond(received[name])) - usual, 0.0) ** 0.5
    return found if found > _NOISE * float(received[name].square().mean().sqrt()) else 0.0
