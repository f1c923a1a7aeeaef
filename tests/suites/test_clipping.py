"""Clipped sums against the slow and obvious way: one record at a time through plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from suites.clipping import ClippedSum
from suites.contracts import Params, RequestError
from suites.per_record import Batch, EachRecord


class Masked(nn.Module):
    """Multiplies by a non-persistent buffer, as dropout does here."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1), persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        return h * self.mask


class Residual(nn.Module):
    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.second = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h + self.second(torch.relu(self.norm(self.first(h)))))


def network(features: int = 7, width: int = 5, classes: int = 3, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, width), nn.LayerNorm(width), nn.ReLU(), Masked(), Residual(width, bias), nn.Linear(width, classes, bias=bias)
    )


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, reduction="none")


def batch(
    module: nn.Module,
    *,
    lanes: int = 1,
    records: int = 6,
    features: int = 7,
    classes: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=dtype)

    params = {name: torch.stack([t.to(dtype) + 0.5 * normal(*t.shape) for _ in range(lanes)]) for name, t in module.state_dict().items()}
    width = next((part.out_features for part in module.modules() if isinstance(part, nn.Linear)), 0)
    private = {f"{n}.mask": 2.0 * (normal(lanes, records, width) > 0).to(dtype) for n, m in module.named_modules() if isinstance(m, Masked)}
    weight = torch.ones(lanes, records, dtype=dtype)
    weight[:, records - 1 :] = 0.0  # the last one is padding
    y = torch.randint(classes, (lanes, records), generator=rng)
    return Batch(params, private, 3 * normal(lanes, records, features), y, weight, 1.0)


def clipped(module: nn.Module, b: Batch) -> tuple[Params, Tensor]:
    return ClippedSum(module, loss)(b.params, b.private, b.x, b.y, b.weight, b.norm)


def by_loop(module: nn.Module, b: Batch) -> tuple[Params, Tensor]:
    names = [name for name, _ in module.named_parameters()]
    own = {name: buffer.shape for name, buffer in module.named_buffers()}
    sums = {name: torch.zeros_like(b.params[name]) for name in names}
    norms = torch.zeros_like(b.weight)
    for k in range(len(b.x)):
        for i in range(b.x.shape[1]):
            leaves = {name: b.params[name][k].clone().requires_grad_() for name in names}
            private = {name: t[k, i : i + 1] if t.shape[1:] != own[name] else t[k] for name, t in b.private.items()}
            value = loss(functional_call(module, {**leaves, **private}, (b.x[k, i : i + 1],)), b.y[k, i : i + 1]).sum()
            gradient = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
            size = torch.sqrt(sum(g.double().square().sum() for g in gradient))
            norms[k, i] = size * (b.weight[k, i] != 0)
            for name, g in zip(names, gradient, strict=True):
                sums[name][k] += b.weight[k, i] * min(1.0, b.norm / max(float(size), 1e-30)) * g
    return sums, norms


def assert_close(got: tuple[Params, Tensor], wanted: tuple[Params, Tensor], tolerance: float = 1e-5) -> None:
    assert set(got[0]) == set(wanted[0])
    scale = max(float(tensor.norm()) for tensor in wanted[0].values())
    for name, tensor in wanted[0].items():
        assert got[0][name].shape == tensor.shape
        assert float((got[0][name] - tensor).norm()) <= tolerance * max(float(tensor.norm()), 0.01 * scale), name
    assert torch.allclose(got[1], wanted[1], rtol=tolerance, atol=tolerance * float(wanted[1].max()))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("norm", [0.05, 1.0, 4.0, 1e6])
def test_one_pass_equals_a_loop_over_records(lanes: int, norm: float) -> None:
    module = network()
    b = batch(module, lanes=lanes)
    b = Batch(b.params, b.private, b.x, b.y, b.weight, norm)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b))


