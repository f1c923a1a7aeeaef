"""Receipts fail closed on the words of a claim: unit, neighbours and sampler are what was clipped, accounted for and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import SecureAggregation
from suites.contracts import Claim, Clip, Defense, Federation, Shape
from suites.federation import Assignment, Pool, train
from suites.randomness import stream
from suites.receipt import receipt
from suites.stack import Stack
from suites.witness import Witness
from tests.suites.test_receipt import CLASSES, EACH, FEATURES, FEDERATION, SITES, TASK, of


def saying(kind: type[Defense], **words: Any) -> Any:
    """The same defense, which says something else of itself."""

    def claim(self: Defense, federation: Federation, shape: Shape) -> Claim | None:
        found = kind.claim(self, federation, shape)
        return None if found is None else replace(found, **words)

    return type(f"Other{kind.__name__}", (kind,), {"claim": claim})


class Shuffled(DPSGD):
    """Every record once an epoch, where the whole site is a batch: no statistic tells it from sampling at rate one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.clip = Clip(1.0, sampling="shuffle")


QUICK = replace(FEDERATION, rounds=1, local=replace(FEDERATION.local, epochs=1))  # enough for words
WHOLE = replace(FEDERATION, local=replace(FEDERATION.local, batch=EACH))

FAULTS: Mapping[str, tuple[Callable[[], tuple[Defense, ...]], str]] = {
    "persons, and records clipped": (lambda: (saying(DPSGD, unit="person")(epsilon=8),), "one person, and what was clipped is one record"),
    "records, and persons clipped": (
        lambda: (saying(DPSGD, unit="record")(epsilon=8, unit="person"),), "one record, and what was clipped is one person"
    ),
    "hospitals": (lambda: (saying(DPSGD, unit="hospital")(epsilon=8),), "one hospital, and what was clipped is one record"),
    "sites, and records clipped": (lambda: (saying(DPSGD, unit="site")(epsilon=8),), "one site, and what was clipped is one record"),
    "records, and sites clipped": (lambda: (saying(DPFedAvg, unit="record")(epsilon=20),), "one record, and what was clipped is one site"),
    "replaced": (lambda: (saying(DPSGD, relation="replace")(epsilon=8),), "neighbours are 'replace', and what was accounted for is add_"),
    "in plain words": (lambda: (saying(DPSGD, relation="substitute one record")(epsilon=8),), "neighbours are 'substitute one record'"),
    "one replaced": (lambda: (saying(DPSGD, relation="replace_one", epsilon=30.0)(epsilon=8),), "neighbours are 'replace_one'"),
    "a message that is there or not": (
        lambda: (saying(DPFedAvg, relation="add_remove")(epsilon=20),), "'add_remove', and what was accounted for is replace_one"
    ),
    "no neighbours": (lambda: (saying(DPFedAvg, relation="")(epsilon=20),), "neighbours are ''"),
    "shuffled": (lambda: (saying(DPSGD, sampler="shuffle")(epsilon=8),), "sampler is 'shuffle', and what was accounted for is 'poisson'"),
    "no sampler": (lambda: (saying(DPSGD, sampler="none")(epsilon=8),), "sampler is 'none'"),
    "sampled sites": (lambda: (saying(DPFedAvg, sampler="poisson")(epsilon=20),), "sampler is 'poisson', and what was accounted for is"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_words_that_are_not_what_was_clipped_accounted_for_and_run_are_refused(fault: str) -> None:
    make, said = FAULTS[fault]
    found = of(*make(), federation=QUICK)
    assert any(said in reason for reason in found.reasons), found.reasons


def test_batches_that_the_engine_shuffled_are_refused_where_no_statistic_would_tell() -> None:
    assert of(DPSGD(epsilon=8), federation=WHOLE).reasons == ()
    found = of(Shuffled(epsilon=8), federation=WHOLE)
    assert any("batches were drawn by 'shuffle'" in reason for reason in found.reasons), found.reasons


def test_a_sum_may_lose_a_site_or_have_one_replaced() -> None:
    shared = {"shared": True, "colluders": 1}
    assert of(DPFedAvg(epsilon=20, **shared), SecureAggregation(), federation=QUICK).reasons == ()  # type: ignore[arg-type]
    halved = saying(DPFedAvg, relation="replace_one")(epsilon=20, **shared)
    found = of(halved, SecureAggregation(), federation=QUICK)
    assert not any("neighbours" in reason for reason in found.reasons)
    assert any("is claimed, and" in reason for reason in found.reasons), found.reasons  # at twice the sensitivity


def test_persons_are_not_claimed_where_nobody_knows_them() -> None:
    x = torch.randn(SITES * EACH, FEATURES, generator=stream("receipt", "x"))
    pool, shape = Pool(x, torch.arange(len(x)) % CLASSES, CLASSES), Shape((EACH,) * SITES, FEATURES, CLASSES)
    witness, stack = Witness(), Stack([saying(DPSGD, unit="person")(epsilon=8)]).plan(QUICK, shape)
    given = Assignment(tuple(torch.arange(len(x)).chunk(SITES)), ("a",), ("b",))
    trained = train(TASK, stack, QUICK, pool, [given], witness=witness)[0]
    claim = stack.claim(QUICK, shape)
    assert claim is not None
    found = receipt(witness, stack, QUICK, shape, claim, trained)
    assert any("one person, and what was clipped is one record" in reason for reason in found.reasons), found.reasons
