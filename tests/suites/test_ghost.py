"""Which uses of a parameter the watch accepts, and that it ends at all others by itself, without a comparison to fall back on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from suites.clipping import ClippedSum
from suites.ghost import DoesNotFit, Jacobian, Watch
from tests.suites.test_clipping import assert_close, batch, by_loop, loss

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
W = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
B = torch.randn(3, generator=torch.Generator().manual_seed(2))
SQUARE = torch.randn(4, 4, generator=torch.Generator().manual_seed(3))


def watched(function: Callable[[], Tensor], **parameters: Tensor) -> Watch:
    watch = Watch({id(tensor): name for name, tensor in parameters.items()}, lambda _, output: output, 5)
    with watch:
        function()
    return watch


def test_known_uses() -> None:
    watch = watched(lambda: functional.linear(X, W, B), W=W, B=B)
    assert [(use.kind, use.weight, use.bias) for use in watch.uses.values()] == [("linear", "W", "B")]
    watch = watched(lambda: functional.linear(X, W) + B, W=W, B=B)
    assert [(use.kind, use.weight, use.bias) for use in watch.uses.values()] == [("linear", "W", None), ("shift", None, "B")]
    watch = watched(lambda: B + functional.linear(X, W), B=B)  # the weight is no parameter here
    assert list(watch.uses) == ["B"]
    gain = torch.ones(4)
    watch = watched(lambda: functional.layer_norm(X, (4,), gain, None, 0.1), gain=gain)
    assert [(use.kind, use.weight, use.eps) for use in watch.uses.values()] == [("layer_norm", "gain", 0.1)]


@pytest.mark.parametrize(
    "function",
    [
        lambda: functional.linear(functional.linear(X, SQUARE), SQUARE),  # twice
        lambda: functional.linear(X, SQUARE) + functional.linear(X, SQUARE.T),  # once more in disguise
        lambda: X @ SQUARE,
        lambda: X * SQUARE[0],
        lambda: torch.cat([X, SQUARE]),  # inside a list
        lambda: torch.einsum("bi,ji->bj", X, SQUARE),
        lambda: functional.linear(input=X.unsqueeze(0), weight=SQUARE),  # [1, B, in]
        lambda: functional.linear(X[:4], SQUARE),  # not one row a record
        lambda: functional.linear(SQUARE, W),  # on a parameter
        lambda: functional.layer_norm(X, (5, 4), None, None) + SQUARE[0],
        lambda: X.add(SQUARE[:1]),
        lambda: torch.add(X[:4], SQUARE),
    ],
)
def test_every_other_use_ends_the_watch(function: Callable[[], Tensor]) -> None:
    with pytest.raises(DoesNotFit):
        watched(function, square=SQUARE)


def test_a_bias_beside_a_computed_weight_ends_the_watch() -> None:
    with pytest.raises(DoesNotFit):
        watched(lambda: functional.linear(X, 2 * W, B), B=B)


@pytest.mark.parametrize(
    ("function", "parameter"),
    [
        (lambda p: functional.linear(p, W), torch.ones(5, 4)),
        (lambda p: functional.layer_norm(X, (5, 4), p), torch.ones(5, 4)),
        (lambda p: X + p, torch.ones(1, 4)),
        (lambda p: X + p, torch.ones(1)),
    ],
)
def test_parameters_of_other_shapes_end_the_watch(function: Callable[[Tensor], Tensor], parameter: Tensor) -> None:
    with pytest.raises(DoesNotFit):
        watched(lambda: function(parameter), parameter=parameter, W=W)


def test_shapes_may_be_asked() -> None:
    assert not watched(lambda: X * SQUARE.shape[0] + SQUARE.dim() + len(SQUARE), square=SQUARE).uses


def test_layer_norms_of_unequal_eps() -> None:
    module = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5, eps=1e-5), nn.Tanh(), nn.LayerNorm(5, eps=0.5), nn.Linear(5, 3))
    b = batch(module)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b))


def test_one_buffer_in_two_places() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.register_buffer("scale", scale, persistent=False)

        def forward(self, h: Tensor) -> Tensor:
            return h * self.scale

    scale = torch.ones(7)
    module = nn.Sequential(Scaled(scale), nn.Linear(7, 7), Scaled(scale), nn.Linear(7, 3))
    b = batch(module, lanes=2)
    b.private["0.scale"] = torch.tensor([[0.05], [0.15]]) * torch.arange(1.0, 8.0)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b))


def test_a_shared_vector_without_parameters() -> None:
    class Constant(nn.Module):
        batch_shared = True

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("value", torch.arange(1.0, 8.0), persistent=False)

        def forward(self) -> Tensor:
            return 2 * self.value

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant, self.head = Constant(), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.constant())

    module = Net()
    b = batch(module, lanes=2)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b))


def test_jacobian_of_a_shared_vector() -> None:
    rng = torch.Generator().manual_seed(4)
    parameters = {
        "a": torch.randn(2, 3, generator=rng, requires_grad=True),
        "c": torch.randn(2, 3, 3, generator=rng, requires_grad=True),
        "unused": torch.ones(2, 2, requires_grad=True),
    }

    def vector(a: Tensor, c: Tensor) -> Tensor:
        return torch.tanh(c @ a)

    stacked = torch.stack([vector(parameters["a"][k], parameters["c"][k]) for k in range(2)])
    jacobian = Jacobian.of(stacked, parameters)
    v = torch.randn(2, 6, 3, generator=rng)
    norms = jacobian.squared_norms(v)
    for k in range(2):
        for i in range(6):
            leaves = [parameters[name][k].detach().requires_grad_() for name in ("a", "c")]
            gradients = torch.autograd.grad(vector(*leaves), leaves, v[k, i])
            assert float(norms[k, i]) == pytest.approx(float(sum(g.square().sum() for g in gradients)), rel=1e-4)
    sums = jacobian.sums(v.sum(1))
    assert not sums["unused"].any()
    leaves = [parameters[name][1].detach().requires_grad_() for name in ("a", "c")]
    wanted = torch.autograd.grad(vector(*leaves), leaves, v[1].sum(0))
    assert torch.allclose(sums["a"][1], wanted[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(sums["c"][1], wanted[1], rtol=1e-4, atol=1e-6)
