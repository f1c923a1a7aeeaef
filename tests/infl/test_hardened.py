"""infl:hardened: the mixing is secret, exact and invertible; what it holds against, and the limits its card names, broken on purpose."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.secure_aggregation import SecureAggregation
from infl.hardened import Hardened
from infl.mixing import Mixing, Rotation, hartley
from suites import referee
from suites.bench import Bench
from suites.checks import check_defense
from suites.contracts import Defense, Federation, Local, Probe, RequestError, Secret, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.modules import initialise
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES = 90, 5


def secret(index: int = 0) -> Secret:
    return Hardened().secret(keys("test_hardened", index))


def mixed(x: Tensor, index: int = 0, spread: float = Hardened().spread) -> Tensor:
    return Hardened(spread=spread).prepare(x, secret(index))


def records(count: int, role: str) -> tuple[Tensor, Tensor]:
    """Classes, and factors shared by all records, as omics profiles have them."""
    centres, loadings = torch.randn(CLASSES, FEATURES, generator=stream("centres")), torch.randn(8, FEATURES, generator=stream("loadings"))
    generator = stream("records", role)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    factors = torch.randn(count, 8, generator=generator) @ loadings
    return 0.8 * centres[y] + 0.5 * factors + 0.7 * torch.randn(count, FEATURES, generator=generator), y


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 200))
def test_hartley_is_orthogonal_at_every_length(width: int) -> None:
    matrix = hartley(torch.eye(width, dtype=torch.float64))
    assert torch.allclose(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(hartley(matrix), torch.eye(width, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("width", [1, 64, 765])
def test_mixing_is_what_it_says_at_any_width(width: int) -> None:
    eye = torch.eye(width, dtype=torch.float64)
    rotation = Rotation.draw(keys("rotation"), width)
    assert torch.allclose(rotation(eye) @ rotation(eye).T, eye, atol=1e-10)
    assert torch.allclose(rotation.inverse(rotation(eye)), eye, atol=1e-10)
    mixing = Mixing.draw(keys("mixing"), width, 2.0)
    singular = torch.linalg.svdvals(mixing(eye))
    assert torch.allclose(singular.sort().values, mixing.spectrum.sort().values, atol=1e-10)
    assert float(singular.max() / singular.min()) <= 4.0
    assert torch.allclose(mixing.inverse(mixing(eye)), eye, atol=1e-10)


def test_every_output_depends_on_every_input() -> None:
    matrix = Rotation.draw(keys("rotation"), 256)(torch.eye(256, dtype=torch.float64)).abs() * 16
    assert float(matrix.max()) < 8
    assert 0.6 < float(matrix.mean()) < 1.0  # .80 for Gaussian entries


def test_only_the_right_key_restores() -> None:
    x, _ = records(20, "restore")
    scaled = x * FEATURES**0.5 / x.norm(dim=1, keepdim=True)
    z = mixed(x)
    assert torch.allclose(Hardened().restore(z, secret()), scaled, atol=1e-4)
    assert float(F.cosine_similarity(Hardened().restore(z, secret(1)), x).abs().mean()) < 0.2
    assert float(F.cosine_similarity(z, x).abs().mean()) < 0.2


def test_one_byte_of_the_key_changes_everything() -> None:
    x, _ = records(20, "avalanche")
    near = secret()["key"].clone()
    near[31] ^= 1
    assert float(F.cosine_similarity(Hardened().prepare(x, Secret(key=near)), mixed(x)).abs().mean()) < 0.2


def test_key_has_256_bits_and_weaken_keeps_a_share_of_them() -> None:
    key = secret()["key"]
    assert (key.dtype, len(key)) == (torch.uint8, 32)
    partial = Hardened().weaken(secret(), 0.5, keys("partial"))["key"]
    assert torch.equal(partial[:16], key[:16])
    assert not torch.equal(partial[16:], key[16:])


def test_length_of_a_record_does_not_survive_and_without_a_key_nothing_is_mixed() -> None:
    x, _ = records(20, "length")
    assert torch.allclose(mixed(3 * x), mixed(x), atol=1e-4)
    assert torch.allclose(F.cosine_similarity(Hardened().prepare(x, None), x), torch.ones(20))
    assert torch.isfinite(mixed(torch.zeros(2, FEATURES))).all()


def test_an_empty_batch_stays_one() -> None:
    assert mixed(torch.empty(0, FEATURES)).shape == (0, FEATURES)
    assert Hardened().restore(torch.empty(0, FEATURES), secret()).shape == (0, FEATURES)


def test_what_is_drawn_from_the_key_prints_nothing_and_is_never_pickled() -> None:
    mixing = Hardened().mixing(secret(), FEATURES)
    for drawn in (mixing, mixing.first, copy.deepcopy(mixing)):
        assert repr(drawn) == f"{type(drawn).__name__}(<withheld>)"
        with pytest.raises(TypeError, match="never pickled"):
            pickle.dumps(drawn)
    assert torch.equal(copy.deepcopy(mixing).spectrum, mixing.spectrum)


@pytest.mark.parametrize("spread", [float("nan"), float("inf")])
def test_a_spread_that_is_no_number_is_refused(spread: float) -> None:
    with pytest.raises(RequestError, match="finite spread"):
        Hardened(spread=spread)


def test_sites_below_the_minimum_are_refused() -> None:
    Hardened(minimum=64).plan(Federation(), Shape((64, 200), 10, 2))
    with pytest.raises(RequestError, match="fewer than 64"):
        Hardened(minimum=64).plan(Federation(), Shape((63, 200), 10, 2))
    with pytest.raises(RequestError, match="spread"):
        Hardened(spread=0.5)


def test_a_wider_first_layer_demands_more_records() -> None:
    """Up to the layer's width a row space holds every record; only a number of the user's own lifts that."""
    assert Hardened().plan(Federation(), Shape((128, 200), 10, 2, width=64)).minimum == 128
    assert Hardened().plan(Federation(), Shape((512, 600), 10, 2, width=256)).minimum == 512
    with pytest.raises(RequestError, match=r"fewer than 512 records .*its first layer has 256 units"):
        Hardened().plan(Federation(), Shape((511, 600), 10, 2, width=256))
    assert Hardened(minimum=8).plan(Federation(), Shape((8, 9), 10, 2, width=256)).minimum == 8


def test_a_suite_with_a_wide_network_is_refused_before_it_trains(tmp_path: Path) -> None:
    spec = {
        "suite": "wide", "task": "classification:hidden=2048", "data": {"name": "synthetic"}, "seed": 0,
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "iid", "sites": 2}, "federation": {}, "defense": "infl:hardened",
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"fewer than 4096 records .*its first layer has 2048 units"):
        Bench(spec, tmp_path)


class HeadFirst(nn.Module):
    """Defines its layers in another order than it calls them."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(2048, outputs), nn.Linear(features, 2048)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.body(x)))
        return out


