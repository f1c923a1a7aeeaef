"""PPML-Omics: the noise that the reference adds, where it adds it, and what the corrected version claims instead."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from baselines.dp_fedavg import DPFedAvg
from baselines.ppml_omics import Corrected, PPMLOmics, gaussian_deviation
from baselines.secure_aggregation import SecureAggregation
from suites.checks_defense import check_defense
from suites.contracts import Defense, Federation, Local, Params, RequestError, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification

SITES, EACH, FEATURES = 4, 30, 12
SHAPE = Shape((EACH,) * SITES, FEATURES, 2)
TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0)


def trained(*layers: Defense, rounds: int = 3, chunk: int = 1) -> Trained:
    x = torch.randn(SITES * EACH, FEATURES, generator=stream("ppml", "x"))
    pool = Pool(x, (x[:, 0] > 0).long(), 2)
    stack = Stack(layers)
    federation = Federation(sites=SITES, rounds=rounds, local=stack.local(Local(epochs=3, batch=10, lr=0.05)))
    where = Assignment(tuple(torch.arange(SITES * EACH).chunk(SITES)), ("ppml",), ("ppml", "d"))
    return train(TASK, stack.plan(federation, SHAPE), federation, pool, [where], chunk=chunk)[0]


def flat(params: Params) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-5), (1.0, 1e-3), (5.0, 1e-3), (25.0, 0.1)])
def test_the_analytic_mechanism_by_numerical_integration(epsilon: float, delta: float) -> None:
    """delta = integral of max(0, p - e^epsilon q) for two Gaussians one sensitivity apart."""
    deviation = gaussian_deviation(epsilon, delta)
    x = np.linspace(-1 - 12 * deviation, 2 + 12 * deviation, 400_001)
    p, q = norm.pdf(x, 1, deviation), norm.pdf(x, 0, deviation)
    spent = np.clip(p - math.exp(epsilon) * q, 0, None).sum() * (x[1] - x[0])
    assert spent == pytest.approx(delta, rel=1e-3)


def test_one_pass_of_sgd() -> None:
    for defense in (PPMLOmics(lr=0.2), Corrected(lr=0.2)):
        assert defense.local(Local(epochs=9, momentum=0.9, weight_decay=1e-2)) == Local(epochs=1, optimiser="sgd", lr=0.2)
    assert PPMLOmics().local(Local(lr=0.03)).lr == 0.03


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_server_adds_the_noise_to_the_mean_and_sees_the_updates_without_it(shuffle: bool) -> None:
    result = trained(PPMLOmics(epsilon=2.0, delta=1e-3, clip=3.0, shuffle=shuffle))
    epsilon = 2.0 * SITES if shuffle else 2.0
    expected = 0.05 * 3.0 * gaussian_deviation(epsilon, 1e-3)
    for before, after in zip(result.rounds, result.rounds[1:]):
        mean = {n: torch.stack([m.payload[n] for m in before.messages]).mean(0) for n in before.combined}
        noise = flat(before.combined) - flat(mean)
        assert float(noise.std()) == pytest.approx(expected, rel=0.1)
        assert {m.kind for m in before.messages} == {"update"}
        assert torch.allclose(flat(after.broadcast), flat(before.broadcast) + flat(before.combined), atol=1e-6)
    bare = trained()  # nobody but the server noises: with no noise yet, the first messages are those of plain SGD
    assert not torch.equal(flat(bare.finals[0]), flat(result.finals[0]))


def test_shuffling_a_list_takes_noise_away_and_nothing_else() -> None:
    with_, without = (PPMLOmics(shuffle=s).plan(Federation(), SHAPE) for s in (True, False))
    assert with_._deviation is not None
    assert without._deviation is not None
    assert with_._deviation < 0.6 * without._deviation


def test_nothing_is_clipped_so_nothing_is_claimed() -> None:
    result = trained(PPMLOmics(clip=1e-3))
    norms = [float(flat(m.payload).norm()) for m in result.rounds[0].messages]
    assert min(norms) > 10 * 0.05 * 1e-3  # of the sensitivity that the noise was sized for
    claim = PPMLOmics().claim(Federation(), SHAPE)
    assert (claim.kind, claim.epsilon) == ("none", None)


def test_corrected_is_site_level_privacy_over_all_rounds() -> None:
    federation = Federation(sites=SITES, rounds=5)
    planned = Corrected(epsilon=6.0).plan(federation, SHAPE)
    claim = planned.claim(federation, SHAPE)
    assert claim is not None
    assert claim.kind == "dp"
    assert claim.unit == "site"
    assert claim.epsilon == pytest.approx(6.0, rel=0.01)
    own, other = planned.noise_multiplier, DPFedAvg(epsilon=6.0).plan(federation, SHAPE).noise_multiplier
    assert own == other


def test_beside_secure_aggregation() -> None:
    with pytest.raises(RequestError, match="trusts the server"):
        Stack([PPMLOmics(), SecureAggregation()])
    result = trained(Corrected(shared=True), SecureAggregation(bound=256.0))
    assert {m.kind for m in result.rounds[0].messages} == {"masked"}


def test_many_federations_release_their_own_noise() -> None:
    x = torch.randn(80, FEATURES, generator=stream("ppml", "many"))
    pool = Pool(x, (x[:, 0] > 0).long(), 2)
    federation = Federation(sites=2, rounds=2, local=Local(batch=10, optimiser="sgd", lr=0.05))
    stack = Stack([PPMLOmics()]).plan(federation, Shape((20, 20), FEATURES, 2))
    asked = [Assignment(tuple((torch.arange(40) + 40 * r).chunk(2)), ("p", r), ("p", r, "d")) for r in range(2)]
    together = train(TASK, stack, federation, pool, asked, chunk=4, keep=lambda _: False)
    for one, where in zip(together, asked):
        alone = train(TASK, stack, federation, pool, [where], chunk=1)[0]
        assert all(torch.allclose(one.finals[0][n], alone.finals[0][n], atol=1e-5) for n in alone.finals[0])


@pytest.mark.parametrize("ref", ["ppml_omics", "ppml_omics:corrected", "ppml_omics:corrected:shared=true+secure_aggregation:bound=256"])
def test_the_contract(ref: str) -> None:
    assert [result for result in check_defense(ref) if result.verdict == "fail"] == []


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"delta": 1.0}, {"clip": 0.0}, {"lr": 0.0}])
def test_settings_that_mean_nothing(settings: dict[str, float]) -> None:
    for kind in (PPMLOmics, Corrected):
        with pytest.raises(RequestError):
            kind(**settings)
