"""A site's class mix: which share of its records is of each class, read off its updates (see ``shadow``).

At a fresh model the output bias alone tells it (``attacks.gradient_inversion.labels``, one message); after many local steps and under Adam
the regression on simulated updates still does.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.message import output_bias, unlabelled
from attacks.property.shadow import ShadowShares
from suites.contracts import Guess, Observation, Params, RoundView, Sees, Skip


class ClassMix(ShadowShares):
    """Class proportions [S, K] of every site, by regression on simulated updates."""

    property: ClassVar[str] = "class_mix"
    needs: ClassVar[frozenset[Sees]] = frozenset({"auxiliary", "simulate", "key", "broadcasts", "updates"})

    def kinds(self, seen: Observation) -> tuple[Tensor, int]:
        if unlabelled(seen.known) or seen.auxiliary.y.is_floating_point():
            raise Skip("a class mix needs class labels, and this task's loss reads none")
        return seen.auxiliary.y, int(seen.known["classes"].value)

    def reads(self, update: Params, classes: int) -> Params:
        """The output layer alone, where it has a bias: its rows are the classes."""
        name = output_bias(update, classes)
        if name is None:
            return update
        return {own: update[own] for own in (name, name.removesuffix("bias") + "weight") if own in update}

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        value, notes = self.shares(seen, rng)
        return Guess(value, notes=notes)


class ClassMixOfSum(ClassMix):
    """Class proportions [1, K] of all sites together, from the combined update."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"auxiliary", "simulate", "key", "broadcasts", "sums"})
    together: ClassVar[bool] = True

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}
