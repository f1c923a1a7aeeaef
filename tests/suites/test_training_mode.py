"""How a message came about is a public fact: the share of units that a step drops, and the numbers' precision.

An attack that simulates a client drops nothing and computes in double precision. Where the victim did otherwise, no guess reproduces the
message, the true records included: such a message may be read but is never certified.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from attacks.gradient_inversion.ladder import Ladder
from attacks.gradient_inversion.message import certified, distance
from attacks.gradient_inversion.row_space import RowSpace
from suites.contracts import Federation, Guess, Local, Probe, Records, Shape, Target, Threat
from suites.federation import Assignment, Pool, train
from suites.observation import Evidence, Guarded, Scene, Seen
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES, SIZE = 60, 4, 20
X = torch.randn(80, FEATURES, generator=stream("training mode", "x"))
POOL = Pool(X, torch.arange(80) % CLASSES, CLASSES)
SITES = (torch.arange(SIZE), torch.arange(SIZE, 2 * SIZE))


def observed(dropout: float, batch: int, optimiser: Literal["gradient", "sgd"] = "gradient") -> Seen:
    """What a server sees of two sites' probes in the engine's own training."""
    task, federation = Classification(network="mlp", hidden=32, dropout=dropout), Federation(sites=2, rounds=1, local=Local(batch=5))
    stack = Stack([]).plan(federation, Shape((SIZE, SIZE), FEATURES, CLASSES))
    probe = Probe("p", 0, tuple(tuple(site[:batch].tolist()) for site in SITES), optimiser, 1, 0.05 if optimiser == "sgd" else 0.0)
    assignment = Assignment(SITES, ("training mode",), ("training mode", "defense"))
    trained = train(task, stack, federation, POOL, [assignment], probes=[probe])[0]
    own, rest = torch.arange(2 * SIZE), torch.arange(2 * SIZE, 80)
    known, public = Records(X[own], POOL.y[own]), Records(X[rest], POOL.y[rest])
    adversary = keys("training mode", "adversary")
    scene = Scene(task, stack, federation, CLASSES, FEATURES, None, known, public, SIZE, adversary, lambda _: [], lambda: None)
    return Seen(scene, Evidence(trained.rounds, trained.finals), Threat())


class Rounded(Seen):
    """The same observation of messages that were sent in half precision."""

    kind = torch.float16

    @property
    def targets(self) -> list[Target]:
        return [replace(target, update={name: t.to(self.kind) for name, t in target.update.items()}) for target in super().targets]


def truth(target: Target) -> Records:
    assert target.site is not None
    rows = SITES[target.site][: target.batch]
    return Records(X[rows], POOL.y[rows])


def fit(guess: Guess, seen: Seen) -> float:
    """R2 of the worst message, records matched by distance; 0 is the public mean."""
    found = []
    for target, value in zip(seen.targets, guess.value):
        real = truth(target).x
        near = value.float()[linear_sum_assignment(torch.cdist(real, value.float()).numpy())[1]]
        found.append(1 - float((near - real).square().sum() / real.square().sum()))
    return min(found)


def run(attack: type[Ladder] | type[RowSpace], seen: Seen) -> Guess:
    return attack(budget=300).run(Guarded(seen, attack.needs), torch.Generator().manual_seed(3))


@pytest.mark.parametrize("optimiser", ["gradient", "sgd"])
def test_messages_are_of_training_mode_and_the_share_that_is_dropped_is_told(optimiser: Literal["gradient", "sgd"]) -> None:
    for share in (0.0, 0.4):
        seen = observed(share, 4, optimiser)
        assert (seen.known["dropout"].value, seen.known["dropout"].source) == (share, "protocol")
        assert Guarded(seen, frozenset({"probes"})).known["dropout"].value == share  # whatever an attack declares
        for target in seen.targets:
            real = truth(target)
            assert certified(seen, target, real.x, real.y, None) == (share == 0)  # of a step, at the rounding of its two models
            off = float(distance(seen.simulate(target, real.x, real.y), target.update))
            assert off < 1e-3 if share == 0 else off > 0.1


@pytest.mark.parametrize(("attack", "batch"), [(RowSpace, 1), (RowSpace, 4), (Ladder, 1)])
def test_under_dropout_nothing_is_certified_and_records_are_read_all_the_same(attack: type[Ladder] | type[RowSpace], batch: int) -> None:
    plain, dropped = observed(0.0, batch), observed(0.4, batch)
    guess = run(attack, plain)
    assert guess.certified is not None
    assert guess.certified.tolist() == [True, True]
    assert fit(guess, plain) > 0.999
    guess = run(attack, dropped)
    assert guess.certified is not None
    assert guess.certified.tolist() == [False, False]
    assert fit(guess, dropped) > (0.999 if batch == 1 else 0.9)


@pytest.mark.parametrize(
    ("attack", "batch", "kind"),
    [(RowSpace, 1, torch.float16), (RowSpace, 4, torch.float16), (RowSpace, 4, torch.bfloat16), (Ladder, 4, torch.float16)],
)
def test_half_precision_is_seen_as_sent_read_and_not_certified(
    attack: type[Ladder] | type[RowSpace], batch: int, kind: torch.dtype
) -> None:
    """R2 at least .999 from half and .99 from bfloat16 messages, and the search stops at their rounding."""
    seen = observed(0.0, batch)
    assert {t.dtype for target in seen.targets for t in target.update.values()} == {torch.float32}
    rounded = Rounded(seen._scene, seen._evidence, Threat())
    rounded.kind = kind
    assert {t.dtype for target in rounded.targets for t in target.update.values()} == {kind}
    for target in rounded.targets:
        assert not certified(rounded, target, truth(target).x, truth(target).y, None)  # not even the truth is
    guess = run(attack, rounded)
    assert guess.certified is not None
    assert guess.certified.tolist() == [False, False]
    assert fit(guess, rounded) >= (0.999 if kind == torch.float16 else 0.99)
