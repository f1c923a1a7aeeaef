"""Pinned downloads: verified, from mirror or network, nothing half-written; parsers on small files of the same layout."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

from suites.cli import app
from suites.cohorts import fetch, registry
from suites.cohorts.load import load
from suites.cohorts.named import parsed
from suites.cohorts.originals import ORIGINALS, Original
from suites.cohorts.parsers import parse
from suites.cohorts.spec import DataSpec
from suites.contracts import RequestError

DOWNLOADS = sorted(ORIGINALS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INFL_BENCH_DATA", raising=False)
    return tmp_path / "cache"


def text(path: Path, *lines: str) -> None:
    """A tab-separated table, written with commas here."""
    body = "\n".join(line.replace(",", "\t") for line in lines) + "\n"
    path.write_bytes(gzip.compress(body.encode()) if path.suffix == ".gz" else body.encode())


def small_cptac(folder: Path) -> None:
    text(
        folder / "prosp-brca-v5.4-public-proteome-ratio-norm-NArm.gct.gz",
        "#1.3",
        "4,3,2,2",
        "id,geneSymbol,species,X1,X2,X3.REP1",
        "TMT.Plex,na,na,1,2|7,2",
        "PAM50,na,na,LumA,Basal,NA",
        "NP_1,A,human,1,NA,3",
        "NP_2,A,human,4,5,6",  # the protein of gene A with fewer gaps
        "NP_3,B,human,0.5,0.25,-1",
        "NP_4,C,human,7,8,9",
    )
    text(folder / "colon_proteomics_tumor.cct.gz", "attrib_name,P1,P2", "A,1,2", "B,3,4", "C,NA,NA")
    text(folder / "colon_proteomics_normal.cct.gz", "attrib_name,P1N,P9N", "A,5,6", "B,7,8", "C,1,2")
    text(folder / "colon_clinical.tsi.gz", "attrib_name,P1,P2", "Mutation_Phenotype,MSS,NA")
    text(folder / "endometrial_proteomics.cct.gz", "idx,S1,S2,S3", "A,9,10,11", "B,12,13,14", "C,1,2,3")
    about = "idx,Proteomics_Participant_ID,Case_excluded,Proteomics_TMT_batch,Proteomics_Tumor_Normal,Genomics_subtype"
    text(
        folder / "endometrial_clinical.txt",
        about,
        "S3,Q1,No,2,Adjacent_normal,NA",
        "S1,Q1,No,1,Tumor,POLE",
        "S2,Q2,Yes,1,Tumor,NA",
    )


def small_norman(folder: Path) -> None:
    obs = {"condition": ["control", "A+B"], "cell_type": ["k", "k"], "dataset": ["n", "n"], "perturbation_type": ["a", "a"], "more": [1, 2]}
    x = sparse.csr_matrix(np.array([[0.0, 1.5], [2.5, 0.0]]))
    anndata.AnnData(x, obs=pd.DataFrame(obs, index=["b1", "b2"]), var=pd.DataFrame(index=["G", "H"])).write_h5ad(folder / "devel.h5ad")


def small_citeseq(folder: Path) -> None:
    with h5py.File(folder / "10XPBMC_filtered_1000G.H5", "w") as file:
        file["X1"], file["X2"], file["Y"] = np.eye(3), np.arange(42.0).reshape(3, 14), [2.0, 7.0, 2.0]


def small_lymph(folder: Path) -> None:
    for section, words in (("s1", ["medulla vessels", "cortex"]), ("s2", ["medulla vessel", "cortex"])):
        data = anndata.AnnData(
            sparse.csr_matrix(np.array([[1.0, 2.0], [3.0, 4.0]])),
            obs=pd.DataFrame({"final_annot": words}, index=["b1", "b2"]),
            var=pd.DataFrame(index=["CD1", "CD2"]),
        )
        data.obsm["spatial"] = np.array([[1, 2], [3, 4]])
        data.write_h5ad(folder / f"{section}_adata_adt.h5ad")


def small_osmfish(folder: Path) -> None:
    with h5py.File(folder / "osmFISH_SScortex_mouse_all_cells.loom", "w") as file:
        file["matrix"] = np.array([[1, 2, 3], [4, 5, 6]])
        file["row_attrs/Gene"] = np.array([b"Gad2", b"Vip"])
        columns = {"Valid": [1, 0, 1], "Region": [b"L1", b"Excluded", b"L2"], "ClusterName": [b"x", b"y", b"z"]}
        for name, values in {**columns, "X": [1.0, 2.0, 3.0], "Y": [4.0, 5.0, 6.0]}.items():
            file[f"col_attrs/{name}"] = values


SMALL = {
    "cptac": small_cptac,
    "norman_mcfaline": small_norman,
    "pbmc10k_citeseq": small_citeseq,
    "lymph_node_adt": small_lymph,
    "osmfish": small_osmfish,
}


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror folder of small files, which the pins are moved to."""
    folder = tmp_path / "mirror"
    for name, originals in list(ORIGINALS.items()):
        for original in originals:
            (folder / original.file).parent.mkdir(parents=True, exist_ok=True)
        SMALL[name]((folder / originals[0].file).parent)
        moved = tuple(pinned(folder, original) for original in originals)
        monkeypatch.setitem(ORIGINALS, name, moved)
    return folder


