"""Where the parts of a structured record lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Widths of a record's columns: the blocks that are fed, and what travels aside."""

    blocks: tuple[int, ...]
    aside: int = 0

    @property
    def fed(self) -> int:
        return sum(self.blocks)
