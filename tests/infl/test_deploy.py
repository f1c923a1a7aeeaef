"""A federation of one's own: sites with wrapped copies of one key learn together; one with an old version is refused and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from baselines.fedavg import FedAvg
from infl import key_file
from infl.deploy import Gate, KeyedSite, Tag, average, tag
from infl.hardened import Hardened
from infl.key import Key, secret_of
from infl.key_wrap import Pair, unwrap, wrap
from infl.published import Published
from infl.revocation import Revoked
from suites.checks_defense import carried
from suites.contracts import Defense, Params, RequestError
from suites.randomness import keys
from tests.secret_scan import find_secret

FEATURES, CLASSES, EACH = 32, 3, 120
DEFENSES = [Published(strength=5.0), Hardened(spread=2.0, minimum=64)]


def net() -> nn.Module:
    torch.manual_seed(3)  # public: every site builds the same start, and the first broadcast replaces it anyway
    return nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, CLASSES))


def records(seed: int) -> tuple[Tensor, Tensor]:
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(99))
    x = torch.randn(EACH, FEATURES, generator=torch.Generator().manual_seed(seed))
    return x, (x @ teacher).argmax(1)


def train(site: KeyedSite, y: Tensor, epochs: int = 30) -> None:
    """A plain loop, as a site would write it."""
    optimiser = torch.optim.Adam(site.model.parameters(), lr=1e-2)
    for _ in range(epochs):
        optimiser.zero_grad()
        F.cross_entropy(site.model(site.x), y).backward()
        optimiser.step()


def handed_over(key: Key, site: str, folder: Path) -> Key:
    """The key as the site ends up with it: wrapped, sent in the open, unwrapped, saved, loaded."""
    pair = Pair.new(site)
    key_file.write(folder / f"{site}.wrapped", "wrapped", wrap(key, pair.public))
    path = folder / f"{site}.wrapped"
    unwrap(key_file.read(path, "wrapped"), pair, fingerprint=key.identity.fingerprint, path=path).save(folder / f"{site}.key")
    return Key.load(folder / f"{site}.key")


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_two_sites_learn_together_and_a_third_with_an_old_key_is_refused(defense: Defense, tmp_path: Path) -> None:
    old, key = (Key(keys("test deploy", version).bytes(32), "00" * 16, version) for version in (1, 2))  # the same at each run
    data = {name: records(i) for i, name in enumerate(("a", "b", "c"))}
    held = {"a": handed_over(key, "a", tmp_path), "b": handed_over(key, "b", tmp_path), "c": handed_over(old, "c", tmp_path)}
    sites = {name: KeyedSite(name, held[name], defense, net(), data[name][0], classes=CLASSES) for name in data}
    gate, holder = Gate(key.identity), Gate(held["a"])  # a server's, which holds no key, and a key holder's
    state = sites["a"].broadcast()
    for index in range(2):
        admitted: list[Params] = []
        for name, site in sites.items():
            site.receive(state)
            train(site, data[name][1])
            update, label = site.update(state, index)
            read = Tag.read(label.metadata())
            assert read == label
            assert holder.admits(update, read, index) == gate.admits(update, read, index) == (name != "c")
            if name != "c":
                admitted.append(update)
        mean = average(admitted, [EACH, EACH])
        state = {name: value + mean[name] for name, value in state.items()}
    assert gate.refused == holder.refused == {"another version": 2}

    x, y = records(7)
    sites["b"].receive(state)
    right = (sites["b"].outputs(x).argmax(1) == y).float().mean()
    assert right > 0.65  # always saying the largest class gives .37
    sites["c"].receive(state)
    if isinstance(defense, Hardened):  # under INFL as published a wrong key opens the model
        assert (sites["c"].outputs(x).argmax(1) == y).float().mean() < right - 0.2


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_sites_of_one_process_share_no_parameter(defense: Defense) -> None:
    plain, (x, y) = net(), records(0)
    one, other = (KeyedSite(name, Key.new(), defense, plain, x, classes=CLASSES) for name in "ab")
    before = other.broadcast()
    train(one, y, 1)
    assert all(torch.equal(value, before[name]) for name, value in other.broadcast().items())


@pytest.mark.parametrize("defense", DEFENSES, ids=lambda d: type(d).__name__)
def test_nothing_that_is_sent_holds_the_key(defense: Defense, tmp_path: Path) -> None:
    key = Key.new()
    key.save(tmp_path / "key")
    x, y = records(0)
    site = KeyedSite("a", key, defense, net(), x, classes=CLASSES)
    start = site.broadcast()
    train(site, y, 2)
    update, label = site.update(start, 0)
    secret = secret_of(key, defense)
    for sent in (start, update, site.broadcast(), site.stripped().state_dict()):
        assert not list(carried(secret, dict(sent)))
        assert not find_secret(sent, secret)
    bits = key_file.read(tmp_path / "key", "key")["material"]
    assert bits[:12] not in repr(site) + repr(label) + str(label.metadata())


def test_one_key_file_serves_every_variant_apart() -> None:
    key = Key.new()
    mixing, coordinates = secret_of(key, Hardened())["key"], secret_of(key, Published())["coordinates"]
    assert torch.equal(coordinates, secret_of(key, Published(strength=1.0))["coordinates"])
    same_bits = Published().secret(key.source("secret of Hardened"))["coordinates"]
    assert not torch.equal(coordinates, same_bits)  # the first 32 bytes behind these are the hardened key
    assert torch.equal(coordinates, Published().secret(key.source("secret of Published"))["coordinates"])
    assert mixing.shape == (32,)
    assert not torch.equal(mixing, secret_of(key.rotated(), Hardened())["key"])
    with pytest.raises(RequestError, match="has no key"):
        secret_of(key, FedAvg())


def test_each_reason_to_refuse_is_counted() -> None:
    key, foreign = Key.new(), Key.new()
    update = {"w": torch.ones(4), "count": torch.tensor(3)}
    label = tag(key, "a", 0, update)
    forged = Tag(key.identity.federation, 1, key.identity.fingerprint, "a", 0, proof="00")
    impostor = Tag(key.identity.federation, 1, foreign.identity.fingerprint, "a", 0, proof=label.proof)
    gate = Gate(key)
    assert not gate.admits(update, None, 0)
    assert not gate.admits(update, Tag.read({"infl-bench.version": "one"}), 0)
    assert not gate.admits(update, tag(foreign, "a", 0, update), 0)
    assert not gate.admits(update, tag(key.rotated(), "a", 0, update), 0)
    assert not gate.admits(update, impostor, 0)
    assert not gate.admits(update, forged, 0)
    assert not gate.admits({**update, "w": torch.zeros(4)}, label, 0)  # another update under this tag
    assert not gate.admits(update, label, 1)
    assert gate.admits(update, label, 0)
    assert not gate.admits(update, label, 0)
    assert gate.refused == {
        "no tag": 2,
        "another federation": 1,
        "another version": 1,
        "another key": 1,
        "no proof of the key": 2,
        "another round": 1,
        "a second update of one site": 1,
    }
    assert Gate(key.identity).admits(update, forged, 0)  # without a key nobody can check a proof, and the docstring says so


def test_a_revoked_version_neither_starts_nor_enters() -> None:
    key = Key.new()
    new = key.rotated()
    revoked = Revoked().with_key(key)
    with pytest.raises(RequestError, match="revoked"):
        KeyedSite("a", key, Published(), net(), records(0)[0], classes=CLASSES, revoked=revoked)
    gate = Gate(key.identity, new.identity, revoked=revoked)  # while sites change over, both would be accepted
    update = {"w": torch.ones(2)}
    assert not gate.admits(update, tag(key, "a", 0, update), 0)
    assert gate.admits(update, tag(new, "a", 0, update), 0)
    assert gate.refused == {"revoked version": 1}


def test_a_site_too_small_for_the_defense_and_a_mean_of_nothing() -> None:
    with pytest.raises(RequestError, match="fewer than 200 records"):
        KeyedSite("a", Key.new(), Hardened(minimum=200), net(), records(0)[0], classes=CLASSES)
    with pytest.raises(RequestError, match="no mean"):
        average([], [])
    with pytest.raises(RequestError, match="accepts no version"):
        Gate()


def test_a_wider_first_layer_demands_more_records_of_a_site() -> None:
    """Twice the units of the first layer, whatever lies in front of it; the default of 128 is for 64 units."""
    wide = nn.Sequential(nn.LayerNorm(FEATURES), nn.Sequential(nn.Linear(FEATURES, 100), nn.ReLU()), nn.Linear(100, CLASSES))
    x = torch.randn(200, FEATURES)
    KeyedSite("a", Key.new(), Hardened(), wide, x, classes=CLASSES)
    with pytest.raises(RequestError, match=r"fewer than 200 records behind them .its first layer has 100 units., and a site has 199"):
        KeyedSite("a", Key.new(), Hardened(), wide, x[1:], classes=CLASSES)
    KeyedSite("a", Key.new(), Hardened(minimum=64), wide, x[:64], classes=CLASSES)  # a minimum of one's own stands
    with pytest.raises(RequestError, match="fewer than 2048 records"):
        KeyedSite("a", Key.new(), Hardened(), nn.Sequential(nn.Linear(FEATURES, 1024), nn.Linear(1024, CLASSES)), x[:130], classes=CLASSES)


class HeadFirst(nn.Module):
    """Defines its layers in another order than it calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(512, CLASSES), nn.Linear(FEATURES, 512)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body(x)))
        return out


