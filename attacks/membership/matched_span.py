"""Span membership with a matched filter: not only *that* a record lies in an update's rows, but *where* its gradient would have put it.

A member x with first-layer derivatives d adds d x^T to dW, so in the orthonormal row coordinates of dW (see ``span``) it moves towards d,
turned by the same whitening. Where a site has more records than hidden units this direction tells what the bare share of energy cannot.
d is the trapezoid of the derivatives before and after the site's own update, as local training ran from one to the other. Score: the share
plus twice its product with the match, as in the log-likelihood ratio of a Gaussian shifted along d.

Threat: that of span membership, and the records' labels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.gradient_inversion.message import first_linear, widest, width
from attacks.membership.ghost import RecordGradients
from attacks.membership.loss import key_to_use
from attacks.membership.span import coordinates, how_many_public, in_sight, principal, restored
from suites.contracts import Goal, Guess, Observation, Params, RoundView, Sees, Skip


class MatchedSpan:
    """Membership by share of energy in a site's first-layer update and its match with the record's own gradient.

    Parameters
    ----------
    rounds : int | None
        How many of the rounds in sight to read, from the first on; None takes all.
    """

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "updates"})

    def __init__(self, rounds: int | None = None) -> None:
        self.rounds = rounds

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        means, count = self.by_site(seen)
        return Guess(torch.stack(list(means.values())).max(0).values, notes={"public_components": float(count), "sites": float(len(means))})

    def by_site(self, seen: Observation) -> tuple[dict[int, Tensor], int]:
        """Each site's score of every candidate [n], averaged over the rounds, and the number of public components."""
        columns, key, candidates = widest(seen.known), key_to_use(seen), seen.candidates
        held = in_sight(seen.known, columns)
        x, public = candidates.x[:, columns][:, held], seen.auxiliary.x[:, columns][:, held]
        views = [view for view in seen.rounds if view.broadcast is not None and self.messages(view)][: self.rounds]
        if not views:
            raise Skip("no round shows both a broadcast and an update")
        layer = first_linear(next(iter(self.messages(views[0]).values())), width(columns)).weight
        gradients = RecordGradients.of_candidates(seen, key)

        def delta(update: Params) -> Tensor:
            return restored(seen, update[layer], columns, key)[:, held]

        count = how_many_public([delta(update) for update in self.messages(views[0]).values()][:3], public)
        components = principal(public, count)
        total: dict[int, Tensor] = {}
        rounds: dict[int, int] = {}
        for view in views:
            broadcast = view.broadcast or {}
            before = gradients.first_slopes(broadcast)
            for site, update in self.messages(view).items():
                after = gradients.first_slopes({name: t + update[name] if name in update else t for name, t in broadcast.items()})
                score = matched(delta(update), components, x, before, after)
                total[site] = total[site] + score if site in total else score
                rounds[site] = rounds.get(site, 0) + 1
        return {site: total[site] / rounds[site] for site in total}, count

    def messages(self, view: RoundView) -> dict[int, Params]:
        return dict(view.updates)


class MatchedSpanOfSum(MatchedSpan):
    """The same on the sum of all sites' updates, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "sums"})

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}


def matched(delta: Tensor, components: Tensor, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Score [n] of records ``x`` [n, F] with first-layer derivatives ``before`` and ``after`` [n, H] the update ``delta`` [H, F]."""
    inside, recipe = coordinates(delta, components, x)
    if before.shape[1] != len(recipe):
        return inside.square().sum(1)  # the model's first layer is not the widest one: the bare share remains
    expected = normalize(normalize(before @ recipe) + normalize(after @ recipe))
    match = (inside * expected).sum(1).clamp_min(0)
    energy = inside.square().sum(1)
    return energy + 2 * match * energy.median().sqrt()
