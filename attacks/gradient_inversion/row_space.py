"""Batches of records from one message, searched in the row space of the first layer's update (``row_problem``).

Labels are the counts from the output bias, their order free. Steps of plain SGD are unrolled in the same space; what order their
mini-batches came in is searched where the site shuffled its records (``order``). Single steps on one checkpoint are searched together,
targets by starts, with the records that one search after the other finds (``ahead``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.ahead import Ahead
from attacks.gradient_inversion.message import certified
from attacks.gradient_inversion.order import Found, Shuffled, shuffles
from attacks.gradient_inversion.regression import with_targets
from attacks.gradient_inversion.row_problem import Begun, Problem, explains
from attacks.gradient_inversion.spear import by_zeros
from suites.contracts import Goal, Guess, Observation, Secret, Sees, Skip, Target


class RowSpace:
    """Whole batches by L-BFGS in the row space of the first layer's update, finished in closed form.

    Parameters
    ----------
    budget : int
        Evaluations of the objective a target, all starts together counting as one.
    restarts : int
        Starts a target, the first from the closed form.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "key"})

    def __init__(self, budget: int = 900, restarts: int = 16, limit: int = 4) -> None:
        self.budget, self.restarts, self.limit = budget, restarts, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        everything = self.messages(seen)
        key, values, losses, proven = seen.key, [], [], []
        notes = {"targets": float(min(self.limit, len(everything))), "of": float(len(everything)), "budget": float(self.budget)}
        problems = [Problem(seen, target, key) for target in everything[: self.limit]]
        ahead = Ahead(problems, self.budget, self.restarts)
        for index, (target, problem) in enumerate(zip(everything, problems)):
            found = self._found(seen, problem, key, rng, partial(ahead.begin, index, rng))
            # A search that explains little of the message knows less than the closed form, which shrinks towards the prior mean.
            believed = explains(found.loss, target)
            raw = found.inside @ problem.rows if believed and problem.case != "plain" else problem.guess
            value = seen.restore(raw.float(), key)
            value = with_targets(seen, problem.target, value, key) if believed else value
            values.append(value)
            losses.append(found.loss)
            proven.append(certified(seen, target, value, found.labels, key, found.order))
            if shuffles(target):
                said = "order_found" if found.order is not None and found.loss < problem.solved else "order_unknown"
                notes[said] = notes.get(said, 0.0) + 1.0
        return Guess(values, confidence=-torch.tensor(losses), certified=torch.tensor(proven), notes=dict(notes))

    def _found(self, seen: Observation, problem: Problem, key: Secret | None, rng: torch.Generator, begin: Callable[[], Begun]) -> Found:
        """The best records in a target's row space; as if each step took all, unless some order of mini-batches explains more.

        Zeros of switched-off units do not depend on the order, so records that they give are exact before any order is known.
        """
        if problem.case == "plain":  # the first rung: one record, read off in closed form
            return Found(problem.guess @ problem.rows.T, problem.labels, 0.0)
        tried: list[Found] = []

        def exactly(near: Tensor | None) -> bool:
            """Whether records by their zeros, near given ones [B, r], reproduce the message in some order."""
            try:
                inside, labels = by_zeros(seen, problem, key, self.budget, rng, near)
            except Skip:
                return False
            tried.append(Shuffled(seen, problem, labels, key).solve(inside, self.budget, rng))
            return tried[-1].loss < problem.solved

        if not shuffles(problem.target) or not exactly(None):
            inside, loss = problem.solve(self.budget, self.restarts, rng, begin())
            tried.append(Found(inside, problem.labels, loss))
            if shuffles(problem.target) and not exactly(inside) and len(tried) == 1:
                tried.append(Shuffled(seen, problem, problem.labels, key).solve(inside, self.budget, rng))
        return min(tried, key=lambda found: found.loss)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets


class RowSpaceOfSum(RowSpace):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "predict", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
