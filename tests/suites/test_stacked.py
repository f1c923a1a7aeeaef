"""Networks that carry the lane axis themselves: equal to each lane alone, and refused where they would not be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from infl.published import Published
from suites.contracts import KeySource, Params
from suites.lanes import private
from suites.randomness import keys, stream
from suites.stacked import stacked
from suites.tasks.networks import MLP, ResidualMLP

LANES, RECORDS, FEATURES = 3, 5, 11


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


class CentresItsBatch(nn.Module):
    """Reads the record axis by position, which is another axis once lanes come first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x - x.mean(0))
        return out


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def keyed(per_layer: bool) -> nn.Module:
    defense = Published(strength=5.0, points=9, per_layer=per_layer)
    return defense.model(ResidualMLP(FEATURES, 4, hidden=6, blocks=1, head=5), defense.secret(source()))


def source(index: int = 0) -> KeySource:
    return keys("test", "stacked", index)


def lanes_of(module: nn.Module) -> tuple[Params, Params]:
    """Shifted parameters and different secrets for each lane, in the module's precision."""
    draw = stream("test stacked lanes")
    params = {n: p.detach() + 0.1 * torch.randn(LANES, *p.shape, generator=draw) for n, p in module.named_parameters()}
    secrets = {n: torch.rand(LANES, *b.shape, generator=draw).to(b) for n, b in private(module).items() if not n.endswith("mask")}
    return params, secrets


@pytest.mark.parametrize(
    "module",
    [MLP(FEATURES, 4, (6, 5)), ResidualMLP(FEATURES, 4, hidden=6, blocks=2, head=5), nn.Linear(FEATURES, 4, bias=False), Tied()]
    + [keyed(per_layer) for per_layer in (False, True)]
    + [nn.Sequential(nn.Linear(FEATURES, 6), nn.LayerNorm(6, elementwise_affine=False), nn.LayerNorm(6, bias=False))],
    ids=["mlp", "residual", "no bias", "tied", "keyed", "keyed per layer", "bare norms"],
)
def test_outputs_and_gradients_are_those_of_each_lane_alone(module: nn.Module) -> None:
    params, secrets = lanes_of(module.double())  # in single precision the order of a sum would be seen
    x = torch.randn(LANES, RECORDS, FEATURES, generator=stream("test stacked inputs")).double()
    together = stacked(module, secrets, x[0])
    assert together is not None
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    together.hold({**leaves, **secrets})
    outputs = together(x)
    outputs.square().sum().backward()
    for lane in range(LANES):
        own = {name: tensor[lane].clone().requires_grad_() for name, tensor in params.items()}
        alone = torch.func.functional_call(module, {**own, **{n: s[lane] for n, s in secrets.items()}}, (x[lane],))
        torch.testing.assert_close(outputs[lane], alone, rtol=1e-9, atol=1e-10)
        slopes = torch.autograd.grad(alone.square().sum(), list(own.values()))
        for name, slope in zip(own, slopes):
            gradient = leaves[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient[lane], slope, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("module", [CentresItsBatch(), OwnParameter(), nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4))])
def test_what_cannot_carry_the_lane_axis_is_refused(module: nn.Module) -> None:
    assert stacked(module, {}, torch.randn(RECORDS, FEATURES, generator=stream("test stacked inputs"))) is None
