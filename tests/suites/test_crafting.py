"""The sites' answers at what an active server made up: the honest path, with randomness of its own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import SecureAggregation
from suites import referee
from suites.bench import Bench
from suites.contracts import Defense, Federation, Guess, Local, Params, Probe, ProbeRecord, Shape, Threat
from suites.federation import Assignment, Pool, Trained, answer, train
from suites.properties import Properties
from suites.randomness import stream
from suites.scoring_measure import UPPER_BOUND
from suites.stack import Stack
from suites.tasks.classification import Classification
from suites.trial import Trial

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


class _Peeks:
    """Chooses what to send by the truth and keeps it for its guess."""

    goal = "reconstruction"
    needs = frozenset({"probes", "oracle"})
    active = True

    def craft(self, seen: Any, target: Any, rng: torch.Generator) -> Params:
        self.truth = seen.oracle()
        return dict(target.params)

    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        return Guess(self.truth)


class _Silent:
    goal = "reconstruction"
    needs = frozenset({"probes"})
    active = True

    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        return Guess([target.update for target in seen.targets])


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trial]:
    folder = tmp_path_factory.mktemp("trial")
    spec = {
        "suite": "crafting", "task": "classification:dropout=0", "data": {"name": "synthetic"}, "seed": 0, "defense": "fedavg",
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "dirichlet", "sites": 2, "alpha": 0.5},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 30}}, "probes": [{"gradients": 1, "batch": 2, "round": 0}],
    }  # fmt: skip
    referee.train_cell(spec, folder)
    return lambda **threat: Trial(Bench(spec, folder / "prepared"), Threat(**threat), folder, [])


def test_what_an_active_attack_reads_to_choose_counts_as_its_reading(trial: Callable[..., Trial]) -> None:
    rows, _ = trial(active=True).run(_Peeks(), "peeks", {"goal": "reconstruction"})
    leakage = next(row for row in rows if row["metric"] == "leakage")
    assert leakage["value"] > 0.99
    assert UPPER_BOUND in leakage["reason"]


def test_an_active_attack_that_chooses_nothing_is_a_fault_of_its_own(trial: Callable[..., Trial]) -> None:
    with pytest.raises(ValueError, match=r"has no craft"):
        trial(active=True).run(_Silent(), "silent", {})


def test_a_site_asks_about_the_properties_of_the_others(trial: Callable[..., Trial]) -> None:
    """Two sites of different mix: a looking site is held against the other's alone, beside the public's and its own."""
    attack = SimpleNamespace(property="class_mix")
    site, server = trial(view="site"), trial()
    held, classes = site.bench.prepared, site.bench.prepared.pool.classes
    kinds = [torch.bincount(held.pool.y[own], minlength=classes).double() / len(own) for own in held.sites]
    assert float((kinds[0] - kinds[1]).abs().max()) > 0.05
    asked = Properties(site.bench, site._looker)
    assert torch.allclose(asked.truth(attack), kinds[1 - site.bench.colluder][None])
    assert torch.allclose(Properties(server.bench).truth(attack), torch.stack(kinds))
    found = {one.metric: one for one in asked.score(attack, Guess(kinds[1 - site.bench.colluder][None]))}
    assert found["leakage"].value == pytest.approx(1.0)
