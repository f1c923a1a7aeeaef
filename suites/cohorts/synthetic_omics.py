"""Generated cohorts for the tasks that no installed data set serves: a perturbation screen, a tissue, cells with two omics.

They stand in where nothing may be downloaded (``--data-only-embedded``). Shapes and noise are roughly those of the real cohorts that they
stand in for; there is no biology in them, so they test methods and rank none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from suites.cohorts.cohort import Cohort
from suites.randomness import stream

Floats = NDArray[np.float64]
FAMILY = 3  # perturbed genes with a common stem, whose effects resemble each other


@dataclass(frozen=True, slots=True)
class Screen:
    """A Perturb-seq screen: effects of one and two genes add up, but for an interaction, in each of a few lines."""

    lines: int = 3
    perturbed: int = 12  # genes
    doubles: int = 9
    cells: int = 30  # of each condition in each line; of controls three times as many
    features: int = 200
    effect: float = 0.5
    interaction: float = 0.15
    noise: float = 0.5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tissue:
    """Sections of layered tissue on a hexagonal grid: what a spot measures depends on its layer and, smoothly, on its place."""

    sections: int = 2
    rows: int = 32
    columns: int = 30
    regions: int = 5
    features: int = 30
    effect: float = 0.6
    section_shift: float = 0.2
    noise: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Paired:
    """Cells of a few types with two omics that see the same factors, the second far narrower and clearer."""

    cells: int = 2000
    types: int = 6
    features: int = 300
    proteins: int = 14
    factors: int = 8
    effect: float = 0.35
    noise: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Multiome:
    """Cells of a few types with counts of RNA and of fragments in peaks, which see the same factors; most entries of both are zero."""

    cells: int = 2000
    types: int = 6
    features: int = 300
    peaks: int = 3000
    factors: int = 8
    effect: float = 0.2
    depth: float = 600.0  # RNA molecules of a typical cell
    fragments: float = 150.0  # in peaks, of a typical cell
    seed: int = 0


class _Draw:
    """Named streams of one recipe: equal recipes give equal bytes."""

    def __init__(self, recipe: Screen | Tissue | Paired | Multiome) -> None:
        self.where = (type(recipe).__name__, [[name, value] for name, value in sorted(asdict(recipe).items())])

    def rng(self, role: str) -> torch.Generator:
        return stream("synthetic omics", *self.where, role)

    def normal(self, role: str, *shape: int, scale: float = 1.0) -> Floats:
        drawn: Floats = (torch.randn(*shape, generator=self.rng(role), dtype=torch.float64) * scale).numpy()
        return drawn

    def order(self, role: str, count: int) -> NDArray[np.int64]:
        drawn: NDArray[np.int64] = torch.randperm(count, generator=self.rng(role)).numpy()
        return drawn


def screen(made: Screen) -> Cohort:
    """Labels are conditions ("control", "GA1", "GA1+GB2"); sites are lines."""
    draw = _Draw(made)
    genes = [f"G{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[i // FAMILY % 26] * (2 + i // (26 * FAMILY))}{i % FAMILY + 1}" for i in range(made.perturbed)]
    families = draw.normal("families", -(-made.perturbed // FAMILY), made.features)
    own = draw.normal("genes", made.perturbed, made.features)
    effects = made.effect * (0.8 * families[np.arange(made.perturbed) // FAMILY] + 0.6 * own)
    pairs = [(a, b) for a in range(made.perturbed) for b in range(a + 1, made.perturbed)]
    chosen = [pairs[i] for i in sorted(draw.order("pairs", len(pairs))[: made.doubles])]
    conditions = [(), *((a,) for a in range(made.perturbed)), *chosen]
    synergy = draw.normal("interaction", len(conditions), made.features, scale=made.interaction)
    baseline = draw.normal("lines", made.lines, made.features) + 3.0
    y, line = [], []
    for code in range(made.lines):
        for condition, parts in enumerate(conditions):
            count = made.cells * (1 if parts else 3)
            y += [condition] * count
            line += [code] * count
    labels, lines = np.array(y), np.array(line)
    mean = np.stack([sum((effects[g] for g in parts), np.zeros(made.features)) for parts in conditions])
    mean[[len(parts) > 1 for parts in conditions]] += synergy[[len(parts) > 1 for parts in conditions]]
    x = baseline[lines] + mean[labels] + draw.normal("noise", len(labels), made.features, scale=made.noise)
    names = ["+".join(genes[g] for g in parts) or "control" for parts in conditions]
    order = np.argsort(names)  # as a file's label column is coded
    return _cohort(
        "synthetic_perturbation",
        x,
        np.argsort(order)[labels],
        [names[i] for i in order],
        lines,
        [f"line {i + 1}" for i in range(made.lines)],
    )


def tissue(made: Tissue, matrix: str | None) -> Cohort:
    """Labels are layers; sites are sections; ``matrix="obsm/spatial"`` gives the spots' places instead of their values."""
    draw = _Draw(made)
    row, column = np.divmod(np.arange(made.rows * made.columns), made.columns)
    place = np.stack([column + 0.5 * (row % 2), row * np.sqrt(3) / 2], 1)
    wave = draw.normal("waves", made.sections, 2)
    y, values, places = [], [], []
    effects = draw.normal("layers", made.regions, made.features, scale=made.effect)
    gradient = draw.normal("gradients", 2, made.features, scale=0.3 * made.effect)
    for code in range(made.sections):
        bent = row / made.rows + 0.08 * np.sin(2 * np.pi * column / made.columns + 2 * wave[code, 0])
        layer = np.clip((bent * made.regions).astype(np.int64), 0, made.regions - 1)
        slope = (place / place.max(0) - 0.5) @ gradient
        shift = draw.normal(f"section {code}", 1, made.features, scale=made.section_shift)
        values.append(effects[layer] + slope + shift + draw.normal(f"noise {code}", len(row), made.features, scale=made.noise))
        y.append(layer)
        places.append(place)
    sections = np.repeat(np.arange(made.sections), len(row))
    x = np.concatenate(places) if matrix == "obsm/spatial" else np.concatenate(values)
    names = [f"layer {i + 1}" for i in range(made.regions)]
    return _cohort("synthetic_tissue", x, np.concatenate(y), names, sections, [f"section {i + 1}" for i in range(made.sections)])


