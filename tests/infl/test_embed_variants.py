"""One call puts each variant into models of several kinds, ``strip`` takes it out, and no secret lies where it is sent or saved."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from infl.additive import Additive, AdditiveLinear, fold
from infl.deploy import KeyedSite
from infl.embed import Variant, embed, strip
from infl.encoder import Encoder
from infl.hardened import Hardened
from infl.key import Key, secret_of
from infl.layers import KeyedLinear
from infl.mixed_input import MixedInput
from infl.published import Published
from suites.checks_defense import carried
from suites.contracts import Defense, RequestError, Secret
from suites.randomness import keys, stream
from tests.secret_scan import find_secret

DEFENSES: dict[Variant, Defense] = {"published": Published(), "additive": Additive(), "hardened": Hardened()}
OURS = (KeyedLinear, AdditiveLinear, Encoder, MixedInput)


class Nested(nn.Module):
    """A model of models, one layer of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.LayerNorm(24), nn.Sequential(nn.Linear(24, 12), nn.GELU()))
        self.block = nn.Linear(12, 12)
        self.heads = nn.ModuleDict({"a": nn.Linear(12, 3), "b": nn.Linear(12, 2, bias=False)})

    def forward(self, x: Tensor, *, head: str = "a") -> Tensor:
        h = self.stem(x)
        out: Tensor = self.heads[head](torch.relu(self.block(torch.relu(self.block(h)))))
        return out


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 3))


def attentive() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Flatten(), nn.Linear(24, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (24,)),
    "convolutional": (convolutional, (2, 12)),
    "attentive": (attentive, (4, 6)),
    "nested": (Nested, (24,)),
    "one layer": (lambda: nn.Linear(24, 3), (24,)),
}
each_model = pytest.mark.parametrize("kind", MODELS)
each_variant = pytest.mark.parametrize("variant", DEFENSES)


def key() -> Key:
    return Key(keys("test embed variants").bytes(32), "00" * 16, 1)


def model_and_records(kind: str) -> tuple[nn.Module, Tensor]:
    make, shape = MODELS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = make().eval()
    return model, torch.randn(7, *shape, generator=stream("embed variants"))


@each_model
@each_variant
def test_in_by_one_call_and_out_by_another(variant: Variant, kind: str) -> None:
    net, x = model_and_records(kind)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = embed(net, key(), variant, generator=stream("start"))
    assert any(isinstance(part, OURS) for part in model.modules())
    with torch.no_grad():
        inside, plain = model(x), net(x)
        assert inside.shape == plain.shape
        assert not torch.allclose(inside, plain, atol=1e-3)
        out = strip(model)
        assert torch.equal(out(x), plain)
        assert torch.equal(model(x), inside), "strip changed the model it was given"
    assert out.state_dict().keys() == before.keys()
    assert [type(part) for part in out.modules()] == [type(part) for part in net.modules()]
    assert all(torch.equal(value, before[name]) for name, value in {**net.state_dict(), **out.state_dict()}.items())
    assert not any(isinstance(part, OURS) for part in out.modules())
    assert not out._forward_pre_hooks
    assert not out._forward_hooks
    again = embed(out, key(), variant, generator=stream("start"))
    with torch.no_grad():
        assert torch.equal(again(x), inside)


@each_model
def test_hardened_feeds_the_model_what_the_defense_prepares(kind: str) -> None:
    net, x = model_and_records(kind)
    secret = secret_of(key(), Hardened(spread=2.0))
    expected = net(Hardened(spread=2.0).prepare(x.flatten(1), secret).view(x.shape))
    for held in (key(), secret, secret["key"]):
        assert torch.allclose(embed(net, held, "hardened", spread=2.0)(x), expected, atol=1e-6)
    assert not torch.allclose(embed(net, key().rotated(), "hardened", spread=2.0)(x), expected, atol=1e-3)
    assert embed(net, key(), "hardened").state_dict().keys() == net.state_dict().keys()


