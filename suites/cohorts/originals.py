"""The original files of downloadable cohorts: pinned by commit, size and SHA-256, so that everybody parses the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

_RAW = "https://raw.githubusercontent.com"
_CPTAC_BRCA = f"{_RAW}/PayneLab/cptac/b1bf44dbcf31d107eafbb68466c0b78a6d64dd62/cptac/data/data_awg_brca/awg_brca_v5.4"
_CPTAC = f"{_RAW}/PayneLab/cptac/07961fc4962e147e05d63378c9259fbb864fcf24/cptac"
_LYMPH = f"{_RAW}/JinmiaoChenLab/SpaMosaic/4a6fe70ee06a47a7d355fbe7518bc93236cfe1fc/data/integration/Human_lymph_node"


@dataclass(frozen=True, slots=True)
class Original:
    """One file: ``file`` is its path in the cache and in a mirror folder."""

    file: str
    url: str
    size: int  # bytes
    sha256: str


ORIGINALS: dict[str, tuple[Original, ...]] = {
    "cptac": (
        Original(
            "cptac/prosp-brca-v5.4-public-proteome-ratio-norm-NArm.gct.gz",
            f"{_CPTAC_BRCA}/prosp-brca-v5.4-public-proteome-ratio-norm-NArm.gct.gz",
            4068947,
            "16467daa8878fa59d4ff5539795980fb6804125befaa35b3d846c926d162bee6",
        ),
        Original(
            "cptac/endometrial_proteomics.cct.gz",
            f"{_CPTAC}/data_endometrial/proteomics.cct.gz",
            3347082,
            "ff705500be53fe74631f6f838ebd1d0439dd6d858ee8e8d0eed3e306babe5802",
        ),
        Original(
            "cptac/endometrial_clinical.txt",
            f"{_CPTAC}/data_endometrial/clinical.txt",
            220445,
            "ca9e8317f60948941156afaa4208db3b6d8f2b82999046596ca86e3df07c5f8c",
        ),
        Original(
            "cptac/colon_proteomics_tumor.cct.gz",
            f"{_CPTAC}/data_colon/proteomics_tumor.cct.gz",
            1462905,
            "7d9081a27c9b45f5545a7ea864f36b87882246e507a97e676b134501eeb45f82",
        ),
        Original(
            "cptac/colon_proteomics_normal.cct.gz",
            f"{_CPTAC}/data_colon/proteomics_normal.cct.gz",
            1483879,
            "da48d3f3d61dd29df16f03c16a1fad5dced8417925fc6d8110495c0854a1df37",
        ),
        Original(
            "cptac/colon_clinical.tsi.gz",
            f"{_CPTAC}/data_colon/clinical.tsi.gz",
            4535,
            "db783e273254a8997bf3c718f0f3bab6ec8c65b9cabfcc8778fd69c8ce12247c",
        ),
    ),
    "norman_mcfaline": (
        Original(
            "perturbench/devel.h5ad",
            f"{_RAW}/altoslabs/perturbench/d357dfae3b50968e800e9f5f273ff145080ae67c/src/perturbench/data/resources/devel.h5ad",
            1142678,
            "220998f5630c813228c8661c86dd52244b9ac87127511289af90e0d900d8429b",
        ),
    ),
    "pbmc10k_citeseq": (
        Original(
            "scmdc/10XPBMC_filtered_1000G.H5",
            f"{_RAW}/xianglin226/scMDC/5f354593220d3e583fdc44dd019f55b5e090bff3/datasets/10XPBMC_filtered_1000G.H5",
            2175067,
            "44eba814cf417e3154790c6867405e73825aec986ca7191fdb96ef90a0165bf7",
        ),
    ),
    "lymph_node_adt": (
        Original(
            "spamosaic/s1_adata_adt.h5ad",
            f"{_LYMPH}/slice1/s1_adata_adt.h5ad",
            1165256,
            "c53377e20795f72c239189ddf55508afc0d0d4bc262d0678abcc3171903f9972",
        ),
        Original(
            "spamosaic/s2_adata_adt.h5ad",
            f"{_LYMPH}/slice2/s2_adata_adt.h5ad",
            1118405,
            "5249ac7d8b04fde673f8e0e6e663a70e339461fc4156a549de636b7494095abc",
        ),
    ),
    "osmfish": (
        Original(
            "osmfish/osmFISH_SScortex_mouse_all_cells.loom",
            f"{_RAW}/RubD/spatial-datasets/daa35aafcbf3bec828eb83f33228183ed38b30a3/data/2018_osmFISH_SScortex/raw_data/"
            "osmFISH_SScortex_mouse_all_cells.loom",
            1120947,
            "6153b56b300280e0cbd2eb45377eea4a5e85606bed739c96eb02feee5f53bc63",
        ),
    ),
}
