"""Integration of two omics of the same cells: one embedding of RNA and of protein or open chromatin, also where a site measured only one
of them (a mosaic).

In the spirit of SpaMosaic (Yan et al., bioRxiv 2024) and of the reference's multi-omics code: an encoder for each modality,
reconstruction of both from the joint embedding, and a contrastive term that makes the modalities of a cell agree. Contrasting a cell with
the others of its batch would mix records in one gradient, which no clipping bounds. So each modality is assigned to learned prototypes and
has to predict the other's assignment (Caron et al. 2020, SwAV, eq. 1, without the batch-wise equipartition): a loss per cell.

Open chromatin is fed as a few coordinates of latent semantic indexing (``suites.tasks.indexing``), which is then what a record is: what an
inversion gives back are those coordinates, not peaks.

A missing modality is zero, the public mean, with its mask aside; it is neither encoded nor reconstructed. Which cells lack what is drawn
before the split, so that members and non-members alike lack it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suites.cohorts.alike import first_alike
from suites.cohorts.cohort import Cohort
from suites.cohorts.load import counts, load
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError
from suites.preprocess import Preprocessor
from suites.randomness import stream
from suites.room import Rows, unwritten
from suites.split import Split
from suites.tasks.clusters import agreement, clusterings, foscttm, mixing
from suites.tasks.components import components
from suites.tasks.indexing import Indexing
from suites.tasks.layout import Layout
from suites.tasks.structured import Table

ASIDE = 3  # has RNA, has protein, site
TEMPERATURE = 0.2
MOSAIC = 3  # sites at the least: one without the first omic, one without the second, one with both


class Integration:
    """Reconstruction and contrast; outputs are [joint | RNA's | protein's embedding | two residuals | two assignments | aside].

    Parameters
    ----------
    hidden, width, prototypes : widths of the encoders and of the embedding, and the number of prototypes
    weight : of the contrastive term
    second : the other modality, an obsm matrix
    lsi : coordinates that stand for a second modality of sparse counts, such as peaks; 0 feeds it as it is measured
    sites : sites where the cohort names none
    mosaic : whether the last site lacks the second modality and the one before it the first
    """

    name: ClassVar[str] = "integration"
    lower: frozenset[str] = frozenset({"foscttm"})

    def __init__(
        self,
        *,
        hidden: int = 64,
        width: int = 16,
        prototypes: int = 24,
        weight: float = 0.1,
        second: str = "protein",
        sites: int = 4,
        mosaic: bool = True,
        lsi: int = 0,
    ) -> None:
        if lsi < 0:
            raise RequestError(
                f"integration got lsi={lsi}, but it counts the coordinates that stand for the second omic; give 30, say, or 0"
            )
        if min(hidden, width) < 1 or prototypes < 2 or weight < 0 or sites < (MOSAIC if mosaic else 1):
            raise RequestError(
                "integration needs hidden and width of at least 1, 2 prototypes, and 3 sites where two of them lack a modality (with "
                "mosaic=false every site has both)"
            )
        self.hidden, self.width, self.prototypes, self.weight = hidden, width, prototypes, weight
        self.second, self.sites, self.mosaic, self.lsi = second, sites, mosaic, lsi
        self.counts: Any = None  # of the second modality, between reading and laying out
        self.layout = Layout((1, 1), ASIDE)
        self.room: NDArray[np.float32] | None = None  # where the table is to lie, between reading and laying out

    # ------------------------------------------------------------------------------------------------------------- data

    def cohort(self, data: DataSpec) -> Cohort:
        """Both modalities side by side, NaN where a site lacks one; sites are drawn by record number where the cohort has none.

        Of one that is indexed the cohort has each cell's total alone: its axes are learnt when it is known which cells are public.
        """
        first, other, named, digest = load(data), *self._other(data)
        site, names = first.site, first.sites
        if site is None:
            order = torch.randperm(len(first), generator=stream("integration", first.digest, "sites")).numpy()
            site, names = order.astype(np.int64) % self.sites, tuple(f"{i + 1}" for i in range(self.sites))
        if self.mosaic and len(names) < MOSAIC:
            raise RequestError(
                f"integration takes one omic away from each of two sites (a mosaic), and none of the {len(names)} of {first.name} "
                f"({', '.join(names)}) would be left with both; set mosaic=false (integration:mosaic=false), or name a site column with "
                f"{MOSAIC} sites or more"
            )
        # The values lie where the table will, so that laying it out takes no second copy.
        self.layout = Layout((first.x.shape[1], self.lsi or other.shape[1]), ASIDE)
        self.room = unwritten((len(first), self.layout.fed + ASIDE), torch.float32).numpy()
        x = self.room[:, : first.x.shape[1] + other.shape[1]]
        x[:, : first.x.shape[1]], x[:, first.x.shape[1] :] = first.x, other
        alike = first_alike(x)  # of a copy at a site that lacks a modality nothing more would tell; totals alone coincide by chance
        if self.mosaic:
            x[site == len(names) - 1, first.x.shape[1] :] = np.nan
            x[site == len(names) - 2, : first.x.shape[1]] = np.nan
        features = (*first.features, *named)
        made = Cohort(
            first.name, x, first.y, first.classes, features, site, names, first.person, first.citation, first.licence, first.transform
        )
        made = replace(made, first=alike)
        return replace(made, digest=hashlib.sha256((made.digest + digest).encode()).hexdigest()) if digest else made

    def _other(self, data: DataSpec) -> tuple[NDArray[np.float32], tuple[str, ...], str]:
        """The second modality's values or totals [N, .], their names, and what is to be added to the cohort's digest."""
        where = data.model_copy(update={"matrix": f"obsm/{self.second}", "transform": "auto"})
        if not self.lsi:
            other = load(where)
            return other.x, other.features, ""
        self.counts = counts(where)
        content: Any = hashlib.sha256()
        for array in (self.counts.data, self.counts.indices, self.counts.indptr):
            content.update(np.ascontiguousarray(array))
        total = np.asarray(self.counts.sum(1), dtype=np.float32).reshape(-1, 1)
        return total, (f"{self.second} in all",), content.hexdigest()

    def table(self, cohort: Cohort, parts: Split) -> Table:
        """Standardised by the auxiliary records that have the modality; a missing one is zero.

        Coordinates of an indexed one have a unit in common, so that what varies much goes on doing so. It is laid out in the cohort's own
        memory, whose values are lost.
        """
        public = Preprocessor.fit(cohort.x[parts.auxiliary.numpy()])
        assert cohort.site is not None
        has = [~np.isnan(cohort.x[:, column]) for column in (0, -1)]
        aside = torch.from_numpy(np.stack([*has, cohort.site], 1).astype(np.float32))
        room, self.room = self.room, None
        if room is None or cohort.x.base is not room:
            room = np.empty((len(cohort), self.layout.fed + ASIDE), dtype=np.float32)
            room[:, : cohort.x.shape[1]] = cohort.x
        x, mean, scale = torch.from_numpy(room), public.mean, public.scale
        public.transform(x[:, : cohort.x.shape[1]], in_place=True)
        if self.lsi:
            held = parts.auxiliary.numpy()
            indexing = Indexing.fit(self.counts[held[has[1][held]]], self.lsi)
            found = indexing.transform(self.counts)
            found[torch.from_numpy(~has[1])] = 0.0
            x[:, self.layout.blocks[0] : self.layout.fed] = found
            mean = torch.cat([mean[:-1], torch.zeros(self.lsi)])
            scale = torch.cat([scale[:-1], torch.full((self.lsi,), indexing.unit)])
        mean, scale = torch.cat([mean, torch.zeros(ASIDE)]), torch.cat([scale, torch.ones(ASIDE)])
        x[:, self.layout.fed :] = aside
        return Table(x, mean, scale, self.layout)

    def learn(self, layout: Layout, public: Mapping[str, Tensor]) -> None:
        self.layout = layout

    # ---------------------------------------------------------------------------------------------------------- network

    def net(self, features: int, outputs: int) -> nn.Module:
        return PairedNet(self.layout, self.hidden, self.width, self.prototypes)

    def _parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        w, k = self.width, self.prototypes
        return torch.split(outputs, [w, w, w, *self.layout.blocks, k, k, ASIDE], dim=-1)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean squared error of each modality that is there, plus the swapped prediction where both are, per cell [..., B]."""
        *_, first, second, assigned, other, aside = self._parts(outputs)
        has = aside[..., 0], aside[..., 1]
        rebuilt = has[0] * first.square().mean(-1) + has[1] * second.square().mean(-1)
        p, q = (torch.log_softmax(scores / TEMPERATURE, -1) for scores in (assigned, other))
        swapped = -(p.exp() * q).sum(-1) - (q.exp() * p).sum(-1)
        return rebuilt + self.weight * has[0] * has[1] * swapped

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Minus the log of the loss, [..., B]."""
        return -self.loss(outputs, y).clamp_min(1e-30).log()

    # ---------------------------------------------------------------------------------------------------------- metrics

    def utility(self, outputs: Tensor, y: Tensor, classes: int) -> dict[str, float]:
        """ARI (the headline) and NMI of clusters of the joint embedding, FOSCTTM of cells with both modalities, mixing of the sites."""
        joint, first, second, *_, aside = self._parts(outputs)
        truth = y.detach().cpu().numpy()
        both = (aside[:, 0] * aside[:, 1]) > 0
        found = clusterings(joint, len(np.unique(truth)))
        site = aside[:, 2].detach().cpu().numpy().astype(np.int64)
        return {**agreement(found, truth), "foscttm": foscttm(first[both], second[both]), "batch_mixing": mixing(joint, site)}

    def nothing(self, x: Tensor) -> Tensor:
        """One embedding for all."""
        zero = torch.zeros(len(x), self.width)
        return self._as_outputs(zero, zero, zero, x)

    def floor(self, y_train: Tensor, y_test: Tensor, classes: int) -> dict[str, float]:
        """One cluster agrees with nothing beyond chance, and embeddings that are all alike match at chance."""
        return {"ari": 0.0, "nmi": 0.0, "foscttm": 0.5}

    def baselines(self, x: Rows, y: Tensor, classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Principal components of both modalities side by side, each weighted by its width; a missing one counts as the public mean.

        A modality's own embedding is its components alone, so that its FOSCTTM is that of coordinates that nobody has aligned.
        """
        a, b = self.layout.blocks
        scale = torch.cat([torch.full((a,), a**-0.5), torch.full((b,), b**-0.5)])
        cuts = slice(0, a + b), slice(0, a), slice(a, a + b)
        fitted = [components(x.columns(cut), self.width, weight) for cut, weight in zip(cuts, (scale, None, None))]

        def outputs(asked: Tensor) -> Tensor:
            joint, first, second = (method(asked[:, cut]) for cut, method in zip(cuts, fitted))
            return self._as_outputs(joint, first, second, asked)

        return {"pca": outputs}

    def _as_outputs(self, joint: Tensor, first: Tensor, second: Tensor, x: Tensor) -> Tensor:
        blank = torch.zeros(len(x), self.layout.fed + 2 * self.prototypes)
        return torch.cat([joint, first, second, blank, x[:, self.layout.fed :]], 1)


