"""Original files to AnnData, one function a cohort; whatever is done to the data beyond reading is said in its docstring.

A layout that is not the expected one raises ``RequestError``. Sample and patient names become numbers: they are needed to tell
records apart, and never to be printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from suites.errors import RequestError

Files = Mapping[str, Path]  # by file name
MOST_MISSING = 0.1  # of a gene's values, in any of the CPTAC tables

# The TotalSeq-B panel in the order of the file's columns (10x Genomics, 10k PBMC protein kit).
_PANEL = ("CD3", "CD4", "CD8a", "CD14", "CD15", "CD16", "CD56", "CD19", "CD25", "CD45RA", "CD45RO", "PD-1", "TIGIT", "CD127")


def parse(name: str, files: Files) -> anndata.AnnData:
    """The AnnData of a cohort from its original files."""
    parsers: dict[str, Callable[[Files], anndata.AnnData]] = {
        "cptac": cptac,
        "norman_mcfaline": norman_mcfaline,
        "pbmc10k_citeseq": pbmc10k_citeseq,
        "lymph_node_adt": lymph_node_adt,
        "osmfish": osmfish,
    }
    try:
        return parsers[name](files)
    except (KeyError, ValueError, IndexError, OSError, AttributeError, EOFError) as error:
        if isinstance(error, RequestError):
            raise
        detail = " ".join(str(error).split())[:120]
        raise RequestError(
            f"the files of {name} have another layout than expected ({type(error).__name__}: {detail}); fetch the pinned ones"
        ) from error


def cptac(files: Files) -> anndata.AnnData:
    """Three CPTAC proteomes as published (log-ratios to a reference, one scale per study), over the genes they share.

    Kept: genes that miss at most a tenth of the values in each of the four tables; of several proteins of a gene (breast), the one
    with the fewest gaps. Endometrial samples that the study excluded are left out. Nothing is imputed.
    """
    breast, breast_obs = _breast(files["prosp-brca-v5.4-public-proteome-ratio-norm-NArm.gct.gz"])
    womb, womb_obs = _womb(files["endometrial_proteomics.cct.gz"], files["endometrial_clinical.txt"])
    tumour = _matrix(files["colon_proteomics_tumor.cct.gz"])
    normal = _matrix(files["colon_proteomics_normal.cct.gz"])
    clinical = pd.read_csv(files["colon_clinical.tsi.gz"], sep="\t", index_col=0, dtype=str, keep_default_na=False)
    phenotype = clinical.loc["Mutation_Phenotype"].to_dict()
    colon_obs = pd.DataFrame(
        {
            "cohort": "COAD",
            "tumor_normal": ["Tumor"] * tumour.shape[1] + ["Normal"] * normal.shape[1],
            "subtype": [f"MSI.{phenotype[s]}" if phenotype.get(s, "NA") != "NA" else None for s in tumour.columns]
            + [None] * normal.shape[1],
            "batch": "COAD",
            "patient": ["COAD " + s for s in tumour.columns] + ["COAD " + s.removesuffix("N") for s in normal.columns],
        }
    )
    tables = [breast, tumour, normal, womb]
    genes = set(breast.index)
    for table in tables:
        genes &= set(table.index[table.isna().mean(axis=1) <= MOST_MISSING])
    chosen = sorted(genes)
    obs = pd.concat([breast_obs, colon_obs, womb_obs], ignore_index=True)
    obs["cancer_class"] = obs["cohort"] + "_" + obs["tumor_normal"]
    obs["patient"] = pd.factorize(obs["patient"])[0]
    obs.index = pd.Index([f"sample {i}" for i in range(len(obs))])
    x = np.vstack([table.loc[chosen].to_numpy(dtype=np.float32).T for table in tables])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(chosen)))


def _matrix(path: Path) -> pd.DataFrame:
    """A .cct table: genes in rows, samples in columns, NA where missing."""
    table = pd.read_csv(path, sep="\t", index_col=0, na_values=["NA"]).astype(np.float32)
    if not table.size:
        raise RequestError(f"{path} holds no table of genes by samples, separated by tabs; fetch the pinned file")
    return table


def _breast(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A GCT 1.3 file: two counts lines, then one header, annotation rows and data rows in one table."""
    sizes = pd.read_csv(path, sep="\t", skiprows=1, nrows=1, header=None)
    rows, samples, row_fields, column_fields = (int(v) for v in sizes.iloc[0, :4])
    table = pd.read_csv(path, sep="\t", skiprows=2, dtype=str, keep_default_na=False, index_col=0)
    if table.shape != (rows + column_fields, row_fields + samples):
        raise RequestError(f"{path} announces {rows} proteins and {samples} samples but holds others; fetch the pinned file")
    about = table.iloc[:column_fields, row_fields:]
    values = table.iloc[column_fields:, row_fields:].replace("NA", np.nan).astype(np.float32)
    gaps = values.isna().sum(axis=1).to_numpy()
    gene = table["geneSymbol"].iloc[column_fields:].to_numpy()
    order = np.argsort(gaps, kind="stable")
    _, first = np.unique(gene[order], return_index=True)
    best = np.sort(order[first])
    kept = pd.DataFrame(values.to_numpy()[best], index=gene[best], columns=values.columns)
    pam50 = about.loc["PAM50"]
    obs = pd.DataFrame(
        {
            "cohort": "BRCA",
            "tumor_normal": "Tumor",
            "subtype": [f"PAM50.{v}" if v not in {"NA", "unknown"} else None for v in pam50],
            "batch": ["BRCA " + str(v).partition("|")[0] for v in about.loc["TMT.Plex"]],  # a replicate's later plexes come after the bar
            "patient": ["BRCA " + str(s).partition(".REP")[0] for s in values.columns],
        }
    )
    return kept, obs


