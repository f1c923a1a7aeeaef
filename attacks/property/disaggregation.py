"""Disaggregation: at which site a record is, from sums alone, where not every site takes part in every round.

Threat: a server under secure aggregation, which reads only the sum of a round's updates but knows who took part. Sums over rounds with
known participants are a linear system in the sites (Lam et al. 2021, "Gradient disaggregation"), and what was recovered from sums is
grouped by the rounds in which it shows (Marchand et al. 2023, "SRATTA"). Here both at once: a record's trace in each round's sum
(``matched_span``: its share of the first layer's row space, and where there) is regressed on who took part; it belongs to the site whose
presence goes with it.

Lam et al. solve for each site's update, which supposes that updates hardly change from round to round. A record's own trace changes less:
it is taken at each round's model. Measured on a residual network at five sites of 40 records, three a round, 20 rounds: .89 of records
placed right, and .81 from disaggregated updates (chance .20; with every update in the clear .96).

Limits. Sites that are always there, or never apart from each other, cannot be told by this. The more records a site has for each hidden
unit, the less is left of a trace. It says where a record is that is known to be somewhere; whether it is anywhere is the question of
``matched_span_of_sum``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from attacks.membership.matched_span import MatchedSpanOfSum
from suites.contracts import Goal, Ground, Guess, Observation, RoundView, Sees, Skip


class _OneRound:
    """An observation with one round in it."""

    def __init__(self, whole: Observation, view: RoundView) -> None:
        self.whole, self.rounds = whole, [view]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


class Disaggregation:
    """For every candidate and site how much speaks for it, from sums over rounds with changing participants."""

    goal: ClassVar[Goal] = "property"
    property: ClassVar[str] = "site_of_origin"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary", "predict", "key", "broadcasts", "sums"})
    ground: ClassVar[Ground] = Ground(participation=0.6)

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        views = [view for view in seen.rounds if view.broadcast is not None and view.combined is not None]
        if not any(view.participants for view in views):
            raise Skip("this view is not told who takes part in a round, so sums of different rounds cannot be set against each other")
        took = presence(views, seen.known["protocol"].value.sites)
        if not bool(took.std(0, unbiased=False).any()):
            raise Skip(
                "the same sites take part in every round in sight, so no two sums differ by a site (federation: {participation: .6})"
            )
        traces = [MatchedSpanOfSum().by_site(cast(Observation, _OneRound(seen, view)))[0][0] for view in views]
        evidence = placed(torch.stack(traces).double(), took)
        told = int(torch.linalg.matrix_rank(took - took.mean(0)))
        return Guess(evidence, notes={"rounds": float(len(views)), "contrasts": float(told)})


def presence(views: Sequence[RoundView], sites: int) -> Tensor:
    """Who took part [rounds, sites], as ones and zeros."""
    took = torch.zeros(len(views), sites, dtype=torch.float64)
    for row, view in zip(took, views):
        row[list(view.participants)] = 1.0
    return took


def placed(traces: Tensor, took: Tensor) -> Tensor:
    """Evidence [n, S] of each record's site from traces [rounds, n] and who took part [rounds, S]: least squares, by contrasts.

    Traces are compared over records within a round, as rounds differ in what they show at all. A site that was never there has no record.
    """
    scaled = (traces - traces.mean(1, keepdim=True)) / traces.std(1, keepdim=True).clamp_min(1e-30)
    found: Tensor = (torch.linalg.pinv(took - took.mean(0)) @ (scaled - scaled.mean(0))).T
    return found.masked_fill(took.sum(0) == 0, -torch.inf)
