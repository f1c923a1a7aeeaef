"""What a training under a claim really drew, noted from outside the defense while it runs: batches, noise, and what was left unclipped.

A defense says what it will do; the witness is handed what went in and what came out. It holds sums and a small sample, no update, and
what each layer of a stack did apart from the others. The referee judges it afterwards (``suites.receipt``). Only the target federation is
watched; probes and reference models are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from suites.contracts import Message, Params

SAMPLED = 256  # coordinates of a draw that are kept, to see its shape and whether it repeats
ROWS = 64  # draws a site of which so many are kept
FAINT = 0.1  # of a message's noise: coordinates that never had more are followed one by one
ALONE, AT_ONCE = 128, 32  # units of a site that are clipped alone as well, and of one batch


@dataclass(slots=True)
class Moments:
    """Of everything that was added to one tensor."""

    draws: int = 0
    square: float = 0.0


@dataclass(slots=True)
class Site:
    """One site's notes on one layer. A unit is a record, or a person where persons are clipped."""

    units: int
    owner: dict[int, int]  # pool index -> unit
    size: Tensor  # [units] records of each
    times: Tensor  # [units] steps in which each was drawn
    sizes: list[int] = field(default_factory=list)  # units in each step
    parted: int = 0  # steps in which some unit's records were taken in part
    noise: dict[str, Moments] = field(default_factory=dict)
    rounds: dict[int, Moments] = field(default_factory=dict)  # of the whole message of a round, where messages are noised
    sample: list[Tensor] = field(default_factory=list)  # [SAMPLED] each
    faint: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # coordinates of faint noise in all draws, and the most of it
    grain: float = 0.0  # what single precision can tell apart, beside the noise
    longest: float = 0.0  # clipped sum, a unit of it
    single: float = 0.0  # the longest clipped gradient of one unit alone
    astray: float = 0.0  # how far single units, clipped alone, were from what they gave their batch
    singled: Tensor | None = None  # [units] whether it was clipped alone
    unclipped: set[str] = field(default_factory=set)  # tensors that were sent changed and are no part of what is clipped


@dataclass(frozen=True, slots=True)
class Crossed:
    """One tensor that crossed the wire, its message's kind ("sum" for what the server combined), and whether a record count came along."""

    kind: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    counted: bool = False


