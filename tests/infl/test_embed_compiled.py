"""An embedded model that is compiled, traced, exported or cut into parts still has its variant in it, or refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infl.additive import AdditiveLinear, fold
from infl.embed import VARIANTS, Variant, embed, strip
from infl.encoder import Encoder
from infl.hardened import Hardened
from infl.key import Key, secret_of
from infl.layers import KeyedLinear
from infl.mixed_input import MixedInput
from suites.contracts import RequestError
from suites.randomness import keys, stream

FEATURES, CLASSES = 48, 3
OURS = (KeyedLinear, AdditiveLinear, Encoder, MixedInput)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


class Plain(nn.Module):
    """A type of one's own, whose forward is compiled as one frame."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body(x)))
        return out


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def key(version: int = 1) -> Key:
    return Key(keys("test embed compiled", version).bytes(32), "00" * 16, version)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return make()


def records() -> tuple[Tensor, Tensor]:
    return torch.randn(6, FEATURES, generator=stream("embed compiled")), torch.arange(6) % CLASSES


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def wrapped(model: nn.Module) -> nn.Module:
    fast = torch.compile(model, backend="eager")
    assert isinstance(fast, nn.Module)
    return fast


def first_gradient(model: nn.Module, outputs: Tensor, y: Tensor) -> Tensor:
    return torch.autograd.grad(F.cross_entropy(outputs, y), next(model.parameters()))[0]


@pytest.mark.parametrize("make", [sequential, Plain])
def test_code_compiled_for_a_plain_model_does_not_run_in_place_of_the_mixed_one(make: Callable[[], nn.Module]) -> None:
    (x, y), net = records(), seeded(make)
    plain = wrapped(net)(x)
    assert torch.allclose(plain, net(x))
    for version in (1, 2):  # and code compiled under one key not under another
        mixed = Hardened().prepare(x, secret_of(key(version), Hardened()))
        model = embed(net, key(version), "hardened")
        outputs = wrapped(model)(x)
        assert not torch.allclose(outputs, plain, atol=1e-3)
        assert torch.allclose(outputs, net(mixed), atol=1e-6)
        assert torch.allclose(first_gradient(model, outputs, y), first_gradient(net, net(mixed), y), atol=1e-6)
    assert torch.allclose(wrapped(strip(model))(x), plain)


def test_no_record_falls_out_of_the_gradient_of_a_compiled_hardened_model() -> None:
    """FedAvg is run first, as a baseline, in the same process; a record is the largest row of its gradient there."""
    (x, y), net = records(), seeded(sequential)
    lone, label = x[:1], y[:1]

    def named(model: nn.Module) -> float:
        gradient = first_gradient(model, wrapped(model)(lone), label)
        return float(F.cosine_similarity(gradient[gradient.norm(dim=1).argmax()], lone[0], dim=0).abs())

    assert named(net) > 0.999
    assert named(embed(net, key(), "hardened")) < 0.5  # its mixed coordinates lie elsewhere


