"""Site-level DP: what a site sends is bounded and noised, and the claim says against whom it holds."""

from __future__ import annotations

import math

import pytest
import torch

from baselines.dp_fedavg import DPFedAvg
from baselines.ppml_omics import Corrected
from baselines.secure_aggregation import SecureAggregation
from suites import accounting
from suites.contracts import Federation, Local, RequestError, Shape
from suites.federation import Assignment, Pool, train
from suites.stack import Stack
from suites.tasks.classification import Classification

FEDERATION = Federation(rounds=20)
SHAPE = Shape(site_sizes=(241, 200, 300, 70, 70), features=50, classes=4)


@pytest.mark.parametrize("defense", [DPFedAvg, Corrected])
def test_the_card_names_the_generator_and_who_can_take_noise_off(defense: type[DPFedAvg]) -> None:
    assert defense.card is not None
    said = defense.card.does_not_protect
    assert "statistical generator" in said
    assert "beyond the stated colluders" in said


def update(scale: float = 1.0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    return {"weight": scale * torch.randn(300, 400, generator=rng), "bias": scale * torch.randn(300, generator=rng)}


def size(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_a_message_is_clipped_over_all_tensors_together(scale: float) -> None:
    defense = DPFedAvg(noise_multiplier=0, clip=0.5).plan(FEDERATION, SHAPE)
    before = update(scale)
    after = defense.encode(before, torch.Generator())
    assert size(after) == pytest.approx(min(0.5, size(before)), rel=1e-5)
    assert torch.allclose(after["bias"] / size(after), before["bias"] / size(before), atol=1e-7)


@pytest.mark.parametrize(
    ("options", "share"), [({}, 1.0), ({"shared": True}, 1 / 2.0), ({"shared": True, "colluders": 3}, 1 / math.sqrt(2))]
)
def test_noise_drawn_is_noise_claimed(options: dict[str, int], share: float) -> None:
    defense = DPFedAvg(noise_multiplier=3.0, clip=0.5, **options).plan(FEDERATION, SHAPE)
    zero = {name: 0 * tensor for name, tensor in update().items()}
    noise = torch.cat([tensor.flatten() for tensor in defense.encode(zero, torch.Generator().manual_seed(1)).values()])
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 * share, rel=0.012)


def test_epsilon_against_the_server_counts_a_message_that_turns_round() -> None:
    claim = DPFedAvg(noise_multiplier=4.0).claim(FEDERATION, SHAPE)
    assert claim is not None
    assert (claim.unit, claim.relation, claim.steps, claim.sampling_rate) == ("site", "replace_one", 20, 1.0)
    assert claim.epsilon == accounting.epsilon(1.0, 2.0, 20, 1e-5)


def test_epsilon_of_a_sum_is_that_of_the_literature() -> None:
    # dp-accounting 0.6: 20 full-participation rounds, noise multiplier 5 on the sum, δ = 1e-5: ε = 3.85
    claim = DPFedAvg(noise_multiplier=5.0, shared=True).plan(FEDERATION, SHAPE).claim(FEDERATION, SHAPE)
    assert claim is not None
    assert claim.relation == "add_remove"
    assert claim.epsilon == pytest.approx(3.85, rel=0.01)


@pytest.mark.parametrize("shared", [False, True])
def test_the_plan_meets_its_target(shared: bool) -> None:
    claim = DPFedAvg(epsilon=8, shared=shared).plan(FEDERATION, SHAPE).claim(FEDERATION, SHAPE)
    assert claim is not None
    assert claim.epsilon is not None
    assert 0.99 * 8 <= claim.epsilon <= 8


def test_shared_noise_needs_a_channel() -> None:
    with pytest.raises(RequestError, match="secure_aggregation"):
        Stack([DPFedAvg(shared=True)])
    assert Stack([DPFedAvg(shared=True), SecureAggregation()]).equal_weights
    assert Stack([DPFedAvg()]).equal_weights
    assert not Stack([SecureAggregation()]).equal_weights


def test_shared_noise_needs_honest_sites() -> None:
    with pytest.raises(RequestError, match="nobody's noise"):
        DPFedAvg(shared=True, colluders=5).plan(FEDERATION, SHAPE)


@pytest.mark.parametrize("make", [DPFedAvg, Corrected])
def test_shared_noise_is_sized_for_those_who_take_part_in_a_round(make: type[DPFedAvg | Corrected]) -> None:
    shape, two_of_five = Shape((50,) * 5, 50, 4), Federation(rounds=20, participation=0.4)
    planned = make(epsilon=20, shared=True, colluders=0).plan(two_of_five, shape)
    assert planned.noise_multiplier is not None
    zero = {"weight": torch.zeros(200, 200)}
    total = sum(planned.encode(zero, torch.Generator().manual_seed(i))["weight"] for i in range(2))
    assert isinstance(total, torch.Tensor)
    assert float(total.std()) == pytest.approx(planned.noise_multiplier, rel=0.02)  # clip is 1
    claim = planned.claim(two_of_five, shape)
    assert claim is not None
    assert claim.shares == 2
    with pytest.raises(RequestError, match="2 sites in a round and 2 colluders"):
        make(epsilon=20, shared=True, colluders=2).plan(two_of_five, shape)


def test_counters_are_refused() -> None:
    defense = DPFedAvg(noise_multiplier=1.0).plan(FEDERATION, SHAPE)
    with pytest.raises(RequestError, match=r"counter 'norm.num_batches_tracked'"):
        defense.encode({**update(), "norm.num_batches_tracked": torch.tensor(3)}, torch.Generator())


def test_clipping_only_claims_nothing() -> None:
    claim = DPFedAvg(noise_multiplier=0).claim(FEDERATION, SHAPE)
    assert claim is not None
    assert (claim.kind, claim.epsilon) == ("none", None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epsilon": 8.0, "noise_multiplier": 1.0}, "both"),
        ({"epsilon": -1.0}, "epsilon=-1"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"delta": 2.0}, "delta=2"),
        ({"clip": -1.0}, "clip=-1"),
        ({"colluders": -1}, "colluders=-1"),
    ],
)
def test_wrong_parameters_are_one_sentence(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        DPFedAvg(**arguments)


def test_the_engine_counts_every_site_once_and_sends_no_sizes() -> None:
    rng = torch.Generator().manual_seed(0)
    pool = Pool(torch.randn(60, 6, generator=rng), torch.randint(3, (60,), generator=rng), 3)
    sites = (torch.arange(10), torch.arange(10, 60))
    federation = Federation(sites=2, rounds=1, local=Local(epochs=1, batch=20))
    stack = Stack([DPFedAvg(noise_multiplier=0, clip=0.1)]).plan(federation, Shape((10, 50), 6, 3))
    (trained,) = train(Classification(dropout=0.0), stack, federation, pool, [Assignment(sites, ("a",), ("b",))])
    (kept,) = trained.rounds
    assert [message.records for message in kept.messages] == [None, None]
    assert all(size(message.payload) == pytest.approx(0.1, rel=1e-4) for message in kept.messages)
    for name, tensor in kept.combined.items():
        assert torch.allclose(tensor, (kept.messages[0].payload[name] + kept.messages[1].payload[name]) / 2, atol=1e-7)
