"""A site's update points along the gradients of its own records: their cosine, averaged over the rounds, tells members.

Threat: a server that sees each site's update (Li et al. 2023, "Effective passive membership inference attacks in federated learning against
overparameterized models"), or only the combined one. No reference models are needed. A record's score is its largest average over sites.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from attacks.membership.ghost import cosines
from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Guess, Observation, Params, RoundView, Sees, Skip


class RoundCosine:
    """Membership by the cosine of each site's update and the record's gradient, averaged over rounds, largest over sites."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "updates"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        candidates, key = seen.candidates, key_to_use(seen)
        total: dict[int, torch.Tensor] = {}
        count: dict[int, int] = {}
        for view in seen.rounds:
            messages = self.messages(view)
            if view.broadcast is None or not messages:
                continue
            signals = cosines(
                lambda params: seen.predict(params, candidates.x, key),
                lambda outputs: seen.loss(outputs, candidates.y),
                view.broadcast,
                list(messages.values()),
            )
            for site, signal in zip(messages, signals):
                total[site] = total.get(site, torch.zeros_like(signal)) + signal
                count[site] = count.get(site, 0) + 1
        if not total:
            raise Skip("no round shows both a broadcast and an update")
        means = torch.stack([total[site] / count[site] for site in total])
        return Guess(means.max(0).values, notes={"sites": float(len(total)), "rounds": float(max(count.values()))})

    def messages(self, view: RoundView) -> dict[int, Params]:
        """What of a round is compared, by site."""
        return dict(view.updates)


class RoundCosineOfSum(RoundCosine):
    """Membership by the cosine of the combined update and the record's gradient, averaged over rounds."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "sums"})

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}
