"""Domains of a tissue: a graph autoencoder on spatial neighbours, whose embedding is clustered and compared with annotated regions.

In the spirit of SpatialGlue (Long et al. 2024, Nat. Methods 21, 1658) and of the reference's multi-omics code: expression is propagated
over the graph of spatial neighbours, once and twice (Wu et al. 2019, ICML: a simplified graph convolution), before a dense encoder and
decoder. The graph joins a cell to its nearest of the same unit: no site needs another's records, none of the parts knows another's.

A record is a cell with its neighbourhood: reconstructing it reconstructs what its neighbours give away as well. Its place travels aside,
for the metric of coherence; the network does not read it. What a part of the split holds whole (``unit: person``) is a tile of tissue, a
section or a donor: random cells of one tissue would have the test cells' neighbours in training. Since no cell has a neighbour beyond its
unit, leaving a unit out moves no record of another: membership of units, and an ε for units (``dp_sgd:unit=person``), are about all that
the unit's cells gave. Of a single cell that cannot be said, only of its record. A threat with ``neighbours: unknown`` asks about records of
which only the cell's own expression is known, neither the neighbours' columns nor the place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suites.cohorts.cohort import Cohort
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError
from suites.preprocess import Preprocessor
from suites.room import Rows, unwritten
from suites.split import Split
from suites.tasks.clusters import NEIGHBOURS, agreement, clusterings, coherence, nearest
from suites.tasks.components import components
from suites.tasks.layout import Layout, blocks
from suites.tasks.structured import Table

HOPS = 2
PLACE = 2  # columns aside
PARTS = 4  # of a split


class SpatialDomains:
    """Squared error of the reconstruction; outputs are [embedding | reconstruction - input | place], [B, width + F + 2].

    Parameters
    ----------
    hidden, width : widths of the hidden layers and of the embedding
    strips : sites that each section is cut into along its longer side; 1 leaves sections as sites
    tiles : each site is cut into tiles x tiles of equal numbers of cells
    unit : what no part of the split shares, and no cell's neighbourhood crosses: a tile, a section (the data's sites; ten and more of
        them, or membership of a section is a toss of two coins), or a donor (the data's person column)
    """

    name: ClassVar[str] = "spatial_domains"
    lower: frozenset[str] = frozenset({"coherence_gap"})
    shared_inputs: ClassVar[str] = (
        "in spatial_domains a cell is part of its neighbours' records too, so an ε for one record is no ε for one cell (one for persons, "
        "who are tiles, sections or donors here, is one for all that their cells gave: no neighbourhood crosses them)"
    )

    def __init__(
        self, *, hidden: int = 64, width: int = 16, strips: int = 1, tiles: int = 5, unit: Literal["tile", "section", "donor"] = "tile"
    ) -> None:
        if unit not in ("tile", "section", "donor"):
            raise RequestError(f"spatial_domains got unit={unit}, but a part of the split holds whole tiles, sections or donors; name one")
        if min(hidden, width, strips) < 1 or tiles < 3:
            raise RequestError(
                "spatial_domains needs hidden, width and strips of at least 1 and tiles of at least 3, or a part has no tile"
            )
        self.hidden, self.width, self.strips, self.tiles, self.unit = hidden, width, strips, tiles, unit
        self.units = {"tile": "tiles of tissue", "section": "sections of tissue", "donor": "donors"}[unit]
        self.layout = Layout((1,), PLACE)
        self.room: NDArray[np.float32] | None = None  # where the table is to lie, between reading and laying out

    # ------------------------------------------------------------------------------------------------------------- data

    def cohort(self, data: DataSpec) -> Cohort:
        """The cells with their places as the last two features; sites are strips of sections, persons are the units."""
        cells = load(data)
        if (cells.person is None) == (self.unit == "donor"):
            raise RequestError(
                f"spatial_domains got unit=donor, but nobody says which donor gave a cell of {cells.name}; name the person column, or take "
                "unit=section or unit=tile"
                if cells.person is None
                else f"spatial_domains got a person column for {cells.name} and unit={self.unit}, which would spread a donor's cells over "
                "training and test; set unit=donor (spatial_domains:unit=donor), or leave the person column out"
            )
        try:
            place = load(data.model_copy(update={"matrix": "obsm/spatial", "transform": "none", "missing": None})).x
        except RequestError as error:
            raise RequestError(f"spatial_domains needs each cell's place in obsm['spatial']: {error}") from None
        if place.shape[1] != PLACE:
            raise RequestError(
                f"{cells.name}: obsm['spatial'] has {place.shape[1]} coordinates where a section is flat and has {PLACE}; keep the two "
                "that lie in the section"
            )
        section = np.zeros(len(cells), dtype=np.int64) if cells.site is None else cells.site
        names = cells.sites or ("section",)
        site, tile = np.zeros(len(cells), dtype=np.int64), np.zeros(len(cells), dtype=np.int64)
        for code in range(len(names)):
            own = np.flatnonzero(section == code)
            long = int(np.argmax(np.ptp(place[own], axis=0)))
            site[own] = code * self.strips + bins(place[own, long], self.strips)
        for code in np.unique(site):
            own = np.flatnonzero(site == code)
            column = bins(place[own, 0], self.tiles)
            for c in range(self.tiles):
                inside = own[column == c]
                tile[inside] = (code * self.tiles + c) * self.tiles + bins(place[inside, 1], self.tiles)
        sites = tuple(name if self.strips == 1 else f"{name}, strip {i + 1}" for name in names for i in range(self.strips))
        features = (*cells.features, "place 1", "place 2")
        # The values lie where the table will, so that laying it out takes no second copy of a matrix that is 1 + HOPS times as wide.
        wide = cells.x.shape[1]
        self.room = unwritten((len(cells), (1 + HOPS) * wide + PLACE), torch.float32).numpy()
        x = self.room[:, HOPS * wide :]
        x[:, :wide], x[:, wide:] = cells.x, place
        about = (cells.citation, cells.licence, cells.transform)
        unit = {"tile": tile, "section": section, "donor": cells.person}[self.unit]
        assert unit is not None
        if self.unit != "tile" and len(np.unique(unit)) < PARTS:
            raise RequestError(
                f"spatial_domains got unit={self.unit}, but {cells.name} has {len(np.unique(unit))} of them where each of the split's "
                f"{PARTS} parts needs one; take unit=tile"
            )
        return Cohort(cells.name, x, cells.y, cells.classes, features, site, sites, unit, *about)

    def table(self, cohort: Cohort, parts: Split) -> Table:
        """[own | mean of neighbours | mean of their neighbours | place]; each standardised by auxiliary records.

        It is laid out in the cohort's own memory, whose values are lost.
        """
        place = cohort.x[:, -PLACE:].astype(np.float64)
        public = Preprocessor.fit(cohort.x[parts.auxiliary.numpy(), :-PLACE])
        wide = cohort.x.shape[1] - PLACE
        room, self.room = self.room, None
        if room is None or cohort.x.base is not room:
            room = np.empty((len(cohort), (1 + HOPS) * wide + PLACE), dtype=np.float32)
        x = torch.from_numpy(room)
        for some in blocks(len(cohort), wide):
            x[some, :wide] = public.transform(cohort.x[some, :-PLACE])
        hops = [x[:, hop * wide : (hop + 1) * wide] for hop in range(1 + HOPS)]
        assert cohort.site is not None
        assert cohort.person is not None
        part = np.full(len(cohort), -1)  # a cell that is stored twice lies in no part the second time, and is nobody's neighbour
        for code, held in enumerate((torch.cat([*parts.sites, *parts.withheld]), parts.validation, parts.test, parts.auxiliary)):
            part[held.numpy()] = code
        # A part holds whole units, unless the split is by record; a unit may lie at two sites, where the site is the section's strip.
        apart = np.unique(np.stack([part, cohort.site, cohort.person]), axis=1, return_inverse=True)[1].reshape(-1)
        for code in range(int(apart.max()) + 1):
            rows = torch.from_numpy(np.flatnonzero(apart == code))
            near = rows[torch.from_numpy(nearest(place[rows.numpy()]))]
            for before, hop in pairwise(hops):
                for some in blocks(len(rows), NEIGHBOURS * wide):
                    hop[rows[some]] = before[near[some]].mean(1) if near.shape[1] else before[rows[some]]
        # Sites lie far apart, so that no cell's neighbour is at another site.
        span = float(np.ptp(place, axis=0).max()) or 1.0
        x[:, -PLACE:] = torch.from_numpy((place - place.min(0)) / span + 3.0 * np.stack([cohort.site, np.zeros(len(cohort))], 1)).float()
        mean, scale = public.mean.repeat(1 + HOPS), public.scale.repeat(1 + HOPS)
        self.layout = Layout((wide * (1 + HOPS),), PLACE, own=wide)
        return Table(x, torch.cat([mean, torch.zeros(PLACE)]), torch.cat([scale, torch.ones(PLACE)]), self.layout)

    def learn(self, layout: Layout, public: Mapping[str, Tensor]) -> None:
        self.layout = layout

    # ---------------------------------------------------------------------------------------------------------- network

    def net(self, features: int, outputs: int) -> nn.Module:
        return Autoencoder(self.layout, self.hidden, self.width)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of the reconstruction, per cell [..., B]; ``y`` is not read: regions are for judging."""
        return outputs[..., self.width : self.width + self.layout.fed].square().mean(-1)

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Minus the log of the error, [..., B]."""
        return -self.loss(outputs, y).clamp_min(1e-30).log()

    # ---------------------------------------------------------------------------------------------------------- metrics

    def utility(self, outputs: Tensor, y: Tensor, classes: int) -> dict[str, float]:
        """ARI (the headline) and NMI of k-means clusters, as many as there are regions, and how far off their coherence in space is.

        The gap is to the coherence of the annotated regions of the same cells: clusters that are smoother than the tissue are as wrong as
        clusters that are ragged. One cluster for all has none, so that the floor of the gap is the annotation's own coherence.
        """
        truth: NDArray[np.int64] = y.detach().cpu().numpy()
        found = clusterings(outputs[:, : self.width], len(np.unique(truth)))
        place = outputs[:, -PLACE:].detach().double().cpu().numpy()
        gap = float(np.mean([coherence(one, place) for one in found])) - coherence(np.unique(truth, return_inverse=True)[1], place)
        return {**agreement(found, truth), "coherence_gap": abs(gap)}

    def nothing(self, x: Tensor) -> Tensor:
        """One embedding for all."""
        return self._as_outputs(torch.zeros(len(x), self.width), x)

    def floor(self, y_train: Tensor, y_test: Tensor, classes: int) -> dict[str, float]:
        """One cluster agrees with nothing beyond chance (``nothing`` has the gap, which is a matter of the tissue)."""
        return {"ari": 0.0, "nmi": 0.0}

    def baselines(self, x: Rows, y: Tensor, classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Principal components of the same inputs, and of each cell alone, in as many dimensions as the embedding has."""

        def method(columns: int) -> Callable[[Tensor], Tensor]:
            fitted = components(x.columns(slice(columns)), self.width)
            return lambda asked: self._as_outputs(fitted(asked[:, :columns]), asked)

        return {"pca": method(self.layout.fed), "pca_without_neighbours": method(self.layout.fed // (1 + HOPS))}

    def _as_outputs(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.cat([z, torch.zeros(len(x), self.layout.fed), x[:, self.layout.fed :]], 1)


class Autoencoder(nn.Module):
    """[B, F + 2] -> [B, width + F + 2]: Linear, ReLU, Linear to the embedding and the same back."""

    def __init__(self, layout: Layout, hidden: int, width: int) -> None:
        super().__init__()
        self.fed = layout.fed
        self.encoder = nn.Linear(self.fed, hidden)
        self.embedding = nn.Linear(hidden, width)
        self.decoder = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, self.fed)

    def forward(self, x: Tensor) -> Tensor:
        fed = x[..., : self.fed]
        z = self.embedding(torch.relu(self.encoder(fed)))
        back = self.output(torch.relu(self.decoder(z)))
        return torch.cat([z, back - fed, x[..., self.fed :]], -1)


def bins(values: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Which of ``count`` stretches with equal numbers of values each lies in."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    found: NDArray[np.int64] = rank * count // max(1, len(values))
    return found