def pinned(folder: Path, original: Original) -> Original:
    data = (folder / original.file).read_bytes()
    return replace(original, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def files(folder: Path, name: str) -> dict[str, Path]:
    return {Path(original.file).name: folder / original.file for original in ORIGINALS[name]}


# ------------------------------------------------------------------------------------------------------------------------- parsers


def test_cptac(mirror: Path) -> None:
    data = parse("cptac", files(mirror, "cptac"))
    assert list(data.var_names) == ["A", "B"]  # C is missing in colon tumours
    expected = [[4, 0.5], [5, 0.25], [6, -1], [1, 3], [2, 4], [5, 7], [6, 8], [9, 12], [11, 14]]
    assert np.asarray(data.X).tolist() == expected
    classes = ["BRCA_Tumor"] * 3 + ["COAD_Tumor"] * 2 + ["COAD_Normal"] * 2 + ["UCEC_Tumor", "UCEC_Normal"]
    assert data.obs["cancer_class"].tolist() == classes
    assert data.obs["subtype"].tolist() == ["PAM50.LumA", "PAM50.Basal", None, "MSI.MSS", None, None, None, "UCEC.POLE", None]
    assert data.obs["batch"].tolist()[:3] == ["BRCA 1", "BRCA 2", "BRCA 2"]
    patient = data.obs["patient"].tolist()
    assert patient[3] == patient[5]  # tumour and normal tissue of one patient
    assert patient[7] == patient[8]
    assert len(set(patient)) == 7
    assert not any("P1" in str(v) or "Q1" in str(v) for v in [*data.obs_names, *data.obs.to_numpy().ravel()])


def test_norman_mcfaline(mirror: Path) -> None:
    data = parse("norman_mcfaline", files(mirror, "norman_mcfaline"))
    assert data.X.toarray().tolist() == [[0, 1.5], [2.5, 0]]
    assert data.X.dtype == np.float32
    assert data.obs["condition"].tolist() == ["control", "A+B"]
    assert data.obs_names.tolist() == ["cell 0", "cell 1"]  # no barcodes


def test_pbmc10k_citeseq(mirror: Path) -> None:
    data = parse("pbmc10k_citeseq", files(mirror, "pbmc10k_citeseq"))
    assert data.X.toarray().tolist() == np.eye(3).tolist()
    assert data.obsm["protein"][2, 13] == 41
    assert data.uns["protein_names"][3] == "CD14"
    assert data.obs["label"].tolist() == ["Y2", "Y7", "Y2"]


def test_lymph_node_adt(mirror: Path) -> None:
    data = parse("lymph_node_adt", files(mirror, "lymph_node_adt"))
    assert data.obs["section"].tolist() == ["s1", "s1", "s2", "s2"]
    assert data.obs["annotation"].tolist() == ["medulla vessel", "cortex"] * 2
    assert data.X.toarray()[3].tolist() == [3, 4]
    assert data.obsm["spatial"].shape == (4, 2)


def test_osmfish(mirror: Path) -> None:
    data = parse("osmfish", files(mirror, "osmfish"))
    assert data.X.toarray().tolist() == [[1, 4], [3, 6]]
    assert data.obs["region"].tolist() == ["L1", "L2"]
    assert data.obsm["spatial"].tolist() == [[1, 4], [3, 6]]


def change_layout(path: Path) -> None:
    if path.suffix == ".gz":
        body = gzip.decompress(path.read_bytes())
        path.write_bytes(gzip.compress(body.replace(b"\t", b" ").replace(b"Mutation", b"Nothing")))
    elif path.suffix == ".txt":
        path.write_text(path.read_text().replace("Case_excluded", "excluded"))
    else:
        with h5py.File(path, "r+") as file:
            for key in ("X1", "matrix", "obs"):
                if key in file:
                    del file[key]


@pytest.mark.parametrize(("name", "original"), [(name, i) for name in DOWNLOADS for i in range(len(ORIGINALS[name]))])
def test_a_changed_layout_is_one_sentence(mirror: Path, name: str, original: int) -> None:
    change_layout(mirror / ORIGINALS[name][original].file)
    with pytest.raises(RequestError, match=r"fetch the pinned (file|one)") as caught:
        parse(name, files(mirror, name))
    assert "\n" not in str(caught.value)


def test_a_file_that_ends_early_is_one_sentence(mirror: Path) -> None:
    path = mirror / ORIGINALS["cptac"][3].file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RequestError, match="another layout"):
        parse("cptac", files(mirror, "cptac"))


