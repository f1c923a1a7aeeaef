"""A seed's data as it lies in memory: what an adversary is given are views of one pool, whose rows are known by their cohort's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.membership.loss import LossThreshold
from suites.bench import Bench
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.contracts import Guess, Observation, Threat
from suites.prepared import Prepared, prepare
from suites.preprocess import Preprocessor
from suites.referee import train_cell
from suites.trial import Trial

SPEC: dict[str, Any] = {
    "suite": "s",
    "task": "classification:dropout=0",
    "data": {"name": "synthetic", "params": {"records": 240, "donors": 80, "features": 20}},
    "split": {"unit": "person", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
    "partition": {"kind": "iid", "sites": 3},
    "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 20, "lr": 1e-3}},
    "engine": {"chunk": 4},
    "defense": "fedavg",
    "seed": 0,
}


@pytest.mark.parametrize("partition", [{"kind": "iid", "sites": 3}, {"kind": "column"}, {"kind": "column", "held_out": 2}])
def test_each_record_is_its_cohorts(partition: dict[str, Any]) -> None:
    told = {**SPEC, "partition": partition}
    prepared, cohort = prepare(told, None), load(DataSpec(**told["data"]))
    row = prepared.row
    assert row is not None
    assert sorted(row.tolist()) == list(range(len(cohort.y)))
    assert row.tolist() != sorted(row.tolist())
    units = Preprocessor.fit(cohort.x[row[prepared.auxiliary].numpy()])
    torch.testing.assert_close(prepared.pool.x, units.transform(cohort.x)[row], rtol=0, atol=0)
    assert prepared.pool.y.tolist() == cohort.y[row.numpy()].tolist()
    assert prepared.person is not None
    assert cohort.person is not None
    np.testing.assert_array_equal(prepared.person, cohort.person[row.numpy()])
    if partition["kind"] == "column":
        assert prepared.site_of is not None
        assert cohort.site is not None
        np.testing.assert_array_equal(prepared.site_of, cohort.site[row.numpy()])
        assert all(len(set(prepared.site_of[site].tolist())) == 1 for site in prepared.sites)
    members = torch.cat(prepared.sites)
    assert set(prepared.candidates[prepared.member].tolist()) == set(members.tolist())
    parts = [members, prepared.validation, prepared.test, prepared.auxiliary]
    assert len(torch.unique(torch.cat(parts))) == sum(map(len, parts)) <= len(row)


def shares(prepared: Prepared, given: Tensor) -> bool:
    return given.untyped_storage().data_ptr() == prepared.pool.x.untyped_storage().data_ptr()


def test_what_an_adversary_is_given_is_no_copy_and_in_an_order_that_tells_nothing(tmp_path: Path) -> None:
    for prepared in (prepare(SPEC, None), prepare(SPEC, tmp_path), prepare(SPEC, tmp_path)):
        for index in (prepared.candidates, prepared.auxiliary):
            given = prepared.records(index)
            assert shares(prepared, given.x)
            assert torch.equal(given.x, prepared.pool.x[index])
            assert torch.equal(given.y, prepared.pool.y[index])
        for index in (prepared.candidates.flip(0), prepared.candidates[::2], prepared.candidates[:0]):
            assert torch.equal(prepared.records(index).x, prepared.pool.x[index])
        assert prepared.candidates.tolist() == list(range(len(prepared.candidates)))
        member = prepared.member.float()
        assert abs(float(member[: len(member) // 2].mean() - member.mean())) < 0.2  # shuffled, not members first


class Scribbling(LossThreshold):
    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        guess = super().run(seen, rng)
        seen.candidates.x[0] += 1.0
        return guess


def test_an_attack_that_writes_into_what_it_is_given_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(SPEC, folder)
    trial = Trial(Bench(SPEC, None), Threat(), folder, [])
    trial.guess(LossThreshold(), "loss")
    with pytest.raises(ValueError, match="wrote into the records that it was given"):
        trial.guess(Scribbling(), "scribbling")
