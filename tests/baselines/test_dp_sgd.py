"""DP-SGD's noise, its plan and its claim. The Poisson rate that is really executed is tested with the engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from baselines.dp_sgd import DPSGD
from suites import accounting
from suites.contracts import Federation, Local, RequestError, Shape

FEDERATION = Federation(rounds=10, local=Local(epochs=2, batch=100))
SHAPE = Shape(site_sizes=(241, 300, 180, 180), features=50, classes=4)


def sums(*, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((400, 500), scale), "bias": torch.full((400,), scale)}


def test_noise_has_the_deviation_that_is_claimed() -> None:
    defense = DPSGD(noise_multiplier=2.5, clip=0.4)
    before = sums()
    after = defense.noise(before, torch.Generator().manual_seed(3))
    noise = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(noise.std()) == pytest.approx(2.5 * 0.4, rel=0.01)  # 200,400 draws: five deviations are 0.8 %
    assert abs(float(noise.mean())) < 5 * 1.0 / math.sqrt(len(noise))
    assert float((noise.abs() > 2.0).float().mean()) == pytest.approx(math.erfc(math.sqrt(2)), rel=0.06)  # Gaussian in its tails
    assert torch.equal(before["bias"], torch.ones(400)), "the clipped sum itself is not to be changed"


def test_noise_follows_its_stream_and_never_repeats_within_it() -> None:
    defense = DPSGD(noise_multiplier=1.0)
    rng = torch.Generator().manual_seed(3)
    first, second = defense.noise(sums(), rng)["weight"], defense.noise(sums(), rng)["weight"]
    again = defense.noise(sums(), torch.Generator().manual_seed(3))["weight"]
    assert torch.equal(first, again)
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.02


def test_clipping_only_adds_nothing_and_claims_nothing() -> None:
    defense = DPSGD(noise_multiplier=0).plan(FEDERATION, SHAPE)
    before = sums()
    assert defense.noise(before, torch.Generator()) is before
    claim = defense.claim(FEDERATION, SHAPE)
    assert claim is not None
    assert (claim.kind, claim.epsilon) == ("none", None)


@pytest.mark.parametrize("epsilon", [8.0, 32.0, 100.0])
def test_the_plan_covers_the_worst_site_over_all_rounds(epsilon: float) -> None:
    defense = DPSGD(epsilon=epsilon).plan(FEDERATION, SHAPE)
    claim = defense.claim(FEDERATION, SHAPE)
    assert claim is not None
    assert claim.epsilon is not None
    assert 0.99 * epsilon <= claim.epsilon <= epsilon
    assert len(claim.per_site) == 4
    assert max(claim.per_site) == claim.epsilon
    worst = claim.per_site.index(claim.epsilon)
    records = SHAPE.site_sizes[worst]
    assert claim.sampling_rate == 100 / records
    assert claim.steps == 10 * 2 * math.ceil(records / 100)
    assert claim.noise_multiplier == defense.noise_multiplier
    assert claim.epsilon == accounting.epsilon(100 / records, defense.noise_multiplier, claim.steps, 1e-5)
    one_round = accounting.epsilon(100 / records, defense.noise_multiplier, claim.steps // 10, 1e-5)
    assert one_round < 0.6 * claim.epsilon


def test_the_claim_says_all_that_makes_it_mean_something() -> None:
    claim = DPSGD(epsilon=8, delta=1e-6, clip=0.5).claim(FEDERATION, SHAPE)  # plans by itself
    assert claim is not None
    assert (claim.kind, claim.unit, claim.relation, claim.sampler, claim.delta) == ("dp", "record", "add_remove", "poisson", 1e-6)
    for word in ("one record", "10 rounds", "Poisson", "clipped to 0.5", "noise multiplier", "PRV", "server sees"):
        assert word in claim.sentence, word
    assert claim.server_sees


def test_a_small_site_is_used_whole_and_the_claim_says_so() -> None:
    claim = DPSGD(epsilon=8).claim(FEDERATION, Shape((70, 70), 50, 4))
    assert claim is not None
    assert (claim.sampling_rate, claim.steps) == (1.0, 20)
    assert "no amplification" in claim.sentence


def test_pooled_records_are_one_site() -> None:
    pooled = Federation(topology="centralized", rounds=10, local=Local(epochs=2, batch=100))
    claim = DPSGD(noise_multiplier=1.0).claim(pooled, SHAPE)
    assert claim is not None
    assert len(claim.per_site) == 1
    assert claim.sampling_rate == 100 / sum(SHAPE.site_sizes)


def test_planning_leaves_the_request_as_it_was() -> None:
    defense = DPSGD(epsilon=8)
    assert defense.plan(FEDERATION, SHAPE) is not defense
    assert defense.noise_multiplier is None
    with pytest.raises(RequestError, match="call plan first"):
        defense.noise(sums(), torch.Generator())


def test_alone_it_means_epsilon_8() -> None:
    assert DPSGD().epsilon == 8.0
    assert DPSGD(noise_multiplier=1.0).epsilon is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epsilon": 8.0, "noise_multiplier": 1.0}, "both"),
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"epsilon": math.inf}, "epsilon=inf"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"delta": 0.0}, "delta=0"),
        ({"delta": 1.0}, "delta=1"),
        ({"clip": 0.0}, "clip=0"),
        ({"clip": math.inf}, "clip=inf"),
    ],
)
def test_wrong_parameters_are_one_sentence(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(RequestError, match=words) as error:
        DPSGD(**arguments)
    assert "\n" not in str(error.value)


def test_a_delta_that_allows_publishing_a_record_is_refused() -> None:
    with pytest.raises(RequestError, match="publishes one record"):
        DPSGD(epsilon=8, delta=0.01).plan(FEDERATION, SHAPE)


def test_a_path_is_shared_out_over_all_local_epochs() -> None:
    layer = DPSGD(noise_multiplier=1.0, epochs=2, optimiser="sgd", path=30.0, weight_decay=0.0)
    for rounds, lr in ((10, 1.5), (50, 0.3)):
        federation = Federation(rounds=rounds, local=layer.local(Local(epochs=5, batch=100, optimiser="adam", lr=1e-3, weight_decay=0.01)))
        local = layer.protocol(federation).local
        assert (local.epochs, local.optimiser, local.batch, local.weight_decay) == (2, "sgd", 100, 0.0)
        assert local.lr == pytest.approx(lr)
    plain = Federation(rounds=10, local=Local(lr=0.1))
    assert DPSGD(noise_multiplier=1.0).protocol(plain) == plain


@pytest.mark.parametrize(
    "given", [{"path": 0.0}, {"path": float("inf")}, {"path": 3.0, "lr": 0.1}, {"optimiser": "rmsprop"}, {"weight_decay": -1.0}]
)
def test_a_path_or_optimiser_that_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=r"dp_sgd got .*give"):
        DPSGD(noise_multiplier=1.0, **given)
