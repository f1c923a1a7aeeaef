"""Where the parts of a structured record lie."""

from __future__ import annotations

from dataclasses import dataclass


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
