"""A published formula for noise: it is what is added, it announces one step's ε, and it claims nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from baselines.as_published import AsPublished
from baselines.one_shot_gaussian import OneShotGaussian
from suites import accounting
from suites.contracts import Federation, Local, Shape
from suites.federation import Assignment, Pool, train
from suites.stack import Stack
from suites.tasks.classification import Classification

FEDERATION = Federation(rounds=5, local=Local(epochs=50, batch=100))
SHAPE = Shape(site_sizes=(181, 181, 905), features=50, classes=4)


@pytest.mark.parametrize(("announced", "deviation"), [(1.29, 3.7558), (2.36, 2.0530)])
def test_the_noise_is_that_of_the_formula(announced: float, deviation: float) -> None:
    """sqrt(2 ln(1.25e5)) = 4.8450, over the announced ε."""
    defense = OneShotGaussian(epsilon=announced, clip=0.5)
    drawn = defense.noise({"weight": torch.zeros(300, 400)}, torch.Generator().manual_seed(1))["weight"]
    assert float(drawn.std()) == pytest.approx(0.5 * deviation, rel=0.01)
    assert abs(float(drawn.mean())) < 4 * 0.5 * deviation / math.sqrt(drawn.numel())


def test_it_claims_nothing_and_says_what_its_steps_come_to() -> None:
    defense = OneShotGaussian(epsilon=2.36)
    claim = defense.claim(FEDERATION, SHAPE)
    assert claim.kind == "none"
    assert claim.epsilon is None
    composed = defense.composed(FEDERATION, SHAPE)
    assert composed == accounting.epsilon(100 / 181, defense.noise_multiplier, 5 * 50 * 2, 1e-5)  # the small sites sample most
    assert composed > 10 * defense.epsilon
    assert "2.36" in claim.sentence
    assert f"{composed:.3g}" in claim.sentence


def test_batch_norm_gives_way_to_layer_norm() -> None:
    """Under BatchNorm records share a gradient, which no clipping bounds."""
    net = Classification(norm="batch").net(12, 3)
    changed = OneShotGaussian().model(net, None)
    kinds = [type(part) for part in changed.modules()]
    assert nn.BatchNorm1d not in kinds
    assert kinds.count(nn.LayerNorm) == [type(part) for part in net.modules()].count(nn.BatchNorm1d) == 4
    assert [name for name, _ in changed.named_parameters()] == [name for name, _ in net.named_parameters()]


def test_it_trains_beside_the_published_faults_where_a_claim_would_be_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    pool = Pool(torch.randn(60, 8, generator=generator), torch.arange(60) % 3, 3)
    layers = [AsPublished(key_in_state=False, integer_seed=False), OneShotGaussian(epsilon=1.29)]
    stack = Stack(layers)
    federation = stack.protocol(Federation(sites=2, rounds=1, local=Local(epochs=2, batch=10)))
    stack = stack.plan(federation, Shape((20, 20, 40), 8, 3))
    sites = (torch.arange(20), torch.arange(20, 40))
    trained = train(
        Classification(norm="batch"), stack, federation, pool, [Assignment(sites, ("s",), ("d",))], validation=torch.arange(40, 60), chunk=1
    )[0]
    assert all(bool(tensor.isfinite().all()) for tensor in trained.finals[0].values())