def test_a_suite_whose_network_defines_its_head_first_is_refused_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classification, "net", lambda _, features, outputs: HeadFirst(features, outputs))
    spec = {
        "suite": "wide", "task": "classification", "data": {"name": "synthetic"}, "seed": 0,
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "iid", "sites": 2}, "federation": {}, "defense": "infl:hardened",
    }  # fmt: skip
    with pytest.raises(RequestError, match=r"fewer than 4096 records .*its first layer has 2048 units"):
        Bench(spec, tmp_path)


def trained(x: Tensor, y: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Linear(FEATURES, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, CLASSES))
    initialise(net, stream("start"))
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return net


def test_utility_with_the_right_key_and_none_with_twenty_wrong_ones() -> None:
    (x, y), (test_x, test_y) = records(400, "train"), records(1000, "test")

    def accuracy(net: nn.Module, inputs: Tensor) -> float:
        return float((net(inputs).argmax(1) == test_y).float().mean())

    plain, net = accuracy(trained(x, y), test_x), trained(mixed(x), y)
    right, none = accuracy(net, mixed(test_x)), accuracy(net, Hardened().prepare(test_x, None))
    wrong = np.array([accuracy(net, mixed(test_x, index)) for index in range(1, 21)])
    majority = float(torch.bincount(test_y).max()) / len(test_y)
    assert right > plain - 0.02
    assert wrong.mean() + 1.96 * wrong.std(ddof=1) / 20**0.5 <= majority + 0.02, (
        f"wrong keys reach {wrong.mean():.3f}, majority {majority:.3f}"
    )
    assert none < majority + 0.1


