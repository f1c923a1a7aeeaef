"""Integration of RNA with open chromatin, on made data only: axes are learnt on public cells, and a mosaic works as with protein."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from suites.bench import Bench
from suites.cohorts.load import counts, load
from suites.cohorts.published_files import convert
from suites.cohorts.spec import DataSpec
from suites.config import load as load_suite
from suites.contracts import RequestError
from suites.prepared import prepare
from suites.tasks.indexing import Indexing
from suites.tasks.integration import ASIDE, Integration
from suites.tasks.layout import Layout
from tests.suites.cohorts.test_published_files import refused

CELLS, GENES, PEAKS, KINDS, WIDTH = 320, 30, 400, 4, 6
TASK = f"integration:second=peaks:lsi={WIDTH}:hidden=24:width=8"


def made_counts(seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Genes and peaks of four kinds of cell, [cells, genes + peaks]; depths differ tenfold, so that depth is the first axis."""
    rng = np.random.default_rng(seed)
    kind = np.arange(CELLS) % KINDS
    rate = np.concatenate([np.exp(rng.normal(0, 1.2, (KINDS, GENES))), 0.06 * np.exp(rng.normal(0, 1.5, (KINDS, PEAKS)))], 1)[kind]
    return sparse.csr_matrix(rng.poisson(rate * rng.uniform(0.3, 3.0, (CELLS, 1))).astype(np.float32)), kind


def tenx(folder: Path) -> tuple[Path, Path]:
    """filtered_feature_bc_matrix.h5 of a Multiome run, and clusters.csv; one cell has no cluster."""
    held, kind = made_counts()
    path, labels = folder / "filtered_feature_bc_matrix.h5", folder / "clusters.csv"
    barcodes = [f"ACGT{i:04d}-1" for i in range(CELLS)]
    names = [f"GENE{i}" for i in range(GENES)] + [f"chr1:{500 * i}-{500 * i + 400}" for i in range(PEAKS)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        stored = held.T.tocsc()
        for name, values in (("data", stored.data.astype(np.int32)), ("indices", stored.indices), ("indptr", stored.indptr)):
            group[name] = values
        group["shape"] = np.array(stored.shape)
        group["barcodes"] = np.array(barcodes, dtype="S")
        features = group.create_group("features")
        features["name"] = features["id"] = np.array(names, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * GENES + ["Peaks"] * PEAKS, dtype="S")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S")
    order = np.random.default_rng(1).permutation(CELLS)[:-1]  # in another order, and one is not listed
    pd.DataFrame({"Barcode": [barcodes[i] for i in order], "Cluster": [f"k{kind[i]}" for i in order]}).to_csv(labels, index=False)
    return path, labels


def converted(folder: Path) -> str:
    path, labels = tenx(folder)
    out = folder / "cells.h5ad"
    convert("multiome", path, labels).write_h5ad(out)
    return str(out)


def spec(path: str, defense: str = "centralized", task: str = TASK, **changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": task,
        "data": DataSpec(path=path, label="Cluster", drop=("unlabelled",)).model_dump(),
        "split": {"unit": "record", "train": 0.4, "validation": 0.1, "test": 0.3, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 3, "local": {"epochs": 15, "batch": 40, "lr": 3e-3}},
        "defense": defense,
        "seed": 0,
        **changes,
    }


# ------------------------------------------------------------------------------------------------------------------ files


def test_a_multiome_file_is_told_apart_and_its_barcodes_are_left_out(tmp_path: Path) -> None:
    path, labels = tenx(tmp_path)
    made, (held, kind) = convert("multiome", path, labels), made_counts()
    assert (held[:, :GENES] != made.X).nnz == 0
    assert (made.obsm["peaks"] != held[:, GENES:]).nnz == 0
    named = made.obs["Cluster"].notna().to_numpy()
    assert int((~named).sum()) == 1
    assert made.obs["Cluster"].to_numpy()[named].tolist() == [f"k{v}" for v in kind[named]]
    assert "ACGT" not in made.obs.to_csv() + ",".join(made.obs_names)


def test_a_file_that_scanpy_has_read_gives_the_same(tmp_path: Path) -> None:
    path, labels = tenx(tmp_path)
    made, (held, kind) = convert("multiome", path, labels), made_counts()
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * GENES + ["Peaks"] * PEAKS}, index=[f"f{i}" for i in range(GENES + PEAKS)])
    obs = pd.DataFrame({"Cluster": [f"k{v}" for v in kind]}, index=[f"ACGT{i:04d}-1" for i in range(CELLS)])
    anndata.AnnData(held, obs=obs, var=var).write_h5ad(tmp_path / "read.h5ad")
    again = convert("multiome", tmp_path / "read.h5ad")
    assert (again.obsm["peaks"] != made.obsm["peaks"]).nnz == 0
    assert (again.X != made.X).nnz == 0
    assert again.obs["Cluster"].tolist() == obs["Cluster"].tolist()
    assert "ACGT" not in ",".join(again.obs_names)