@settings(max_examples=25, deadline=None)
@given(
    lanes=st.integers(1, 3),
    records=st.integers(1, 6),
    features=st.integers(1, 12),
    width=st.integers(2, 9),
    classes=st.integers(2, 5),
    bias=st.booleans(),
    norm=st.floats(0.01, 100),
    seed=st.integers(0, 2**20),
)
def test_any_shape(lanes: int, records: int, features: int, width: int, classes: int, bias: bool, norm: float, seed: int) -> None:
    module = network(features, width, classes, bias)
    b = batch(module, lanes=lanes, records=records, features=features, classes=classes, seed=seed, dtype=torch.float64)
    b = Batch(b.params, b.private, b.x, b.y, b.weight, norm)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b), 1e-8)  # doubles: a LayerNorm of width 2 cancels nearly all of its gradient
    assert_close(EachRecord(module, loss)(b), got, 1e-8)


def test_no_record_adds_more_than_the_norm() -> None:
    module = network()
    b = batch(module, records=2)  # one record and one padding
    b = Batch(b.params, b.private, 100 * b.x, b.y, b.weight, 0.3)
    sums, norms = clipped(module, b)
    assert float(norms[0, 0]) > 0.3
    assert float(torch.sqrt(sum(t.square().sum() for t in sums.values()))) == pytest.approx(0.3, rel=1e-5)


def test_stacked_lanes_equal_lanes_alone() -> None:
    module = network()
    b = batch(module, lanes=4)
    sums, norms = clipped(module, b)
    for k in range(4):
        one = Batch(
            {n: t[k : k + 1] for n, t in b.params.items()},
            {n: t[k : k + 1] for n, t in b.private.items()},
            b.x[k : k + 1],
            b.y[k : k + 1],
            b.weight[k : k + 1],
            b.norm,
        )
        assert_close(clipped(module, one), ({n: t[k : k + 1] for n, t in sums.items()}, norms[k : k + 1]))


def test_padding_changes_nothing() -> None:
    module = network()
    b = batch(module)
    sums, _ = clipped(module, b)
    other = Batch(b.params, b.private, b.x.clone(), b.y, b.weight, b.norm)
    other.x[:, -1] = 1e4
    assert_close(clipped(module, other), clipped(module, b), 1e-7)
    short = {n: t[:, :-1] for n, t in b.private.items()}
    cut = Batch(b.params, short, b.x[:, :-1], b.y[:, :-1], b.weight[:, :-1], b.norm)
    assert_close((clipped(module, cut)[0], torch.ones(1)), (sums, torch.ones(1)))


@pytest.mark.parametrize("records", [0, 3])
def test_an_empty_batch_sums_to_zero(records: int) -> None:
    module = network()
    b = batch(module, records=max(records, 1))
    b = Batch(
        b.params, {n: t[:, :records] for n, t in b.private.items()}, b.x[:, :records], b.y[:, :records], 0 * b.weight[:, :records], 1.0
    )
    sums, norms = clipped(module, b)
    assert norms.shape == (1, records)
    assert all(not tensor.any() for tensor in sums.values())


# ------------------------------------------------------------------------------------------- what does not fit the one pass


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.again, self.head = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.again.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.layer(x)))))


class Around(nn.Module):
    """Uses a weight outside its module as well, behind a gate that is shut at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate, self.head = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x)) + self.gate(x) * functional.linear(x, self.layer.weight))


class OwnParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(7)), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale)


class Sequence(nn.Module):
    """Calls a layer on [B, T, in]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(1, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.unsqueeze(-1))).mean(1))


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv1d(1, 2, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(x.unsqueeze(1))).flatten(1))


