"""Known plaintexts: the records behind some messages are known, and the others are named, or unmixed, from them.

Threat: as ``gram_search``, and someone's own records are among the senders' (a colluding person, a published subset): a threat with
``known_pairs``. The pairs give the mixing away on their span: by Procrustes where it is a rotation (Schönemann 1966), by ridge regression
for any linear map. Only records that nobody told it are guessed and scored.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.key.matching import DECIDED, search
from attacks.key.mixed import Mixed, by_target, may_be, mixed_records
from suites.contracts import Goal, Ground, Guess, Observation, RequestError, Sees, Skip


class KnownPlaintext:
    """Records named from the threat's pairs of plain and mixed records; ``budget`` and ``inversion`` as in ``gram_search``."""

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "known_pairs", "candidates", "auxiliary", "simulate", "predict"})
    ground: ClassVar[Ground] = Ground(known_pairs=8)

    def __init__(self, budget: int = 4, inversion: int = 900) -> None:
        if budget < 1 or inversion < 1:
            raise RequestError(f"known_plaintext needs budget and inversion of at least 1 but got {budget} and {inversion}")
        self.budget, self.inversion = budget, inversion

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        pairs = seen.known_pairs
        if not pairs:
            raise Skip("this threat knows no record behind a message; give it known_pairs: 4, say")
        mixed = mixed_records(seen, [*(pair.target for pair in pairs), *seen.targets], rng, budget=self.inversion)
        plain = torch.cat([pair.records.x for pair in pairs]).to(seen.candidates.x)
        x, allowed = with_known(mixed, seen.candidates.x, may_be(mixed, seen.candidates.y), plain)
        placed, margins = search(mixed.z, x, allowed, rng, starts=self.budget, trusted=mixed.trusted)
        asked = mixed.target >= len(pairs)
        margins, found = margins[asked], by_target(x[placed], mixed)[len(pairs) :]
        home = bool(margins.median() > DECIDED) if len(margins) else False
        return Guess(found, margins, (margins > DECIDED) & home, {"known": float(len(plain))})


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
