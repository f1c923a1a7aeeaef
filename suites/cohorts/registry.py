"""The cohorts that have a name: where each comes from, what is in it, who may use it.

Cards are plain words and cost no import; ``suites.cohorts.named`` has the loaders.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    download: bool = False

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
    )
}


def names() -> list[str]:
    return sorted(CARDS)


def card(name: str) -> Card:
    """The card of a cohort; RequestError with the nearest name where there is none."""
    if name not in CARDS:
        raise RequestError(f"there is no cohort named '{name}'{did_you_mean(name, CARDS)} (a file of your own is given by path)")
    return CARDS[name]