def _womb(path: Path, clinical: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    about = pd.read_csv(clinical, sep="\t", index_col=0, dtype=str, keep_default_na=False, encoding="cp1252")
    table = _matrix(path)
    about = about.loc[table.columns]
    about = about[about["Case_excluded"] == "No"]
    cancer = about["Proteomics_Tumor_Normal"] == "Tumor"
    obs = pd.DataFrame(
        {
            "cohort": "UCEC",
            "tumor_normal": np.where(cancer, "Tumor", "Normal"),
            "subtype": [f"UCEC.{v}" if c and v != "NA" else None for v, c in zip(about["Genomics_subtype"], cancer)],
            "batch": "UCEC " + about["Proteomics_TMT_batch"].to_numpy(),
            "patient": "UCEC " + about["Proteomics_Participant_ID"].to_numpy(),
        }
    )
    return table[about.index], obs


def norman_mcfaline(files: Files) -> anndata.AnnData:
    """Perturb-seq cells as distributed by perturbench: log-normalised, 500 genes, single and double perturbations and controls."""
    data: anndata.AnnData = anndata.read_h5ad(files["devel.h5ad"])
    wanted = ["condition", "cell_type", "dataset", "perturbation_type"]
    obs = data.obs[wanted].copy()
    obs.index = pd.Index([f"cell {i}" for i in range(len(obs))])
    return anndata.AnnData(sparse.csr_matrix(data.X, dtype=np.float32), obs=obs, var=pd.DataFrame(index=data.var_names))


def pbmc10k_citeseq(files: Files) -> anndata.AnnData:
    """RNA counts of 1,000 genes (unnamed in the file) and counts of 14 surface proteins in the same cells; labels Y1 to Y7."""
    with h5py.File(files["10XPBMC_filtered_1000G.H5"]) as file:
        rna, protein, label = file["X1"][()], file["X2"][()], file["Y"][()]
    if len({len(rna), len(protein), len(label)}) != 1 or protein.shape[1] != len(_PANEL):
        raise RequestError("10XPBMC_filtered_1000G.H5 does not hold RNA, 14 proteins and a label for the same cells; fetch the pinned file")
    obs = pd.DataFrame({"label": [f"Y{int(v)}" for v in label]}, index=[f"cell {i}" for i in range(len(label))])
    data = anndata.AnnData(
        sparse.csr_matrix(rna, dtype=np.float32), obs=obs, var=pd.DataFrame(index=[f"gene {i + 1}" for i in range(rna.shape[1])])
    )
    data.obsm["protein"] = protein.astype(np.float32)
    data.uns["protein_names"] = np.array(_PANEL, dtype=object)
    return data


def lymph_node_adt(files: Files) -> anndata.AnnData:
    """Counts of 31 surface proteins at the spots of two sections; two spellings of an annotation in one section are made one."""
    parts: list[anndata.AnnData] = [anndata.read_h5ad(files[f"{section}_adata_adt.h5ad"]) for section in ("s1", "s2")]
    if list(parts[0].var_names) != list(parts[1].var_names):
        raise RequestError("the two lymph node sections do not measure the same proteins; fetch the pinned files")
    annotation = [str(v).replace("medulla vessels", "medulla vessel") for part in parts for v in part.obs["final_annot"]]
    section = [name for name, part in zip(("s1", "s2"), parts) for _ in range(part.n_obs)]
    obs = pd.DataFrame({"annotation": annotation, "section": section}, index=[f"spot {i}" for i in range(len(section))])
    x = sparse.vstack([sparse.csr_matrix(part.X, dtype=np.float32) for part in parts], format="csr")
    data = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=parts[0].var_names))
    data.obsm["spatial"] = np.vstack([np.asarray(part.obsm["spatial"], dtype=np.float32) for part in parts])
    return data


def osmfish(files: Files) -> anndata.AnnData:
    """Molecule counts of 33 genes in cells of the mouse cortex; cells that the study marks as not valid are left out."""

    def text(values: Any) -> list[str]:
        return [v.decode() if isinstance(v, bytes) else str(v) for v in values]

    with h5py.File(files["osmFISH_SScortex_mouse_all_cells.loom"]) as file:
        cells, genes = file["col_attrs"], text(file["row_attrs/Gene"][()])
        valid = cells["Valid"][()] == 1
        x = file["matrix"][()].T[valid]
        obs = pd.DataFrame({"region": text(cells["Region"][()][valid]), "cell_type": text(cells["ClusterName"][()][valid])})
        place = np.column_stack([cells["X"][()], cells["Y"][()]])[valid]
    obs.index = pd.Index([f"cell {i}" for i in range(len(obs))])
    data = anndata.AnnData(sparse.csr_matrix(x, dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))
    data.obsm["spatial"] = place.astype(np.float32)
    return data
