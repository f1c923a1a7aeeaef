"""What a run on a file of 30,000 genes takes in memory, cell by cell, and what keeps it down: the file and the machine are the user's.

Counted is the growth of a cell's process over what it holds before the cell begins (Python, torch and the modules, 0.3 to 0.45 GB), at its
peak as the kernel knows it. A network of 30,000 inputs by 64 units is 7.7 MB, and a site's step on it takes ten times that whatever the
cohort: below some 2,000 cells this, and not the matrix, is what costs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from suites.contracts import Defense, Federation, Local, Secret, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.lanes import Trainer
from suites.room import BLOCK, SMALL, Room, by_rows, only
from suites.stack import Stack
from suites.tasks.classification import Classification
from tests.suites.cohorts.test_unknown_file import GENES, write

SUITE = """suite: large
title: A file that no test knows
task: classification:dropout=0
data: {{path: {path}, label: Cell type (broad), site: batch_id, person: donor}}
split: {{unit: record, train: 0.5, validation: 0.05, test: 0.25, auxiliary: 0.2}}
partition: {{kind: column}}
federation: {{rounds: 3, local: {{epochs: 1, batch: 100}}}}
seeds: 1
references: 2
probes: [{{gradients: 1, batch: 1, round: 0}}]
defenses: [fedavg, "infl:hardened:minimum=64", secure_aggregation, "dp_sgd:epsilon=8:optimiser=sgd"]
attacks: [closed_form, span, span_of_sum, lira, loss_threshold]
threats: [{{view: server, key: none}}]
engine: {{chunk: 40, keep_every: 1}}
"""
RUN = """
import sys
from suites import api, meter
import pandas, matplotlib.pyplot
before = meter.peak_memory()
table = api.run(sys.argv[1], out=sys.argv[2], workers=1)
assert not (table["status"] == "failed").any(), table.loc[table["status"] == "failed", "reason"].unique()
print(meter.peak_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("cells", "training", "attacking"), [(900, 6.5, 4.0), (2000, 3.5, 3.0), (5000, 2.5, 2.5)])
def test_every_cell_of_a_whole_run_keeps_within_so_many_matrices(cells: int, training: float, attacking: float, tmp_path: Path) -> None:
    """2.5 from some 5,000 cells on; below, where a lane of the network costs more than the matrix, what is stated is what holds."""
    path, suite, out = tmp_path / "cells.h5ad", tmp_path / "large.yaml", tmp_path / "out"
    write(path, "csr int64", cells)
    suite.write_text(SUITE.format(path=path))
    done = subprocess.run([sys.executable, "-c", RUN, str(suite), str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    matrix = cells * GENES * 4
    took = {"the run itself": int(done.stdout.split()[-1]) / matrix}
    for found in (json.loads(cell.read_text()) for cell in out.glob("store/*/*/cell.json")):
        name = " ".join((found["stage"], found["spec"]["defense"], found["spec"].get("attack", "")))
        took[name] = (found["peak_memory_bytes"] - found["memory_at_start_bytes"]) / matrix
    print({name: round(share, 2) for name, share in took.items()})
    most = {name: attacking if name.startswith("attack") else training for name in took}
    assert all(share < most[name] for name, share in took.items()), took


# ------------------------------------------------------------------------------------------------------------------ what keeps it down


def test_small_networks_are_stacked_as_before_and_wide_ones_are_not() -> None:
    local = Local(batch=100)
    small = Room.of(torch.nn.Linear(765, 64), torch.empty(700, 765), local, clips=True)
    assert small.lanes >= 40  # a lane for each of five sites of eight references, in the suites' chunk
    assert small.federations(5, own_pool=False) >= 8
    large = Room.of(torch.nn.Linear(8000, 64), torch.empty(5000, 8000), local, clips=False)
    assert (large.lanes, large.federations(2, own_pool=False)) == (1, 2), "beside a large cohort, by its size"
    many = Room.of(torch.nn.Linear(765, 64), torch.empty(44_000, 765), local, clips=True)
    assert many.lanes >= 10, "many narrow records are no reason to train one after the other"
    wide = Room.of(torch.nn.Linear(GENES, 64), torch.empty(900, GENES), local, clips=False)
    assert wide.lanes == 1
    assert wide.federations(5, own_pool=False) == 1
    assert wide.lane <= SMALL


POOL = Pool(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3, 3)
TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0, network="mlp")


class Doubling(Defense):
    """Feeds twice the values, and counts the rows it is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        self.rows.append(len(x))
        return 2 * x


def federations(stack: Stack) -> list[Trained]:
    federation = Federation(sites=2, rounds=2, local=Local(epochs=2, batch=5))
    sites = tuple(torch.split(torch.arange(30), 15))
    given = [Assignment(sites, ("memory", i), ("memory", "defense", i)) for i in range(3)]
    planned = stack.plan(federation, Shape((15, 15), 24, 3))
    return train(TASK, planned, federation, POOL, given, chunk=6)


def trained(stack: Stack) -> list[dict[str, Tensor]]:
    return [one.finals[0] for one in federations(stack)]


def test_a_trained_federation_holds_no_gradient_and_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.room.SMALL", 1)
    monkeypatch.setattr("suites.room.SHARE", 0.0)  # a lane at a time, which trains the module itself
    for one in federations(Stack()):
        for name, parameter in one.module.named_parameters():
            assert parameter.grad is None
            assert parameter.data_ptr() == one.finals[0][name].data_ptr(), "no second model"


def test_one_federation_after_the_other_gives_what_all_together_give(monkeypatch: pytest.MonkeyPatch) -> None:
    together = trained(Stack())
    monkeypatch.setattr("suites.room.SMALL", 1)
    monkeypatch.setattr("suites.room.SHARE", 0.0)
    stacked: list[int] = []
    monkeypatch.setattr("suites.federation.Trainer", lambda lanes, *rest: stacked.append(len(lanes)) or Trainer(lanes, *rest))
    alone = trained(Stack())
    assert set(stacked) == {1}, "no lane shares an operation where there is room for one"
    assert len(together) == len(alone) == 3
    for one, other in zip(together, alone, strict=True):
        assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)
    assert not torch.allclose(alone[0]["layers.0.weight"], alone[1]["layers.0.weight"])  # each its own


def test_a_pool_that_all_sites_share_is_prepared_once_and_of_a_large_one_only_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Doubling()
    expected = trained(Stack([whole]))
    assert whole.rows.count(60) == 3  # once a federation
    monkeypatch.setattr("suites.room.BLOCK", 24 * 8 * 7)
    part = Doubling()
    found = trained(Stack([part]))
    assert max(part.rows) == 1
    assert len(part.rows) - whole.rows.count(1) == 3 * 30, "those that are trained on, beside what asks one row for its width"
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_in_parts_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(150, 8, generator=torch.Generator().manual_seed(1))
    assert x.numel() < BLOCK
    given: list[int] = []

    def work(part: Tensor) -> Tensor:
        given.append(len(part))
        return part.square().sum(1, keepdim=True)

    whole = by_rows(work, x)
    monkeypatch.setattr("suites.room.BLOCK", 8 * 8 * 16)
    assert torch.equal(by_rows(work, x), whole)
    assert given == [150, *[16] * 9, 6]
    beside = torch.arange(150)
    assert torch.equal(by_rows(lambda part, of: part[:, :1] * of[:, None], x, beside), x[:, :1] * beside[:, None])
    some = only(work, x, torch.tensor([4, 40, 4]))
    assert torch.equal(some[[4, 40]], whole[[4, 40]])
    assert float(some.abs().sum()) == float(whole[[4, 40]].abs().sum())
    assert some.dtype == whole.dtype
