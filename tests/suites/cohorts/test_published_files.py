"""The published evaluation's own cohorts, on small files of their layouts: what is read, what is left out, one sentence for the rest."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from suites import api
from suites.cohorts import published_files
from suites.cohorts.load import load
from suites.cohorts.published_files import convert
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError
from suites.rehearsal import rehearse
from suites.tasks.perturbation import Perturbation
from tests.suites.test_cli import complains, infl_bench

_NAMES = "prep_lims_id,prep_cohort,sample_tissue_descriptor,subject_collaborator_patient_id,cancer_type"
PROCAN = f"""{_NAMES},P37108,Q96JP5-2,A0A024RBG1,Q8N697;P36578
LIMS-1,E0008-P01,Malignant,Anna,Breast_carcinoma,5.5,3.25,,6.75
LIMS-2,E0008-P01,Normal,Anna,Breast_carcinoma,4.5,,5.5,5.25
LIMS-3,E0006-P02,Malignant,Bert,Leiomyosarcoma,5.75,4,2.5,6.25
LIMS-4,E0006-P02,Malignant,,Liposarcoma,1,2,3,4
"""
NAMED = PROCAN.replace("Malignant,,", "Malignant,Cara,")


def refused(kind: str, path: Path, metadata: Path | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        convert(kind, path, metadata)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_procan_tells_proteins_from_metadata(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(PROCAN)
    made = convert("procan", path)
    assert list(made.var_names) == ["P37108", "Q96JP5-2", "A0A024RBG1", "Q8N697;P36578"]
    np.testing.assert_array_equal(made.X[0], np.array([5.5, 3.25, np.nan, 6.75], dtype=np.float32))
    assert np.isnan(made.X).sum() == 2  # a gap stays a gap
    assert made.obs["cancer_type"].tolist() == ["Breast_carcinoma", "Normal", "Leiomyosarcoma", "Liposarcoma"]
    assert made.obs["cohort"].tolist() == ["E0008-P01", "E0008-P01", "E0006-P02", "E0006-P02"]
    assert made.obs["patient"].tolist()[:2] == ["0", "0"]  # one woman's tumour and normal sample
    said = made.obs.to_csv() + ",".join(made.obs_names)
    assert not {name for name in ("Anna", "Bert", "LIMS") if name in said}


def test_procan_metadata_in_a_table_of_its_own(tmp_path: Path) -> None:
    whole = pd.read_csv(pd.io.common.StringIO(PROCAN), index_col=0)
    matrix, about = tmp_path / "matrix.csv", tmp_path / "about.tsv"
    whole.iloc[:, 4:].to_csv(matrix)
    whole.iloc[::-1, :4].to_csv(about, sep="\t")  # in another order
    made = convert("procan", matrix, about)
    assert made.obs["cancer_type"].tolist() == ["Breast_carcinoma", "Normal", "Leiomyosarcoma", "Liposarcoma"]
    assert "give --metadata" in refused("procan", matrix)
    whole.iloc[1:, :4].to_csv(about, sep="\t")
    assert "knows nothing of 1 of the 4 samples" in refused("procan", matrix, about)


def test_other_layouts_than_procan(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text("sample,TP53,BRCA1\na,1,2\nb,3,4\n")
    assert "UniProt accessions" in refused("procan", path)
    path.write_text(PROCAN.replace("LIMS-2", "LIMS-1"))
    assert "names 1 samples twice" in refused("procan", path)
    path.write_text(PROCAN.replace("5.5,3.25", "high,3.25"))
    assert "another layout than procan" in refused("procan", path)
    assert "there is no file" in refused("procan", tmp_path / "absent.csv")


def processed(folder: Path, conditions: list[str] | None = None) -> Path:
    conditions = conditions or ["ctrl", "KLF1+ctrl", "CEBPA+KLF1", "CEBPA+ctrl", "SET+ctrl", "FOXA1+ctrl"]
    names = [name for name in conditions for _ in range(10)]
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(np.log1p(rng.poisson(2, (len(names), 8))).astype(np.float32))
    obs = pd.DataFrame(
        {"condition": names, "cell_type": "K562", "dose_val": "1+1", "control": 0, "condition_name": [f"K562_{n}_1+1" for n in names]},
        index=[f"AAACCTG-{i}" for i in range(len(names))],
    )
    obs["condition"] = obs["condition"].astype("category")
    genes = pd.DataFrame({"gene_name": [f"GENE{i}" for i in range(8)]}, index=[f"ENSG0000{i}" for i in range(8)])
    data = anndata.AnnData(x, obs=obs, var=genes)
    data.uns["rank_genes_groups_cov_all"] = {"K562_KLF1+ctrl_1+1": np.array(["ENSG00001"])}
    path = folder / "perturb_processed.h5ad"
    data.write_h5ad(path)
    return path


def test_gears_processed_cells_are_a_perturbation_cohort(tmp_path: Path) -> None:
    path = processed(tmp_path)
    made = convert("gears", tmp_path)  # the folder that GEARS makes
    assert list(made.var_names) == [f"GENE{i}" for i in range(8)]
    np.testing.assert_allclose(made.X.toarray(), anndata.read_h5ad(path).X.toarray())
    assert list(made.obs.columns) == ["condition", "cell_type"]
    made.write_h5ad(tmp_path / "made.h5ad")
    cohort = Perturbation().cohort(DataSpec(path=str(tmp_path / "made.h5ad"), label="condition", site="cell_type", transform="none"))
    assert len(cohort) == 50  # controls are reference
    assert "CEBPA+KLF1 in K562" in cohort.classes


def test_other_layouts_than_gears(tmp_path: Path) -> None:
    path = processed(tmp_path, ["KLF1+ctrl", "SET+ctrl"])
    assert "no cells of the condition 'ctrl'" in refused("gears", path)
    data = anndata.read_h5ad(path)
    del data.var["gene_name"]
    del data.obs["cell_type"]
    data.write_h5ad(path)
    assert "lacks obs['cell_type'] and var['gene_name']" in refused("gears", path)
    path.write_bytes(b"no HDF5")
    assert "another layout than gears" in refused("gears", path)
    assert "there is no file" in refused("gears", tmp_path / "absent")


def tenx(folder: Path, cells: int, genes: list[str], seed: int, *, zipped: bool = True) -> np.ndarray:
    folder.mkdir(parents=True)
    counts = np.random.default_rng(seed).poisson(3, (cells, len(genes)))
    counts[:, 1] = 4  # a gene that does not vary
    files = {
        "features.tsv": "".join(f"ENSG{i}\t{gene}\tGene Expression\n" for i, gene in enumerate(genes)).encode(),
        "barcodes.tsv": "".join(f"AAAC{i}-1\n" for i in range(cells)).encode(),
    }
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(counts.T))
    files["matrix.mtx"] = (folder / "matrix.mtx").read_bytes()
    (folder / "matrix.mtx").unlink()
    for name, body in files.items():
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(body) if zipped else body)
    return counts


GENES = ["YWHAB", "FLAT", "GAPDH", "ACTB", "GAPDH", "VWF"]


def huvec(folder: Path) -> dict[str, np.ndarray]:
    others = GENES[::-1]  # another order, and one gene that the control lacks
    return {
        name: tenx(folder / name, 6 + i, GENES if name == "SCR" else [*others, "ONLY"], i, zipped=i % 2 == 0)
        for i, name in enumerate(("SCR", "Sh-B", "Sh-E", "Sh-H"))
    }


def test_huvec_folders_become_one_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = huvec(tmp_path)
    monkeypatch.setattr(published_files, "GENES", 4)
    made = convert("huvec", tmp_path)
    assert made.obs["condition"].value_counts().to_dict() == {"ctrl": 6, "YWHAB+ctrl": 7, "YWHAE+ctrl": 8, "YWHAH+ctrl": 9}
    assert set(made.obs["cell_type"]) == {"HUVEC"}
    assert set(made.var_names) <= {"YWHAB", "GAPDH", "ACTB", "VWF", "FLAT"}
    for gene, column in (("YWHAB", 5), ("VWF", 0)):
        np.testing.assert_array_equal(made[made.obs["condition"] == "YWHAE+ctrl", gene].X.toarray().ravel(), counts["Sh-E"][:, column])
    assert not [name for name in made.obs_names if "AAAC" in name]


def test_genes_are_chosen_on_control_cells_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_files, "GENES", 3)
    huvec(tmp_path / "a")
    before = list(convert("huvec", tmp_path / "a").var_names)
    huvec(tmp_path / "b")
    for name in ("matrix.mtx", "matrix.mtx.gz"):
        wild = tmp_path / "b" / "Sh-H" / name
        if wild.exists():
            wild.unlink()
    io.mmwrite(tmp_path / "b" / "Sh-H" / "matrix.mtx", sparse.coo_matrix(np.random.default_rng(9).poisson(500, (7, 9))))
    assert list(convert("huvec", tmp_path / "b").var_names) == before


def test_the_converted_knock_downs_run_by_the_suite_in_the_docs(tmp_path: Path) -> None:
    for i, name in enumerate(("SCR", "Sh-B", "Sh-E", "Sh-H")):
        tenx(tmp_path / "given" / name, 40 + i, [f"GENE{gene}" for gene in range(30)], i)
    out = tmp_path / "huvec.h5ad"
    convert("huvec", tmp_path / "given").write_h5ad(out)
    own = Path(__file__).parents[3] / "docs" / "huvec.yaml"
    asked = api.request(own, data=str(out), label="condition", seeds=1, out=tmp_path / "out").plan
    found = rehearse(asked)
    assert found.unread == []
    assert len(found.trainings) == 5  # every defense trains on it
    held_out = api.request(
        "perturbation", data=str(out), label="condition", site="cell_type", seeds=1, defenses=["fedavg"], out=tmp_path
    ).plan
    with pytest.raises(RequestError, match=r"too few perturbations in a cell line \(3\) for a validation part.*unit: record"):
        rehearse(held_out)


def test_other_layouts_than_huvec(tmp_path: Path) -> None:
    huvec(tmp_path)
    (tmp_path / "Sh-B" / "barcodes.tsv").write_text("one\n")
    assert "does not fit 7 genes and 1 barcodes" in refused("huvec", tmp_path)
    (tmp_path / "Sh-B" / "barcodes.tsv").unlink()
    assert "holds no barcodes.tsv(.gz)" in refused("huvec", tmp_path)
    assert "there is no folder" in refused("huvec", tmp_path / "absent")


def test_the_command_writes_whole_or_not_at_all(tmp_path: Path) -> None:
    path, out = tmp_path / "matrix.csv", tmp_path / "made.h5ad"
    path.write_text(PROCAN.replace("Leiomyosarcoma", "Breast_carcinoma").replace("Liposarcoma", "Normal"))
    said = infl_bench("data", "convert", "procan", path, "--out", out)
    assert said.returncode == 0, said.stderr
    assert "4 records x 4 features" in said.stdout
    cohort = load(DataSpec(path=str(out), label="cancer_type", person="patient", missing="impute"))
    assert cohort.classes == ("Breast_carcinoma", "Normal")
    complains(infl_bench("data", "convert", "procann", path, "--out", tmp_path / "no.h5ad"), "did you mean 'procan'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made.h5ad", "matrix.csv"]


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("kept", "row"), [("LIMS-3,E0006-P02,Malignant,Bert,Leio", 4), ("LIMS-1,E0008-P01,Malig", 2)])
def test_a_table_that_breaks_off_within_a_row(tmp_path: Path, kept: str, row: int, zipped: bool) -> None:
    path, out = tmp_path / ("matrix.csv.gz" if zipped else "matrix.csv"), tmp_path / "made.h5ad"
    body = PROCAN[: PROCAN.index(kept) + len(kept)].encode()
    path.write_bytes(gzip.compress(body) if zipped else body)
    said = refused("procan", path)
    assert f"row {row} has {kept.count(',') + 1} fields where the header has 9" in said
    if not zipped:
        complains(infl_bench("data", "convert", "procan", path, "--out", out), "is cut short or damaged")
        assert listed(tmp_path) == ["matrix.csv"]


def test_a_table_without_a_last_line_break_is_read_and_that_is_said(tmp_path: Path) -> None:
    path, said = tmp_path / "matrix.csv", list[str]()
    for body in (NAMED, NAMED + "\n"):
        path.write_text(body)
        assert convert("procan", path, say=said.append).n_obs == 4
    assert said == []
    path.write_text(NAMED.rstrip("\n"))
    assert convert("procan", path, say=said.append).X[3, 3] == 4
    assert len(said) == 1
    assert "its very last value" in said[0]
    path.write_text(NAMED.replace("Bert", '"Bert, the\nsecond"'))  # a line break within quotes ends no row
    assert convert("procan", path).n_obs == 4


def test_a_sample_without_a_patient_is_a_person_of_its_own(tmp_path: Path) -> None:
    path, said = tmp_path / "matrix.csv", list[str]()
    path.write_text(PROCAN + "LIMS-5,E0006-P02,Malignant,,Liposarcoma,1,2,3,5\nLIMS-6,E0006-P02,Normal,Bert,Liposarcoma,1,2,3,6\n")
    assert convert("procan", path, say=said.append).obs["patient"].tolist() == ["0", "0", "1", "2", "3", "1"]
    assert len(said) == 1
    assert "no patient for 2 of 6 samples" in said[0]
    path.write_text(PROCAN.replace("Anna", "").replace("Bert", ""))
    assert convert("procan", path).obs["patient"].tolist() == ["0", "1", "2", "3"]  # nobody is named


def test_samples_of_which_none_has_a_cancer(tmp_path: Path) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(PROCAN.replace("Breast_carcinoma", "").replace("Leiomyosarcoma", "").replace("Liposarcoma", "").replace("Normal", ""))
    assert "no sample has a 'cancer_type'" in refused("procan", path)


def test_the_target_is_a_file_of_its_own(tmp_path: Path) -> None:
    path, folder = tmp_path / "matrix.csv", tmp_path / "folder"
    path.write_text(PROCAN)
    folder.mkdir()
    (tmp_path / "link.h5ad").symlink_to(path)
    for out, said in ((folder, "is a folder"), (path, "is the file that is read"), (tmp_path / "link.h5ad", "is the file that is read")):
        complains(infl_bench("data", "convert", "procan", path, "--out", out), said)
    complains(infl_bench("data", "convert", "procan", path, "--out", tmp_path / "no" / "made.h5ad"), "is not there; make")
    assert path.read_text() == PROCAN
    assert listed(tmp_path) == ["folder", "link.h5ad", "matrix.csv"]
    assert listed(folder) == []
    processed(folder)
    before = (folder / "perturb_processed.h5ad").read_bytes()
    complains(infl_bench("data", "convert", "gears", folder, "--out", folder / "perturb_processed.h5ad"), "is the file that is read")
    assert (folder / "perturb_processed.h5ad").read_bytes() == before


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: HDF5 that writes into one may end the process."""
    path, out = tmp_path / "matrix.csv", tmp_path / "made.h5ad"
    path.write_text(NAMED)
    said = subprocess.run(
        [
            "bash",
            "-c",
            'ulimit -f 4; exec "$@"',
            "bash",
            sys.executable,
            "-m",
            "suites.cli",
            "data",
            "convert",
            "procan",
            path,
            "--out",
            out,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    complains(said, "cannot be written")
    assert listed(tmp_path) == ["matrix.csv"]