class Beside(HeadFirst):
    """Two layers that read the same records show the rows of both."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Linear(FEATURES, 512 // 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.narrow(x).repeat(1, 8) + self.body(x)))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(80, CLASSES), nn.LSTM(8, 80, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x.view(len(x), -1, 8))[0][:, -1])
        return out


class Uncalled(HeadFirst):
    """Reads a weight without calling its layer."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(F.linear(x, self.body.weight, self.body.bias)))
        return out


class Failing(HeadFirst):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not in evaluation mode")


class Own(nn.Module):
    """A layer of its own kind, of which nobody knows which axis are units."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(FEATURES, 512)), nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x @ self.weight)
        return out


class Bottleneck(nn.Module):
    """Records meet 64 units first, then 512."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.first, self.norm = nn.Linear(64, 512), nn.Linear(FEATURES, 64), nn.LayerNorm(FEATURES)
        self.gate = nn.TransformerEncoderLayer(64, 2, 512, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wide(self.gate(self.first(self.norm(x))[:, None])[:, 0])[:, :CLASSES]
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), nn.Conv1d(1, 512, FEATURES), nn.Flatten(), nn.Linear(512, CLASSES))


def attentive() -> nn.Module:
    """What is added to the attention's output are the records themselves, which later layers so read too."""
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 16, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, FEATURES)), layer, nn.Flatten(), nn.Linear(FEATURES, CLASSES))


