"""The sites' answers at what an active server made up: the honest path, with randomness of its own."""

from __future__ import annotations

import pytest
import torch

from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import SecureAggregation
from suites.contracts import Defense, Federation, Local, Params, Probe, ProbeRecord, Shape
from suites.federation import Assignment, Pool, Trained, answer, train
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification

TASK = Classification(hidden=12, blocks=1, head=8, dropout=0.0)
POOL = Pool(torch.randn(60, 20, generator=stream("crafting", "x")), torch.arange(60) % 3, 3)
SITES = tuple(torch.arange(60).chunk(3))
GIVEN = Assignment(SITES, ("crafting",), ("crafting", "defense"))
FEDERATION = Federation(sites=3, rounds=1, local=Local(epochs=1, batch=10))
PROBE = Probe("a", 0, tuple(tuple(site[:4].tolist()) for site in SITES))


def both(*layers: Defense) -> tuple[Trained, Stack]:
    stack = Stack(layers).plan(FEDERATION, Shape((20, 20, 20), 20, 3))
    return train(TASK, stack, FEDERATION, POOL, [GIVEN], probes=[PROBE])[0], stack


def asked(stack: Stack, params: Params) -> ProbeRecord:
    return answer(TASK, stack, FEDERATION, POOL, GIVEN, [PROBE], params)[0]


def apart(a: Params, b: Params) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_at_the_honest_model_the_answer_is_the_honest_one() -> None:
    trained, stack = both()
    honest = trained.rounds[0].probes[0]
    found = asked(stack, trained.rounds[0].broadcast)
    assert apart(found.combined, honest.combined) < 1e-7
    assert [m.site for m in found.messages] == [m.site for m in honest.messages]
    assert found.probe.records == honest.probe.records
    assert found.sent is not None


def test_another_model_is_answered_at_and_the_federation_stays() -> None:
    trained, stack = both()
    before = {name: tensor.clone() for name, tensor in trained.finals[0].items()}
    double = {name: 2 * tensor for name, tensor in trained.rounds[0].broadcast.items()}
    assert apart(asked(stack, double).combined, trained.rounds[0].probes[0].combined) > 1e-3
    assert apart(before, trained.finals[0]) == 0


def test_noise_is_drawn_for_the_answer_alone() -> None:
    """The same noise under two messages would cancel in their difference."""
    trained, stack = both(DPSGD(noise_multiplier=1.0))
    honest, first, again = trained.rounds[0].probes[0], *(asked(stack, trained.rounds[0].broadcast) for _ in range(2))
    assert apart(first.combined, honest.combined) > 0.01
    assert apart(first.combined, again.combined) == 0


def test_masks_and_the_least_number_of_records_hold_for_it_too() -> None:
    trained, stack = both(SecureAggregation())
    found = asked(stack, trained.rounds[0].broadcast)
    assert {m.kind for m in found.messages} == {"masked"}
    honest = trained.rounds[0].probes[0]
    assert not torch.equal(found.messages[0].payload["masked"], honest.messages[0].payload["masked"])  # another pad
    assert apart(found.combined, honest.combined) < 1e-5
    layer = Defense()
    layer.minimum = 5
    assert answer(TASK, Stack([layer]), FEDERATION, POOL, GIVEN, [PROBE], trained.rounds[0].broadcast) == ()


@pytest.mark.parametrize("name", ["imprint", "imprint_of_sum"])
def test_the_check_of_an_active_attack_holds(name: str) -> None:
    from suites.checks import check_attack

    found = {result.name: result for result in check_attack(name)}
    assert [result for result in found.values() if result.verdict in ("fail", "warn")] == []
    assert "sends no model" in found["refuses what it cannot use"].detail
