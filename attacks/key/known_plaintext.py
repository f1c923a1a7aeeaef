"""Known plaintexts: the records behind the first few messages are known, and the others are named, or unmixed, from them.

Threat: as ``gram_search``, and someone's own records are among the senders' (a colluding person, a published subset). The pairs give the
mixing away on their span: by Procrustes where it is a rotation, by ridge regression for any linear map. It reads the truth of those first
records and nothing else, so its rows are upper bounds by rule; with 0 known records it is the search without any.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.key.matching import DECIDED, search
from attacks.key.mixed import Mixed, by_target, may_be, mixed_records
from suites.contracts import Goal, Guess, Observation, RequestError, Sees


class KnownPlaintext:
    """Records named from ``known`` pairs of plain and mixed records.

    Parameters
    ----------
    known : int
        Records that are known, counted from the first message on.
    budget, inversion : as in ``gram_search``
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "candidates", "auxiliary", "simulate", "predict", "oracle"})

    def __init__(self, known: int = 10, budget: int = 4, inversion: int = 900) -> None:
        if known < 0:
            raise RequestError(f"known_plaintext needs known >= 0 but got {known}: it counts the records that are known")
        self.known, self.budget, self.inversion = known, budget, inversion

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        mixed = mixed_records(seen, seen.targets, rng, budget=self.inversion)
        truth = torch.cat(list(seen.oracle())).to(seen.candidates.x)[: self.known]
        x, allowed = with_known(mixed, seen.candidates.x, may_be(mixed, seen.candidates.y), truth)
        placed, margins = search(mixed.z, x, allowed, rng, starts=self.budget, trusted=mixed.trusted)
        home = bool(margins.median() > DECIDED)
        return Guess(by_target(x[placed], mixed), margins, (margins > DECIDED) & home, {"known": float(len(truth))})


def with_known(mixed: Mixed, x: Tensor, allowed: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates [n + k, F] with the known records at the end, and who may be who: a message of known records holds only those."""
    count, n = len(truth), len(x)
    allowed = torch.cat([allowed, torch.zeros(len(allowed), count, dtype=torch.bool)], 1)
    same = (torch.cdist(x.double(), truth.double()) == 0).any(1) if count else torch.zeros(n, dtype=torch.bool)
    allowed[:, :n] &= ~same[None]  # a known record is asked for once, as a known one
    for target in range(int(mixed.target.max()) + 1):
        rows = (mixed.target == target).nonzero().squeeze(1)
        inside = rows[rows < count]
        if len(inside) == len(rows):
            allowed[rows] = False
            allowed[rows[:, None], n + inside[None]] = True
        elif len(inside):  # part of a batch is known: any row of it may be one of them
            allowed[rows[:, None], n + inside[None]] = True
    return torch.cat([x, truth]), allowed
