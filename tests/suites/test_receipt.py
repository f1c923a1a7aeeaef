"""Receipts: what an honest training gets, and what each planted fault is refused for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from baselines.compression import Compression
from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import SecureAggregation
from baselines.skellam import Skellam
from infl.published import Published
from reports.receipts import receipts_table, refusals
from suites import accounting, lanes, loss_distribution, referee
from suites.clipping import ClippedSum
from suites.contracts import Claim, Clip, Defense, Federation, Local, Message, Params, RequestError, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.randomness import stream
from suites.receipt import Receipt, receipt
from suites.stack import Stack
from suites.tasks.classification import Classification
from suites.witness import Witness
from tests.suites.test_accounting import PLD

FEATURES, CLASSES, EACH, SITES = 30, 4, 90, 3
TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0)
FEDERATION = Federation(sites=SITES, rounds=4, local=Local(epochs=3, batch=30, lr=5e-3))
PERSON = torch.arange(SITES * EACH) // 3


def ran(
    *layers: Defense, federation: Federation = FEDERATION, chunk: int = 1, task: Any = TASK, seed: int = 0
) -> tuple[Witness, Stack, Shape, Claim, Trained]:
    x = torch.randn(SITES * EACH, FEATURES, generator=stream("receipt", "x"))
    pool = Pool(x, torch.arange(len(x)) % CLASSES, CLASSES, PERSON)
    sites = tuple(torch.arange(len(x)).chunk(SITES))
    shape = Shape((EACH,) * SITES, FEATURES, CLASSES, (EACH // 3,) * SITES)
    stack = Stack(layers)
    federation = replace(federation, local=stack.local(federation.local))
    stack = stack.plan(federation, shape)
    witness = Witness()
    given = Assignment(sites, ("receipt", seed), ("receipt", seed, "noise"))
    trained = train(task, stack, federation, pool, [given], chunk=chunk, witness=witness)[0]
    claim = stack.claim(federation, shape)
    assert claim is not None
    return witness, stack, shape, claim, trained


def of(*layers: Defense, federation: Federation = FEDERATION, chunk: int = 1, seed: int = 0) -> Receipt:
    witness, stack, shape, claim, trained = ran(*layers, federation=federation, chunk=chunk, seed=seed)
    return receipt(witness, stack, replace(federation, local=stack.local(federation.local)), shape, claim, trained)


SOUND: Mapping[str, Callable[[], tuple[Defense, ...]]] = {
    "record": lambda: (DPSGD(epsilon=8),),
    "person": lambda: (DPSGD(epsilon=8, unit="person"),),
    "clip of a tenth": lambda: (DPSGD(noise_multiplier=1.3, clip=0.1),),
    "site": lambda: (DPFedAvg(epsilon=20),),
    "shared between sites": lambda: (DPFedAvg(epsilon=20, shared=True, colluders=1), SecureAggregation()),
    "skellam": lambda: (Skellam(epsilon=20),),
    "compressed afterwards": lambda: (DPFedAvg(epsilon=20), Compression()),
    "records, then sites": lambda: (DPSGD(epsilon=8), DPFedAvg(epsilon=20)),
    "sites, then records": lambda: (DPFedAvg(epsilon=20), DPSGD(epsilon=8)),
    "sites twice": lambda: (DPFedAvg(epsilon=20), DPFedAvg(epsilon=5, clip=0.3)),
    "keyed layers": lambda: (Published(), DPSGD(epsilon=8)),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_training_is_accepted_with_what_was_measured(name: str) -> None:
    found = of(*SOUND[name]())
    assert found.reasons == ()
    assert found.low <= found.noise_multiplier * 1.02
    assert found.high >= found.noise_multiplier * 0.98
    assert found.measured == pytest.approx(found.noise_multiplier, rel=0.03)
    assert len(found.epsilons) >= 2
    for value in found.epsilons.values():
        assert found.claimed * 0.99 <= value <= found.claimed * 1.001
    if name in ("record", "person", "records, then sites"):
        units = EACH // 3 if name == "person" else EACH
        assert {site.units for site in found.sites} == {units}
        assert found.sites[0].steps == found.steps == 4 * 3 * -(-units // 30)
        assert all(site.drawn == pytest.approx(site.expected, rel=0.2) for site in found.sites)
    assert json.loads(json.dumps(found.record()))["accepted"] is True


def test_lanes_trained_together_get_the_same_receipt() -> None:
    alone, together = of(DPSGD(epsilon=8)), of(DPSGD(epsilon=8), chunk=3)
    assert [(s.steps, s.drawn, s.draws) for s in alone.sites] == [(s.steps, s.drawn, s.draws) for s in together.sites]
    assert together.measured == pytest.approx(alone.measured, rel=1e-5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_watching_moves_no_number(chunk: int) -> None:
    layers = (Published(), DPSGD(epsilon=8, unit="person"), DPFedAvg(noise_multiplier=0.1))
    task = Classification(hidden=16, blocks=1, head=8, dropout=0.3)  # with masks of the records' own
    witness, stack, _, _, watched = ran(*layers, chunk=chunk, task=task)
    assert {int(site.singled.sum()) for site in witness.of(None) if site.singled is not None} == {EACH // 3}  # every person once
    x = torch.randn(SITES * EACH, FEATURES, generator=stream("receipt", "x"))
    pool, sites = Pool(x, torch.arange(len(x)) % CLASSES, CLASSES, PERSON), tuple(torch.arange(len(x)).chunk(SITES))
    alone = train(task, stack, FEDERATION, pool, [Assignment(sites, ("receipt", 0), ("receipt", 0, "noise"))], chunk=chunk)[0]
    assert all(torch.equal(tensor, watched.finals[0][name]) for name, tensor in alone.finals[0].items())
    assert max(site.astray for site in witness.of(None)) < 1e-3  # masks of the single ones are those that they had in the batch


def test_sites_of_other_sizes_are_judged_at_their_own_rates() -> None:
    x = torch.randn(200, FEATURES, generator=stream("receipt", "x"))
    pool, sites = Pool(x, torch.arange(200) % CLASSES, CLASSES), (torch.arange(40), torch.arange(40, 200))
    shape, federation = Shape((40, 160), FEATURES, CLASSES), replace(FEDERATION, sites=2)
    for chunk in (1, 2):  # together, the smaller site's lane repeats steps that do not count
        stack, witness = Stack([DPSGD(epsilon=8)]).plan(federation, shape), Witness()
        trained = train(TASK, stack, federation, pool, [Assignment(sites, ("a",), ("b",))], chunk=chunk, witness=witness)[0]
        claim = stack.claim(federation, shape)
        assert claim is not None
        found = receipt(witness, stack, federation, shape, claim, trained)
        assert found.accepted, found.reasons
        assert [site.steps for site in found.sites] == [4 * 3 * 2, 4 * 3 * 6]


PARTLY = replace(FEDERATION, rounds=8, participation=0.67)  # two of the three sites in a round


@pytest.mark.parametrize("colluders", [0, 1])
def test_noise_shared_by_those_who_take_part_is_accepted(colluders: int) -> None:
    shared = DPFedAvg(epsilon=20, shared=True, colluders=colluders)
    found = of(shared, SecureAggregation(), federation=PARTLY)
    assert found.reasons == ()
    assert found.measured == pytest.approx(found.noise_multiplier, rel=0.02)
    assert of(Skellam(epsilon=20, colluders=0, threshold=2), federation=PARTLY).reasons == ()
    assert of(DPSGD(epsilon=8), federation=PARTLY).reasons == ()


class SharesOfAll(DPFedAvg):
    """Sizes its shares by all sites, whoever takes part."""

    def plan(self, federation: Federation, shape: Shape) -> DPFedAvg:
        return super().plan(replace(federation, participation=1.0), shape)

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        return super().claim(replace(federation, participation=1.0), shape)


def test_the_noise_of_a_round_is_that_of_those_who_took_part_in_it() -> None:
    found = of(SharesOfAll(epsilon=20, shared=True, colluders=0), SecureAggregation(), federation=PARTLY)
    assert found.measured == pytest.approx(found.noise_multiplier * (2 / 3) ** 0.5, rel=0.05)
    assert found.high < found.noise_multiplier
    assert any("sum of the sites of its least noisy round" in reason for reason in found.reasons), found.reasons
    assert all(value > found.claimed * 1.2 for value in found.epsilons.values())  # the accountants are asked about what was drawn


class QuietOnce(DPFedAvg):
    """One message in twelve goes out with half its noise."""

    sent = 0

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        noisy = super().encode(update, rng)
        type(self).sent += 1
        if type(self).sent % 12 != 7:
            return noisy
        clipped = DPFedAvg(noise_multiplier=0, clip=self.norm).encode(update, rng)
        return {name: (noisy[name] + value) / 2 for name, value in clipped.items()}


def test_one_message_with_less_noise_is_refused() -> None:
    found = of(QuietOnce(epsilon=20))
    assert found.measured == pytest.approx(found.noise_multiplier / 2, rel=0.1)
    assert any("the claim rests on" in reason for reason in found.reasons), found.reasons


def test_noise_on_a_sum_is_refused_where_a_later_layer_changes_its_parts() -> None:
    found = of(DPFedAvg(epsilon=20, shared=True), Compression(), SecureAggregation())
    assert any("Compression changed each of them" in reason for reason in found.reasons), found.reasons


def test_a_task_s_shared_inputs_are_said_where_records_or_persons_are_the_unit() -> None:
    word = "a cell enters its neighbours' records"
    for defense, said in ((DPSGD(epsilon=8), True), (DPFedAvg(epsilon=20), False)):
        witness, stack, shape, claim, trained = ran(defense)
        found = receipt(witness, stack, FEDERATION, shape, claim, trained, word)
        assert found.accepted
        assert (word in found.caveats) is said
        record = {"receipts": [{"defense": "d", "seed": 0, **found.record()}]}
        assert (f"No receipt covers this: {word}." in refusals(record)) is said


@pytest.mark.slow
def test_chance_refuses_nobody() -> None:
    for seed in range(60):
        for defense in (DPSGD(epsilon=8), DPSGD(epsilon=30, unit="person"), DPFedAvg(epsilon=20)):
            assert of(defense, seed=seed).reasons == (), seed


# ------------------------------------------------------------------------------------------------------- planted faults


class HalfTheNoise(DPSGD):
    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        noisy = super().noise(clipped_sum, rng)
        return {name: (value + noisy[name]) / 2 for name, value in clipped_sum.items()}


class ThreePercentLess(DPSGD):
    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        noisy = super().noise(clipped_sum, rng)
        return {name: value + 0.97 * (noisy[name] - value) for name, value in clipped_sum.items()}


class NoneAtAll(DPSGD):
    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        return clipped_sum


class OneBareTensor(DPSGD):
    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        last = list(clipped_sum)[-1]  # a bias of four numbers
        return {**super().noise(clipped_sum, rng), last: clipped_sum[last]}


class Replayed(DPSGD):
    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        return super().noise(clipped_sum, torch.Generator().manual_seed(7))


class Coins(DPSGD):
    """Right deviation, wrong shape: a coin tells two sums apart for good."""

    def noise(self, clipped_sum: Params, rng: torch.Generator) -> Params:
        assert self.noise_multiplier is not None
        assert self.clip is not None
        size = self.noise_multiplier * self.clip.norm
        return {n: v + size * (2.0 * torch.randint(0, 2, v.shape, generator=rng) - 1) for n, v in clipped_sum.items()}


class ShuffledInSecret(DPSGD):
    """Claims Poisson sampling and shuffles epochs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.clip = Clip(1.0, sampling="shuffle")


