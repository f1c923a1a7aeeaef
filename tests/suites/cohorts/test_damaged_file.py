"""A damaged .h5ad is one sentence: no value lands in another record, no label in another class, and nothing is read past an array."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from suites.cohorts.load import counts, load
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError

N, F = 60, 9


def written(folder: Path, layout: str = "csr", place: str = "X") -> str:
    x = np.random.default_rng(0).poisson(1.0, size=(N, F)).astype(np.float32) + np.eye(N, F, dtype=np.float32)
    held = sparse.csr_matrix(x) if layout == "csr" else sparse.csc_matrix(x)
    obs = pd.DataFrame(
        {
            "cell": pd.Categorical(np.array(["t", "b", "nk"])[np.arange(N) % 3]),
            "whole": pd.array(np.arange(N) % 2, dtype="Int64"),
            "number": np.arange(N) % 2,
        },
        index=[f"barcode{i}" for i in range(N)],
    )
    data = anndata.AnnData(held if place == "X" else x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(F)]))
    if place != "X":
        data.obsm["peaks"] = held
    data.write_h5ad(folder / "mine.h5ad")
    return str(folder / "mine.h5ad")


def replaced(group: h5py.Group, name: str, values: np.ndarray) -> None:
    attributes = dict(group[name].attrs)
    del group[name]
    group[name] = values
    group[name].attrs.update(attributes)


def cut(name: str, by: int) -> Callable[[h5py.Group], None]:
    return lambda x: replaced(x, name, x[name][()][:-by])


def at(name: str, place: int, value: int) -> Callable[[h5py.Group], None]:
    def change(x: h5py.Group) -> None:
        values = x[name][()]
        values[place] = value
        replaced(x, name, values)

    return change


def without(name: str) -> Callable[[h5py.Group], None]:
    def change(x: h5py.Group) -> None:
        if name == "shape":
            del x.attrs[name]
        else:
            del x[name]

    return change


DAMAGES: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "index past the last feature": (at("indices", 9, 69), "place 69"),
    "index far outside": (at("indices", 9, 2_000_000_000), "place 2000000000"),
    "negative index": (at("indices", 9, -3), "place -3"),
    "indptr that falls": (at("indptr", 3, 300), "'indptr' does not rise"),
    "indptr that starts late": (at("indptr", 0, 2), "'indptr' does not rise"),
    "indptr that ends early": (at("indptr", -1, 100), "'indptr' does not rise"),
    "short indptr": (cut("indptr", 1), "'indptr' has"),
    "short data": (cut("data", 50), "values ('data')"),
    "short indices": (cut("indices", 50), "places for them ('indices')"),
    "no data": (without("data"), "'data' is missing"),
    "no indices": (without("indices"), "'indices' is missing"),
    "no indptr": (without("indptr"), "'indptr' is missing"),
    "no shape": (without("shape"), "attribute 'shape'"),
    "indices that are no whole numbers": (lambda x: replaced(x, "indices", x["indices"][()] + 0.5), "indices of type float64"),
    "values that are words": (lambda x: replaced(x, "data", x["data"][()].astype("S8")), "data of type |S8"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_a_damaged_sparse_matrix(tmp_path: Path, layout: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.cohorts.h5ad._BLOCK", 600)  # several blocks
    change, said = DAMAGES[damage]
    for place, read in (("X", load), ("obsm/peaks", counts)):
        path = written(tmp_path, layout, place)
        spec = DataSpec(path=path, label="cell", matrix=place)
        read(spec)
        with h5py.File(path, "r+") as file:
            change(file[place])
        with pytest.raises(RequestError) as caught:
            read(spec)
        text = str(caught.value)
        assert said in text
        assert f"'{place}'" in text
        assert "\n" not in text
        assert "writ" in text


COLUMNS: dict[str, tuple[str, Callable[[h5py.Group], None], str]] = {
    "code past the categories": ("cell", lambda obs: at("codes", 4, 99)(obs["cell"]), "codes from 0 to 99 for 3 categories"),
    "code below the gap": ("cell", lambda obs: at("codes", 4, -2)(obs["cell"]), "codes from -2 to 2"),
    "codes that are no whole numbers": ("cell", lambda obs: replaced(obs["cell"], "codes", np.zeros(N)), "codes are of type float64"),
    "short codes": ("cell", lambda obs: cut("codes", 5)(obs["cell"]), "55 entries for 60 records"),
    "no categories": ("cell", lambda obs: without("categories")(obs["cell"]), "which is not read here"),
    "short numbers": ("number", cut("number", 5), "55 entries for 60 records"),
    "short mask": ("whole", lambda obs: cut("mask", 5)(obs["whole"]), "60 values but says of 55"),
}


@pytest.mark.parametrize("damage", COLUMNS)
def test_a_damaged_obs_column(tmp_path: Path, damage: str) -> None:
    label, change, said = COLUMNS[damage]
    path = written(tmp_path)
    assert len(load(DataSpec(path=path, label=label))) == N
    with h5py.File(path, "r+") as file:
        change(file["obs"])
    with pytest.raises(RequestError) as caught:
        load(DataSpec(path=path, label=label))
    assert said in str(caught.value)
    assert "barcode" not in str(caught.value)
