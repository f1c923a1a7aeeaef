"""Whole batches as independent components: the first layer's update mixes records as a room mixes voices (Kariyappa et al. 2023, ICML).

dW = D^T X: each row is a mixture of the batch's records, and a feature is a sample of all mixtures at once. Values of one record over its
features are far from normal in omics (a few genes high, most low) and hardly depend on another record's, so independent component analysis
(FastICA, Hyvarinen 1999) undoes the mixing up to each record's length and sign; the bias gradient D^T 1 gives the sign, a typical record
of the adversary's own the length. It needs neither a ReLU nor a particular loss and serves batches that no search inverts (measured on
pbmc68k: R2 .85, .64, .43 at 4, 8, 16 records), but is never exact beyond one record, and standard normal records, which have no
tails to tell them by, stay mixed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from attacks.gradient_inversion.labels import labels_by_slope
from attacks.gradient_inversion.message import as_gradient, certified, first_linear, known_count, least_squares, unlabelled
from suites.contracts import Goal, Ground, Guess, Observation, RequestError, Sees, Skip, Target


class CocktailParty:
    """Batches by FastICA on the rows of the first layer's update.

    Parameters
    ----------
    budget : int
        FastICA's iterations.
    limit : int
        Only the first ``limit`` messages are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "key"})
    ground: ClassVar[Ground] = Ground(batch=4, tails=True)

    def __init__(self, budget: int = 400, limit: int = 16) -> None:
        if min(budget, limit) < 1:
            raise RequestError("cocktail_party needs a budget (iterations) and a limit (messages) of at least 1")
        self.budget, self.limit = budget, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        if unlabelled(seen.known):
            raise Skip("structured records have no label to tell a record's slopes by")
        everything, key = self.messages(seen), seen.key
        features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        public = seen.auxiliary.x
        norm = float(public.norm(dim=1).median()) if len(public) else features**0.5
        values, proven, tails = [], [], []
        for target in everything[: self.limit]:
            raw, slopes, bias = unmix(target, features, norm, self.budget, rng)
            value = seen.restore(raw.float(), key)
            values.append(value)
            if target.batch > 1:  # rough by nature
                proven.append(False)
            else:
                labels = labels_by_slope(seen, target, value, slopes, bias, classes, key)
                proven.append(certified(seen, target, value, labels, key))
            none = torch.linalg.qr(torch.randn(raw.shape[1], target.batch, generator=rng, dtype=torch.float64))[0].T
            tails.append(float(_kurtosis(raw).median() - _kurtosis(independent(none, self.budget, rng) @ none).median()))
        notes = {"targets": float(len(values)), "of": float(len(everything)), "tails": sum(tails) / len(tails)}
        return Guess(values, confidence=torch.tensor(tails), certified=torch.tensor(proven), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is unmixed."""
        return seen.targets


class CocktailPartyOfSum(CocktailParty):
    """The same for the sum of all sites' messages, which is all that secure aggregation shows: one larger party."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "key"})
    ground: ClassVar[Ground] = Ground(tails=True)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def unmix(target: Target, features: int, norm: float, budget: int, rng: torch.Generator) -> tuple[Tensor, Tensor, str]:
    """Records [B, F'], their slopes [B, H], and the name of the first bias; raises ``Skip`` with the reason.

    ``norm`` is the length of a typical record, and of each of several: what the bias gradient says of a length takes all records' unmixing
    to be exact (on pbmc68k, 8 records, R2 .57 with typical lengths and -.06 with half to twice those).
    """
    if target.optimiser == "adam":
        raise Skip("Adam's updates keep little but signs, which are no mixture of records")
    gradient = as_gradient(target)
    layer = first_linear(gradient, features)
    if layer.bias is None:
        raise Skip("the first layer has no bias, whose gradient would say how long each record is")
    weight, slope = gradient[layer.weight].double(), gradient[layer.bias].double()
    units, width = weight.shape
    if target.batch > min(units, width):
        raise Skip(f"{target.batch} records in {units} mixtures of {width} features: more voices than microphones")
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    batch = max(1, min(target.batch, int((values > 1e-6 * values[0]).sum())))
    rows = right[:batch] * width**0.5  # orthonormal mixtures [B, F']
    turn = independent(rows, budget, rng).to(rows)
    voices = turn @ rows  # [B, F']
    mixing = least_squares(voices.T, weight.T).T  # D^T up to a factor a column, [H, B]
    shares = least_squares(mixing, slope[:, None])[:, 0]  # 1 / length of each record
    if batch > 1:
        shares = torch.where(shares < 0, -1.0, 1.0) * width**0.5 / norm  # voices are width^.5 long
    records = voices / shares[:, None]
    missing = target.batch - batch
    slopes = (mixing * shares).T
    return torch.nn.functional.pad(records, (0, 0, 0, missing)), torch.nn.functional.pad(slopes, (0, 0, 0, missing)), layer.bias


def independent(mixtures: Tensor, budget: int, rng: torch.Generator) -> Tensor:
    """The unmixing [B, B] of orthogonal mixtures [B, F]."""
    batch = len(mixtures)
    if batch == 1:
        return torch.eye(1, dtype=torch.float64)
    start = torch.linalg.qr(torch.randn(batch, batch, generator=rng, dtype=torch.float64))[0]
    party = FastICA(batch, whiten="unit-variance", max_iter=budget, tol=1e-7, w_init=start.numpy(), fun="logcosh")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its guess is scored all the same
        party.fit(mixtures.T.cpu().numpy())
    return torch.from_numpy(party.components_)


def _kurtosis(rows: Tensor) -> Tensor:
    """Excess kurtosis of each row. That of normal rows, unmixed all the same, grows with their number: what counts is the surplus."""
    centred = rows - rows.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.square().mean(1).square().clamp_min(1e-300) - 3