def test_other_files_are_told(tmp_path: Path) -> None:
    path, labels = tenx(tmp_path)
    assert "give --metadata" in refused("multiome", path)
    assert "is no HDF5 file" in refused("multiome", labels)
    with h5py.File(path, "r+") as file:
        file["matrix/features/feature_type"][...] = np.array(["Gene Expression"] * (GENES + PEAKS), dtype="S")
    assert "of the kinds Gene Expression where" in refused("multiome", path, labels)
    labels.write_text("Barcode,Cluster\nTTTT-1,k0\n")
    assert "lists no barcode of the matrix" in refused("multiome", path, labels) or "of the kinds" in refused("multiome", path, labels)
    with h5py.File(path, "r+") as file:
        kept = file["matrix/indices"][()]
        file["matrix/indices"][...] = np.where(np.arange(len(kept)) == 3, 10**6, kept)
    assert "is damaged" in refused("multiome", path, labels)
    with h5py.File(path, "r+") as file:
        file["matrix/indices"][...] = kept
        del file["matrix/features/feature_type"]
    assert "no matrix/features/feature_type" in refused("multiome", path, labels)


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_peaks_are_read_of_the_labelled_cells_however_they_are_stored(layout: str, tmp_path: Path) -> None:
    path, labels = tenx(tmp_path)
    made = convert("multiome", path, labels)
    peaks = made.obsm["peaks"]
    made.obsm["peaks"] = {"csr": peaks.tocsr(), "csc": peaks.tocsc(), "dense": peaks.toarray()}[layout]
    made.write_h5ad(tmp_path / "cells.h5ad")
    data = DataSpec(**{**spec(str(tmp_path / "cells.h5ad"))["data"], "matrix": "obsm/peaks"})
    found = counts(data)
    kept = made.obs["Cluster"].notna().to_numpy()
    assert found.shape == (CELLS - 1, PEAKS)
    assert (found != peaks.tocsr()[kept]).nnz == 0
    dense = load(data.model_copy(update={"transform": "none", "drop": ("unlabelled", "empty")}))  # as any other matrix
    assert dense.x.shape[0] == CELLS - 1
    assert float(dense.x.sum()) == float(found.sum())


def test_values_that_are_no_counts_and_matrices_that_are_not_there(tmp_path: Path) -> None:
    path, labels = tenx(tmp_path)
    made = convert("multiome", path, labels)
    made.obsm["peaks"] = -made.obsm["peaks"]
    made.write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(RequestError, match="negative or not finite"):
        prepare(spec(str(tmp_path / "cells.h5ad")), None)
    with pytest.raises(RequestError, match=r"no matrix 'obsm/atac'"):
        prepare(spec(str(tmp_path / "cells.h5ad"), task="integration:second=atac:lsi=5"), None)
    with pytest.raises(RequestError, match="give 30, say, or 0"):
        Integration(lsi=-1)


# --------------------------------------------------------------------------------------------------------------- indexing


def test_coordinates_by_hand() -> None:
    """TF-IDF cell by cell in plain Python, then the singular vectors of numpy, without the first."""
    held, _ = made_counts()
    peaks = held[:60, GENES : GENES + 40]
    open_in = [sum(peaks[i, j] > 0 for i in range(60)) for j in range(40)]
    total = [float(peaks[i].sum()) for i in range(60)]
    weighted = np.array(
        [
            [math.log1p(1e4 * peaks[i, j] / total[i] * 60 / open_in[j]) if open_in[j] and total[i] else 0.0 for j in range(40)]
            for i in range(60)
        ]
    )
    _, _, rows = np.linalg.svd(weighted, full_matrices=False)
    expected = weighted @ rows[1:4].T
    found = Indexing.fit(peaks, 3)
    z = found.transform(peaks).numpy() * found.unit
    np.testing.assert_allclose(np.abs(z), np.abs(expected), rtol=2e-2, atol=2e-2 * np.abs(expected).max())
    assert float(found.transform(peaks).square().mean()) == pytest.approx(1.0, rel=1e-4)


def test_the_axis_of_depth_is_left_out() -> None:
    held, _ = made_counts()
    peaks = held[:, GENES:]
    depth = np.log(np.maximum(np.asarray(peaks.sum(1)).ravel(), 1))
    z = Indexing.fit(peaks, WIDTH).transform(peaks).numpy()
    seen = np.corrcoef(np.column_stack([z, depth]).T)[-1, :-1]
    assert np.abs(seen).max() < 0.6