def paired(made: Paired, matrix: str | None) -> Cohort:
    """Labels are cell types; ``matrix="obsm/protein"`` gives the second omic."""
    draw = _Draw(made)
    y = draw.order("types", made.cells) % made.types
    factors = draw.normal("centres", made.types, made.factors, scale=2.0)[y] + draw.normal("factors", made.cells, made.factors)
    width, scale, role = (made.proteins, 2.0, "proteins") if matrix == "obsm/protein" else (made.features, 1.0, "genes")
    loadings = draw.normal(role, made.factors, width, scale=made.effect * scale)
    x = factors @ loadings + draw.normal(f"noise of {role}", made.cells, width, scale=made.noise)
    return _cohort("synthetic_paired", x, y, [f"type {i + 1}" for i in range(made.types)], None, [])


def multiome(made: Multiome, matrix: str | None) -> Cohort:
    """Labels are cell types; ``matrix="obsm/peaks"`` gives fragments in peaks. Poisson counts, of which no cell has as many as another."""
    draw = _Draw(made)
    y = draw.order("types", made.cells) % made.types
    factors = draw.normal("centres", made.types, made.factors, scale=2.0)[y] + draw.normal("factors", made.cells, made.factors)
    width, depth, role = (made.peaks, made.fragments, "peaks") if matrix == "obsm/peaks" else (made.features, made.depth, "genes")
    loadings = draw.normal(role, made.factors, width, scale=made.effect)
    rate = np.exp(draw.normal(f"base of {role}", 1, width) + factors @ loadings)
    rate *= depth * np.exp(draw.normal(f"depth of {role}", made.cells, 1, scale=0.4)) / rate.sum(1, keepdims=True)
    x = torch.poisson(torch.from_numpy(rate), generator=draw.rng(f"counts of {role}")).numpy()
    if matrix != "obsm/peaks":
        x = np.log1p(x * (1e4 / np.maximum(x.sum(1, keepdims=True), 1.0)))
    return _cohort("synthetic_multiome", x, y, [f"type {i + 1}" for i in range(made.types)], None, [])


def _cohort(name: str, x: Floats, y: NDArray[np.int64], classes: list[str], site: NDArray[np.int64] | None, sites: list[str]) -> Cohort:
    return Cohort(
        name=name,
        x=x.astype(np.float32),
        y=y.astype(np.int64),
        classes=tuple(classes),
        features=tuple(f"feature {i}" for i in range(x.shape[1])),
        site=site,
        sites=tuple(sites),
        citation="generated by infl-bench",
        licence="MIT",
    )
