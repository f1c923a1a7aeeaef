"""Columns that hold categories, told from public records: one-hot groups and columns of two values.

Nobody tells the adversary which columns encode categories, but standardising keeps their marks: such a column has two values, and those of
one group are exclusive and exhaustive, so that each record has the upper value in exactly one. Columns of a group are next to each other,
as every encoder writes them. A column of two values on its own (a mutation, a sex) counts when both are seen several times: a gene that one
cell in a sample expresses has two values as well, by accident.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SEEN = 5  # times each value of a lone column is seen
_ROUNDED = 1e-4  # two standardised values this near are one
_STEEP = 20.0  # logits beyond this are as good as certain


@dataclass(frozen=True, slots=True)
class Categories:
    """Groups of columns and their two values in public units.

    ``groups`` [G, F] marks each group's columns, ``lone`` [G] groups of one column (whose other category is not written), ``low`` and
    ``high`` [F] the values; both are 0 where a column is a number.
    """

    groups: Tensor
    lone: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def found(cls, public: Tensor) -> Categories:
        """Those of public records [n, F]."""
        features = public.shape[1]
        if len(public) < 2 * _SEEN:
            none = public.new_zeros(features).double()
            return cls(none.new_zeros(0, features), none.new_zeros(0).bool(), none, none)
        low, high = public.double().min(0).values, public.double().max(0).values
        near = torch.minimum((public - low).abs(), (public - high).abs()).max(0).values <= _ROUNDED
        upper = public.double() > (low + high) / 2
        counts = upper.sum(0)
        two = near & (high - low > 10 * _ROUNDED)
        found: list[list[int]] = []
        column = 0
        while column < features:
            members = _group(upper, two, high - low > 10 * _ROUNDED, column)
            if members is None and bool(two[column]) and _SEEN <= int(counts[column]) <= len(public) - _SEEN:
                members = [column]
            if members is not None:
                found.append(members)
            column = column + 1 if members is None else members[-1] + 1
        groups = low.new_zeros(len(found), features)
        for number, members in enumerate(found):
            groups[number, members] = 1
        marked = groups.sum(0) > 0
        lone = groups.sum(1) == 1
        return cls(groups, lone, torch.where(marked, low, 0.0), torch.where(marked, high, 0.0))

    @property
    def marked(self) -> Tensor:
        """Which columns [F] hold categories."""
        return self.groups.sum(0) > 0

    def shares(self, free: Tensor) -> Tensor:
        """Softmax within each group [..., F] of free numbers (sigmoid for a lone column); 0 for numbers."""
        weight = free.clamp(-_STEEP, _STEEP).exp() * self.marked
        total = weight @ self.groups.T + self.lone
        shares: Tensor = weight / (total @ self.groups + (~self.marked))
        return shares

    def relaxed(self, free: Tensor) -> Tensor:
        """Records [..., F] in public units of free numbers: a convex mixture of categories, and numbers as they are."""
        return torch.where(self.marked, self.low + self.shares(free) * (self.high - self.low), free)

    def shares_of(self, x: Tensor) -> Tensor:
        """The same shares [..., F] of records, clipped to [0, 1]."""
        return torch.where(self.marked, ((x - self.low) / (self.high - self.low + (~self.marked))).clamp(0, 1), 0.0)

    def hardened(self, x: Tensor) -> Tensor:
        """Records [..., F] whose every group holds its most likely category alone."""
        shares = self.shares_of(x)
        best = torch.zeros_like(shares)
        for members, lone in zip(self.groups.bool(), self.lone):
            own = shares[..., members]
            best[..., members] = (own > 0.5).to(own) if lone else torch.nn.functional.one_hot(own.argmax(-1), own.shape[-1]).to(own)
        return torch.where(self.marked, self.low + best * (self.high - self.low), x)

    def certainty(self, shares: Tensor) -> Tensor:
        """One minus the entropy of each column's group, relative to that of knowing nothing [..., F]; 0 for numbers."""
        other = (1 - shares @ self.groups.T).clamp_min(0) * self.lone  # the category that a lone column does not write
        entropy = torch.special.entr(shares) @ self.groups.T + torch.special.entr(other)
        sizes = self.groups.sum(1) + self.lone
        known: Tensor = (1 - entropy / sizes.clamp_min(2).log()).clamp(0, 1) @ self.groups
        return known


def _group(upper: Tensor, two: Tensor, moves: Tensor, start: int) -> list[int] | None:
    """The shortest run of columns from ``start`` of which each record has the upper value in exactly one; columns that never move may
    lie between (a category that nobody in public has)."""
    taken = torch.zeros_like(upper[:, 0])
    members: list[int] = []
    for column in range(start, upper.shape[1]):
        if not bool(moves[column]) and members:
            continue
        if not bool(two[column]) or bool((taken & upper[:, column]).any()):
            return None
        taken |= upper[:, column]
        members.append(column)
        if bool(taken.all()):
            return members if len(members) > 1 else None
    return None
