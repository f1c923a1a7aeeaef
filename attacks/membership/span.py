"""Span membership: a site's first-layer update lies in the row space of its records, so a member's energy lies there too.

Threat: a server that sees updates (or only their sum) between two broadcasts; no reference models, no labels, no key. With dW = G^T X every
step of plain SGD keeps the rows of dW in the span of the records; Adam bends it, but the share of energy still tells. Records share public
directions (cell types, batches), which lie in every span: they are projected out first. How many is decided on auxiliary records, by the
cross-fitted gap between a full share, 1, and an unseen record's share, in standard deviations of the latter.

Where only some columns of a candidate are known (a cell's own expression, not its neighbours'), the rows are cut to these: what is left of
them spans what is left of the records. That says something as long as fewer records, or hidden units, stand behind than columns are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attacks.gradient_inversion.message import first_linear, unlabelled, widest, width
from suites.contracts import Fact, Goal, Guess, Observation, Params, RoundView, Secret, Sees, Skip
from suites.room import by_rows

STEPS = (0, 5, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320)  # numbers of public components tried
_FULL = 1e-3  # what unseen records have outside, below which the rows hold all that is left and only rounding tells records apart
_RANK = 1e-10  # eigenvalues below this share of the largest count as zero


class SpanMembership:
    """Membership by the share of a record's energy inside the row space of a site's first-layer update.

    Parameters
    ----------
    rounds : int | None
        How many of the rounds in sight to read, from the first on; None takes all.
    """

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "key", "updates"})

    def __init__(self, rounds: int | None = None) -> None:
        self.rounds = rounds

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        columns = widest(seen.known)
        held = in_sight(seen.known, columns)
        deltas: dict[int, list[Tensor]] = {}
        for view in islice((view for view in seen.rounds if self.messages(view)), self.rounds):
            for site, update in self.messages(view).items():
                rows = restored(seen, update[first_linear(update, width(columns)).weight], columns, seen.key)
                deltas.setdefault(site, []).append(rows[:, held])
        if not deltas:
            raise Skip("no round shows an update")
        public = seen.auxiliary.x[:, columns][:, held]
        count = how_many_public([series[0] for series in deltas.values()][:3], public)
        components = principal(public, count)
        x = seen.candidates.x[:, columns][:, held]
        shares = torch.stack([torch.stack([share(delta, components, x) for delta in series]).mean(0) for series in deltas.values()])
        return Guess(shares.max(0).values, notes={"public_components": float(count), "sites": float(len(deltas))})

    def messages(self, view: RoundView) -> dict[int, Params]:
        return dict(view.updates)


class SpanMembershipOfSum(SpanMembership):
    """The same on the sum of all sites' updates, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "key", "sums"})

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}


def in_sight(known: Mapping[str, Fact], columns: slice) -> Tensor | slice:
    """Which of these ``columns`` of a candidate the threat knows: bool [width], or a slice of all."""
    told = known["columns"].value[columns] if "columns" in known else None
    return slice(None) if told is None or bool(told.all()) else told


def restored(seen: Observation, delta: Tensor, columns: slice, key: Secret | None) -> Tensor:
    """A first layer's update [H, F'] in the units of the ``columns`` of a record that it reads."""
    if not unlabelled(seen.known):
        return seen.restore(delta.float(), key)
    return seen.restore(functional.pad(delta.float(), (columns.start, 0)), key)[:, columns]


def share(delta: Tensor, components: Tensor, x: Tensor) -> Tensor:
    """Share [n] of the energy of ``x`` [n, F] inside the rows of ``delta`` [H, F], both without ``components`` [k, F]."""
    return coordinates(delta, components, x)[0].square().sum(1)


def coordinates(delta: Tensor, components: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit records' coordinates [n, r] in an orthonormal basis of the rows of ``delta``, and that basis' recipe [H, r] from the rows."""
    rows = delta - (delta @ components.T) @ components
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    kept = values > _RANK * values.max().clamp_min(1e-300)
    recipe = (vectors[:, kept] / values[kept].sqrt()).to(rows.dtype)

    def inside(x: Tensor) -> Tensor:
        rest = x - (x @ components.T) @ components
        found: Tensor = ((rest @ rows.T) @ recipe) / rest.norm(dim=1, keepdim=True).clamp_min(1e-15)
        return found

    return by_rows(inside, x), recipe


def principal(x: Tensor, count: int) -> Tensor:
    """The first ``count`` right singular vectors [count, F] of ``x`` [n, F], at a cost linear in F."""
    if count == 0 or len(x) == 0:
        return x.new_zeros(0, x.shape[1])
    values, vectors = torch.linalg.eigh((x @ x.T).double())
    recipe: Tensor = (vectors[:, -count:] / values[-count:].clamp_min(1e-30).sqrt()).T.to(x.dtype)
    return recipe @ x


def how_many_public(deltas: list[Tensor], public: Tensor) -> int:
    """The number of public components whose removal sets unseen records furthest from a full share."""
    fitted, unseen = public[::2], public[1::2]
    every = principal(fitted, max((count for count in STEPS if count < 0.9 * min(fitted.shape)), default=0)).flip(0)  # strongest first
    best, chosen = -torch.inf, 0
    for count in STEPS:
        if count > len(every) or len(unseen) < 4:
            break
        shares = [share(delta, every[:count], unseen) for delta in deltas]
        outside = [float(1 - s.mean()) for s in shares]
        gap = sum(rest / float(s.std().clamp_min(1e-12)) for rest, s in zip(outside, shares) if rest > _FULL)
        if gap > best:
            best, chosen = gap, count
    return chosen
