"""The loop that round-wise membership attacks share: one signal per round, site and record, averaged over rounds.

Threat: a server that sees each site's update. Nothing but activations and deltas is computed (``attacks.membership.ghost``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.membership.ghost import Products, RecordGradients
from attacks.membership.loss import key_to_use
from suites.contracts import Guess, Observation, Params, RoundView, Skip


class RoundWise:
    """A record's score is its largest average over sites; a subclass says what the signal is."""

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        means, rounds = self.by_site(seen)
        return Guess(torch.stack(list(means.values())).max(0).values, notes={"sites": float(len(means)), "rounds": float(rounds)})

    def by_site(self, seen: Observation) -> tuple[dict[int, Tensor], int]:
        """Each site's signal of every candidate [n], averaged over the rounds, and over how many at most."""
        key = key_to_use(seen)
        gradients = RecordGradients.of_candidates(seen, key)
        total: dict[int, Tensor] = {}
        count: dict[int, int] = {}
        for view in seen.rounds:
            messages = self.messages(view)
            if view.broadcast is None or not messages:
                continue
            found = gradients.products(view.broadcast, list(messages.values()))
            for site, signal in zip(messages, self.signals(found)):
                total[site] = total.get(site, torch.zeros_like(signal)) + signal
                count[site] = count.get(site, 0) + 1
        if not total:
            raise Skip("no round shows both a broadcast and an update")
        return {site: total[site] / count[site] for site in total}, max(count.values())

    def messages(self, view: RoundView) -> dict[int, Params]:
        """What of a round is compared, by site."""
        return dict(view.updates)

    def signals(self, found: Products) -> Tensor:
        """[S, n], higher for members."""
        raise NotImplementedError
