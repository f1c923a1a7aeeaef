"""A record that is stored twice is one record: no non-member, and nothing that the adversary owns, equals a member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open

from reports.setting import data_terms
from suites.cohorts.alike import first_alike
from suites.cohorts.cohort import Cohort
from suites.cohorts.spec import PartitionSpec, SplitSpec
from suites.errors import RequestError
from suites.prepared import Prepared, prepare
from suites.split import split

N = 90
PARTITIONS = [
    {"kind": "iid", "sites": 3},
    {"kind": "column"},
    {"kind": "column", "held_out": 1},
    {"kind": "dirichlet", "sites": 2, "alpha": 5.0},
]


def cells(path: Path, times: int, *, persons: bool = False) -> Path:
    """``N`` cells, each stored ``times`` times under other names, and (as in pooled tables) at another site the second time."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    obs = pd.DataFrame({"kind": rng.choice(["a", "b", "c"], N), "site": rng.choice(["s", "t", "u"], N), "donor": np.arange(N) // 3})
    again = pd.concat([obs.assign(site=np.roll(obs["site"], i), donor=obs["donor"] + (i * N if persons else 0)) for i in range(times)])
    again.index = [f"cell {i}" for i in range(len(again))]
    made = anndata.AnnData(np.tile(x, (times, 1)), obs=again)
    made.obsm["spatial"] = np.tile(rng.normal(size=(N, 2)), (times, 1)).astype(np.float32)
    made.write_h5ad(path)
    return path


def spec(path: Path, **more: object) -> dict[str, object]:
    data = {"path": str(path), "label": "kind", "site": "site"}
    common = {
        "suite": "s",
        "task": "classification",
        "seed": 0,
        "split": SplitSpec().model_dump(),
        "partition": {"kind": "iid", "sites": 3},
    }
    return {**common, "data": data, **more}


def rows(prepared: Prepared, index: torch.Tensor) -> set[bytes]:
    return {row.tobytes() for row in prepared.pool.x[index].numpy()}


def apart(prepared: Prepared) -> None:
    """Every part is made of records that no other part holds, and candidates are different records."""
    members = rows(prepared, torch.cat(prepared.sites))
    outside = prepared.candidates[~prepared.member]
    for part in (outside, prepared.validation, prepared.test, prepared.auxiliary):
        assert not members & rows(prepared, part)
    assert not rows(prepared, outside) & rows(prepared, prepared.auxiliary)
    assert len(rows(prepared, prepared.candidates)) == len(prepared.candidates)
    assert torch.equal(prepared.candidates[prepared.member].sort().values, torch.cat(prepared.sites).sort().values)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("unit", ["record", "person"])
def test_no_record_outside_equals_a_member(tmp_path: Path, partition: dict[str, object], unit: Literal["record", "person"]) -> None:
    path = cells(tmp_path / "twice.h5ad", 2, persons=True)
    data = {"path": str(path), "label": "kind", "site": "site", "person": "donor"}
    prepared = prepare(spec(path, data=data, partition=partition, split=SplitSpec(unit=unit).model_dump()), None)
    apart(prepared)
    taken = [*prepared.sites, prepared.validation, prepared.test, prepared.auxiliary]
    left = 1 if "held_out" in partition else 0
    assert sum(map(len, taken)) == N if not left else sum(map(len, taken)) < N
    assert max(int(part.max()) for part in taken) < N  # the first of each


def test_a_file_written_twice_over_is_cut_as_if_written_once(tmp_path: Path) -> None:
    def own(times: int) -> Cohort:
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(N, 4)).astype(np.float32), rng.integers(0, 3, N)
        return Cohort("made", np.repeat(x, times, 0), np.repeat(y, times), ("a", "b", "c"), tuple("fghi"))

    once, twice = (split(own(times), SplitSpec(), PartitionSpec(sites=3), "seed", 5) for times in (1, 3))
    assert (once.copies, twice.copies) == (0, 2 * N)
    for a, b in zip((*once.sites, once.test, once.auxiliary), (*twice.sites, twice.test, twice.auxiliary)):
        assert torch.equal(3 * a, b)


def test_a_tissue_stored_twice_is_laid_out_as_if_stored_once(tmp_path: Path) -> None:
    """A copy at the same place would else be a cell's nearest neighbour."""
    found = []
    for times in (1, 2):
        (tmp_path / f"{times}").mkdir()
        data = {"path": str(cells(tmp_path / f"{times}" / "tissue.h5ad", times)), "label": "kind"}
        task = {"task": "spatial_domains:tiles=3", "data": data, "split": SplitSpec(unit="person").model_dump()}
        found.append(prepare(spec(Path(data["path"]), **task), None))
    once, twice = found
    apart(twice)
    assert torch.equal(torch.cat(once.sites), torch.cat(twice.sites))
    assert torch.equal(once.pool.x, twice.pool.x[:N])


def test_a_cell_with_both_modalities_and_again_with_one(tmp_path: Path) -> None:
    path = cells(tmp_path / "twice.h5ad", 2)  # the second time at another site, of which the last lacks the second modality
    prepared = prepare(spec(path, task="integration:second=spatial", partition={"kind": "column"}), None)
    taken = torch.cat([*prepared.sites, prepared.validation, prepared.test, prepared.auxiliary])
    assert sorted(taken.tolist()) == list(range(N))


def test_how_many_were_left_out_is_in_the_record_and_in_the_report(tmp_path: Path) -> None:
    prepare(spec(cells(tmp_path / "twice.h5ad", 2)), tmp_path / "prepared")
    prepare(spec(cells(tmp_path / "once.h5ad", 1)), tmp_path / "prepared")
    said = []
    for path in (tmp_path / "prepared").glob("*.safetensors"):
        with safe_open(path, framework="np") as held:
            said.append(json.loads(held.metadata()["cohort"]))
    assert sorted(one.get("copies", 0) for one in said) == [0, N]
    for one in said:
        terms = dict(data_terms(pd.DataFrame({"data": ["x"]}), {"cohort": one}))
        assert ("Left out" in terms) == ("copies" in one)
        if "copies" in one:
            assert f"{N} records" in terms["Left out"]


def test_what_is_left_of_a_table_of_copies_can_be_too_little() -> None:
    x = np.repeat(np.eye(5, dtype=np.float32), 20, axis=0)
    with pytest.raises(RequestError, match="95 of the 100 records repeat another") as caught:
        split(Cohort("made", x, np.tile([0, 1], 50), ("a", "b"), tuple("fghij")), SplitSpec(), PartitionSpec(sites=3), 0)
    assert "\n" not in str(caught.value)


def test_gaps_and_the_sign_of_zero_make_no_difference_and_a_last_bit_does() -> None:
    gap = np.array([0x7FC00000, 0x7FC00001], dtype=np.uint32).view(np.float32)  # two ways to write a gap
    x = np.array(
        [[0.0, 1.0], [-0.0, 1.0], [gap[0], 1.0], [gap[1], 1.0], [np.nextafter(np.float32(0), np.float32(1)), 1.0]], dtype=np.float32
    )
    assert first_alike(x).tolist() == [0, 0, 2, 2, 4]
