"""What a task says whose records are more than features of which a class is predicted: targets, neighbours, several omics.

A record's row of the pool holds everything that is private about it. First come the columns that the network is fed, in blocks (one a
modality, say); then those that travel *aside* (a target, a place), which the network hands on untouched, so that loss and metrics find them
in its outputs. The engine, the clipping and the attacks see rows, outputs and a loss per record, as they do for classes.

Where a record also holds what others gave (a neighbour's expression), the task says so in one sentence, ``shared_inputs``: an ε for one
record is then none for one person or cell, and the receipt of a training carries that sentence as its limit. Its layout says how many
columns are the record's ``own``: all that a threat with ``neighbours: unknown`` knows of a record whose membership it asks.

A defense that transforms records (``Defense.prepare``) acts on each block by itself and never on what is aside: no site feeds that to
its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from suites.cohorts.cohort import Cohort
from suites.cohorts.spec import DataSpec
from suites.split import Split
from suites.tasks.layout import Layout

UNTRAINED = "untrained_network"


@dataclass(frozen=True, slots=True)
class Table:
    """All records as the network gets them: ``x`` [N, F] float32, the public units they are in, and public facts by name."""

    x: Tensor
    mean: Tensor  # [F]
    scale: Tensor  # [F]
    layout: Layout
    public: Mapping[str, Tensor] = field(default_factory=dict)  # learnt from auxiliary records, or known to all


@runtime_checkable
class Structured(Protocol):
    """A task that lays out its own records. One object serves one cohort: ``learn`` is called before ``net``."""

    lower: frozenset[str]  # metrics of which less is better
    # Optional, a ``str``: ``units``, what the task calls the units that stand as ``person`` where they are no persons; reports use it.

    def cohort(self, data: DataSpec) -> Cohort:
        """The records before the split: labels, sites, and as ``person`` the unit that no part shares with another."""
        ...

    def table(self, cohort: Cohort, parts: Split) -> Table:
        """The records after the split; whatever is learnt from data is learnt from auxiliary records."""
        ...

    def learn(self, layout: Layout, public: Mapping[str, Tensor]) -> None:
        """Widths and public facts of the cohort at hand."""
        ...

    def nothing(self, x: Tensor) -> Tensor:
        """Outputs of whoever learns nothing, for each of some records [n, F]: the floor of each metric."""
        ...
