"""Where the parts of a structured record lie, and how many records are laid out at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 1 << 20  # values laid out at a time


@dataclass(frozen=True, slots=True)
class Layout:
    """Widths of a record's columns: the blocks that are fed, and what travels aside, of which the first ``target`` are predicted."""

    blocks: tuple[int, ...]
    aside: int = 0
    target: int = 0  # the loss is the mean squared error of as many outputs, which come first, against these columns
    own: int = 0  # the first columns, which are the record's alone where it also holds what others gave; 0: all

    @property
    def fed(self) -> int:
        return sum(self.blocks)

    @property
    def private(self) -> int:
        """The first columns, on which a message depends; no inversion can tell the others."""
        return self.fed + self.target


def blocks(records: int, values: int) -> Iterator[slice]:
    """Rows that are laid out together, so that what is computed of them (``values`` a record) never makes a second matrix."""
    step = max(1, _BLOCK // max(1, values))
    return (slice(start, start + step) for start in range(0, records, step))
