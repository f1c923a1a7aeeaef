"""An AnnData object in place of a path: the backed one's own file, the one in memory by a file in the run's folder."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from suites import api
from suites.cohorts.load import load
from suites.errors import RequestError

SUITE = """suite: small
data: {name: synthetic}
federation: {rounds: 1, local: {epochs: 1}}
partition: {kind: iid, sites: 2}
seeds: 1
defenses: [fedavg]
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "small.yaml").write_text(SUITE)
    return tmp_path / "small.yaml"


def made() -> anndata.AnnData:
    kinds = [f"k{i % 3}" for i in range(90)]
    obs = pd.DataFrame({"kind": kinds}, index=[f"cell{i}" for i in range(90)])
    x = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float32) + np.arange(90)[:, None] % 3
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def test_one_in_memory_is_run_and_stays_as_it_was(suite: Path, tmp_path: Path) -> None:
    data = made()
    columns, x = data.obs.copy(), data.X.copy()
    out = tmp_path / "out"
    table = api.run(suite, data=data, label="kind", out=out, workers=1, report=False, device="cpu")
    assert (table["status"] == "ok").all()
    assert set(table["data"]) == {"anndata"}
    assert data.obs.dtypes.equals(columns.dtypes)
    pd.testing.assert_frame_equal(data.obs, columns)
    np.testing.assert_array_equal(data.X, x)
    assert not list(out.glob(".anndata*"))
    again = api.request(suite, data=data, label="kind", out=out, device="cpu")
    assert [cell.id for cell in again.plan.cells] == [cell.id for cell in api.request(suite, data=data, label="kind", out=out).plan.cells]


def test_a_backed_one_is_read_from_its_file_and_a_part_of_it_is_written(suite: Path, tmp_path: Path) -> None:
    made().write_h5ad(tmp_path / "mine.h5ad")
    backed = anndata.read_h5ad(tmp_path / "mine.h5ad", backed="r")
    try:
        asked = api.request(suite, data=backed, label="kind", out=tmp_path / "out", device="cpu")
        assert asked.plan.suite.data.path == str(tmp_path / "mine.h5ad")
        assert not (tmp_path / "out" / "anndata.h5ad").exists()
        part = api.request(suite, data=backed[:60], label="kind", out=tmp_path / "out", device="cpu")
        assert len(load(part.plan.suite.data)) == 60
    finally:
        backed.file.close()
    path = api.request(suite, data=tmp_path / "mine.h5ad", label="kind", out=tmp_path / "out", device="cpu")
    assert path.plan.suite.data == asked.plan.suite.data


def test_what_is_no_cohort_is_told(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"data is a ndarray, which is no cohort; give a name, the path"):
        api.request(suite, data=np.zeros((3, 3)), out=tmp_path / "out")
