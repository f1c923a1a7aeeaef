"""Any .h5ad by path: every layout reads the same, and every mistake is one sentence."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from suites.cohorts.cohort import Cohort
from suites.cohorts.load import counts as counts_as_stored
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.contracts import RequestError

N, F = 60, 9


def counts(seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).poisson(1.0, size=(N, F)).astype(np.float32)
    x[0] += 1  # no empty feature
    return x


def made(x: Any = None, **obs: Any) -> anndata.AnnData:
    """A file with classes (t, b, nk), sites and donors; ``obs`` replaces or adds columns."""
    table: dict[str, Any] = {
        "cell": pd.Categorical(np.array(["t", "b", "nk"])[np.arange(N) % 3], categories=["unused", "t", "nk", "b"]),
        "centre": np.array(["x", "y"])[np.arange(N) // 30],
        "donor": np.arange(N) // 6,
    }
    frame = pd.DataFrame({**table, **obs}, index=[f"barcode{i}" for i in range(N)])
    return anndata.AnnData(counts() if x is None else x, obs=frame, var=pd.DataFrame(index=[f"g{i}" for i in range(F)]))


def write(folder: Path, data: anndata.AnnData, **how: Any) -> str:
    path = folder / "mine.h5ad"
    data.write_h5ad(path, **how)
    return str(path)


def read(path: str, **spec: Any) -> Cohort:
    return load(DataSpec(**{"path": path, "label": "cell", **spec}))


def complaint(path: str, **spec: Any) -> str:
    with pytest.raises(RequestError) as caught:
        read(path, **spec)
    text = str(caught.value)
    assert "\n" not in text
    assert "barcode" not in text  # names of records are never printed
    assert any(word in text for word in (";", "use", "choose", "remove")), f"no way to mend it: {text}"
    return text


LAYOUTS = {
    "dense": lambda x: x,
    "fortran": np.asfortranarray,
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "uint16": lambda x: x.astype(np.uint16),
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr int32": lambda x: sparse.csr_matrix(x.astype(np.int32)),
    "csr array": sparse.csr_array,
    "csc float64": lambda x: sparse.csc_matrix(x.astype(np.float64)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [None, 64])
def test_every_layout_reads_the_same(tmp_path: Path, layout: str, block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block is not None:  # many blocks, some of one line
        monkeypatch.setattr("suites.cohorts.h5ad._BLOCK", block)
        monkeypatch.setattr("suites.cohorts.values._BLOCK", block)
    data = made(LAYOUTS[layout](counts()))
    cohort = read(write(tmp_path, data, compression="gzip"), site="centre", person="donor", transform="none")
    assert cohort.x.dtype == np.float32
    assert np.array_equal(cohort.x, counts())
    assert [cohort.classes[code] for code in cohort.y] == data.obs["cell"].tolist()
    assert cohort.classes == ("b", "nk", "t")
    assert cohort.features == tuple(data.var_names)
    assert cohort.site is not None
    assert [cohort.sites[code] for code in cohort.site] == data.obs["centre"].tolist()
    assert cohort.person is not None
    assert len(set(zip(cohort.person, data.obs["donor"]))) == 10


def test_the_digest_is_of_the_content_whatever_the_layout(tmp_path: Path) -> None:
    digests = {read(write(tmp_path, made(LAYOUTS[name](counts()))), site="centre").digest for name in ("dense", "csc", "int64")}
    assert len(digests) == 1
    changed = counts()
    changed[5, 5] += 1
    others = {
        read(write(tmp_path, made(changed)), site="centre").digest,
        read(write(tmp_path, made())).digest,  # no site
        read(write(tmp_path, made(centre=["x"] * 2 + ["y"] * 58)), site="centre").digest,
    }
    assert len(digests | others) == 4


COLUMNS = {
    "text": np.array(["t", "b", "nk"])[np.arange(N) % 3],
    "categorical": pd.Categorical(np.array(["t", "b", "nk"])[np.arange(N) % 3]),
    "integer": np.arange(N) % 3,
    "float": (np.arange(N) % 3).astype(float),
    "boolean": np.arange(N) % 2 == 0,
    "nullable integer": pd.array(np.arange(N) % 3, dtype="Int64"),
    "nullable boolean": pd.array(np.arange(N) % 2 == 0, dtype="boolean"),
    "integer categories": pd.Categorical(np.arange(N) % 3 + 10),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_of_label_column(tmp_path: Path, kind: str) -> None:
    cohort = read(write(tmp_path, made(kind=COLUMNS[kind])), label="kind")
    texts = [str(int(v)) if kind == "float" else str(v) for v in COLUMNS[kind]]
    assert [cohort.classes[code] for code in cohort.y] == texts


def test_columns_as_older_and_newer_anndata_write_them(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    names = np.array(["t", "b"])[np.arange(N) % 2].astype("S")
    text = h5py.string_dtype()
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        obs["__categories/old"] = np.array(["b", "t"], dtype=text)  # 0.7: codes that point to a list
        obs["old"] = (np.arange(N) % 2 == 0).astype(np.int8)
        obs["old"].attrs["categories"] = obs["__categories/old"].ref
        nullable = obs.create_group("new")  # 0.11 on: text with a mask
        nullable["values"] = np.array(names, dtype=text)
        nullable["mask"] = np.arange(N) == 5
        nullable.attrs["encoding-type"] = "nullable-string-array"
        obs.create_group("odd").attrs["encoding-type"] = "awkward-array"
    assert [("b", "t")[code] for code in read(path, label="old").y] == names.astype(str).tolist()
    assert "1 of 60 records have no 'new'" in complaint(path, label="new")
    assert "odd' as 'awkward-array', which is not read here" in complaint(path, label="odd")


@pytest.mark.parametrize("kind", ["categorical", "nullable integer", "float", "nullable boolean"])
def test_unlabelled_records_are_refused_or_dropped(tmp_path: Path, kind: str) -> None:
    column = pd.Series(COLUMNS[kind], index=made().obs_names)
    column.iloc[[3, 8]] = np.nan if kind != "nullable boolean" else pd.NA
    path = write(tmp_path, made(kind=column))
    assert "2 of 60 records have no 'kind'" in complaint(path, label="kind")
    cohort = read(path, label="kind", drop=("unlabelled",), transform="none", site="centre")
    kept = np.setdiff1d(np.arange(N), [3, 8])
    assert np.array_equal(cohort.x, counts()[kept])
    assert cohort.site is not None
    assert cohort.site.tolist() == (kept // 30).tolist()


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_dropped_records_in_blocks(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.cohorts.h5ad._BLOCK", 100)
    column = np.array(["t", "b"])[np.arange(N) % 2].astype(object)
    column[10:40] = "Unassigned"
    cohort = read(write(tmp_path, made(LAYOUTS[layout](counts()), kind=column)), label="kind", drop=("unlabelled",), transform="none")
    assert np.array_equal(cohort.x, np.delete(counts(), np.s_[10:40], axis=0))


def test_raw_layers_and_obsm_are_chosen_by_name_and_others_stay_on_disk(tmp_path: Path) -> None:
    data = made()
    data.raw = anndata.AnnData(np.hstack([counts(), counts()]), obs=data.obs, var=pd.DataFrame(index=[f"r{i}" for i in range(2 * F)]))
    data.layers["spliced"] = sparse.csr_matrix(counts(1))
    data.obsm["protein"] = counts(2)[:, :4].astype(np.float64)
    path = write(tmp_path, data)
    assert read(path, matrix="raw").features[-1] == "r17"
    assert np.array_equal(read(path, matrix="layers/spliced", transform="none").x, counts(1))
    protein = read(path, matrix="obsm/protein", transform="none")
    assert np.array_equal(protein.x, counts(2)[:, :4])
    assert protein.features[0] == "protein 1"
    assert "did you mean 'layers/spliced'" in complaint(path, matrix="layers/splice")
    assert "no matrix 'raw'" in complaint(write(tmp_path, made()), matrix="raw")


def test_a_matrix_that_is_not_there_is_answered_with_the_nearest_and_how_to_choose_it(tmp_path: Path) -> None:
    data = made()
    data.obsm["pca"], data.obsm["tab"] = np.ones((N, 2)), np.ones((N, 2))
    data.layers["counts"] = counts()
    path = write(tmp_path, data)
    assert "did you mean 'obsm/pca'?" in complaint(path, matrix="obsm/PCA")
    with pytest.raises(RequestError, match=r"did you mean 'obsm/pca'\?"):
        counts_as_stored(DataSpec(path=path, label="cell", matrix="obsm/PCA"))
    data.X = None
    assert "matrix: layers/counts" in complaint(write(tmp_path, data))


def test_a_column_may_begin_with_two_underscores(tmp_path: Path) -> None:
    assert read(write(tmp_path, made(**{"__cat": np.array(["t", "b"])[np.arange(N) % 2]})), label="__cat").classes == ("b", "t")


def test_the_word_none_is_a_gap_as_nan_is(tmp_path: Path) -> None:
    words = np.array(["t", "b", "None"], dtype=object)[np.arange(N) % 3]
    gaps = np.array([None if word == "None" else word for word in words], dtype=object)
    for column in (words, gaps):
        path = write(tmp_path, made(kind=column))
        assert "20 of 60 records have no 'kind'" in complaint(path, label="kind")
        assert "20 records have no 'kind', so their site is unknown" in complaint(path, site="kind")
        assert read(path, label="kind", drop=("unlabelled",)).classes == ("b", "t")


def test_repeated_feature_names_are_numbered(tmp_path: Path) -> None:
    data = made()
    data.var_names = ["g", "h", "g", "g", *[f"k{i}" for i in range(F - 4)]]
    assert read(write(tmp_path, data)).features[:4] == ("g", "h", "g-1", "g-2")


# --------------------------------------------------------------------------------------------------------------------- transforms


def test_counts_are_found_and_logged_record_by_record(tmp_path: Path) -> None:
    cohort = read(write(tmp_path, made()))
    x = counts().astype(np.float64)
    expected = np.log1p(x / np.maximum(x.sum(1, keepdims=True), 1) * 1e4)
    np.testing.assert_allclose(cohort.x, expected, rtol=1e-5)
    assert cohort.transform == "log1p of counts per 10,000"
    fewer = read(write(tmp_path, made()[:33].copy()))
    assert np.array_equal(fewer.x, cohort.x[:33])  # no record's value depends on the others


def test_real_numbers_are_left_alone_unless_asked(tmp_path: Path) -> None:
    path = write(tmp_path, made(counts() + 0.5))
    assert np.array_equal(read(path).x, counts() + 0.5)
    np.testing.assert_allclose(read(path, transform="log1p").x, np.log1p(counts() + 0.5), rtol=1e-6)
    assert np.array_equal(read(write(tmp_path, made(counts() - 1))).x, counts() - 1)  # whole but negative: not counts


def test_a_record_without_any_count_stays_zero(tmp_path: Path) -> None:
    x = counts()
    x[7] = 0
    assert not read(write(tmp_path, made(x))).x[7].any()


# ----------------------------------------------------------------------------------------------------------------------- mistakes


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    assert "there is no file" in complaint(str(tmp_path / "elsewhere.h5ad"))
    assert "did you mean 'mine.h5ad'" in complaint(str(tmp_path / "mime.h5ad"))
    text = tmp_path / "text.h5ad"
    text.write_text("not HDF5")
    assert "is not an .h5ad file" in complaint(str(text))
    assert "is not an .h5ad file" in complaint(str(tmp_path))
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["table"] = [1, 2]
    assert "no obs and var" in complaint(str(tmp_path / "other.h5ad"))
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2])
    assert "copy or download it again" in complaint(path)


def test_a_damaged_chunk(tmp_path: Path) -> None:
    path = Path(write(tmp_path, made(), compression="gzip"))
    with h5py.File(path) as file:
        chunk = file["X"].id.get_chunk_info(0)
    whole = bytearray(path.read_bytes())
    middle = chunk.byte_offset + chunk.size // 2
    whole[middle : middle + 8] = bytes(8)
    path.write_bytes(whole)
    assert "breaks off while it is read" in complaint(str(path))


def test_a_file_without_records(tmp_path: Path) -> None:
    assert "holds no records" in complaint(write(tmp_path, made()[:0].copy()))


def test_unknown_columns(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    text = complaint(path, label="cel")
    assert "no obs column 'cel'; did you mean 'cell'?" in text
    assert "cell, centre, donor" in text
    assert "its columns: cell, centre, donor" in complaint(path, label="zzzzzz")
    assert "no obs column 'hospital'" in complaint(path, site="hospital")
    assert "no obs column 'patient'" in complaint(path, person="patient")
    assert "needs a label column" in complaint(path, label=None)


def test_labels_that_cannot_be_learnt(tmp_path: Path) -> None:
    assert "one class only ('t')" in complaint(write(tmp_path, made(cell=["t"] * N)))
    assert "is no class" in complaint(write(tmp_path, made(age=np.arange(N) + 0.5)), label="age")
    assert "is no class" in complaint(write(tmp_path, made(name=[f"n{i}" for i in range(N)])), label="name")
    rare = ["t"] * 30 + ["b"] * 29 + ["odd"]
    path = write(tmp_path, made(cell=rare))
    assert "class 'odd' of 'cell' has one record" in complaint(path)
    assert read(path, drop=("rare",)).classes == ("b", "t")
    assert "one class only" in complaint(write(tmp_path, made(cell=["t"] * 59 + ["odd"])), drop=("rare",))


def test_sites_and_persons(tmp_path: Path) -> None:
    assert "site 'lonely' has one record" in complaint(write(tmp_path, made(centre=["x"] * 59 + ["lonely"])), site="centre")
    gaps = pd.Series(["x"] * 59 + [None], index=made().obs_names, dtype="category")
    assert "1 records have no 'centre'" in complaint(write(tmp_path, made(centre=gaps)), site="centre")


@pytest.mark.parametrize("layout", ["dense", "csr", "float64"])
def test_values_that_no_network_survives(tmp_path: Path, layout: str) -> None:
    x = counts() + 0.5
    x[11, 4] = np.nan
    path = write(tmp_path, made(LAYOUTS[layout](x)))
    assert "1 values are NaN (the first in record 11, feature 'g4')" in complaint(path)
    assert np.isnan(read(path, missing="impute").x[11, 4])
    x[11, 4] = -np.inf
    path = write(tmp_path, made(LAYOUTS[layout](x)))
    assert "1 values are infinite (the first in record 11, feature 'g4')" in complaint(path)
    assert "infinite" in complaint(path, missing="impute")
    if layout == "float64":
        huge = x.astype(np.float64)
        huge[11, 4] = 1e300
        assert "infinite" in complaint(write(tmp_path, made(huge)))


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_empty_features_negative_counts_and_twins(tmp_path: Path, layout: str) -> None:
    x = counts()
    x[:, [2, 6]] = 0
    path = write(tmp_path, made(LAYOUTS[layout](x)))
    assert "2 of 9 features are zero in every record (the first is 'g2')" in complaint(path)
    kept = read(path, drop=("empty",), transform="none")
    assert kept.features == ("g0", "g1", "g3", "g4", "g5", "g7", "g8")
    assert np.array_equal(kept.x, np.delete(x, [2, 6], axis=1))
    x = counts()
    x[1, 1] = -2
    assert "1 values are negative" in complaint(write(tmp_path, made(LAYOUTS[layout](x))), transform="log1p")
    twins = made(LAYOUTS[layout](counts()))
    twins.obs_names = [*twins.obs_names[:-2], twins.obs_names[4], twins.obs_names[9]]
    assert "2 obs names occur more than once (the first at row 4)" in complaint(write(tmp_path, twins))


def test_values_that_are_no_numbers_and_shapes_that_disagree(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = np.full((N, F), b"text")
    assert "numbers are needed" in complaint(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = np.ones((N, F + 1), dtype=np.float32)
    assert "60 x 10 but obs and var say 60 x 9" in complaint(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
    assert "no matrix 'X'" in complaint(path)


def test_params_belong_to_generated_cohorts(tmp_path: Path) -> None:
    assert "remove them" in complaint(write(tmp_path, made()), params={"records": 5})


# ------------------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("layout", ["dense", "csr", "csc"])
def test_peak_memory_stays_below_two_and_a_half_matrices(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.cohorts.h5ad._BLOCK", 1 << 20)
    monkeypatch.setattr("suites.cohorts.values._BLOCK", 1 << 18)
    rng = np.random.default_rng(0)
    x = rng.poisson(0.3, size=(900, 6000)).astype(np.float64)
    x[0] += 1
    data = anndata.AnnData(LAYOUTS[layout](x), obs=pd.DataFrame({"cell": np.arange(900) % 3}, index=[f"barcode{i}" for i in range(900)]))
    data.layers["other"] = x  # must stay on disk
    path = write(tmp_path, data)
    read(path)  # imports and caches
    del data
    tracemalloc.start()
    cohort = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cohort.x.nbytes == 900 * 6000 * 4
    assert peak < (1.6 if layout == "dense" else 2.0) * cohort.x.nbytes


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = Path(write(tmp_path, made()))
    copy = tmp_path / "copy"
    shutil.copy(path, copy)
    path.chmod(0o444)
    read(str(path))
    assert path.read_bytes() == copy.read_bytes()


# ---------------------------------------------------------------------------------------------------------------------- only some


def test_only_keeps_records_with_the_listed_values(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    whole, some = read(path, site="centre"), read(path, site="centre", only={"donor": ("0", "7"), "centre": ("x", "y")})
    kept = np.isin(np.arange(N) // 6, [0, 7])
    np.testing.assert_array_equal(some.x, whole.x[kept])
    assert (len(some), some.sites) == (12, ("x", "y"))


def test_a_value_that_no_record_has_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, made())
    assert "no record has 'nkk' in 'cell'" in complaint(path, only={"cell": ("nkk", "b")})
    assert "no obs column 'cel'" in complaint(path, only={"cel": ("b",)})
    assert "no record is left" in complaint(path, only={"centre": ("x",), "donor": ("9",)})


def test_records_left_out_by_only_need_no_label(tmp_path: Path) -> None:
    labels = np.where(np.arange(N) < 30, np.array(["t", "b", "nk"])[np.arange(N) % 3], None)
    path = write(tmp_path, made(cell=labels))
    assert len(read(path, only={"centre": ("x",)})) == 30
    assert "have no 'cell'" in complaint(path)


def framed(folder: Path, table: pd.DataFrame) -> str:
    data = made()
    data.obsm["protein"] = table.set_index(data.obs_names)
    return write(folder, data)


def test_an_obsm_table_is_read_column_by_column_in_its_own_order(tmp_path: Path) -> None:
    seen = np.random.default_rng(3).normal(4, 1, N)
    holes = pd.array([None if i in (7, 47) else i + 1 for i in range(N)], dtype="Int64")
    table = pd.DataFrame({"CD8": seen, "CD3": np.arange(N, dtype=np.uint16) + 1, "CD19": holes, "gate": np.arange(N) % 2 == 0})
    path = framed(tmp_path, table)
    cohort = read(path, matrix="obsm/protein", missing="impute", transform="none", drop=("unlabelled",))
    assert cohort.features == ("protein CD8", "protein CD3", "protein CD19", "protein gate")
    expected = table.astype({"CD19": "Float64"}).to_numpy(dtype=np.float64, na_value=np.nan)
    np.testing.assert_allclose(cohort.x, expected, rtol=1e-6)
    some = read(path, matrix="obsm/protein", missing="impute", transform="none", only={"centre": ("y",)})
    np.testing.assert_allclose(some.x, expected[30:], rtol=1e-6)
    held = counts_as_stored(DataSpec(path=framed(tmp_path, table[["CD3", "gate"]]), label="cell", matrix="obsm/protein"))
    np.testing.assert_array_equal(held.toarray(), table[["CD3", "gate"]].to_numpy(dtype=np.float32))


@pytest.mark.parametrize("column", [["high", "low"] * (N // 2), pd.Categorical(["high", "low"] * (N // 2))])
def test_words_in_an_obsm_table_are_told(tmp_path: Path, column: Any) -> None:
    path = framed(tmp_path, pd.DataFrame({"CD8": np.arange(N, dtype=float), "gated": column}))
    assert "column 'gated' of the table 'obsm/protein' holds no numbers" in complaint(path, matrix="obsm/protein")