# ----------------------------------------------------------------------------------------------------------------------- fetching


def test_a_mirror_is_used_in_place_and_the_parsed_file_is_kept(mirror: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(mirror))
    cohort = load(DataSpec(name="lymph_node_adt", transform="none"))
    assert cohort.x.tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert cohort.sites == ("s1", "s2")
    assert cohort.licence == "MIT"
    assert [path.name for path in own_cache.iterdir()] == ["parsed"]
    kept = list((own_cache / "parsed").iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    assert load(DataSpec(name="lymph_node_adt", transform="none")).digest == cohort.digest
    assert kept[0].stat().st_mtime_ns == before
    monkeypatch.delenv("INFL_BENCH_DATA")  # once parsed, neither mirror nor network is needed
    assert load(DataSpec(name="lymph_node_adt", transform="none")).digest == cohort.digest


def change_a_value(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["obsm/spatial"][0, 0] = 99.0


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [change_a_value, cut_short])
def test_a_parsed_file_that_was_changed_is_made_again(
    mirror: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(mirror))
    spec = DataSpec(name="lymph_node_adt", matrix="obsm/spatial", transform="none")
    good = load(spec)
    (kept,) = (own_cache / "parsed").iterdir()
    damage(kept)
    assert load(spec).digest == good.digest
    (again,) = (own_cache / "parsed").iterdir()
    damage(again)
    done = CliRunner().invoke(app, ["data", "fetch", "lymph_node_adt"])
    assert done.exit_code == 0
    assert "is not what was parsed, and is made again" in done.output
    assert load(spec).digest == good.digest
    (again,) = (own_cache / "parsed").iterdir()
    damage(again)
    (mirror / ORIGINALS["lymph_node_adt"][0].file).write_bytes(b"other bytes, too")
    with pytest.raises(RequestError, match=r"cut short|not the pinned file"):  # neither is to be trusted
        load(spec)


def test_a_mirror_may_be_the_folder_above(mirror: Path, tmp_path: Path) -> None:
    above = tmp_path / "data"
    above.mkdir()
    (above / "originals").symlink_to(mirror)
    assert fetch.fetch("osmfish", above)["osmFISH_SScortex_mouse_all_cells.loom"].is_relative_to(above)


def test_wrong_short_and_unreadable_files_are_refused(mirror: Path) -> None:
    path = mirror / ORIGINALS["osmfish"][0].file
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(RequestError, match="is not the pinned file"):
        fetch.fetch("osmfish", mirror)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(RequestError, match=rf"cut short \({len(good) // 2} of {len(good)} bytes\)"):
        fetch.fetch("osmfish", mirror)
    with pytest.raises(RequestError, match=r"mirror folder .* is not there"):
        fetch.fetch("osmfish", mirror / "elsewhere")


@pytest.fixture
def server(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serves the mirror on this machine and points the pins there; gives the list of requested paths."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(mirror))) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{running.server_port}"
        for name, originals in list(ORIGINALS.items()):
            monkeypatch.setitem(ORIGINALS, name, tuple(replace(original, url=f"{base}/{original.file}") for original in originals))
        yield asked
        running.shutdown()


def test_a_download_is_verified_kept_and_not_repeated(server: list[str], own_cache: Path) -> None:
    pytest.importorskip("pooch")
    said: list[str] = []
    found = fetch.fetch("lymph_node_adt", say=said.append)
    assert len(server) == len(said) == 2
    assert all(path.is_relative_to(own_cache) for path in found.values())
    next(iter(found.values())).unlink()  # an interrupted fetch goes on with what is missing
    fetch.fetch("lymph_node_adt")
    assert len(server) == 3
    assert parsed("lymph_node_adt").exists()
    assert len(server) == 3


def test_what_a_killed_download_left_goes_before_the_next(server: list[str], own_cache: Path) -> None:
    pytest.importorskip("pooch")
    folder = own_cache / "originals" / "osmfish"
    folder.mkdir(parents=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as half:  # as pooch names what it downloads into
        half.write(b"half")
    (path,) = fetch.fetch("osmfish").values()
    assert list(folder.iterdir()) == [path]
    assert len(server) == 1


def test_two_processes_fetch_a_file_once(server: list[str], own_cache: Path) -> None:
    pytest.importorskip("pooch")
    said: list[str] = []
    both = [threading.Thread(target=fetch.fetch, args=("osmfish", None, said.append)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(server) == len(said) == 1


def test_a_download_without_room_is_one_sentence(server: list[str], own_cache: Path) -> None:
    pytest.importorskip("pooch")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(RequestError, match=r"has no room for osmFISH.*make room"):
            fetch.fetch("osmfish")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_a_server_with_other_bytes_leaves_nothing_behind(server: list[str], mirror: Path, own_cache: Path) -> None:
    pytest.importorskip("pooch")
    (mirror / ORIGINALS["osmfish"][0].file).write_bytes(b"other bytes")
    with pytest.raises(RequestError, match="no longer serves the pinned file"):
        fetch.fetch("osmfish")
    assert server
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_no_network_says_how_to_do_without(server: list[str], mirror: Path, own_cache: Path) -> None:
    pytest.importorskip("pooch")
    (mirror / ORIGINALS["osmfish"][0].file).unlink()
    with pytest.raises(RequestError, match=r"could not be downloaded .*--mirror"):
        fetch.fetch("osmfish")
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setenv("INFL_BENCH_CACHE", str(tmp_path / "taken"))
    monkeypatch.setenv("INFL_BENCH_DATA", str(mirror))
    with pytest.raises(RequestError, match="cannot be written"):
        load(DataSpec(name="osmfish"))


def test_a_parser_that_fails_leaves_nothing_behind(mirror: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(mirror))
    monkeypatch.setattr("suites.cohorts.written.os.replace", lambda temporary, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        parsed("osmfish")
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_a_full_disk_is_one_sentence(mirror: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands in for a full disk: HDF5 that writes into one may end the process."""
    monkeypatch.setenv("INFL_BENCH_DATA", str(mirror))
    parsed("osmfish")  # whatever is imported is compiled by now
    for path in (own_cache / "parsed").iterdir():
        path.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RequestError, match=r"cannot take the parsed osmfish.*make room"):
            parsed("osmfish")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in own_cache.rglob("*") if path.is_file()]


def test_every_download_has_a_card_and_every_card_with_download_is_pinned() -> None:
    assert sorted(card.name for card in registry.CARDS.values() if card.download) == DOWNLOADS
    assert all(len(original.sha256) == 64 and original.size > 0 for name in DOWNLOADS for original in ORIGINALS[name])


# ----------------------------------------------------------------------------------------------------------------- the real files


def real() -> Path:
    for folder in (os.environ.get("INFL_BENCH_DATA"), Path(__file__).resolve().parents[4] / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    pytest.skip("no real cohorts here: neither ../shared/data nor $INFL_BENCH_DATA")


FACTS = {  # records, features, classes, sites, digest
    "cptac": (463, 4450, 5, 3, "7f90a05471e1"),
    "lymph_node_adt": (6843, 31, 10, 2, "dddd26726df5"),
    "norman_mcfaline": (5961, 452, 34, 4, "347b0f48e23e"),
    "osmfish": (4839, 33, 11, 0, "b23e0b9a1ce7"),
    "pbmc10k_citeseq": (6661, 1000, 7, 0, "3998a9f7f24f"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DOWNLOADS)
def test_the_real_originals(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    cohort = load(DataSpec(name=name))
    assert (len(cohort), len(cohort.features), len(cohort.classes), len(cohort.sites), cohort.digest[:12]) == FACTS[name]


def test_real_files_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = real() / "h5ad"
    kang = load(DataSpec(path=str(folder / "kang_control_8donors_muscat.h5ad"), label="cell_type", site="donor", person="donor"))
    assert (kang.x.shape, len(kang.classes), len(kang.sites)) == ((12261, 1287), 8, 8)
    layers = load(DataSpec(path=str(folder / "dlpfc_visium_donor3.h5ad"), label="layer", site="section", drop=("unlabelled",)))
    assert (layers.x.shape, len(layers.classes)) == ((14243, 1125), 7)
    with pytest.raises(RequestError, match="48 of 500 features are zero"):
        load(DataSpec(path=str(folder / "norman_mcfaline_perturbench.h5ad"), label="cell_type"))


@pytest.mark.slow
def test_our_parser_of_cptac_agrees_with_an_independent_one() -> None:
    folder = real()
    ours = anndata.read_h5ad(parsed("cptac", folder / "originals"))
    theirs = anndata.read_h5ad(folder / "h5ad" / "cptac_proteome.h5ad")
    shared = [gene for gene in theirs.var_names if gene in ours.var_names]
    assert len(shared) > 1400
    np.testing.assert_array_equal(np.asarray(ours[:, shared].X), np.asarray(theirs[:, shared].X))
    assert ours.obs["cancer_class"].tolist() == theirs.obs["cancer_class"].tolist()
    assert ours.obs["patient"].astype(str).tolist() == theirs.obs["patient"].astype(str).tolist()