class Optional(nn.Module):
    """Has a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.spare, self.both = nn.Linear(7, 3), nn.Linear(7, 3), False

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.spare(x) if self.both else self.layer(x)


@pytest.mark.parametrize("kind", [Twice, Tied, Around, OwnParameter, Sequence, Convolution])
@pytest.mark.parametrize("lanes", [1, 2])
def test_other_networks_take_the_exact_path(kind: type[nn.Module], lanes: int) -> None:
    module = kind()
    b = batch(module, lanes=lanes)
    if kind is Around:  # the shut gate hides the second use from any comparison at this point
        b.params["gate.weight"].zero_()
        b.params["gate.bias"].zero_()
    if kind is Tied:
        b.params["again.weight"] = b.params["layer.weight"]
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert not summed.ghost
    assert_close(got, by_loop(module, b))


def test_a_network_that_mixes_records_is_run_one_record_at_a_time() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - 0.5 * x.mean(0))

    module = Centred()
    b = batch(module)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert not summed.ghost
    assert_close(got, by_loop(module, b))


def test_a_layer_that_is_not_called_gets_zero() -> None:
    module = Optional()
    b = batch(module, lanes=2)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close(got, by_loop(module, b))
    assert not got[0]["spare.weight"].any()


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_layer_that_is_called_later_gets_its_gradient(lanes: int) -> None:
    module = Optional()
    b = batch(module, lanes=lanes)
    summed = ClippedSum(module, loss)
    summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    module.both = True
    assert_close(summed(b.params, b.private, b.x, b.y, b.weight, b.norm), by_loop(module, b))


def test_the_exact_path_works_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Convolution()
    b = batch(module, records=9)
    whole = clipped(module, b)
    monkeypatch.setattr("suites.per_record._FLOATS_AT_ONCE", 100)
    assert_close(clipped(module, b), whole, 1e-6)


def test_a_secret_with_as_many_rows_as_the_batch_is_shared() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 3)
            self.register_buffer("coordinates", torch.zeros(6, 7), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x * self.coordinates.mean(0))

    module = Keyed()
    b = batch(module, records=6)
    b.private["coordinates"] = torch.randn(1, 6, 7, generator=torch.Generator().manual_seed(1))
    assert_close(clipped(module, b), by_loop(module, b))
    assert_close(EachRecord(module, loss)(b), by_loop(module, b))


def test_soft_labels() -> None:
    module = network()
    b = batch(module)
    hard = clipped(module, b)
    soft = functional.one_hot(b.y, 3).float()
    assert_close(clipped(module, Batch(b.params, b.private, b.x, soft, b.weight, b.norm)), hard)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False), nn.InstanceNorm1d(5, track_running_stats=True)])
def test_batch_statistics_are_refused(layer: nn.Module) -> None:
    with pytest.raises(RequestError, match=r"mix the records of a batch.*LayerNorm"):
        ClippedSum(nn.Sequential(nn.Linear(7, 5), layer, nn.Linear(5, 3)), loss)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(norm: float) -> None:
    module = network()
    b = batch(module)
    with pytest.raises(RequestError, match="only a bound above 0"):
        ClippedSum(module, loss)(b.params, b.private, b.x, b.y, b.weight, norm)


def test_hooks_are_gone_after_a_call() -> None:
    module = network()
    clipped(module, batch(module))
    assert all(not part._forward_hooks for part in module.modules())


def test_a_mask_left_in_the_module_still_belongs_to_the_records() -> None:
    module = network()
    b = batch(module)
    wanted = clipped(module, b)
    module[3].mask = b.private["3.mask"][0]
    assert_close(clipped(module, b), wanted, 1e-6)


@pytest.mark.parametrize("lanes", [1, 2])
def test_operations_in_place(lanes: int) -> None:
    def net(inplace: bool) -> nn.Module:
        return nn.Sequential(nn.Linear(7, 7), nn.ReLU(inplace), nn.Linear(7, 7), nn.ReLU(inplace), nn.Linear(7, 3))

    module = net(inplace=True)
    b = batch(module, lanes=lanes)
    assert_close(clipped(module, b), by_loop(net(inplace=False), b))


@pytest.mark.parametrize("kind", [network, Twice])
def test_the_module_keeps_its_own_tensors(kind: Callable[[], nn.Module]) -> None:
    module = kind()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    clipped(module, batch(module))
    after = dict([*module.named_parameters(), *module.named_buffers()])
    assert {name: id(tensor) for name, tensor in after.items()} == {name: at for name, (at, _) in before.items()}
    assert all(torch.equal(tensor, before[name][1]) for name, tensor in after.items())
    assert all(tensor.grad is None for tensor in module.parameters())
