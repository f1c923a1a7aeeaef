"""Re-identification by inner products, with no key and no plaintext: what a secret linear map in front of the network cannot hide.

Threat: a server that sees several messages of few records and holds candidates (and their labels) among which the records are. Mixed
records keep their inner products (a rotation exactly, a secret spectrum up to noise of size sd(s^2) / sqrt(F)), so their Gram matrix is
matched to the candidates' by a beam search over assignments that starts from no pair at all, and the pairs it finds predict all others
by regression (for a rotation: Procrustes; Schönemann 1966). Labels, which the output bias gives away, narrow the candidates.
See ``attacks.key.matching``. The search knows by itself whether it came home: its margins are the certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from attacks.key.matching import DECIDED, search
from attacks.key.mixed import by_target, may_be, mixed_records
from suites.contracts import Goal, Guess, Observation, RequestError, Sees, Target


class GramSearch:
    """Mixed records matched to candidates by their Gram matrix; the guess is the candidate itself.

    Parameters
    ----------
    budget : int
        Beam searches over different orders; stops at the first that came home.
    inversion : int
        Evaluations a message where batches must be taken apart first.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "candidates", "auxiliary", "simulate", "predict"})

    def __init__(self, budget: int = 8, inversion: int = 900) -> None:
        if budget < 1 or inversion < 1:
            raise RequestError(f"gram_search needs budget and inversion of at least 1 but got {budget} and {inversion}")
        self.budget, self.inversion = budget, inversion

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        mixed, x = mixed_records(seen, self.messages(seen), rng, budget=self.inversion), seen.candidates.x
        allowed = may_be(mixed, seen.candidates.y)
        placed, margins = search(mixed.z, x, allowed, rng, starts=self.budget, trusted=mixed.trusted)
        home = bool(margins.median() > DECIDED)
        notes = {"median_margin": float(margins.median()), "taken_apart": float(mixed.trusted.double().mean())}
        return Guess(by_target(x[placed], mixed), margins, (margins > DECIDED) & home, notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets


class GramSearchOfSum(GramSearch):
    """The same on sums over sites, taken apart first: all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "candidates", "auxiliary", "simulate", "predict"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