class PairedNet(nn.Module):
    """[B, F + 3] -> [B, 3 width + F + 2 prototypes + 3]; every layer is called once, so that clipping takes one pass."""

    def __init__(self, layout: Layout, hidden: int, width: int, prototypes: int) -> None:
        super().__init__()
        self.blocks, self.fed = layout.blocks, layout.fed
        a, b = layout.blocks
        self.encoder_first = nn.Linear(a, hidden)
        self.embedding_first = nn.Linear(hidden, width)
        self.encoder_second = nn.Linear(b, hidden)
        self.embedding_second = nn.Linear(hidden, width)
        self.prototypes_first = nn.Linear(width, prototypes)
        self.prototypes_second = nn.Linear(width, prototypes)
        self.decoder = nn.Linear(width, hidden)
        self.output_first = nn.Linear(hidden, a)
        self.output_second = nn.Linear(hidden, b)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x[..., : self.fed], list(self.blocks), dim=-1)
        has_first, has_second = x[..., self.fed : self.fed + 1], x[..., self.fed + 1 : self.fed + 2]
        a = self.embedding_first(torch.relu(self.encoder_first(first)))
        b = self.embedding_second(torch.relu(self.encoder_second(second)))
        joint = (has_first * a + has_second * b) / (has_first + has_second).clamp_min(1.0)
        h = torch.relu(self.decoder(joint))
        residuals = self.output_first(h) - first, self.output_second(h) - second
        return torch.cat([joint, a, b, *residuals, self.prototypes_first(a), self.prototypes_second(b), x[..., self.fed :]], -1)
