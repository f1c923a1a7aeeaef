"""The files of the published evaluation's own cohorts, in the layouts in which they are given out, to AnnData.

None of them can be shipped or pinned here (the ProCan matrix comes with PRIDE PXD056810, the processed Perturb-seq files from Dataverse by
way of GEARS, the HUVEC set as figshare 30763670, CC BY 4.0). ``infl-bench data convert KIND PATH`` reads what a user holds. Names of
samples, cells and patients become numbers. Whatever chooses features looks at nothing but what a task takes as public.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import io, sparse

from suites.cohorts.multiome import multiome
from suites.errors import RequestError, did_you_mean

# An accession (https://www.uniprot.org/help/accession_numbers), with an isoform, or several of a group.
_ACCESSION = re.compile(r"^([OPQ]\d[A-Z\d]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z\d]{2}\d){1,2})(-\d+)?([;,].*)?$")
_PATIENT = "subject_collaborator_patient_id"
_CANCER = ("cancer_type", "cancer_type_2")
KNOCKED = {"SCR": "ctrl", "Sh-B": "YWHAB+ctrl", "Sh-E": "YWHAE+ctrl", "Sh-H": "YWHAH+ctrl"}
GEARS = "perturb_processed.h5ad"
GENES = 5000  # as the published evaluation keeps of the HUVEC set
Say = Callable[[str], None]


def convert(kind: str, path: Path, metadata: Path | None = None, say: Say = lambda line: None) -> anndata.AnnData:
    """The AnnData of a published cohort's files; ``RequestError`` in one sentence where they have another layout.

    ``say`` is told what a file leaves open.
    """
    readers: dict[str, Callable[[], anndata.AnnData]] = {
        "procan": lambda: procan(path, metadata, say),
        "gears": lambda: gears(path),
        "huvec": lambda: huvec(path),
        "multiome": lambda: multiome(path, metadata),
    }
    if kind not in readers:
        raise RequestError(f"there is no layout '{kind}'{did_you_mean(kind, readers)}")
    if metadata is not None and kind not in ("procan", "multiome"):
        raise RequestError(f"a {kind} file says itself what its cells are; leave --metadata out")
    try:
        return readers[kind]()
    except RequestError:
        raise
    except (KeyError, ValueError, IndexError, OSError, AttributeError, EOFError, TypeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise RequestError(
            f"{path} has another layout than {kind} ({type(error).__name__}: {detail}); see `infl-bench data convert --help`"
        ) from error


def procan(path: Path, metadata: Path | None = None, say: Say = lambda line: None) -> anndata.AnnData:
    """The ProCan compendium: samples in rows, named in the first column; UniProt accessions name proteins, other columns are metadata.

    Log2 intensities; a gap stays a gap (the published runs put 0 there). ``obs``: ``cancer_type`` (published classes: the cancer type of
    malignant samples, "Normal" for normal tissue), and ``cohort`` and ``patient`` where the metadata tells. ``metadata`` is a second table
    with the same first column, where the matrix has none.
    """
    table = _table(path, say)
    proteins = [name for name in table.columns if _ACCESSION.match(str(name))]
    if len(proteins) < 2:
        raise RequestError(
            f"{path} has no columns that are UniProt accessions (P37108, Q96JP5 …), so no proteins are found; give the protein matrix"
        )
    about = table.drop(columns=proteins)
    if metadata is not None:
        other = _table(metadata, say)
        missing = int((~table.index.isin(other.index)).sum())
        if missing:
            raise RequestError(
                f"{metadata} knows nothing of {missing} of the {len(table)} samples in {path}; give the table of the same samples"
            )
        about = other.loc[table.index]
    label = next((name for name in _CANCER if name in about), None)
    if label is None:
        raise RequestError(
            f"{path if metadata is None else metadata} has no column {' or '.join(_CANCER)}, so the samples' cancers are unknown; "
            "give --metadata"
        )
    cancer = about[label].astype(object).where(about[label].notna(), None)
    if "sample_tissue_descriptor" in about:
        cancer[about["sample_tissue_descriptor"] == "Normal"] = "Normal"
    if cancer.isna().all():
        raise RequestError(
            f"{path}: no sample has a '{label}', so there is nothing to tell apart; give the table that says it (--metadata)"
        )
    obs = pd.DataFrame({"cancer_type": cancer.to_numpy()})
    if "prep_cohort" in about:
        obs["cohort"] = about["prep_cohort"].to_numpy()
    if _PATIENT in about:
        obs["patient"] = _persons(about[_PATIENT], path if metadata is None else metadata, say)
    obs.index = pd.Index([f"sample {i}" for i in range(len(obs))])
    x = table[proteins].to_numpy(dtype=np.float32)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(proteins)))


def _persons(patients: pd.Series, path: Path, say: Say) -> np.ndarray:
    """Patients as numbers; a sample that names none is a person of its own, since all such samples together would be one of many."""
    codes = pd.factorize(patients)[0]
    unnamed = codes < 0
    if unnamed.any():
        say(
            f"{path} names no patient for {unnamed.sum()} of {len(codes)} samples; each counts as a person of its own, so that two of one "
            "patient could lie in training and test"
        )
    codes[unnamed] = codes.max() + 1 + np.arange(unnamed.sum())
    return codes.astype(str)


def _table(path: Path, say: Say) -> pd.DataFrame:
    """A comma- or tab-separated table with names of samples in its first column, each once."""
    if not path.is_file():
        raise RequestError(f"there is no file {path}; check the path")
    separator = "\t" if path.name.removesuffix(".gz").endswith((".tsv", ".txt")) else ","
    _whole(path, separator, say)
    table = pd.read_csv(path, sep=separator, index_col=0, low_memory=False)
    if table.index.has_duplicates:
        again = int(table.index.duplicated().sum())
        raise RequestError(
            f"{path} names {again} samples twice in its first column, so that they cannot be told apart; average the replicates"
        )
    return table


def _whole(path: Path, separator: str, say: Say) -> None:
    """RequestError where a row has fewer fields than the header, as where a download broke off; short rows would be read as gaps.

    A file that broke off within its last field has all of them, and so has a whole one without a last line break: that is said.
    """
    last = "\n"

    def lines() -> Iterator[str]:
        nonlocal last
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="replace", newline="") as file:
            for line in file:
                last = line
                yield line

    wide = 0
    for number, row in enumerate(csv.reader(lines(), delimiter=separator), 1):
        wide = wide or len(row)
        if row and len(row) < wide:
            raise RequestError(
                f"{path}: row {number} has {len(row)} fields where the header has {wide}, so the file is cut short or damaged there; copy "
                "or download it again"
            )
    if not last.endswith("\n"):
        say(
            f"{path} ends without a line break: if it was cut short there, its very last value is wrong; compare its size with the source's"
        )


def gears(path: Path) -> anndata.AnnData:
    """``perturb_processed.h5ad`` as GEARS gives out Norman 2019 and Adamson 2016 (or the folder that holds it): log-normalised cells.

    ``obs`` keeps ``condition`` ("ctrl", "KLF1+ctrl", "CEBPA+KLF1") and ``cell_type``; genes are named by ``var["gene_name"]``.
    """
    file = path / GEARS if path.is_dir() else path
    if not file.is_file():
        raise RequestError(f"there is no file {file}; give GEARS' perturb_processed.h5ad or the folder that holds it")
    held = anndata.read_h5ad(file)
    lacking = [f"obs['{name}']" for name in ("condition", "cell_type") if name not in held.obs]
    lacking += [] if "gene_name" in held.var else ["var['gene_name']"]
    if lacking:
        raise RequestError(f"{file} lacks {' and '.join(lacking)}, so it is no file that GEARS processed; run its new_data_process first")
    if "ctrl" not in set(held.obs["condition"].astype(str)):
        raise RequestError(
            f"{file} holds no cells of the condition 'ctrl', so no change can be told; give the processed file with its controls"
        )
    return _cells(sparse.csr_matrix(held.X, dtype=np.float32), held.obs[["condition", "cell_type"]], held.var["gene_name"].astype(str))


def huvec(path: Path) -> anndata.AnnData:
    """The HUVEC knock-downs: one folder each for SCR (control), Sh-B, Sh-E and Sh-H, with 10x's matrix, features and barcodes.

    Counts of the genes that all four folders list. Kept are the ``GENES`` whose log counts per 10,000 vary most among control cells, which
    the task takes as public.
    """
    parts, names = [], []
    for folder in KNOCKED:
        counts, genes = _tenx(path / folder)
        parts.append(counts)
        names.append(genes)
    shared = set(names[0]).intersection(*names[1:])
    order = [gene for gene in dict.fromkeys(names[0]) if gene in shared]
    if not order:
        raise RequestError(f"the four folders of {path} share no gene, so they are not one experiment; give the folder as it was unpacked")
    chosen = []
    for part, own in zip(parts, names):
        first = {gene: i for i, gene in reversed(list(enumerate(own)))}  # symbols repeat: the first, as in the others
        chosen.append(part[:, [first[gene] for gene in order]])
    control = chosen[0].astype(np.float64)
    scale = sparse.diags(1e4 / np.maximum(np.asarray(control.sum(1)).ravel(), 1.0))
    logs = (scale @ control).log1p()
    spread = np.asarray(logs.power(2).mean(0)).ravel() - np.asarray(logs.mean(0)).ravel() ** 2
    kept = np.sort(np.argsort(-spread, kind="stable")[:GENES])
    kept = kept[spread[kept] > 0]
    condition = [name for folder, part in zip(KNOCKED, chosen) for name in [KNOCKED[folder]] * part.shape[0]]
    obs = pd.DataFrame({"condition": condition, "cell_type": "HUVEC"})
    return _cells(sparse.vstack(chosen, format="csr")[:, kept], obs, pd.Series([order[i] for i in kept]))


def _tenx(folder: Path) -> tuple[sparse.csr_matrix, list[str]]:
    """Counts [cells, genes] and gene symbols of one 10x folder, its files gzipped or not."""
    if not folder.is_dir():
        raise RequestError(f"there is no folder {folder}; the HUVEC set has one each for {', '.join(KNOCKED)}")

    def find(stem: str) -> Path:
        found = next((folder / name for name in (stem, f"{stem}.gz") if (folder / name).is_file()), None)
        if found is None:
            raise RequestError(f"{folder} holds no {stem}(.gz); a 10x folder has matrix.mtx, features.tsv and barcodes.tsv")
        return found

    matrix, features, barcodes = find("matrix.mtx"), find("features.tsv"), find("barcodes.tsv")
    genes = pd.read_csv(features, sep="\t", header=None, dtype=str).iloc[:, 1].tolist()
    cells = len(pd.read_csv(barcodes, sep="\t", header=None, dtype=str))
    counts = sparse.csr_matrix(io.mmread(matrix).T, dtype=np.float32)
    if counts.shape != (cells, len(genes)):
        raise RequestError(
            f"{folder}: a matrix of {counts.shape[1]} genes by {counts.shape[0]} cells does not fit {len(genes)} genes and {cells} "
            "barcodes; unpack it again"
        )
    return counts, genes


def _cells(x: sparse.csr_matrix, obs: pd.DataFrame, genes: pd.Series) -> anndata.AnnData:
    obs = obs.astype(str).reset_index(drop=True)
    obs.index = pd.Index([f"cell {i}" for i in range(len(obs))])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(genes.to_numpy())))