def crossing(messages: Sequence[Message], combined: Params) -> set[Crossed]:
    """What these messages and their sum were, without what they held."""
    found = {Crossed("sum", name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in combined.items()}
    for one in messages:
        told: Params = one.payload or {"": torch.empty(0)}  # a message that holds nothing still says its kind
        found |= {Crossed(one.kind, name, tuple(t.shape), str(t.dtype), one.records is not None) for name, t in told.items()}
    return found


class Witness:
    """Notes by site, and by the place of the layer in the stack. A site is known by the stream from which its noise is drawn."""

    def __init__(self) -> None:
        self.sites: dict[int, Site] = {}  # what was clipped and noised step by step
        self.encoded: dict[int, dict[int, Site]] = {}  # layer -> what it clipped and noised message by message
        self.crossed: set[Crossed] = set()  # in any round, recorded or not
        self.seconds = 0.0  # spent on clipping single units, which no training would

    def of(self, layer: int | None) -> list[Site]:
        """Each site's notes on the layer at this place of the stack, or on the clipped steps."""
        notes = self.sites if layer is None else self.encoded.get(layer, {})
        return [site for site in notes.values() if site.sizes]

    def joins(self, stream: torch.Generator, records: Tensor, person: Tensor | None) -> None:
        """A site that takes part; ``person`` [n] of its ``records`` [n] (pool indices) where persons are the unit."""
        owner = torch.arange(len(records)) if person is None else torch.unique(person, return_inverse=True)[1]
        size = torch.bincount(owner)
        units = dict(zip(records.tolist(), owner.tolist(), strict=True))
        self.sites[id(stream)] = Site(len(size), units, size, torch.zeros(len(size), dtype=torch.int64))

    def stepped(self, stream: torch.Generator, batch: Tensor, before: Params, after: Params) -> None:
        """One clipped step: the batch (pool indices), its sum of clipped gradients, and the same with its noise."""
        site = self.sites[id(stream)]
        drawn = torch.bincount(torch.tensor([site.owner[i] for i in batch.tolist()], dtype=torch.int64), minlength=site.units)
        site.parted += int(((drawn != 0) & (drawn != site.size)).any())
        units = int((drawn != 0).sum())
        site.times += drawn != 0
        site.sizes.append(units)
        length = _length(before)
        site.longest = max(site.longest, length / units if units else float(length > 0) * float("inf"))
        self._noised(site, before, after)

    def asked(self, stream: torch.Generator, batch: Tensor) -> list[Tensor]:
        """The places in a batch of units that are to be clipped alone as well: each once, and of a large site some."""
        site = self.sites[id(stream)]
        if site.singled is None:
            site.singled = torch.zeros(site.units, dtype=torch.bool)
        if not len(batch) or int(site.singled.sum()) >= ALONE:
            return []
        owner = torch.tensor([site.owner[i] for i in batch.tolist()], dtype=torch.int64)
        fresh = [unit for unit in torch.unique(owner).tolist() if not site.singled[unit]][:AT_ONCE]
        site.singled[fresh] = True
        return [(owner == unit).nonzero().squeeze(1) for unit in fresh]

    def alone(self, stream: torch.Generator, given: Params, each: Iterable[Params]) -> None:
        """What some units gave the sum of their batch (it is used up), and the clipped gradient of each alone, one after the other."""
        site = self.sites[id(stream)]
        for one in each:
            site.single = max(site.single, _length(one))
            for name, tensor in given.items():
                tensor.sub_(one[name])
        site.astray = max(site.astray, _length(given))

    def encoding(self, stream: torch.Generator, index: int) -> Callable[[int, float, Params, Params], None]:
        """For one message of round ``index``: called with a layer's place and bound, what it was given and what it made of it."""
        joined = self.sites[id(stream)]

        def saw(layer: int, bound: float, given: Params, made: Params) -> None:
            notes = self.encoded.setdefault(layer, {})
            site = notes.setdefault(id(stream), Site(joined.units, joined.owner, joined.size, joined.times))
            share = min(1.0, bound / max(_length(given), 1e-30))
            site.sizes.append(1)
            drawn, square = self._noised(site, {name: tensor * share for name, tensor in given.items()}, made)
            own = site.rounds.setdefault(index, Moments())
            own.draws, own.square = own.draws + drawn, own.square + square

        return saw

    def sent(self, stream: torch.Generator, update: Params, clipped: Sequence[str]) -> None:
        """A site's update before it is encoded, and the tensors of it that clipping covers."""
        changed = (name for name in update.keys() - set(clipped) if bool(update[name].ne(0).any()))
        self.sites[id(stream)].unclipped.update(changed)

    @staticmethod
    def _noised(site: Site, before: Params, after: Params) -> tuple[int, float]:
        """Notes what was added; how many numbers, and the sum of their squares."""
        added = {name: after[name] - tensor for name, tensor in before.items()}
        drawn, whole = 0, 0.0
        for name, tensor in added.items():
            own = site.noise.setdefault(name, Moments())
            square = float(tensor.double().square().sum() if tensor.numel() < 4096 else torch.linalg.vector_norm(tensor).double() ** 2)
            own.draws, own.square = own.draws + tensor.numel(), own.square + square
            drawn, whole = drawn + tensor.numel(), whole + square
        if len(site.sample) < ROWS:
            flat = torch.cat([tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)] for tensor in added.values()])
            chosen = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat))).long()
            site.sample.append(flat[chosen].double().cpu())
        if whole > 0:
            Witness._followed(site, added, before, (whole / drawn) ** 0.5)
        return drawn, whole

    @staticmethod
    def _followed(site: Site, added: Params, before: Params, spread: float) -> None:
        """Notes the coordinates that had next to no noise in this draw and in all before it; few of many, and soon none."""
        for name, tensor in added.items():
            flat = tensor.flatten()
            if name not in site.faint:
                at = (flat.abs() < FAINT * spread).nonzero().squeeze(1)
                most = flat[at].abs() / spread
            else:
                at, most = site.faint[name]
                most = torch.maximum(most, flat[at].abs() / spread)
                at, most = at[most < FAINT], most[most < FAINT]
            site.faint[name] = (at, most)
            if len(at):
                site.grain = max(site.grain, 2.0**-23 * float(before[name].flatten()[at].abs().max()) / spread)


def _length(tensors: Params) -> float:
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors.values()]).sum().sqrt())