def test_span_of_the_first_layer_tells_members_without_the_mixing_and_nothing_with_it() -> None:
    (x, y), (others, _) = records(24, "train"), records(200, "others")

    def auc(inputs: Tensor) -> float:
        net = trained(inputs, y)
        start = nn.Sequential(nn.Linear(FEATURES, 32))
        initialise(start, stream("start"))
        delta = (net.get_parameter("0.weight") - start.get_parameter("0.weight")).detach()
        basis = torch.linalg.svd(delta, full_matrices=False)[2][:24]

        def inside(candidates: Tensor) -> Tensor:
            share: Tensor = (candidates @ basis.T).norm(dim=1) / candidates.norm(dim=1)
            return share

        member, other = inside(x), inside(others)  # the server knows candidates in public units only
        return float((member[:, None] > other).float().mean())

    assert auc(x) > 0.95
    assert 0.3 < auc(mixed(x)) < 0.7


def test_limit_known_plaintexts_undo_the_mixing() -> None:
    """As many known records as features give the whole linear map; the card says so."""
    x, _ = records(2 * FEATURES, "known")
    fresh, _ = records(5, "fresh")
    public = Hardened().prepare(x, None)
    undo = torch.linalg.lstsq(mixed(x), public).solution
    found = mixed(fresh) @ undo
    assert float(F.cosine_similarity(found, fresh).min()) > 0.999


def test_limit_single_records_in_sight_keep_their_inner_products() -> None:
    """What a search without any key matches on: at spread 1 exactly, at spread 2 still closely."""
    x, _ = records(60, "gram")
    public = Hardened().prepare(x, None)
    upper = torch.triu_indices(60, 60, 1)

    def gram(z: Tensor) -> Tensor:
        return (z @ z.T)[upper[0], upper[1]]

    def agreement(spread: float) -> float:
        return float(torch.corrcoef(torch.stack([gram(mixed(x, spread=spread)), gram(public)]))[0, 1])

    assert agreement(1.0) > 0.9999
    assert 0.8 < agreement(2.0) < 0.9999


def test_a_record_three_times_as_long_is_the_same_record_and_the_direction_comes_back() -> None:
    x, _ = records(20, "lengths")
    back = Hardened().restore(mixed(x), secret())
    assert not Hardened.keeps_lengths
    assert float(F.cosine_similarity(back, x).min()) > 1 - 1e-6
    assert torch.allclose(back.norm(dim=1), torch.full((20,), FEATURES**0.5), atol=1e-3)


def test_the_contract_s_checks_hold_and_say_what_is_dropped_and_demanded() -> None:
    found = {result.name: result for result in check_defense("infl:hardened")}
    assert {result.verdict for result in found.values()} == {"pass"}, found
    assert "length of a record is dropped" in found["prepare and restore"].detail
    assert "fewer than 128 records are refused" in found["minimum"].detail
    assert "at least 128 records" in found["claim"].detail  # as it is used, not as it is checked


LIARS = '''
from infl.hardened import Hardened
from suites.contracts import Defense


class KeepsLengths(Hardened):
    """Says that lengths come back."""

    keeps_lengths = True


class TellsLengths(Defense):
    """Says that lengths are dropped, and hands them on."""

    keeps_lengths = False

    def prepare(self, x, secret):
        return 2 * x


class Demands(Defense):
    """Demands a hundred records and takes ten."""

    minimum = 100
'''


