"""The cohorts that have a name: where each comes from, what is in it, who may use it.

Cards are plain words and cost no import; ``suites.cohorts.named`` has the loaders.
"""

from __future__ import annotations

from dataclasses import dataclass

from suites.cohorts.originals import ORIGINALS
from suites.errors import RequestError, did_you_mean


@dataclass(frozen=True, slots=True)
class Card:
    """A dataset card: what ``infl-bench list data`` (title) and ``infl-bench data show NAME`` (all of it) print."""

    name: str
    title: str
    records: str
    values: str
    label: str
    site: str
    person: str
    origin: str
    licence: str
    citation: str
    cautions: str
    defaults: tuple[tuple[str, object], ...] = ()  # fields of DataSpec, where the suite leaves them open
    download: bool = False  # files are pinned in suites.cohorts.originals
    stand_in: str = ""  # the embedded or generated cohort that serves the same task where nothing may be downloaded

    def text(self) -> str:
        rows = [
            ("records", self.records),
            ("values", self.values),
            ("label", self.label),
            ("site", self.site),
            ("person", self.person),
            ("origin", self.origin),
            ("licence", self.licence),
            ("citation", self.citation),
            ("cautions", self.cautions),
        ]
        rows += [("file", f"{each.url} ({each.size:,} bytes, SHA-256 {each.sha256})") for each in ORIGINALS.get(self.name, ())]
        return "\n".join([f"{self.name}: {self.title}", *(f"  {key:<9} {value}" for key, value in rows)])


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="pbmc68k",
            title="peripheral blood cells of one donor, 700 single cells, installed with scanpy",
            records="700 cells x 765 genes",
            values="log-normalised RNA, adata.raw of scanpy.datasets.pbmc68k_reduced()",
            label="bulk_labels (10 cell types by correlation with sorted populations; T-cell types overlap); others: louvain, phase",
            site="none",
            person="none (one donor)",
            origin="10x Genomics, reduced and shipped by scanpy; no download",
            licence="BSD-3-Clause (scanpy); data CC BY 4.0 (10x Genomics)",
            citation="Zheng et al., Massively parallel digital transcriptional profiling of single cells, Nat. Commun. 8, 14049 (2017)",
            cautions="small; two cell types have fewer than ten cells; membership means a cell, not a person",
            defaults=(("label", "bulk_labels"), ("matrix", "raw")),
        ),
        Card(
            name="synthetic",
            title="generated log-intensities with known truth, for tests and teaching",
            records="400 records x 200 features unless params say otherwise",
            values="log-intensities: factors, class effects, site shifts, donor effects, noise, gaps",
            label="class",
            site="site (each donor belongs to one)",
            person="donor",
            origin="suites/cohorts/synthetic.py; params: see its Recipe",
            licence="MIT",
            citation="none needed",
            cautions="no biology: use it to test methods, never to rank them",
        ),
        Card(
            name="synthetic_perturbation",
            title="a generated screen of one and two perturbed genes in three cell lines, where nothing may be downloaded",
            records="2,160 cells x 200 features unless params say otherwise",
            values="log-expression: line, added effects of perturbed genes (alike within a family), an interaction, noise",
            label="condition (control, 12 single and 9 double perturbations)",
            site="line (3)",
            person="none",
            origin="suites/cohorts/synthetic_omics.py; params: see Screen",
            licence="MIT",
            citation="none needed",
            cautions="no biology: it stands in for norman_mcfaline under --data-only-embedded, and ranks no method",
        ),
        Card(
            name="synthetic_tissue",
            title="two generated sections of layered tissue on a hexagonal grid, where nothing may be downloaded",
            records="1,920 spots x 30 features, with obsm/spatial, unless params say otherwise",
            values="log-intensities: layer, gradients over the tissue, section, noise",
            label="layer (5)",
            site="section (2)",
            person="none",
            origin="suites/cohorts/synthetic_omics.py; params: see Tissue",
            licence="MIT",
            citation="none needed",
            cautions="no biology: it stands in for lymph_node_adt and osmfish under --data-only-embedded, and ranks no method",
        ),
        Card(
            name="synthetic_paired",
            title="generated cells with two omics that see the same factors, where nothing may be downloaded",
            records="2,000 cells x 300 features, with obsm/protein (14), unless params say otherwise",
            values="log-intensities: factors that both omics share, cell types, noise",
            label="type (6)",
            site="none",
            person="none",
            origin="suites/cohorts/synthetic_omics.py; params: see Paired",
            licence="MIT",
            citation="none needed",
            cautions="no biology: it stands in for pbmc10k_citeseq under --data-only-embedded, and ranks no method",
        ),
        Card(
            name="synthetic_multiome",
            title="generated cells with RNA and open chromatin, both as sparse counts (no real multiome cohort is pinned here)",
            records="2,000 cells x 300 features, with obsm/peaks (3,000), unless params say otherwise",
            values="log counts per 10,000 of RNA (matrix: X) and fragments in peaks, 95 % of them zero (matrix: obsm/peaks)",
            label="type (6)",
            site="none",
            person="none",
            origin="suites/cohorts/synthetic_omics.py; params: see Multiome",
            licence="MIT",
            citation="none needed",
            cautions="no biology: integration of RNA with an epigenome was tried on this and on made files of 10x's layout only",
        ),
        Card(
            name="cptac",
            title="three CPTAC proteomes: breast, colon and endometrial tumours and normal tissue",
            records="463 samples of 337 patients x 4,450 proteins measured in all three studies",
            values="log-ratios to a reference, TMT mass spectrometry, scaled per study; 0.3 % missing (imputed)",
            label="cancer_class (5: study and tumour or normal); others: tumor_normal, subtype (PAM50, MSI, genomic; not for all), cohort",
            site="cohort (3 studies); finer: batch (21)",
            person="patient (126 gave tumour and normal)",
            origin="PayneLab/cptac at fixed commits (Proteomic Data Commons PDC000120, PDC000125, PDC000116)",
            licence="Apache-2.0, data included",
            citation="Krug et al., Cell 183, 1436 (2020); Dou et al., Cell 180, 729 (2020); Vasaikar et al., Cell 177, 1035 (2019)",
            cautions="study and cancer are the same thing here, so classes are easy (.97) and sites by cohort hold one cancer each",
            defaults=(("label", "cancer_class"), ("site", "cohort"), ("person", "patient"), ("missing", "impute")),
            download=True,
            stand_in="synthetic",
        ),
        Card(
            name="norman_mcfaline",
            title="single cells with one or two genes perturbed by CRISPR (Perturb-seq), four cell lines",
            records="5,961 cells x 500 genes",
            values="log-normalised RNA",
            label="condition (34: control, 18 single and 15 double perturbations); other: cell_type",
            site="cell_type (4 lines); coarser: dataset (2 studies)",
            person="none (cell lines)",
            origin="altoslabs/perturbench at a fixed commit (GSE133344, GSE225775)",
            licence="BSD-3-Clause",
            citation="Norman et al., Science 365, 786 (2019); McFaline-Figueroa et al., Cell Genomics 4, 100487 (2024)",
            cautions="a small extract; 48 genes are zero throughout and dropped; single cells hardly tell perturbations apart",
            defaults=(("label", "condition"), ("site", "cell_type"), ("drop", ("empty",))),
            download=True,
            stand_in="synthetic_perturbation",
        ),
        Card(
            name="pbmc10k_citeseq",
            title="RNA and 14 surface proteins of the same blood cells (CITE-seq, 10x 10k PBMC TotalSeq-B)",
            records="6,661 cells x 1,000 genes, with obsm/protein (14)",
            values="RNA counts (matrix: X) and antibody counts (matrix: obsm/protein)",
            label="label (7 cell types, Y1 to Y7)",
            site="none",
            person="none (one donor)",
            origin="xianglin226/scMDC at a fixed commit",
            licence="Apache-2.0; data CC BY 4.0 (10x Genomics)",
            citation="Lin et al., Clustering of single-cell multi-omics data with scMDC, Nat. Commun. 13, 7705 (2022)",
            cautions="genes are unnamed in the file; the labels were derived from the proteins",
            defaults=(("label", "label"),),
            download=True,
            stand_in="synthetic_paired",
        ),
        Card(
            name="lymph_node_adt",
            title="31 surface proteins at the spots of two human lymph node sections (spatial, 10x Visium)",
            records="6,843 spots x 31 proteins, with obsm/spatial",
            values="antibody counts",
            label="annotation (10 tissue regions)",
            site="section (2)",
            person="none given",
            origin="JinmiaoChenLab/SpaMosaic at a fixed commit (GSE263617)",
            licence="MIT",
            citation="Long et al., Deciphering spatial domains from spatial multi-omics with SpatialGlue, Nat. Methods 21, 1658 (2024)",
            cautions="neighbouring spots resemble each other, so a random split flatters; regions are very unequal in size",
            defaults=(("label", "annotation"), ("site", "section")),
            download=True,
            stand_in="synthetic_tissue",
        ),
        Card(
            name="osmfish",
            title="33 genes in single cells of one mouse cortex section (spatial, osmFISH)",
            records="4,839 cells x 33 genes, with obsm/spatial",
            values="molecule counts",
            label="region (11); other: cell_type (31)",
            site="none",
            person="none (one animal)",
            origin="RubD/spatial-datasets at a fixed commit",
            licence="MIT",
            citation="Codeluppi et al., Spatial organization of the somatosensory cortex revealed by osmFISH, Nat. Methods 15, 932 (2018)",
            cautions="few genes: regions are only partly told apart without neighbours (.62)",
            defaults=(("label", "region"),),
            download=True,
            stand_in="synthetic_tissue",
        ),
    )
}


def names() -> list[str]:
    return sorted(CARDS)


def card(name: str) -> Card:
    """The card of a cohort; RequestError with the nearest name where there is none."""
    if name not in CARDS:
        raise RequestError(f"there is no cohort named '{name}'{did_you_mean(name, CARDS)} (a file of your own is given by path)")
    return CARDS[name]
