"""The earlier variant: its layer against an independent formula, and what it amounts to, a plain layer with a bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infl.additive import Additive, AdditiveLinear, add, fold, positions
from suites.checks_defense import check_defense
from suites.clipping import ClippedSum
from suites.contracts import Federation, Local, RequestError, Shape
from suites.federation import Assignment, Pool, train
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification


def test_the_encoding_of_an_index() -> None:
    found = positions(5)
    assert found.shape == (5, 16)
    for j in range(5):
        for k in range(8):
            assert float(found[j, k]) == pytest.approx(math.sin(2**k * (2 * j / 4 - 1)), abs=1e-5)
            assert float(found[j, 8 + k]) == pytest.approx(math.cos(2**k * (2 * j / 4 - 1)), abs=1e-5)
    assert torch.equal(positions(1)[0, :8], torch.zeros(8))  # the index of a lone neuron is 0


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_by_another_road(bias: bool) -> None:
    base = nn.Linear(7, 5, bias=bias).double()
    layer = AdditiveLinear(base, 4).double()
    layer.delta.positions = layer.delta.positions.double()
    x = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = [p.detach().numpy() for p in layer.delta.net.parameters()]
    h = layer.delta.positions.numpy()
    delta = np.maximum(np.maximum(h @ w[0].T + w[1], 0) @ w[2].T + w[3], 0) @ w[4].T + w[5]
    expected = x.numpy() @ base.weight.detach().numpy().T + (base.bias.detach().numpy() if bias else 0) + delta[:, 0]
    assert np.allclose(layer(x).detach().numpy(), expected, rtol=1e-12)
    assert torch.allclose(layer.folded()(x), layer(x), rtol=1e-12)


def net() -> nn.Module:
    return Classification(hidden=16, blocks=1, head=8).net(24, 3)


def test_parameters_added_and_none_of_them_secret() -> None:
    plain, model = net(), Additive(hidden=4).model(net(), None)
    layers = sum(isinstance(part, nn.Linear) for part in plain.modules())
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert count == layers * ((16 * 4 + 4) + (4 * 4 + 4) + (4 + 1))
    assert Additive().secret(keys("additive")) is None
    assert not any("positions" in name for name in model.state_dict())
    claim = Additive().claim(Federation(), Shape((10,), 4, 2))
    assert claim.kind == "none"


def test_folded_away_the_network_computes_the_same() -> None:
    model = Additive().model(net(), None)
    folded = fold(model)
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(folded(x), model(x), atol=1e-6)
    assert not any(isinstance(part, AdditiveLinear) for part in folded.modules())
    assert sum(p.numel() for p in folded.parameters()) == sum(p.numel() for p in net().parameters())


def test_a_record_falls_out_of_its_gradient_as_under_fedavg() -> None:
    torch.manual_seed(0)  # of a head of eight units all are dead in one start in fifty
    model = Additive().model(net(), None)
    x = torch.randn(1, 24, generator=torch.Generator().manual_seed(3))
    first = model.get_submodule("embedding")
    assert isinstance(first, AdditiveLinear)
    assert first.bias is not None
    weight, bias = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([1])), [first.weight, first.bias])
    row = bias.abs().argmax()
    assert torch.allclose(weight[row] / bias[row], x[0], atol=1e-5)


def test_any_model_but_one_without_a_linear_layer() -> None:
    assert add(nn.Linear(3, 2))(torch.zeros(1, 3)).shape == (1, 2)
    twice = nn.Linear(4, 4)
    shared = add(nn.Sequential(twice, nn.ReLU(), twice))
    assert shared[0] is shared[2]  # type: ignore[index]
    with pytest.raises(RequestError, match=r"nn\.Linear"):
        add(nn.Conv1d(1, 1, 1))
    with pytest.raises(RequestError, match="hidden >= 1"):
        Additive(hidden=0)


def test_clipped_in_one_pass_as_record_by_record() -> None:
    model, task = Additive().model(Classification(hidden=16, blocks=1, head=8, dropout=0.0).net(24, 3), None), Classification()
    clipped = ClippedSum(model, task.loss)
    draw = torch.Generator().manual_seed(4)
    x, y = torch.randn(1, 6, 24, generator=draw), torch.arange(6)[None] % 3
    params = {n: p.detach()[None] for n, p in model.named_parameters()}
    private = {n: b[None] for n, b in model.named_buffers() if not n.endswith("mask")}
    sums, norms = clipped(params, private, x, y, torch.ones(1, 6), 0.5)
    assert clipped.ghost
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(6):
        grads = torch.autograd.grad(task.loss(model(x[0, i : i + 1]), y[0, i : i + 1]).sum(), list(model.parameters()))
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        assert float(norms[0, i]) == pytest.approx(float(norm), rel=1e-4)
        for name, g in zip(expected, grads):
            expected[name] += g * min(1.0, 0.5 / float(norm))
    assert all(torch.allclose(sums[n][0], e, atol=1e-5) for n, e in expected.items())


def pooled() -> tuple[Pool, list[Assignment]]:
    x: Tensor = torch.randn(96, 24, generator=stream("additive", "x"))
    pool = Pool(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), 3)
    return pool, [Assignment(tuple(torch.arange(96).chunk(3)), ("a", r), ("a", r, "d")) for r in range(2)]


def test_many_federations_at_once_as_each_alone() -> None:
    pool, assignments = pooled()
    # Not Adam: a shift common to all neurons before a LayerNorm has no gradient but rounding, which Adam scales up to a step.
    federation = Federation(sites=3, rounds=2, local=Local(epochs=2, batch=16, optimiser="sgd", lr=0.1))
    task, stack = Classification(hidden=16, blocks=1, head=8), Stack([Additive()])
    alone, together = (train(task, stack, federation, pool, assignments, chunk=chunk) for chunk in (1, 6))
    for one, other in zip(alone, together):
        assert all(torch.allclose(one.finals[0][n], other.finals[0][n], atol=1e-6) for n in one.finals[0])


@pytest.mark.parametrize("ref", ["infl:additive", "infl:additive:hidden=4+secure_aggregation"])
def test_the_contract(ref: str) -> None:
    assert [result for result in check_defense(ref) if result.verdict == "fail"] == []