@each_variant
def test_a_compiled_model_trains_as_the_same_model_does_and_is_stripped_alike(variant: Variant) -> None:
    (x, y), net = records(), seeded(Plain)
    wrapped(net)(x)
    eager = embed(net, key(), variant, generator=stream("start"))
    model = copy.deepcopy(eager)
    fast = wrapped(model)
    for called, parts in ((eager, eager), (fast, model)):
        optimiser = torch.optim.SGD(parts.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(called(x), y).backward()  # type: ignore[no-untyped-call]
            assert all(parameter.grad is not None for parameter in parts.parameters())
            optimiser.step()
    for (name, one), other in zip(eager.named_parameters(), model.parameters()):
        assert torch.allclose(one, other, atol=1e-6), name
    assert not torch.equal(model.get_parameter("body.weight"), net.get_parameter("body.weight"))
    out = strip(fast)
    assert type(out) is Plain
    assert torch.equal(out.get_parameter("body.weight"), model.get_parameter("body.weight"))
    if variant == "additive":
        assert torch.allclose(fold(model)(x), fast(x), atol=1e-6)


@each_variant
def test_what_was_compiled_or_scripted_before_is_refused(variant: Variant) -> None:
    later = seeded(sequential)
    later.compile(backend="eager")
    whole = wrapped(seeded(sequential))
    for model in (later, whole, nn.Sequential(whole, nn.ReLU()), torch.jit.script(seeded(sequential))):
        with pytest.raises(RequestError, match=r"compiled or scripted.*compile after embed"):
            embed(model, key(), variant)


@each_variant
def test_a_compiled_part_is_stripped_of_both(variant: Variant) -> None:
    net, (x, _) = seeded(sequential), records()
    model = nn.Sequential(wrapped(embed(net, key(), variant)), nn.Softmax(-1))
    model(x)
    out = strip(model)
    assert [type(part) for part in out.modules()] == [type(part) for part in nn.Sequential(net, nn.Softmax(-1)).modules()]
    assert torch.equal(out(x), net(x).softmax(-1))


@pytest.mark.filterwarnings("ignore:The tensor attribute")
@pytest.mark.parametrize("variant", ["published", "hardened"])
def test_neither_trace_nor_export_writes_a_key_into_a_file(variant: Variant) -> None:
    model, (x, _) = embed(seeded(sequential), key(), variant).eval(), records()
    with pytest.raises(RequestError, match="trace or an export"):
        torch.jit.trace(model, x)  # type: ignore[no-untyped-call]
    with pytest.raises(RequestError, match="trace or an export"):
        torch.export.export(model, (x,))
    with pytest.raises(Exception, match=r"."):  # torch's own words
        torch.jit.script(model)
    torch.jit.trace(strip(model), x)  # type: ignore[no-untyped-call]
    torch.export.export(strip(model), (x,))


def test_a_copy_of_a_compiled_model_is_a_model_of_its_own() -> None:
    (x, _), model = records(), embed(seeded(sequential), key(), "hardened")
    model.compile(backend="eager")
    before = model(x)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert not torch.allclose(twin(x), before, atol=1e-3)
    assert torch.equal(model(x), before)


def test_every_way_into_a_hardened_model_mixes_or_refuses() -> None:
    net, (x, _) = seeded(sequential), records()
    model = embed(net, key(), "hardened")
    assert torch.equal(model.forward(x), model(x))
    assert torch.equal(copy.deepcopy(model).forward(x), model(x))
    assert isinstance(model, nn.Sequential)
    with pytest.raises(RequestError, match="no tensor there"):
        torch.fx.symbolic_trace(model)
    with pytest.raises(RequestError, match="cut from a model"):
        model[:2](x)
    with pytest.raises(RequestError, match="untraced"):
        embed(torch.fx.symbolic_trace(net), key(), "hardened")
    net.forward = net.forward
    with pytest.raises(RequestError, match="has its own"):
        embed(net, key(), "hardened")


@each_variant
def test_a_part_that_was_embedded_is_stripped_with_the_whole(variant: Variant) -> None:
    net, (x, _) = seeded(sequential), records()
    out = strip(nn.Sequential(embed(net, key(), variant), nn.Softmax(-1)))
    assert torch.equal(out(x), net(x).softmax(-1))
    for part in out.modules():
        assert not isinstance(part, OURS)
        assert not part._forward_pre_hooks
        assert not {"_key_mixing", "_key_encoder"} & vars(part).keys()


def test_the_mixing_is_no_parametrisation_of_a_weight() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 16, bias=False)), nn.ReLU(), nn.Linear(16, CLASSES))
    x, _ = records()
    model = embed(net, key(), "hardened")
    assert torch.allclose(model(x), net(Hardened().prepare(x, secret_of(key(), Hardened()))), atol=1e-6)
    assert torch.equal(strip(model)(x), net(x))