class FewerSteps(DPSGD):
    """Counts one round where all are run."""

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        return super().claim(replace(federation, rounds=1), shape)


class OneTensorUnclipped(DPFedAvg):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        first = next(iter(update))
        clipped = super().encode({**update, first: torch.zeros_like(update[first])}, rng)
        return {**clipped, first: clipped[first] + update[first]}


class ClippedByTensor(DPFedAvg):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        rest = {name: torch.zeros_like(tensor) for name, tensor in update.items()}
        clipped = DPFedAvg(noise_multiplier=0, clip=self.norm)
        noise = super().encode(rest, rng)
        return {name: noise[name] + clipped.encode({name: tensor}, rng)[name] for name, tensor in update.items()}


class Weighted(DPFedAvg):
    equal_weights = False


class Unclipped(ClippedSum):
    def __call__(self, params: Params, private: Params, x: Any, y: Any, weight: Any, norm: float, group: Any = None) -> Any:
        return super().__call__(params, private, x, y, weight, 1e6, group)


class OneRecordAtFour(ClippedSum):
    def __call__(self, params: Params, private: Params, x: Any, y: Any, weight: Any, norm: float, group: Any = None) -> Any:
        loud = torch.randn(SITES * EACH, FEATURES, generator=stream("receipt", "x"))[17, 0]
        return super().__call__(params, private, x, y, torch.where(x[..., 0] == loud, 4 * weight, weight), norm, group)


