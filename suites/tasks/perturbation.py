"""Perturbation response: the mean change of expression that an unseen perturbation, or one unseen in this cell line, brings about.

After GEARS (Roohani, Huang & Leskovec 2024, Nat. Biotechnol. 42, 927): perturbations are joined in a graph, and what is learnt of one
reaches its neighbours. Here each perturbation's flags are propagated once over the graph (a simple graph convolution: Wu et al. 2019, ICML)
and a dense network predicts the change of every gene. The graph is public: two perturbed genes are joined if their symbols have a common
stem (MAP2K3 and MAP2K6: HGNC names families so), or if the screen's design perturbs them together. GEARS' second graph, of co-expressed
genes, is left out: where the perturbed genes are not among the measured ones (the small Norman extract), nothing ties it to a perturbation.
Passing what is predicted once along it moved the correlation on six tuning splits (seeds 100 to 105, .522 without it) by -.012 +- .005 with
GEARS' threshold of .4 and 20 neighbours, by +.006 +- .002 with a threshold of .1 and a share of .3: too little for one more public graph.

What is private is a cell: its perturbation is fed to the network, its change against the mean control cell of its line travels aside as
target. Control cells are public reference and in no part. The unit that no part shares with another is a perturbation in a cell line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suites.cohorts.cohort import Cohort
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError
from suites.room import Rows
from suites.split import Split
from suites.tasks.conditions import no_controls, perturbed
from suites.tasks.differential import squared_error, squared_errors, top
from suites.tasks.layout import Layout, blocks
from suites.tasks.structured import Table

TOP = 20  # differentially expressed genes, as GEARS evaluates (suites.tasks.differential)
RIDGE = 0.5  # of the additive model, in training conditions


class Perturbation:
    """Squared error of the predicted change; outputs are [predicted | true change], [B, 2T], both in multiples of a public unit.

    Parameters
    ----------
    hidden, blocks : width and number of hidden layers
    separator : what joins the genes of a condition ("+", "_"); "none" where every name is one perturbation, "auto" to see it from the file
    control : what control cells are called, where it is none of the usual names (control, ctrl, non-targeting)
    """

    name: ClassVar[str] = "perturbation"
    lower: frozenset[str] = frozenset({"mse", "mse_top20"})
    units: ClassVar[str] = "perturbations in a cell line"  # what no part of the split shares, and a membership of persons asks about

    def __init__(self, *, hidden: int = 64, blocks: int = 1, separator: str = "auto", control: str = "") -> None:
        if hidden < 1 or blocks < 1:
            raise RequestError(
                f"perturbation needs hidden and blocks of at least 1, not {hidden} and {blocks}: it is a network with a middle"
            )
        self.hidden, self.blocks = hidden, blocks
        self.layout, self.unit, self.double = Layout((1,), 1), 1.0, torch.zeros(0, dtype=torch.bool)  # until there is a cohort
        self.genes, self.separator, self.control = 0, str(separator), str(control)
        self.perturbed: list[tuple[str, ...]] = []  # genes of each condition of the cohort at hand
        self.line = torch.zeros(0, dtype=torch.int64)  # of each condition
        self.control_error = torch.zeros(0, 1)  # [lines, T] squared standard error of the mean control cell

    # ------------------------------------------------------------------------------------------------------------- data

    def cohort(self, data: DataSpec) -> Cohort:
        """Perturbed cells; x = [flags | neighbours' flags | cell line | change], y and person are the perturbation in a line."""
        raw = load(data)
        if raw.person is not None:
            raise RequestError(
                f"perturbation got a person column for {raw.name}, but what no part shares is a perturbation in a cell line, so a person's "
                "cells would lie in training and test; leave the person column out, or name the person as the site (--site)"
            )
        parts = perturbed(raw.name, raw.classes, raw.features, self.separator, self.control)
        genes = sorted({gene for part in parts for gene in part})
        line = np.zeros(len(raw), dtype=np.int64) if raw.site is None else raw.site
        lines = raw.sites or ("all",)
        flags = np.array([[gene in part for gene in genes] for part in parts], dtype=np.float32)
        treated: NDArray[np.bool_] = np.asarray(flags.any(axis=1))[raw.y]
        reference = np.zeros((len(lines), raw.x.shape[1]), dtype=np.float32)
        error = np.zeros(reference.shape)
        for code, name in enumerate(lines):
            own = raw.x[(line == code) & ~treated]
            if not len(own):
                raise no_controls(raw.name, name, raw.classes)
            reference[code], error[code] = own.mean(0), squared_error(own)
        same = np.array([parts.index(part) for part in parts])[raw.y]  # "A+B" and "B+A" are one perturbation, which no part shares
        pair, y = np.unique(np.stack([same, line], 1)[treated], axis=0, return_inverse=True)
        y = y.reshape(-1).astype(np.int64)
        told = np.concatenate([flags, flags @ neighbours(genes, parts)], 1)  # of each condition
        rows, fed = np.flatnonzero(treated), told.shape[1] + len(lines)
        held = np.empty((len(rows), fed + raw.x.shape[1]), dtype=np.float32)
        for some in blocks(len(rows), held.shape[1]):
            own = rows[some]
            held[some, : told.shape[1]] = told[raw.y[own]]
            held[some, told.shape[1] : fed] = np.eye(len(lines), dtype=np.float32)[line[own]]
            np.subtract(raw.x[own], reference[line[own]], out=held[some, fed:])
        self.perturbed = [parts[condition] for condition, _ in pair]
        self.line, self.control_error = torch.from_numpy(pair[:, 1].copy()), torch.from_numpy(error).float()
        named = tuple(f"{raw.classes[condition]} in {lines[code]}" for condition, code in pair)
        features = (*genes, *(f"near {gene}" for gene in genes), *lines, *raw.features)
        self.genes = len(genes)
        self.layout = Layout((fed,), raw.x.shape[1], raw.x.shape[1])
        site = None if raw.site is None else line[treated]
        return Cohort(
            raw.name, held, y, named, features, site, raw.sites, y.copy(), raw.citation, raw.licence, f"{raw.transform}, minus control"
        )

    def table(self, cohort: Cohort, parts: Split) -> Table:
        """Flags as they are; changes in units of the auxiliary cells' root mean square, one number for all genes.

        It is laid out in the cohort's own memory, whose values are lost.
        """
        x, fed = torch.from_numpy(cohort.x), self.layout.fed
        unit = float(x[parts.auxiliary, fed:].square().mean().sqrt()) or 1.0
        x[:, fed:] /= unit
        scale = torch.ones(x.shape[1])
        scale[fed:] = unit
        double = torch.tensor([len(genes) > 1 for genes in self.perturbed])
        return Table(
            x,
            torch.zeros(x.shape[1]),
            scale,
            self.layout,
            {
                "unit": torch.tensor(unit),
                "double": double,
                "genes": torch.tensor(self.genes),
                "control_line": self.line,
                "control_error": self.control_error,
            },
        )

    def learn(self, layout: Layout, public: Mapping[str, Tensor]) -> None:
        self.layout, self.unit, self.double = layout, float(public["unit"]), public["double"].bool()
        self.genes, self.line, self.control_error = int(public["genes"]), public["control_line"], public["control_error"]

    # ---------------------------------------------------------------------------------------------------------- network

    def net(self, features: int, outputs: int) -> nn.Module:
        return ResponseNet(self.layout, self.hidden, self.blocks)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean squared error over genes, per cell [..., B]; ``y`` is not read, since the target is in the outputs."""
        predicted, target = outputs.chunk(2, -1)
        return (predicted - target).square().mean(-1)

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Minus the log of the error, whose distribution over cells is nearer to a Gaussian than the error's, [..., B]."""
        return -self.loss(outputs, y).clamp_min(1e-30).log()

    # ---------------------------------------------------------------------------------------------------------- metrics

    def utility(self, outputs: Tensor, y: Tensor, classes: int) -> dict[str, float]:
        """Means over the conditions of ``y`` of: Pearson of the mean change (the headline), its squared error, and that of the top genes.

        Both in the cohort's own units (log-expression). The top genes are the ``TOP`` that are most differentially expressed between the
        condition's test cells and the control cells of its line. A prediction that is the same for every gene correlates with nothing: 0.
        Conditions of one and of two genes are also told apart.
        """
        predicted, observed, conditions, error = self._means(outputs, y)
        r = _pearson(predicted, observed)
        squared = (predicted - observed).square()
        expressed = top(observed, error + self.control_error[self.line[conditions]], TOP)
        two = self.double[conditions]

        def mean(of: Tensor) -> float:
            return float(of.mean()) if len(of) else float("nan")

        return {
            "pearson_delta": mean(r),
            "pearson_delta_single": mean(r[~two]),
            "pearson_delta_double": mean(r[two]),
            "mse": mean(squared.mean(1)),
            "mse_top20": mean(squared.gather(1, expressed).mean(1)),
        }

    def _means(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicted and observed mean change [conditions, T], the conditions, and the observed one's squared standard error."""
        conditions, index = torch.unique(y.cpu(), return_inverse=True)
        sums = torch.zeros(len(conditions), outputs.shape[1], dtype=torch.float64)
        for some in blocks(len(outputs), outputs.shape[1]):
            held = torch.nan_to_num(outputs[some].detach().double().cpu(), nan=0.0, posinf=0.0, neginf=0.0) * self.unit
            sums.index_add_(0, index[some], held)
        predicted, observed = (sums / torch.bincount(index)[:, None]).chunk(2, -1)
        cells = outputs.detach()[:, predicted.shape[1] :].cpu()
        return predicted, observed, conditions, squared_errors(cells, index, observed / self.unit) * self.unit**2

    def nothing(self, x: Tensor) -> Tensor:
        """No change at all."""
        target = x[:, self.layout.fed :]
        return torch.cat([torch.zeros_like(target), target], -1)

    def floor(self, y_train: Tensor, y_test: Tensor, classes: int) -> dict[str, float]:
        """What can be said without records: predicting no change correlates with nothing (``nothing`` has the other metrics)."""
        return {"pearson_delta": 0.0}

    def baselines(self, x: Rows, y: Tensor, classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """The mean of the training conditions, that of the same cell line, and the additive model.

        The additive model is the mean, an effect of the cell line and one of each perturbed gene. Effects of two genes add up; they are
        fitted to the training conditions by ridge regression and are 0 for what was not there (Ahlmann-Eltze, Huber & Anders 2025, Nat.
        Methods 22, 1657, find that deep models beat neither).
        """
        fed = self.layout.fed
        conditions, index = torch.unique(y, return_inverse=True)
        each, at = torch.zeros(len(conditions), x.table.shape[1], dtype=torch.float64), 0
        for part in x.by_rows():
            each.index_add_(0, index[at : at + len(part)], part.double())
            at += len(part)
        each /= torch.bincount(index)[:, None]
        centre = each[:, fed:].mean(0)
        change = each[:, fed:] - centre

        def ridge(terms: list[int]) -> Callable[[Tensor], Tensor]:
            columns = each[:, terms]
            effects = torch.linalg.solve(columns.T @ columns + RIDGE * torch.eye(len(terms)).double(), columns.T @ change)
            return lambda asked: torch.cat([(centre + asked[:, terms].double() @ effects).float(), asked[:, fed:]], -1)

        lines = list(range(2 * self.genes, fed))
        # Neighbours' flags are the network's.
        return {"training_mean": ridge([]), "mean_of_the_line": ridge(lines), "additive_model": ridge([*range(self.genes), *lines])}


class ResponseNet(nn.Module):
    """[B, F] -> [B, 2T]: a dense network on the fed columns beside the change that travels aside."""

    def __init__(self, layout: Layout, hidden: int, blocks: int) -> None:
        super().__init__()
        self.fed = layout.fed
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip([layout.fed, *[hidden] * (blocks - 1)], [hidden] * blocks))
        self.decoder = nn.Linear(hidden, layout.aside)

    def forward(self, x: Tensor) -> Tensor:
        h = x[..., : self.fed]
        for layer in self.layers:
            h = torch.relu(layer(h))
        return torch.cat([self.decoder(h), x[..., self.fed :]], -1)


def neighbours(genes: list[str], conditions: list[tuple[str, ...]]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The perturbation graph [P, P], symmetrically normalised, without self-loops (those are the flags themselves)."""
    stem = [re.match(r"[A-Za-z]*", gene)[0] for gene in genes]  # type: ignore[index]
    joined = np.array([[a != b and len(stem[a]) >= 3 and stem[a] == stem[b] for b in range(len(genes))] for a in range(len(genes))])
    for condition in conditions:
        for a in condition:
            for b in condition:
                if a != b:
                    joined[genes.index(a), genes.index(b)] = True
    degree = np.maximum(joined.sum(1), 1)
    return (joined / np.sqrt(np.outer(degree, degree))).astype(np.float32)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise; 0 where either side is constant."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(size > 1e-12, (a * b).sum(1) / size.clamp_min(1e-12), 0.0)