def test_the_mixing_follows_a_change_of_key_and_of_width() -> None:
    model = embed(nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), key(), "hardened")
    x, wide = (torch.randn(3, 1, width, generator=stream("widths")) for width in (8, 9))
    first = model(x)
    assert torch.isfinite(model(wide)).all()
    assert torch.equal(model(x), first)
    other = secret_of(key().rotated(), Hardened())["key"]
    model.get_buffer("0.key_mixing.key").copy_(other)
    assert torch.allclose(model(x), embed(strip(model), other, "hardened")(x))
    assert not torch.allclose(model(x), first, atol=1e-3)


def test_a_stranger_and_a_site_of_ones_own_make_the_same_model() -> None:
    net, x = model_and_records("mlp")
    for variant in ("published", "hardened"):
        site = KeyedSite("a", key(), DEFENSES[variant] if variant == "published" else Hardened(minimum=1), net, x, classes=3)
        model = embed(net, key(), variant)
        model.load_state_dict(site.broadcast())
        assert torch.allclose(model.eval()(x), site.outputs(x), atol=1e-6)


@each_variant
def test_training_moves_the_weights_that_strip_gives_back(variant: Variant) -> None:
    net, x = model_and_records("nested")
    model = embed(net, key(), variant, generator=stream("start")).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
    out = strip(model)
    assert not torch.equal(out.get_parameter("stem.1.0.weight"), net.get_parameter("stem.1.0.weight"))
    assert torch.equal(out.get_parameter("stem.1.0.weight"), model.get_parameter("stem.1.0.weight"))
    if variant == "additive":
        assert torch.allclose(fold(model)(x), model(x), atol=1e-5)
        assert not torch.allclose(out(x), model(x), atol=1e-4)


@each_model
@pytest.mark.parametrize("variant", ["published", "hardened"])
def test_the_secret_is_in_nothing_that_is_sent_saved_or_printed(variant: Variant, kind: str) -> None:
    net, x = model_and_records(kind)
    model, secret = embed(net, key(), variant), secret_of(key(), DEFENSES[variant])
    model(x)  # what is drawn at the first use must stay inside, too
    assert not list(carried(secret, dict(model.state_dict())))
    for shown in (model.state_dict(), repr(model), str(dict(strip(model).named_buffers()))):
        assert not find_secret(shown, secret)
    numbers = [f"{float(value):.4g}" for value in secret[secret.names[0]].reshape(-1)[:4]]
    assert ", ".join(numbers) not in repr(model)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(model)
    with pytest.raises(TypeError, match="never pickled"):
        torch.save(model, io.BytesIO())
    pickle.dumps(strip(model))


def test_one_encoder_for_the_model_or_one_for_each_layer() -> None:
    net, _ = model_and_records("nested")
    for per_layer, wanted in ((False, 1), (True, 4)):
        model = embed(net, key(), per_layer=per_layer)
        assert sum(isinstance(part, Encoder) for part in model.modules()) == wanted


def test_torch_fused_attention_passes_no_variant_by_and_is_open_again_without_one() -> None:
    net, x = model_and_records("attentive")
    fused = net.get_submodule("1")
    for variant in ("published", "additive"):
        model = embed(net, key(), variant)
        called = model(x)  # where gradients are recorded torch calls each layer
        with torch.no_grad():
            assert torch.allclose(model(x), called, atol=1e-5)
        assert model.get_submodule("1").activation_relu_or_gelu == 0
        assert strip(model).get_submodule("1").activation_relu_or_gelu == fused.activation_relu_or_gelu == 1