def normalised() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, 512))
    return nn.Sequential(nn.BatchNorm1d(FEATURES), layer, nn.ReLU(), nn.Linear(512, CLASSES))


@pytest.mark.parametrize(
    ("make", "units"),
    [
        (HeadFirst, 512), (Beside, 512 + 64), (Recurrent, 4 * 80), (Uncalled, 512 + CLASSES), (Failing, 512 + CLASSES),
        (Bottleneck, 64), (convolutional, 512),
        (attentive, 3 * FEATURES + 16 + CLASSES), (normalised, 512), (Own, 0), (nn.Identity, 0),
    ],
)  # fmt: skip
def test_the_layer_that_reads_the_records_sets_how_many_a_site_needs(make: Callable[[], nn.Module], units: int) -> None:
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(max(128, 2 * units), FEATURES)

    def site(defense: Defense, x: Tensor) -> KeyedSite:
        return KeyedSite("a", Key.new(), defense, network, x, classes=CLASSES)

    if units == 0:
        with pytest.raises(RequestError, match="minimum="):
            site(Hardened(), x)
    else:
        site(Hardened(), x)
        with pytest.raises(RequestError, match=f"fewer than {len(x)} records"):
            site(Hardened(), x[1:])
    site(Hardened(minimum=8), x)
    assert network.training
    assert not any(part._forward_hooks for part in network.modules())
    assert all(weight.requires_grad for weight in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_weighted_mean() -> None:
    mean = average([{"w": torch.tensor([1.0]), "n": torch.tensor(2)}, {"w": torch.tensor([4.0]), "n": torch.tensor(5)}], [1, 2])
    assert float(mean["w"]) == pytest.approx(3.0)
    assert int(mean["n"]) == 2


def test_update_and_tag_travel_in_one_file(tmp_path: Path) -> None:
    x, y = records(0)
    site = KeyedSite("a", Key.new(), Published(), net(), x, classes=CLASSES)
    start = site.broadcast()
    train(site, y, 1)
    update, label = site.update(start, 3)
    save_file(update, tmp_path / "update.safetensors", metadata=label.metadata())
    with safe_open(tmp_path / "update.safetensors", "pt") as file:
        arrived, tagged = {name: file.get_tensor(name) for name in file.keys()}, Tag.read(file.metadata())  # noqa: SIM118
    assert Gate(site.key).admits(arrived, tagged, 3)
    arrived["0.weight"] = arrived["0.weight"] * 1.01
    assert not Gate(site.key).admits(arrived, tagged, 3)
