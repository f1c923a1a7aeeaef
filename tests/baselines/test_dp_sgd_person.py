"""Clipping and sampling by person: equal to a loop over persons, persons drawn whole, and an ε that counts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from baselines.dp_sgd import DPSGD
from infl.embed import embed
from suites import accounting
from suites.clipping import ClippedSum
from suites.config import load
from suites.contracts import Claim, Federation, Local, Params, RequestError, Shape
from suites.federation import Assignment, Pool, train
from suites.lanes import Lane, Trainer, schedule
from suites.per_record import Batch, EachRecord
from suites.plan import plan
from suites.randomness import stream
from suites.rehearsal import rehearse
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES, RECORDS = 11, 4, 12
TASK = Classification(hidden=8, head=6, blocks=2, dropout=0.0)


def network(kind: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = TASK.net(FEATURES, CLASSES)
    if kind == "plain":
        return net
    coordinates = torch.rand(10, 2, generator=stream("persons", "key"))
    return embed(net, coordinates, strength=5.0, per_layer=kind == "keyed layers", generator=stream("persons", "start"))


def batch(module: nn.Module, lanes: int, norm: float) -> tuple[Batch, Tensor]:
    """Twelve records of four persons (1, 2, 3 and 5 records) and one of padding that names a person who is there."""
    rng = stream("persons", "batch")
    double = next(module.parameters()).dtype
    params = {
        n: torch.stack([t + 0.3 * torch.randn(t.shape, generator=rng, dtype=double) for _ in range(lanes)])
        for n, t in module.state_dict().items()
    }
    kept = module.state_dict().keys()
    private = {n: torch.stack([b] * lanes) for n, b in module.named_buffers() if n not in kept and not n.endswith("mask")}
    x = torch.randn(lanes, RECORDS, FEATURES, generator=rng, dtype=double)
    y = torch.randint(CLASSES, (lanes, RECORDS), generator=rng)
    person = torch.tensor([7, 3, 3, 40, 40, 40, 5, 5, 5, 5, 5, 7])
    group = torch.stack([person[[*torch.randperm(11, generator=rng).tolist(), 11]] for _ in range(lanes)])
    weight = torch.ones(lanes, RECORDS, dtype=double)
    weight[:, -1] = 0
    return Batch(params, private, x, y, weight, norm, group), group


def by_person(module: nn.Module, b: Batch, lane: int) -> tuple[Params, dict[int, float]]:
    """The slow and obvious way: each person's records through plain autograd, summed, clipped, added."""
    params = {name: tensor[lane].clone().requires_grad_() for name, tensor in b.params.items()}
    secret = {name: tensor[lane] for name, tensor in b.private.items()}
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    norms: dict[int, float] = {}
    assert b.group is not None
    for person in b.group[lane][b.weight[lane] > 0].unique().tolist():
        rows = [i for i in range(RECORDS) if int(b.group[lane, i]) == person and b.weight[lane, i] > 0]
        summed: Params = {name: torch.zeros_like(p) for name, p in params.items()}
        for i in rows:
            out = functional_call(module, {**params, **secret}, (b.x[lane, i : i + 1],))
            grads = torch.autograd.grad(TASK.loss(out, b.y[lane, i : i + 1]).sum(), list(params.values()), allow_unused=True)
            for name, grad in zip(params, grads):
                summed[name] += 0 if grad is None else grad
        norms[person] = float(torch.cat([g.flatten() for g in summed.values()]).norm())
        for name, grad in summed.items():
            total[name] += min(1.0, b.norm / norms[person]) * grad
    return {name: tensor.detach() for name, tensor in total.items()}, norms


@pytest.mark.parametrize("kind", ["plain", "keyed", "keyed layers"])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("path", ["one pass", "each record"])
def test_a_clipped_sum_equals_a_loop_over_persons(kind: str, lanes: int, path: str) -> None:
    module = network(kind)
    module = module if kind == "plain" else module.double()  # keyed layers amplify single precision's rounding
    b, group = batch(module, lanes, norm=0.7)
    if path == "one pass":
        summed = ClippedSum(module, TASK.loss)
        sums, norms = summed(b.params, b.private, b.x, b.y, b.weight, b.norm, group)
        assert summed.ghost
    else:
        sums, norms = EachRecord(module, TASK.loss)(b)
    for lane in range(lanes):
        wanted, lengths = by_person(module, b, lane)
        away = (
            torch.cat([(sums[n][lane] - wanted[n]).flatten() for n in wanted]).norm()
            / torch.cat([w.flatten() for w in wanted.values()]).norm()
        )
        assert float(away) < 1e-5
        assert sum(length > 0.7 for length in lengths.values()) >= 2  # clipping acts
        for i in range(RECORDS - 1):
            assert float(norms[lane, i]) == pytest.approx(lengths[int(group[lane, i])], rel=1e-4)
        assert float(norms[lane, -1]) == 0


