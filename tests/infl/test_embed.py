"""embed() puts keyed layers into any model, adds what the reference adds, and strip() takes it all out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from infl.embed import embed, strip
from infl.encoder import Encoder
from infl.layers import KeyedLinear
from infl.published import Published
from suites.contracts import Federation, RequestError, Secret, Shape
from suites.modules import initialise
from suites.randomness import keys, stream


class Residual(nn.Module):
    """Widths of the proteomics network: inputs -> 64, two residual blocks of 64, 64 -> 32 -> classes."""

    def __init__(self, features: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.fc1, self.fc2 = nn.Linear(width, width // 2), nn.Linear(width // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        for block in self.blocks:
            h = h + block(h)
        out: Tensor = self.fc2(torch.relu(self.fc1(h)))
        return out


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def secret(index: int = 0) -> Secret:
    return Published().secret(keys("test_embed", index))


def test_parameters_added_at_proteomics_size() -> None:
    net = Residual(9102, 15)
    assert count(Published().model(net, secret())) - count(net) == 22_630


def test_no_secret_in_state_dict_unless_that_flaw_is_asked_for() -> None:
    shape = Shape((10,), 20, 3)
    sound = Published().plan(Federation(), shape).model(Residual(20, 3, 8), secret())
    faulty = Published().plan(Federation(flaws=frozenset({"key_in_state"})), shape).model(Residual(20, 3, 8), secret())
    assert not any("coordinates" in name for name in sound.state_dict())
    assert "embedding.key_encoder.coordinates" in faulty.state_dict()
    assert [name for name, _ in sound.named_buffers()] == ["embedding.key_encoder.coordinates"]


def test_integer_seed_flaw_can_be_searched_and_the_sound_key_cannot_be_seeded() -> None:
    weak = Published().plan(Federation(flaws=frozenset({"integer_seed"})), Shape((10,), 20, 3)).secret(keys("weak"))["coordinates"]
    hits = [
        seed
        for seed in range(2**16)
        if torch.rand(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1 == weak[0, 0]
    ]
    assert len(hits) >= 1
    assert torch.equal(2 * torch.rand(128, 2, generator=torch.Generator().manual_seed(hits[0]), dtype=torch.float64) - 1, weak)


def test_every_linear_is_keyed_and_all_but_the_last_are_followed_by_film() -> None:
    model = Published().model(Residual(20, 3, 8), secret())
    keyed = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, KeyedLinear)]
    assert [name for name, _ in keyed] == ["embedding", "blocks.0.0", "blocks.0.3", "blocks.1.0", "blocks.1.3", "fc1", "fc2"]
    assert [layer.film is not None for _, layer in keyed] == [True] * 6 + [False]


def test_key_is_encoded_once_a_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Published().model(Residual(20, 3, 8), secret()), []
    encode = Encoder._encode

    def counted(self: Encoder) -> Tensor:
        calls.append(1)
        return encode(self)

    monkeypatch.setattr(Encoder, "_encode", counted)
    model(torch.randn(4, 20))
    assert len(calls) == 1


def test_a_failed_forward_pass_leaves_no_key_vector_behind() -> None:
    model, x = Published().model(Residual(20, 3, 8), secret()), torch.randn(4, 20)
    with pytest.raises(RuntimeError):
        model(torch.randn(4, 21))
    first = model.get_submodule("embedding")
    before = first(x)
    model.get_buffer("embedding.key_encoder.coordinates").zero_()
    assert not torch.equal(first(x), before), "the layer still used the key vector of the failed pass"


def test_the_key_changes_the_output_and_strength_zero_takes_the_key_away() -> None:
    net, x = Residual(20, 3, 8), torch.randn(16, 20)
    first, second = (embed(net, secret(i)["coordinates"], generator=stream("modulators"))(x) for i in range(2))
    assert not torch.allclose(first, second)
    assert torch.allclose(embed(net, secret()["coordinates"], strength=0.0)(x), net(x), atol=1e-6)


def test_without_key_is_the_plain_network_and_leaves_the_keyed_one_alone() -> None:
    net, x = Residual(20, 3, 8), torch.randn(16, 20)
    model = Published().model(net, secret())
    before = model(x)
    assert torch.allclose(Published().without_key(model)(x), net(x), atol=1e-6)
    assert torch.equal(model(x), before)
    assert not torch.allclose(before, net(x), atol=1e-3)


def test_strip_undoes_embed() -> None:
    net, x = Residual(20, 3, 8).eval(), torch.randn(16, 20)
    plain = strip(embed(net, secret()["coordinates"]))
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert [type(layer) for layer in plain.modules()] == [type(layer) for layer in net.modules()]
    assert torch.equal(plain(x), net(x))


def test_one_encoder_a_layer() -> None:
    defense = Published(per_layer=True)
    model = defense.model(Residual(20, 3, 8), secret())
    assert sum(isinstance(part, Encoder) for part in model.modules()) == 7
    assert "embedding.key_encoder.net.0.weight" in model.state_dict()
    assert model(torch.randn(4, 20)).shape == (4, 3)
    assert len(defense.derived(model)) == 7
    assert torch.equal(strip(model)(torch.ones(2, 20)), defense.without_key(model)(torch.ones(2, 20)))


def test_a_sequential_root_is_not_lengthened() -> None:
    model = embed(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), secret()["coordinates"])
    assert model(torch.randn(3, 6)).shape == (3, 2)
    assert [name for name, _ in model.named_buffers()] == ["0.key_encoder.coordinates"]


def test_a_layer_used_twice_stays_one_layer() -> None:
    shared = nn.Linear(6, 6)
    model = embed(nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(6, 2)), secret()["coordinates"])
    assert model[0] is model[2]  # type: ignore[index]
    assert isinstance(model[0], KeyedLinear)  # type: ignore[index]


def test_torch_fused_transformer_does_not_pass_the_key_by() -> None:
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 2))
    model = embed(net, secret()["coordinates"]).eval()
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        inference = model(x)
    assert torch.allclose(inference, model(x), atol=1e-5)


def test_keyed_copies_do_not_share_state() -> None:
    model = embed(Residual(20, 3, 8), secret()["coordinates"])
    twin = copy.deepcopy(model)
    twin.get_buffer("embedding.key_encoder.coordinates").zero_()
    x = torch.randn(4, 20)
    assert not torch.equal(model(x), twin(x))


def test_weaken_keeps_a_fraction_of_the_points() -> None:
    whole = secret()
    half = Published().weaken(whole, 0.5, keys("partial"))["coordinates"]
    assert int((half == whole["coordinates"]).all(dim=1).sum()) == 64


@pytest.mark.parametrize("per_layer", [False, True])
def test_initialise_is_reproducible_and_near_identity(*, per_layer: bool) -> None:
    model = Published(per_layer=per_layer).model(Residual(20, 3, 8), secret())
    states = []
    for _ in range(2):
        generator = stream("start")
        initialise(model, generator)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    for name, value in states[0].items():
        if name.endswith(("key_to_mod.3.bias", "film.film.2.bias")):
            assert not value.any()
        if name.endswith(("key_to_mod.3.weight", "film.film.2.weight")):
            assert 0.01 < float(value.std()) < 0.03


@pytest.mark.parametrize(
    ("model", "sentence"), [(nn.Sequential(nn.ReLU()), "has none"), (embed(nn.Linear(2, 2), torch.zeros(4, 2)), "strip")]
)
def test_models_that_cannot_be_keyed_are_refused(model: nn.Module, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        embed(model, torch.zeros(4, 2))


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_published_refuses_nonsense(strength: float) -> None:
    with pytest.raises(RequestError, match="finite strength"):
        Published(strength=strength)