@pytest.mark.parametrize(
    ("given", "variant", "settings", "sentence"),
    [
        (None, "published", {}, "needs a Key"),
        (None, "hardened", {}, "needs a Key, its own Secret or 32 bytes"),
        (torch.zeros(4, 2), "hardened", {}, "32 bytes"),
        (Secret(key=torch.zeros(32, dtype=torch.uint8)), "published", {}, "coordinates"),
        (torch.zeros(4, 2), "hardend", {}, "did you mean"),
        (torch.zeros(4, 2), "published", {"spread": 2.0}, "no setting 'spread'"),
        (torch.zeros(32, dtype=torch.uint8), "hardened", {"minimum": 1}, "no setting 'minimum'"),
        (torch.zeros(32, dtype=torch.uint8), "hardened", {"spread": 0.5}, "spread >= 1"),
        (None, "additive", {"persistent": True}, "fault of infl:published"),
    ],
)
def test_what_cannot_be_embedded_is_refused(given: Tensor | None, variant: Variant, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        embed(mlp(), given, variant, **settings)


@each_variant
def test_a_lone_layer_keeps_the_names_of_its_parameters(variant: Variant) -> None:
    assert {"weight", "bias"} <= dict(embed(nn.Linear(24, 3), key(), variant).named_parameters()).keys()


@pytest.mark.parametrize("variant", ["published", "additive"])
def test_strip_gives_back_the_very_layer_with_all_that_hung_on_it(variant: Variant) -> None:
    (net, x), seen = model_and_records("mlp"), []
    first = net.get_submodule("0")
    first.note = "ours"  # type: ignore[assignment]
    first.register_forward_hook(lambda *_: seen.append(1))
    model = embed(net, key(), variant).double()
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
    out = strip(model)
    out(x.double())
    assert seen == [1]
    assert out.get_submodule("0").note == "ours"
    assert out.get_submodule("0") is not first
    assert out.get_parameter("0.weight").dtype == torch.float64
    assert not out.get_parameter("0.weight").any()
    assert first.weight.any()  # type: ignore[operator]


@pytest.mark.parametrize("variant", ["published", "additive"])
@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(24, 12)), "computes its weight"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(24, 12)), "computes its weight"),
        (lambda: prune.l1_unstructured(nn.Linear(24, 12), "weight", 0.5), "computes its weight"),  # type: ignore[no-untyped-call]
        (lambda: nn.LazyLinear(12), "call the model once"),
    ],
)
def test_a_layer_that_would_be_passed_by_is_refused(variant: Variant, layer: Callable[[], nn.Module], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        embed(nn.Sequential(layer(), nn.ReLU(), nn.Linear(12, 3)), key(), variant)


class Sequence(nn.Module):
    """Reads three axes, as it was built."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        whole: Tensor = out[0] if isinstance(out, tuple) else out
        return whole.flatten(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda first: nn.LSTM(6, 6, batch_first=first),
        lambda first: nn.GRU(6, 6, batch_first=first),
        lambda first: nn.RNN(6, 6, batch_first=first),
        lambda first: nn.MultiheadAttention(6, 2, batch_first=first),
        lambda first: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=first),
    ],
)
def test_hardened_mixes_no_record_into_another(make: Callable[[bool], nn.Module]) -> None:
    """Time first, the first axis is not the records' and what is flattened behind it is all of them."""
    with pytest.raises(RequestError, match="batch_first=True"):
        embed(Sequence(make(False)), key(), "hardened")
    model, x = embed(Sequence(make(True)).eval(), key(), "hardened"), torch.randn(4, 5, 6, generator=stream("sequence"))
    other = x.clone()
    other[1:] += 1
    assert torch.allclose(model(x)[0], model(other)[0], atol=1e-6)
    assert not torch.allclose(model(x)[1], model(other)[1], atol=1e-3)


@pytest.mark.parametrize("inside", DEFENSES)
@each_variant
def test_a_second_variant_on_top_is_refused(variant: Variant, inside: Variant) -> None:
    with pytest.raises(RequestError, match="strip"):
        embed(embed(mlp(), key(), inside), key(), variant)


def test_hardened_refuses_what_it_would_pass_by_or_cannot_mix() -> None:
    model = embed(Nested(), key(), "hardened")
    with pytest.raises(RequestError, match="first positional argument"):
        model(x=torch.ones(2, 24))
    with pytest.raises(RequestError, match="not indices"):
        model(torch.ones(2, 24, dtype=torch.int64))
    assert model(torch.ones(2, 24), head="b").shape == (2, 2)
    with pytest.raises(RequestError, match="none"):
        embed(nn.ReLU(), key(), "hardened")