@pytest.mark.parametrize(
    ("name", "check", "said"),
    [
        ("KeepsLengths", "prepare and restore", "differs from x"),
        ("TellsLengths", "prepare and restore", "prepared otherwise"),
        ("Demands", "minimum", "a site of 99"),
    ],
)
def test_a_defense_that_says_otherwise_than_it_does_fails(name: str, check: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "liars.py").write_text(LIARS)
    found = {result.name: result for result in check_defense(f"{tmp_path / 'liars.py'}:{name}")}
    assert found[check].verdict == "fail"
    assert said in found[check].detail


def federation_of(stack: Stack, probes: list[Probe], rounds: int = 1) -> Trained:
    x, y = records(200, "probes")
    federation = Federation(sites=2, rounds=rounds, local=Local(epochs=1, batch=50))
    sites = (torch.arange(100), torch.arange(100, 200))
    stack = stack.plan(federation, Shape((100, 100), FEATURES, CLASSES))
    return train(
        Classification(hidden=16, dropout=0.0), stack, federation, Pool(x, y, CLASSES), [Assignment(sites, ("p",), ("q",))], probes=probes
    )[0]


@pytest.mark.parametrize("behind", [[], [SecureAggregation()]])
def test_sites_answer_no_probe_of_fewer_records_than_the_minimum(behind: list[Defense]) -> None:
    probes = [Probe(str(n), 0, (tuple(range(n)), tuple(range(100, 100 + n)))) for n in (1, 63, 64, 100)]
    uneven = Probe("uneven", 0, (tuple(range(64)), tuple(range(100, 110))))
    trained = federation_of(Stack([Hardened(minimum=64), *behind]), [*probes, uneven])
    assert [record.probe.name for record in trained.rounds[0].probes] == ["64", "100"]
    plain = federation_of(Stack(behind), [*probes, uneven])
    assert len(plain.rounds[0].probes) == 5


def test_the_same_records_at_another_checkpoint_count_again() -> None:
    """Gradients of one batch at two networks show as many rows as one of a layer twice as wide."""
    site, other = tuple(range(64)), tuple(range(100, 164))
    again = [Probe("early", 0, (site, other)), Probe("late", 1, (site, other)), Probe("new", 1, (tuple(range(1, 65)), (*other[:-1], 199)))]
    assert [Stack([Hardened(minimum=64)]).sends(probe, again) for probe in again] == [False, False, True]
    assert [Stack([Hardened(minimum=32)]).sends(probe, again) for probe in again] == [True, True, True]
    assert all(Stack().sends(probe, again) for probe in again)
    trained = federation_of(Stack([Hardened(minimum=64)]), again, rounds=2)
    assert [record.probe.name for round_ in trained.rounds for record in round_.probes] == ["new"]


@pytest.mark.parametrize(("batch", "status"), [(1, "skipped"), (64, "ok")])
def test_an_attack_on_refused_probes_is_skipped_with_that_reason(batch: int, status: str, tmp_path: Path) -> None:
    spec = {
        "suite": "minimum", "task": "classification:dropout=0", "data": {"name": "synthetic"}, "seed": 0,
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2}, "partition": {"kind": "iid", "sites": 2},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 30}},
        "probes": [{"gradients": 1, "batch": batch, "round": 0}], "defense": "infl:hardened:minimum=64",
    }  # fmt: skip
    trained, attacked = tmp_path / "store" / "train" / "one", tmp_path / "store" / "attack" / "two"
    for folder in (trained, attacked):
        folder.mkdir(parents=True)
    referee.train_cell(spec, trained)
    referee.attack_cell({**spec, "attack": "closed_form", "threat": {"view": "server", "key": "none"}}, attacked, {"train": trained})
    rows = json.loads((attacked / referee.ROWS).read_text())
    assert {row["status"] for row in rows} == {status}
    if status == "skipped":
        assert "no message with fewer than 64 records" in rows[0]["reason"]
        assert "probe batch: 64" in rows[0]["reason"]
