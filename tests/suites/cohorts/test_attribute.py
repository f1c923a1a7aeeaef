"""The binary attribute that property attacks are after: read from a column, generated, and out of every model's sight."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.cohorts.synthetic import generate, recipe
from suites.errors import RequestError


@pytest.fixture
def cells(tmp_path: Path) -> str:
    obs = pd.DataFrame({"kind": ["a", "b"] * 6, "sex": ["f", "m", None] * 4, "batch": [str(i % 3) for i in range(12)], "one": "x"})
    obs.index = obs.index.astype(str)
    path = tmp_path / "cells.h5ad"
    anndata.AnnData(np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32), obs=obs).write_h5ad(path)
    return str(path)


def test_a_binary_column_or_one_value_against_the_rest(cells: str) -> None:
    sex = load(DataSpec(path=cells, label="kind", attribute="sex")).attribute
    batch = load(DataSpec(path=cells, label="kind", attribute="batch=2")).attribute
    assert sex is not None
    assert batch is not None
    assert sex.tolist() == [0, 1, -1] * 4
    assert batch.tolist() == [0, 0, 1] * 4
    assert load(DataSpec(path=cells, label="kind")).attribute is None


@pytest.mark.parametrize(
    ("asked", "said"), [("batch", "takes 3 values"), ("one", "takes 1 values"), ("batch=7", "no record has '7'"), ("sx", "sex")]
)
def test_what_is_no_attribute_is_one_sentence(cells: str, asked: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        load(DataSpec(path=cells, label="kind", attribute=asked))


def test_generated_sites_differ_in_their_share_and_donors_do_not_straddle() -> None:
    made = generate(recipe({"records": 2000, "sites": 4, "donors": 200, "attribute_effect": 1.0}))
    assert made.attribute is not None
    assert made.site is not None
    assert made.person is not None
    shares = [made.attribute[made.site == site].mean() for site in range(4)]
    assert np.allclose(shares, (np.arange(4) + 0.5) / 4, atol=0.15)
    assert all(len(set(made.attribute[made.person == one])) == 1 for one in range(200))
    gap = made.x[made.attribute == 1].mean(0) - made.x[made.attribute == 0].mean(0)
    assert float(np.abs(gap).mean()) > 0.5


def test_a_cohort_without_one_is_what_it_was() -> None:
    plain = generate(recipe({"records": 60, "features": 8}))
    assert plain.attribute is None
    assert plain.digest != generate(recipe({"records": 60, "features": 8, "attribute_effect": 0.5})).digest
