"""Candidates that lie in the rows of a message: whom a batch consists of, however many they are, without taking it apart.

The rows of dW_1 = D^T X span the records of a batch, and of a batch of more records than the layer has units those directions that its
records share. A candidate that was in it has more of its energy there than one that was not (``attacks.membership.span``), so the most
inside are the answer. Batches of fewer records than units are answered exactly, larger ones by how far their records stand out: 128
records of pbmc68k behind a layer of 64 units, to 98 of 100 and more. No inversion, no labels.

Threat: a server that sees messages of known records' kind and holds candidates among which these are. A secret linear map in front of the
network turns the rows away from every candidate, and what is left is a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from attacks.gradient_inversion.message import as_gradient, first_linear, widest, width
from attacks.membership.span import how_many_public, in_sight, principal, restored, share
from suites.contracts import Goal, Guess, Observation, Sees, Skip, Target

_INSIDE = 1e-6  # share of a candidate's energy outside the rows below which it is in the batch: rounding


class CandidatesInSpan:
    """Of each message the candidates with the largest share of energy in the rows of its first layer's gradient; the guess is these."""

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "candidates", "auxiliary", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        columns, x, targets = widest(seen.known), seen.candidates.x, self.messages(seen)
        held = in_sight(seen.known, columns)
        if not targets:
            raise Skip("no probe message is in sight, so there is none to hold a candidate against")
        gradients = [as_gradient(target) for target in targets]
        layer = first_linear(gradients[0], width(columns)).weight
        deltas = [restored(seen, gradient[layer], columns, seen.key)[:, held] for gradient in gradients]
        public, known = seen.auxiliary.x[:, columns][:, held], x[:, columns][:, held]
        count = how_many_public(deltas[:3], public)
        components = principal(public, count)
        values, trust, proven = [], [], []
        for target, delta in zip(targets, deltas):
            inside = share(delta, components, known)
            batch = min(target.batch, len(x))
            best = inside.topk(batch).indices
            last = inside[best[-1]] if batch == len(x) else inside.topk(batch + 1).values[-1]
            fill = best[torch.arange(target.batch - batch) % batch]  # more records than candidates: someone twice
            best = torch.cat([best, fill])
            values.append(x[best])
            trust.append((inside[best] - last) / inside.std().clamp_min(1e-12))
            proven.append((inside[best] > 1 - _INSIDE) & (last < 0.99))
        notes = {"public_components": float(count)}
        return Guess(values, confidence=torch.cat(trust), certified=torch.cat(proven), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets


class CandidatesInSpanOfSum(CandidatesInSpan):
    """The same on sums over sites, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "candidates", "auxiliary", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
