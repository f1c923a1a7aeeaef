"""How much is trained at a time: as many lanes and federations as suit the cores, of wide networks no more than memory has room for.

A lane of 30,000 inputs by 64 units takes 75 MB, and forty of them, which is what small networks want, three gigabytes. Beside a large
cohort they get less, since its size is what a machine was chosen for, and wide networks gain little by sharing a step (eight references on
8,000 inputs: 3 to 10 %). What is chosen depends on sizes alone, never on what a machine has free, so that the same request
gives the same bytes everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from suites.contracts import Local

SMALL = 1 << 27  # bytes that lanes, and federations beside them, may take each, where the cohort itself takes fewer; else a quarter
BLOCK = 1 << 24  # values of records that may be looked at together; of more, an eighth of this at a time
SHARE = 0.125  # of a larger cohort, where that is more
# Copies of the parameters that are alive at once, as counted at the widest point of a step:
_LANE = 6  # start, state, gradient, the optimiser's two moments, and what a backward pass makes anew
_CLIPPED = 4  # the clipped sum, the same with noise, the noise, and all lanes' sums together
_FEDERATION = 5  # module, present and next model, mean update, the released one; and an update a site
_BATCHES = 2  # a step's records, and once more where a product wants them turned


@dataclass(frozen=True, slots=True)
class Room:
    """What one lane and one federation (without its sites' updates) take, and how much there is for each, in bytes."""

    lane: int
    federation: int
    update: int
    pool: int
    most: int

    @classmethod
    def of(cls, net: nn.Module, x: Tensor, local: Local, *, clips: bool) -> Room:
        """Of a network on the pool ``x`` [N, F]."""
        own = sum(tensor.nbytes for tensor in net.parameters())
        batch = min(local.batch, len(x)) * x.shape[1] * x.element_size()
        lane = own * (_LANE + (_CLIPPED if clips else 0)) + _BATCHES * batch
        return cls(lane, _FEDERATION * own, own, x.nbytes, SMALL if x.nbytes < SMALL else max(SMALL // 4, int(SHARE * x.nbytes)))

    @property
    def lanes(self) -> int:
        """How many lanes may share a tensor operation."""
        return max(1, self.most // max(1, self.lane))

    def federations(self, sites: int, *, own_pool: bool) -> int:
        """How many federations of so many sites may be trained side by side; ``own_pool``: each changes all records in its own way."""
        each = self.federation + sites * self.update + (self.pool if own_pool else 0)
        return max(1, self.most // max(1, each))


def by_rows(work: Callable[..., Tensor], x: Tensor, *beside: Tensor, copies: int = 1) -> Tensor:
    """``work(x, *beside)`` of records [n, F] and what else there is of each, [n, ...]; of many wide ones in parts.

    ``work`` must make one row of each record, whatever the others are; ``copies`` is how many tables like ``x`` it holds on the way.
    """
    if copies * x.numel() <= BLOCK:
        return work(x, *beside)
    return _joined((work(*part) for part in zip(*(torch.split(all_, _rows(x)) for all_ in (x, *beside)), strict=True)), len(x))


def _rows(x: Tensor) -> int:
    return max(1, BLOCK // 8 // max(1, x.shape[-1]))


def _joined(made: Iterator[Tensor], count: int) -> Tensor:
    """``count`` rows out of parts that follow each other, each let go once it is copied: a list of them would hold all twice."""
    part = next(made)
    if len(part) == count:
        return part
    if part.requires_grad:
        return torch.cat([part, *made])
    out, at = part.new_empty(count, *part.shape[1:]), 0
    for piece in chain([part], made):
        if at + len(piece) > count:
            at = count + 1
            break
        out[at : at + len(piece)] = piece
        at += len(piece)
    if at != count:
        raise ValueError(f"{count} records were given a part at a time, and not as many rows came back; make one row of each record")
    return out


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of a table, gathered a part at a time: a copy of the training records would be half a matrix."""

    table: Tensor  # [N, F]: all records, also those that are not among the rows
    index: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.index)

    def whole(self) -> Tensor:
        """All of them, [n, F]: a copy."""
        return self.table[self.index]

    def columns(self, cut: slice) -> Rows:
        """The same rows of some columns."""
        return Rows(self.table[:, cut], self.index)

    def by_rows(self, least: int = 1) -> Iterator[Tensor]:
        """Parts that follow each other, [., F], of no fewer than ``least`` rows; one where they are few."""
        return (self.table[part] for part in torch.split(self.index, max(least, BLOCK // 32 // max(1, self.table.shape[1]))))

    def by_columns(self, least: int = 1) -> Iterator[tuple[slice, Tensor]]:
        """All rows of a few columns, [n, .], no fewer than ``least``, and which."""
        step = max(least, BLOCK // 32 // max(1, len(self)))
        cuts = (slice(start, start + step) for start in range(0, self.table.shape[1], step))
        return ((cut, self.table[:, cut].index_select(0, self.index)) for cut in cuts)


def gathered(work: Callable[[Tensor], Tensor], rows: Rows) -> Tensor:
    """``work(rows.whole())``, of many wide rows in parts; ``work`` must make one row of each record, whatever the others are."""
    return _joined((work(part) for part in rows.by_rows()), len(rows))


def give_back(x: Tensor) -> None:
    """Hand what was freed beside a large ``x`` back to the system, which the allocator else keeps for the next like it (glibc)."""
    if x.numel() > BLOCK // 8:
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
            ctypes.CDLL(None).malloc_trim(0)


def only(work: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor) -> Tensor:
    """``work(x)`` where only ``rows`` of it are ever read: of a large ``x`` [N, F] the others stay zero and take no memory."""
    if x.numel() <= BLOCK or x.device.type != "cpu":
        return work(x)
    parts = torch.split(torch.unique(rows), max(1, _rows(x) // 4))
    first = work(x[parts[0]])
    out = unwritten((len(x), *first.shape[1:]), first.dtype)
    out[parts[0]] = first
    for part in parts[1:]:
        out[part] = work(x[part])
    return out


def unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take no memory until they are written to, page by page.

    ``torch.zeros`` writes them, and numpy asks for pages of 2 MB, of which any few rows of a cohort touch nearly all.
    """
    values = math.prod(shape)
    kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # this process' own
    held = mmap.mmap(-1, values * dtype.itemsize, **kind)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages has none to refuse
            held.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(held, dtype=dtype, count=values).view(shape)