class OnePlaceAtFour(ClippedSum):
    """Whoever comes second in a batch."""

    def __call__(self, params: Params, private: Params, x: Any, y: Any, weight: Any, norm: float, group: Any = None) -> Any:
        return super().__call__(params, private, x, y, weight * (1 + 3 * (torch.arange(x.shape[1]) == 1)), norm, group)


CLIPPING: Mapping[str, type[ClippedSum]] = {
    "unclipped": Unclipped,
    "unclipped persons": Unclipped,
    "one record at 4x": OneRecordAtFour,
    "one place at 4x": OnePlaceAtFour,
}

FAULTS: Mapping[str, tuple[Callable[[], Defense], str]] = {
    "half the noise": (lambda: HalfTheNoise(epsilon=8), "the claim rests on"),
    "three percent less": (lambda: ThreePercentLess(epsilon=8), "the claim rests on"),
    "no noise": (lambda: NoneAtAll(epsilon=8), "the claim rests on"),
    "a bare tensor": (lambda: OneBareTensor(epsilon=8), "noise on 'fc2.bias'"),
    "replayed noise": (lambda: Replayed(epsilon=8), "resemble each other"),
    "coins for noise": (lambda: Coins(epsilon=8), "not normal"),
    "shuffled epochs": (lambda: ShuffledInSecret(epsilon=8), "too evenly"),
    "uncounted rounds": (lambda: FewerSteps(epsilon=8), "the claim counts 9"),
    "an unclipped tensor": (lambda: OneTensorUnclipped(epsilon=20), "is not clipped"),
    "unequal weights": (lambda: Weighted(epsilon=20), "unequal weights"),
    "clipped by tensor": (lambda: ClippedByTensor(epsilon=20), "is not clipped: an update above the bound went out 3."),
    "unclipped": (lambda: DPSGD(epsilon=8, clip=0.3), "one record's clipped gradient was"),
    "unclipped persons": (lambda: DPSGD(epsilon=8, clip=0.3, unit="person"), "one person's clipped gradient was"),
    "one record at 4x": (lambda: DPSGD(epsilon=8, clip=0.1), "one record's clipped gradient was 4 times"),
    "one place at 4x": (lambda: DPSGD(epsilon=8, clip=0.1), "what they do not give alone: 3 times"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_for_what_it_is(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = FAULTS[fault]
    monkeypatch.setattr(lanes, "ClippedSum", CLIPPING.get(fault, ClippedSum))
    found = of(make())
    assert not found.accepted
    assert any(said in reason for reason in found.reasons), found.reasons


def test_less_noise_shows_as_the_epsilon_that_it_gives() -> None:
    found = of(HalfTheNoise(epsilon=8))
    assert found.measured == pytest.approx(found.noise_multiplier / 2, rel=0.05)
    assert all(value > 20 for value in found.epsilons.values())
    assert any("ε = 7.9" in reason and "is claimed" in reason for reason in found.reasons)


class Counting(nn.Module):
    """A network with a persistent counter that training moves: it is sent, and nothing clips it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        out: torch.Tensor = self.net(x)
        return out


class CountingTask(Classification):
    def net(self, features: int, outputs: int) -> nn.Module:
        return Counting(super().net(features, outputs))


def test_what_is_sent_unclipped_is_refused() -> None:
    task = CountingTask(hidden=16, blocks=1, head=8, dropout=0.0)
    witness, stack, shape, claim, trained = ran(DPSGD(epsilon=8), task=task)
    found = receipt(witness, stack, FEDERATION, shape, claim, trained)
    assert any("'seen' was sent changed" in reason for reason in found.reasons), found.reasons


def test_batch_norm_a_private_choice_and_a_count_in_the_clear_are_refused() -> None:
    batch_norm = Classification(hidden=16, blocks=1, head=8, dropout=0.0, norm="batch")
    with pytest.raises(RequestError, match="BatchNorm"):
        ran(DPSGD(epsilon=8), task=batch_norm)
    chosen = replace(FEDERATION, selection="validation")
    with pytest.raises(RequestError, match="validation"):
        ran(DPSGD(epsilon=8), federation=chosen)
    # The engine refuses those two before anything is trained; a receipt refuses them too, whoever trained.
    witness, stack, shape, claim, trained = ran(DPSGD(epsilon=8))
    assert any("chosen on records" in r for r in receipt(witness, stack, chosen, shape, claim, trained).reasons)
    trained.module = batch_norm.net(FEATURES, CLASSES)
    assert any("BatchNorm" in r for r in receipt(witness, stack, FEDERATION, shape, claim, trained).reasons)
    first = trained.rounds[0]
    told = replace(first, messages=(*first.messages, Message(0, "statistic", {"mean": torch.zeros(3)})))
    trained.rounds[0] = told
    assert any("statistic crossed the wire" in r for r in receipt(witness, stack, FEDERATION, shape, claim, trained).reasons)


def test_nobody_watching_gives_no_receipt() -> None:
    _, stack, shape, claim, trained = ran(DPSGD(epsilon=8))
    assert not receipt(Witness(), stack, FEDERATION, shape, claim, trained).accepted


PLANTED = '''"""A planted fault."""

from baselines.dp_sgd import DPSGD


class Quieter(DPSGD):
    """A tenth of the noise that is claimed."""

    def noise(self, clipped_sum, rng):
        noisy = super().noise(clipped_sum, rng)
        return {name: value + (noisy[name] - value) / 10 for name, value in clipped_sum.items()}
'''
SUITE = """suite: receipts
task: classification:dropout=0
data: {name: synthetic}
split: {train: 0.6, validation: 0.0, test: 0.2, auxiliary: 0.2}
partition: {kind: iid, sites: 2}
federation: {rounds: 2, local: {epochs: 2, batch: 30}}
seeds: 2
defenses: [fedavg, "dp_sgd:epsilon=8", "planted.py:Quieter:epsilon=8"]
attacks: [loss_threshold]
"""


@pytest.mark.parametrize(("defense", "accepted"), [("dp_sgd:epsilon=8", True), ("planted.py:Quieter:epsilon=8", False)])
def test_a_train_cell_writes_its_receipt_and_flags_a_refused_one(defense: str, accepted: bool, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    suite = yaml.safe_load(SUITE)
    spec = {**{name: suite[name] for name in ("suite", "task", "data", "split", "partition", "federation")}, "seed": 0}
    folder = tmp_path / "store" / "train" / "one"
    folder.mkdir(parents=True)
    referee.train_cell({**spec, "defense": defense.replace("planted.py", str(tmp_path / "planted.py"))}, folder)
    held = json.loads((folder / referee.RECEIPT).read_text())
    assert held["accepted"] is accepted
    flags = [row for row in json.loads((folder / referee.ROWS).read_text()) if row["metric"] == "flag:receipt_refused"]
    assert len(flags) == (not accepted)
    record = {"receipts": [{"task": "t", "data": "d", "defense": defense, "seed": 0, **held}]}
    table = receipts_table(record, "receipts")
    assert table is not None
    assert list(table.shown["receipt"]) == ["accepted" if accepted else "refused (1 of 1)"]
    assert any("refused, since the noise on" in said for said in refusals(record)) is not accepted
    assert receipts_table({}, "receipts") is None


def test_the_receipt_of_a_spatial_task_says_that_cells_are_in_their_neighbours_records(tmp_path: Path) -> None:
    parts = {"unit": "person", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2}
    spec = {"suite": "tissue", "task": "spatial_domains", "data": {"name": "synthetic_tissue"}, "split": parts, "seed": 0}
    spec |= {"partition": {"kind": "column"}}
    folder = tmp_path / "store" / "train" / "one"
    folder.mkdir(parents=True)
    referee.train_cell({**spec, "federation": {"rounds": 1, "local": {"epochs": 1}}, "defense": "dp_sgd:epsilon=8"}, folder)
    held = json.loads((folder / referee.RECEIPT).read_text())
    assert any("a cell is part of its neighbours' records too" in caveat for caveat in held["caveats"])
    record = {"receipts": [{"task": "t", "data": "d", "defense": "d", "seed": 0, **held}]}
    assert any(said.startswith("No receipt covers this: in spatial_domains a cell") for said in refusals(record))


@pytest.mark.slow
def test_a_run_keeps_its_receipts_and_the_report_shows_the_refused_one(tmp_path: Path) -> None:
    from suites.api import run

    (tmp_path / "planted.py").write_text(PLANTED)
    (tmp_path / "receipts.yaml").write_text(SUITE)
    table = run(str(tmp_path / "receipts.yaml"), out=tmp_path / "out", workers=1)
    flagged = table[table["metric"] == "flag:receipt_refused"]
    assert set(flagged["defense"]) == {"planted.py:Quieter:epsilon=8"}
    assert set(flagged["seed"]) == {0, 1}
    assert all("the claim rests on" in reason for reason in flagged["reason"])
    held = json.loads((tmp_path / "out" / "record.json").read_text())["receipts"]
    assert {(one["defense"], one["seed"]): one["accepted"] for one in held} == {
        ("dp_sgd:epsilon=8", 0): True, ("dp_sgd:epsilon=8", 1): True,
        ("planted.py:Quieter:epsilon=8", 0): False, ("planted.py:Quieter:epsilon=8", 1): False,
    }  # fmt: skip
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    cards = page[page.index("What each defense lets whom see") :]
    assert "refused (2 of 2)" in cards
    assert "accepted" in cards
    rows = pd.read_csv(tmp_path / "out" / "report" / "tables" / "receipts.csv").set_index("defense")
    assert rows.loc["dp_sgd:epsilon=8", "accepted"] == 2
    assert rows.loc["planted.py:Quieter:epsilon=8", "accepted"] == 0
    assert rows.loc["planted.py:Quieter:epsilon=8", "measured"] == pytest.approx(rows["noise_multiplier"].iloc[0] / 10, rel=0.05)


# ------------------------------------------------------------------------------------------------------- the second accountant


@pytest.mark.parametrize("mechanism", PLD, ids=str)
def test_the_loss_distribution_gives_dp_accountings_epsilon(mechanism: tuple[float, float, int, float]) -> None:
    assert loss_distribution.epsilon(*mechanism) == pytest.approx(PLD[mechanism], rel=1e-3)


def test_the_loss_distribution_at_its_ends() -> None:
    assert loss_distribution.epsilon(0.5, 0.0, 10, 1e-5) == float("inf")
    assert loss_distribution.epsilon(0.5, 1.0, 0, 1e-5) == 0
    assert loss_distribution.epsilon(0.001, 50.0, 1, 1e-2) == 0
    # Balle and Wang 2018: one Gaussian release, its exact curve Φ(Δ/2σ - εσ/Δ) - exp(ε) Φ(-Δ/2σ - εσ/Δ) = δ at σ = 1, ε = 4.377 (δ = 1e-5)
    assert loss_distribution.epsilon(1.0, 1.0, 1, 1e-5) == pytest.approx(4.3772, abs=1e-3)
    assert loss_distribution.epsilon(1.0, 0.05, 10, 1e-5) > 1000  # where PRV has left the doubles
    assert loss_distribution.epsilon(0.3, 1.0, 40, 1e-5) <= accounting.epsilon(0.3, 1.0, 40, 1e-5)
