"""What a training under a claim really drew, noted from outside the defense while it runs: batches, noise, and what was left unclipped.

A defense says what it will do; the witness is handed what went in and what came out. It holds sums and a small sample, no update. The
referee judges it afterwards (``suites.receipt``). Only the target federation is watched; probes and reference models are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from suites.contracts import Params

SAMPLED = 256  # coordinates of a draw that are kept, to see its shape and whether it repeats
ROWS = 64  # draws a site of which so many are kept


@dataclass(slots=True)
class Moments:
    """Of everything that was added to one tensor."""

    draws: int = 0
    square: float = 0.0


@dataclass(slots=True)
class Site:
    """One site's notes. A unit is a record, or a person where persons are clipped."""

    units: int
    owner: dict[int, int]  # pool index -> unit
    size: Tensor  # [units] records of each
    times: Tensor  # [units] steps in which each was drawn
    sizes: list[int] = field(default_factory=list)  # units in each step
    parted: int = 0  # steps in which some unit's records were taken in part
    noise: dict[str, Moments] = field(default_factory=dict)
    sample: list[Tensor] = field(default_factory=list)  # [SAMPLED] each
    excess: float = 0.0  # the largest clipped sum, in units of what its clipped units may add up to
    unclipped: set[str] = field(default_factory=set)  # tensors that were sent changed and are no part of what is clipped


class Witness:
    """Notes by site. A site is known by the stream from which its noise is drawn."""

    def __init__(self) -> None:
        self.sites: dict[int, Site] = {}

    def joins(self, stream: torch.Generator, records: Tensor, person: Tensor | None) -> None:
        """A site that takes part; ``person`` [n] of its ``records`` [n] (pool indices) where persons are the unit."""
        owner = torch.arange(len(records)) if person is None else torch.unique(person, return_inverse=True)[1]
        size = torch.bincount(owner)
        units = dict(zip(records.tolist(), owner.tolist(), strict=True))
        self.sites[id(stream)] = Site(len(size), units, size, torch.zeros(len(size), dtype=torch.int64))

    def stepped(self, stream: torch.Generator, batch: Tensor, before: Params, after: Params, norm: float) -> None:
        """One clipped step: the batch (pool indices), its sum of clipped gradients, and the same with its noise."""
        site = self.sites[id(stream)]
        drawn = torch.bincount(torch.tensor([site.owner[i] for i in batch.tolist()], dtype=torch.int64), minlength=site.units)
        site.parted += int(((drawn != 0) & (drawn != site.size)).any())
        units = int((drawn != 0).sum())
        site.times += drawn != 0
        site.sizes.append(units)
        length = float(torch.stack([tensor.square().sum() for tensor in before.values()]).sum().sqrt())
        site.excess = max(site.excess, length / (max(units, 1) * norm) if units else float(length > 0) * float("inf"))
        self._noised(site, before, after)

    def encoding(self, stream: torch.Generator) -> Callable[[float, Params, Params], None]:
        """For one message: called with a layer's bound, what it was given and what it made of it."""
        site = self.sites[id(stream)]

        def saw(bound: float, given: Params, made: Params) -> None:
            length = float(torch.stack([tensor.double().square().sum() for tensor in given.values()]).sum().sqrt())
            share = min(1.0, bound / max(length, 1e-30))
            site.sizes.append(1)
            self._noised(site, {name: tensor * share for name, tensor in given.items()}, made)

        return saw

    def sent(self, stream: torch.Generator, update: Params, clipped: Sequence[str]) -> None:
        """A site's update before it is encoded, and the tensors of it that clipping covers."""
        changed = (name for name in update.keys() - set(clipped) if bool(update[name].ne(0).any()))
        self.sites[id(stream)].unclipped.update(changed)

    @staticmethod
    def _noised(site: Site, before: Params, after: Params) -> None:
        added = {name: after[name] - tensor for name, tensor in before.items()}
        for name, tensor in added.items():
            own = site.noise.setdefault(name, Moments())
            own.draws += tensor.numel()
            own.square += float(tensor.double().square().sum() if tensor.numel() < 4096 else torch.linalg.vector_norm(tensor).double() ** 2)
        if len(site.sample) < ROWS:
            flat = torch.cat([tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)] for tensor in added.values()])
            chosen = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat))).long()
            site.sample.append(flat[chosen].double().cpu())