def test_one_person_moves_the_sum_by_at_most_the_norm_however_many_records() -> None:
    module = network("plain")
    b, group = batch(module, 1, norm=0.05)
    summed = ClippedSum(module, TASK.loss)
    whole = summed(b.params, b.private, b.x, b.y, b.weight, b.norm, group)[0]
    without = summed(b.params, b.private, b.x, b.y, b.weight * (group != 5), b.norm, group)[0]
    moved = torch.cat([(whole[n] - without[n]).flatten() for n in whole]).norm()
    assert 0.049 < float(moved) < 0.05 * (1 + 1e-4)  # five records, all of them: one person's bound
    alone = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)[0]
    less = summed(b.params, b.private, b.x, b.y, b.weight * (group != 5), b.norm)[0]
    assert float(torch.cat([(alone[n] - less[n]).flatten() for n in alone]).norm()) > 0.06  # clipped by record, it moves by more


class Along(nn.Module):
    """Outputs w · x, so that the gradient of minus the output is minus the record."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(FEATURES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w(x)
        return out


@pytest.mark.parametrize("path", ["one pass", "each record"])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("size", [1e2, 1e3, 1e4, 1e5])
def test_opposing_records_of_a_person_do_not_pass_the_bound(size: float, lanes: int, path: str) -> None:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return -outputs.sum(-1)

    module = Along()
    params = {name: torch.stack([t.detach()] * lanes) for name, t in module.state_dict().items()}
    worst, clipped = 0.0, ClippedSum(module, loss)
    plain = torch.randn(lanes, 4, FEATURES, generator=stream("persons", "plain"))  # the first batch chooses the path
    clipped(params, {}, plain, torch.zeros(lanes, 4), torch.ones(lanes, 4), 1.0, torch.arange(4).repeat(lanes, 1))
    for seed in range(20):
        rng = stream("persons", "opposing", seed)
        one = torch.nn.functional.normalize(torch.randn(FEATURES, generator=rng), dim=0) * size
        other = -one + torch.randn(FEATURES, generator=rng) * (0.1 if seed % 2 else 10.0)
        x = torch.stack([torch.stack([one, other])] * lanes)
        b = Batch(params, {}, x, torch.zeros(lanes, 2, dtype=torch.int64), torch.ones(lanes, 2), 1.0, torch.zeros(lanes, 2))
        if path == "one pass":
            sums, norms = clipped(b.params, b.private, b.x, b.y, b.weight, b.norm, b.group)
            assert clipped.ghost
        else:
            sums, norms = EachRecord(module, loss)(b)
        exact = (one.double() + other.double()).norm()
        for lane in range(lanes):
            length = float(sums["w.weight"][lane].double().norm())
            worst = max(worst, length)
            if path == "one pass":
                assert length == pytest.approx(min(1.0, float(exact)), rel=1e-2, abs=2e-7 * size)
                assert float(norms[lane, 0]) == pytest.approx(float(exact), rel=1e-2, abs=2e-7 * size)
            assert sums["w.weight"].dtype == norms.dtype == torch.float32
    assert worst <= 1 + 1e-5
    assert worst > 0.99  # the bound is met


def persons_pool() -> tuple[Pool, tuple[Tensor, ...]]:
    person = torch.arange(240) // 3
    pool = Pool(
        torch.randn(240, FEATURES, generator=stream("persons", "x")),
        torch.arange(240) % CLASSES,
        CLASSES,
        person[torch.randperm(240, generator=stream("persons", "order"))],
    )
    assert pool.person is not None
    return pool, tuple((pool.person % 2 == site).nonzero().squeeze(1) for site in range(2))


def test_persons_are_drawn_whole_by_poisson_sampling() -> None:
    pool, sites = persons_pool()
    assert pool.person is not None
    lane = Lane(nn.Linear(1, 1), pool.x, pool.y, sites[0], stream("a"), stream("b"), stream("c"), pool.person)
    assert lane.units == 40
    steps = [drawn for _ in range(100) for drawn in schedule(lane, Local(batch=10), poisson=True)]
    assert len(steps) == 400  # four steps an epoch: persons are counted, not records
    counts = torch.tensor([len(pool.person[drawn].unique()) for drawn in steps], dtype=torch.float64)
    assert all(len(drawn) == 3 * len(pool.person[drawn].unique()) for drawn in steps)
    assert counts.mean() == pytest.approx(10, abs=0.7)
    assert counts.var() == pytest.approx(40 * 0.25 * 0.75, rel=0.3)


def test_a_step_divides_by_the_expected_persons() -> None:
    pool, sites = persons_pool()
    assert pool.person is not None
    stack = Stack([DPSGD(noise_multiplier=0, clip=1e6, unit="person")])
    lane = Lane(network("plain"), pool.x, pool.y, sites[0], stream("a"), stream("b"), stream("c"), pool.person)
    start = {name: tensor.clone()[None] for name, tensor in lane.module.state_dict().items()}
    after = Trainer([lane], TASK.loss, stack).follow(start, Local(optimiser="sgd", lr=1.0), [[sites[0]]], [40])
    leaves = {name: tensor[0].clone().requires_grad_() for name, tensor in start.items()}
    loss = TASK.loss(functional_call(lane.module, leaves, (pool.x[sites[0]],)), pool.y[sites[0]]).sum() / 40
    for name, gradient in zip(leaves, torch.autograd.grad(loss, list(leaves.values()))):
        assert torch.allclose(start[name][0] - after[name][0], gradient, atol=1e-5), name


def claim_of(defense: DPSGD, persons: tuple[int, ...] | None) -> Claim:
    claim = defense.claim(Federation(rounds=10, local=Local(epochs=2, batch=20)), Shape((300, 120), 50, 4, persons))
    assert claim is not None
    return claim


def test_the_claim_counts_persons() -> None:
    claim = claim_of(DPSGD(epsilon=8, unit="person"), (60, 40))
    assert claim.unit == "person"
    assert "one person with all of its records" in claim.sentence
    assert claim.epsilon is not None
    assert claim.noise_multiplier is not None
    assert claim.per_site == (
        accounting.epsilon(20 / 60, claim.noise_multiplier, 60, 1e-5),
        accounting.epsilon(20 / 40, claim.noise_multiplier, 40, 1e-5),
    )
    assert 0.99 * 8 <= claim.epsilon <= 8
    assert claim.noise_multiplier > 1.5 * (claim_of(DPSGD(epsilon=8), (60, 40)).noise_multiplier or 0)  # a fifth of the units, dearer


def test_who_is_unknown_or_at_two_sites_cannot_be_protected() -> None:
    with pytest.raises(RequestError, match="person column"):
        DPSGD(epsilon=8, unit="person").plan(Federation(), Shape((300, 120), 50, 4))
    with pytest.raises(RequestError, match="record or person"):
        DPSGD(unit="site")  # type: ignore[arg-type]
    pool, sites = persons_pool()
    nobody = Pool(pool.x, pool.y, CLASSES)
    with pytest.raises(RequestError, match="who gave each record"):
        train(
            TASK,
            Stack([DPSGD(noise_multiplier=0, unit="person")]),
            Federation(sites=2, rounds=1),
            nobody,
            [Assignment(sites, ("a",), ("b",))],
        )


SUITE = """suite: persons
task: classification
data: {{path: {path}, label: kind, person: donor, transform: none}}
split: {{unit: {unit}, train: 0.6, validation: 0.0, test: 0.2, auxiliary: 0.2}}
partition: {partition}
federation: {{rounds: 2, local: {{epochs: 1, batch: 10}}}}
seeds: 1
defenses: ["dp_sgd:epsilon=50:unit=person"]
attacks: [loss_threshold]
"""


@pytest.mark.parametrize(
    ("unit", "column", "refused"),
    [("person", "", ""), ("record", "hospital", "other records are public"), ("person", "clinic", "at several")],
)
def test_a_suite_declares_the_person_column_and_runs(unit: str, column: str, refused: str, tmp_path: Path) -> None:
    import anndata
    import numpy as np
    import pandas as pd

    from suites.api import run

    rng = np.random.default_rng(1)
    obs = pd.DataFrame(
        {
            "kind": np.where(np.arange(240) % 2, "b", "a"),
            "donor": [f"d{i // 3}" for i in range(240)],
            "hospital": [f"h{i // 3 % 2}" for i in range(240)],  # keeps donors whole
            "clinic": [f"h{i % 2}" for i in range(240)],  # does not
        },
        index=[f"c{i}" for i in range(240)],
    )
    anndata.AnnData(rng.normal(size=(240, 8)).astype("float32"), obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    suite = tmp_path / "persons.yaml"
    partition = "{kind: column}" if column else "{kind: iid, sites: 2}"
    settings = SUITE.format(path=tmp_path / "cells.h5ad", unit=unit, partition=partition)
    suite.write_text(settings.replace("person: donor,", f"person: donor, site: {column}," if column else "person: donor,"))
    if refused:  # in the dry run already
        with pytest.raises(RequestError, match=refused):
            rehearse(plan(load(str(suite))[0], "cpu"))
        return
    table = run(str(suite), out=tmp_path / "out", workers=1)
    assert set(table["status"]) == {"ok"}
    claim = json.loads(next((tmp_path / "out" / "store" / "train").glob("*/claim.json")).read_text())
    assert (claim["unit"], claim["sampling_rate"]) == ("person", 10 / 24)


def test_the_contract_s_checks_hold_for_persons() -> None:
    from suites.checks import check_defense

    assert {result.verdict for result in check_defense("dp_sgd:epsilon=8:unit=person")} == {"pass"}