def test_a_peak_that_public_cells_lack_counts_for_nobody_and_too_few_cells_are_told() -> None:
    held, _ = made_counts()
    public, other = held[:50, GENES:].tolil(), held[50:60, GENES:].tolil()
    public[:, 7] = 0
    indexing = Indexing.fit(public.tocsr(), 4)
    other[:, 7] = 0
    more = other.copy()
    more[:, 7] = 1
    moved = (indexing.transform(other.tocsr()) - indexing.transform(more.tocsr())).abs()
    assert indexing.weight[7] == 0
    assert float(moved.max()) < 0.2  # the cell's total alone is another, by one fragment
    with pytest.raises(RequestError, match="give no 6 components"):
        Indexing.fit(public.tocsr()[:7], 6)


# ----------------------------------------------------------------------------------------------------------------- task


def test_what_is_fed_is_learnt_on_public_cells_that_have_peaks(tmp_path: Path) -> None:
    """Another training cell's peaks move that cell's input and no other's."""
    path = converted(tmp_path)
    before = prepare(spec(path), None)
    cell = next(int(i) for i in before.sites[0])
    held = anndata.read_h5ad(path)
    rows = np.flatnonzero(held.obs["Cluster"].notna().to_numpy())
    peaks = held.obsm["peaks"].tolil()
    assert before.row is not None
    changed = rows[int(before.row[cell])]
    peaks[changed] = peaks[changed].toarray()[:, ::-1]  # the same total
    held.obsm["peaks"] = peaks.tocsr()
    held.write_h5ad(path)
    after = prepare(spec(path), None)
    assert before.layout == after.layout == Layout((GENES, WIDTH), ASIDE)
    assert (before.pool.x != after.pool.x).any(1).nonzero().squeeze(1).tolist() == [cell]


def test_a_mosaic_of_peaks(tmp_path: Path) -> None:
    prepared = prepare(spec(converted(tmp_path)), None)
    x = prepared.pool.x
    peaks, aside = x[:, GENES : GENES + WIDTH], x[:, -ASIDE:]
    assert bool((aside[:, 2] == 3).eq(aside[:, 1] == 0).all())  # the last site lacks peaks
    assert bool((aside[:, 2] == 2).eq(aside[:, 0] == 0).all())  # the one before it RNA
    assert bool((peaks[aside[:, 1] == 0] == 0).all())
    assert bool((peaks[aside[:, 1] > 0] != 0).all())
    public = x[prepared.auxiliary]
    own = public[public[:, -ASIDE + 1] > 0][:, GENES : GENES + WIDTH]
    assert float(own.square().mean()) == pytest.approx(1.0, rel=1e-4)  # one unit for all coordinates, from those cells alone
    assert float(own[:, 0].square().mean()) > 1.2 * float(own[:, -1].square().mean())


@pytest.mark.parametrize(
    "defense", ["fedavg", "dp_sgd:epsilon=8", "infl:published:strength=1", "infl:hardened:minimum=1", "secure_aggregation"]
)
def test_every_defense_trains_it(defense: str, tmp_path: Path) -> None:
    bench = Bench(spec(converted(tmp_path), defense, federation={"rounds": 1, "local": {"epochs": 1, "batch": 40, "lr": 1e-3}}), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    assert set(bench.utilities(bench.predict(trained.secret), trained.finals[0])) == {"ari", "nmi", "foscttm", "batch_mixing"}


def test_training_aligns_rna_and_peaks(tmp_path: Path) -> None:
    bench = Bench(spec(converted(tmp_path)), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    controls = {m.metric: m.value for m in bench.yardsticks(found)}
    assert found["ari"] > 0.5
    assert controls["ari:above_untrained_network"] > 0.1
    assert controls["foscttm:above_untrained_network"] > 0.1


def test_the_suite_says_that_its_cells_are_made() -> None:
    suite, text = load_suite("multiome")
    assert suite.data.name == "synthetic_multiome"
    assert "says nothing of real chromatin" in " ".join(text.replace("#", "").split())
    cells = counts(DataSpec(name="synthetic_multiome", matrix="obsm/peaks"))
    assert cells.shape == (2000, 3000)
    assert 0.9 < 1 - cells.nnz / math.prod(cells.shape) < 0.99
    torch.testing.assert_close(
        torch.from_numpy(load(DataSpec(name="synthetic_multiome")).x).expm1().sum(1), torch.full((2000,), 1e4), rtol=1e-3, atol=1
    )
