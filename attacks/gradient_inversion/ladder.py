"""The ladder: every way to invert a message, from cheap to dear, until the first whose records reproduce it.

A rung is an attack of its own, run on one message: the closed form, the records already in hand that lie in the update's span, SPEAR
(exact from the zeros of switched-off units), independent components, L-BFGS in the row space (steps of SGD are unrolled there), and
descent on the cosine distance in full space. The certificate needs no truth: a reconstruction whose simulated message is the received one
to 1e-6 ends the climb. Where no rung gets there, the row space speaks if it explains the message; else the independent components of a
batch, if they have tails to be told by; else the closed form, which shrinks towards the prior mean; descent in full space, whose cosine
sees no scale, only where none of these could look (measured under Adam, 8 records: R2 .42 of the closed form, .17 of the descent). More
directions than records are noise, which a search would fit: then nothing dearer than the closed form is climbed at one record, and than
the row space at several. A message of one direction from one record is that record, whatever a missing key leaves unproven: nothing dearer
is climbed there either (measured on ``infl:published`` under a wrong key: R2 .9999 of the closed form in .5 s, .997 of all rungs in 50 s).

The notes say which rung ended how many climbs and which spoke without a certificate (``ended:<rung>``, ``spoke:<rung>``, in messages), and
what each cost (``seconds:<rung>``, wall).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.gradient_inversion.cocktail_party import CocktailParty
from attacks.gradient_inversion.cosine import CosineInversion
from attacks.gradient_inversion.message import known_count
from attacks.gradient_inversion.rank import KnownRecords, directions
from attacks.gradient_inversion.row_problem import explains
from attacks.gradient_inversion.row_space import RowSpace
from attacks.gradient_inversion.spear import Spear
from suites.contracts import Attack, Goal, Guess, Observation, RequestError, Sees, Skip, Target

TAILS = 1.0  # kurtosis above that of normal records from which components are told apart


class Alone:
    """An observation with one message in it, whatever was asked for: sums are messages too."""

    def __init__(self, whole: Observation, target: Target) -> None:
        self.whole, self.targets, self.target_sums = whole, (target,), (target,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


class _Climb:
    """How far one message took."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self.rung, self.proven = "", False
        self.seconds: dict[str, float] = {}
        self.reasons: list[str] = []


class Ladder:
    """Records by the cheapest attack that reproduces the message.

    Parameters
    ----------
    budget : int
        Evaluations of the row space's objective a message; SPEAR draws twenty times as often, descent takes a ninth as many steps.
    restarts : int
        Starts of the search in the row space.
    limit : int
        Only the first ``limit`` messages are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "key"})

    def __init__(self, budget: int = 900, restarts: int = 16, limit: int = 4) -> None:
        if min(budget, restarts, limit) < 1:
            raise RequestError("the ladder needs budget, restarts and limit of at least 1")
        self.budget, self.restarts, self.limit = budget, restarts, limit

    def rungs(self) -> Mapping[str, Attack]:
        """The attacks in the order in which they are tried."""
        return {
            "closed_form": ClosedForm(),
            "known_records": KnownRecords(),
            "spear": Spear(20 * self.budget),
            "cocktail_party": CocktailParty(),
            "row_space": RowSpace(self.budget, self.restarts),
            "cosine": CosineInversion(max(1, self.budget // 9)),
        }

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        everything = self.messages(seen)
        climbs = [self._climb(seen, target, rng) for target in everything[: self.limit]]
        notes: dict[str, float | str] = {"targets": float(len(climbs)), "of": float(len(everything)), "budget": float(self.budget)}
        for climb in climbs:
            said = {f"{'ended' if climb.proven else 'spoke'}:{climb.rung}": 1.0}
            said |= {f"seconds:{rung}": seconds for rung, seconds in climb.seconds.items()}
            for name, amount in said.items():
                notes[name] = float(notes.get(name, 0.0)) + amount
        proven = torch.tensor([climb.proven for climb in climbs])
        return Guess([climb.value for climb in climbs], confidence=proven.float(), certified=proven, notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    def _climb(self, seen: Observation, target: Target, rng: torch.Generator) -> _Climb:
        alone, climb = cast(Observation, Alone(seen, target)), _Climb()
        rank = 0 if target.optimiser == "adam" else directions(target, known_count(seen.known, "features"))[1]  # Adam's step shows none
        noisy = rank > target.batch
        for rung, attack in self.rungs().items():
            if noisy and rung != "closed_form" and (rung != "row_space" or target.batch == 1):
                continue
            started = time.perf_counter()
            try:
                guess = attack.run(alone, rng)
            except Skip as skip:
                climb.reasons.append(str(skip))
                continue
            finally:
                climb.seconds[rung] = time.perf_counter() - started
            certain = guess.certified is not None and bool(guess.certified[0])
            if certain or climb.value is None or _believed(rung, guess, target):
                climb.value, climb.rung, climb.proven = guess.value[0], rung, certain
            if certain or (target.batch == rank == 1 and rung == "closed_form"):
                break
        if climb.value is None:
            raise Skip("; ".join(dict.fromkeys(climb.reasons)))
        return climb


class LadderOfSum(Ladder):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "predict", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def _believed(rung: str, guess: Guess, target: Target) -> bool:
    """Whether a rung without a certificate is believed over the cheaper ones."""
    if guess.confidence is None:
        return False
    if rung == "cocktail_party":
        return target.batch > 1 and float(guess.confidence[0]) > TAILS
    return rung == "row_space" and explains(-float(guess.confidence[0]), target)
