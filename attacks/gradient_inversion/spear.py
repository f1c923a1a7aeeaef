"""Whole batches exactly, from the zeros that switched-off ReLU units leave in a gradient of low rank (Dimitrov et al. 2024, "SPEAR").

dW = D^T X with D [B, H] the slopes at the first layer's units, so dW = U (S V^T) has rank B and D^T = U Q for one invertible Q [B, B]. A
unit that is off for record b puts an exact zero into column b of D^T. Any B - 1 rows of U that are zero in one column have that column of
Q as their kernel (theorem 3.3): rows are drawn until such draws have come up for every record, which the many further zeros of U q tell
from accidents. Lengths and signs follow from the bias gradient D^T 1 = U Q 1, records from X = Q^-1 S V^T, labels from each record's own
row of D. Where zeros are half, draws grow as 2^B; the gradient's precision is what limits exactness.

A unit that is off for a record at each of several steps of SGD leaves the same zero in their sum D, whatever mini-batches the steps took:
records come out of a FedAvg update exactly, before anybody knows in what order they were taken. The certificate then looks for that too.

Needs a first layer with a bias and a ReLU behind it, fewer records than units, and a gradient or steps of SGD without noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import invert
from attacks.gradient_inversion.labels import labels_by_slope
from attacks.gradient_inversion.message import as_gradient, certified, first_linear, known_count, least_squares, unlabelled
from attacks.gradient_inversion.order import Shuffled, shuffles
from attacks.gradient_inversion.row_problem import Problem
from suites.contracts import Goal, Ground, Guess, Observation, Params, RequestError, Secret, Sees, Skip, Target

ORDERS = 20_000  # simulated messages at most, to find the order of a site's mini-batches
CLEAN = 1e-3  # the singular value after the last record's, relative to that one, from which a message counts as noisy
ZERO = 1e-4  # of a column's largest entry: below, it counts as a unit that was off
_DRAWS = 2048  # at once
_ROUNDS, _ABOVE = 8, 10  # of refinement; of the typical zero's rounding
_APART = 1e-3  # share of the largest singular value below which a second direction is common to some rows
_BORNE = 0.9999  # leverage from which a dimension hangs on one row
_SAME = 0.999  # cosine from which two directions are one


class Spear:
    """Batches by sampling kernels; records in the order found.

    Parameters
    ----------
    budget : int
        Draws of rows a message. Eight records on 64 units take a few thousand, twelve some ten thousand, sixteen about a million.
    limit : int
        Only the first ``limit`` messages are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "key"})
    ground: ClassVar[Ground] = Ground(batch=4)

    def __init__(self, budget: int = 100_000, limit: int = 4) -> None:
        if min(budget, limit) < 1:
            raise RequestError("spear needs a budget (draws) and a limit (messages) of at least 1")
        self.budget, self.limit = budget, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        if unlabelled(seen.known):
            raise Skip("structured records have no label to tell a record's slopes by")
        everything, key = self.messages(seen), seen.key
        features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        public = seen.auxiliary.x
        norm = float(public.norm(dim=1).median()) if len(public) else features**0.5
        values, proven, reasons, draws = [], [], [], 0
        for target in everything[: self.limit]:
            try:
                raw, slopes, bias, used = recover(target, features, self.budget, rng)
            except Skip as skip:
                reasons.append(str(skip))
                values.append(seen.restore(invert(target, features, norm, public)[0].float(), key))
                proven.append(False)
                continue
            value, draws = seen.restore(raw.float(), key), draws + used
            values.append(value)
            labels = labels_by_slope(seen, target, value, slopes, bias, classes, key)
            proven.append(self._certified(seen, target, value, labels, key, rng))
        if reasons and len(reasons) == len(values):
            raise Skip(reasons[0])
        solved = float(len(values) - len(reasons))
        notes = {"targets": float(len(values)), "of": float(len(everything)), "solved": solved, "draws": float(draws)}
        return Guess(values, confidence=torch.tensor(proven).float(), certified=torch.tensor(proven), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    @staticmethod
    def _certified(seen: Observation, target: Target, value: Tensor, labels: Tensor, key: Secret | None, rng: torch.Generator) -> bool:
        order = None
        if shuffles(target):
            problem = Problem(seen, target, key)
            order = Shuffled(seen, problem, labels, key).best(value.double() @ problem.rows.T, ORDERS, rng)[0][0][: target.steps]
        return certified(seen, target, value, labels, key, order)


class SpearOfSum(Spear):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows: one batch to it."""

    ground: ClassVar[Ground] = Ground()
    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "predict", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def recover(
    target: Target, features: int, budget: int, rng: torch.Generator, near: Tensor | None = None
) -> tuple[Tensor, Tensor, str, int]:
    """Records [B, F'], their slopes [B, H], the name of the first bias, and draws used; raises ``Skip`` with the reason.

    From records that are nearly right, ``near`` [B, F'], most zeros are known, and draws among them find many more records.
    """
    if target.optimiser == "adam":
        raise Skip("the zeros of switched-off units survive in gradients and in steps of SGD, and Adam divides by their size")
    gradient: Params = as_gradient(target)
    layer = first_linear(gradient, features)
    if layer.bias is None:
        raise Skip("the first layer has no bias, whose gradient would say how long each record is")
    batch = target.batch
    weight, slope = gradient[layer.weight].double(), gradient[layer.bias].double()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    if batch >= len(values):
        raise Skip(f"{batch} records and {len(values)} units: the update's rank says nothing where records are no fewer than units")
    if values[batch] > CLEAN * values[batch - 1]:
        raise Skip("the first layer's update has more directions than records, as noise gives it, or records that hardly differ")
    basis = left[:, :batch]  # [H, B]
    tolerance = max(ZERO, 100 * float(values[batch] / values[batch - 1]))
    guess = None if near is None else torch.linalg.pinv(near @ right[:batch].mT) * values[:batch, None]  # Q, up to a factor a column
    found, used = directions(basis, tolerance, budget, rng, guess)
    if len(found) < batch:
        raise Skip(f"{used} draws of rows found {len(found)} of {batch} records' zeros: no ReLU follows, or too many records for its units")
    inverse = found[:batch].T  # Q up to a factor a column
    scale = least_squares(basis @ inverse, slope[:, None])[:, 0]
    shares = (basis @ inverse) * scale  # D^T [H, B]
    records = torch.linalg.solve(inverse * scale, values[:batch, None] * right[:batch])
    return records, shares.T, layer.bias, used


def by_zeros(
    seen: Observation, problem: Problem, key: Secret | None, budget: int, rng: torch.Generator, near: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Records [B, r] by the zeros of switched-off units, with their labels, whatever their order; raises ``Skip`` where there are none.

    ``near`` [B, r] are records to look near.
    """
    rough = None if near is None else near @ problem.rows
    records, slopes, bias, _ = recover(problem.target, problem.features, 20 * budget, rng, rough)
    if unlabelled(seen.known):
        return records @ problem.rows.T, problem.labels
    value = seen.restore(records.float(), key)
    return records @ problem.rows.T, labels_by_slope(seen, problem.target, value, slopes, bias, problem.classes, key)


def directions(basis: Tensor, tolerance: float, budget: int, rng: torch.Generator, guess: Tensor | None = None) -> tuple[Tensor, int]:
    """Unit vectors q [n, B] for which ``basis`` [H, B] times q has many zeros, the sparsest first; and draws used.

    Rows are drawn from all, or from those that a column of ``guess`` [B, n] leaves smallest. A direction whose zeros are no more than the
    B - 1 drawn ones and a few is an accident. Those left are refined: the least singular vector of all rows that are zero, which averages
    rounding out.
    """
    live = basis[basis.norm(dim=1) > tolerance * basis.norm(dim=1).max()]  # a unit off for all records tells none from another
    units, batch = live.shape
    found, used = basis.new_zeros(0, batch), 0
    if batch == 1:
        return basis.new_ones(1, 1), 0
    enough = batch - 1 + max(3, round(0.1 * units))
    likely = None if guess is None else _smallest((live @ guess).abs().T, max(3 * batch // 2, units // 3))
    while used < budget and units >= enough:
        count = min(_DRAWS, budget - used)
        lot = torch.rand(count, units, generator=rng).to(basis.device)
        if likely is not None:
            lot = lot * likely[torch.arange(count) % len(likely)]
        rows = lot.topk(batch - 1, dim=1).indices
        kernels = torch.linalg.svd(live[rows])[2][:, -1]  # [n, B]
        used += count
        off = _zeros(live, kernels, tolerance)
        for zero in off[off.sum(1) >= enough]:
            fine = _refined(live, zero)
            if fine is not None and (not len(found) or (found @ fine).abs().max() < _SAME):
                found = torch.cat([found, fine[None]])
        if len(found) >= batch and _independent(found, live, tolerance, batch) is not None:
            break
    chosen = _independent(found, live, tolerance, batch)
    return (found if chosen is None else found[chosen]), used


def _smallest(size: Tensor, count: int) -> Tensor:
    """Which ``count`` entries of each row are its smallest."""
    return torch.zeros_like(size, dtype=torch.bool).scatter(1, size.topk(min(count, size.shape[1]), dim=1, largest=False).indices, True)


def _refined(live: Tensor, zero: Tensor) -> Tensor | None:
    """The direction [B] that ``zero`` [H] rows have in common, without those that only look like zeros: they stand far above the others.

    None where most rows have a second direction in common: they are units that were off for two records, which say nothing about either,
    and one more row that some mixture of the two happens to meet. That row alone then bears its dimension: its leverage is one.
    """
    for _ in range(_ROUNDS):
        left, values, right = torch.linalg.svd(live[zero], full_matrices=False)
        leverage = left[:, :-1].square().sum(1).max()
        if leverage > _BORNE or values[-2] < max(_APART * float(values[0]), 10 * float(values[-1])):
            return None
        q: Tensor = right[-1]
        size = (live @ q).abs()
        closer = size <= _ABOVE * size[zero].median()
        if int(closer.sum()) < live.shape[1] or torch.equal(closer, zero):
            break
        zero = closer
    return q


def _zeros(live: Tensor, kernels: Tensor, tolerance: float) -> Tensor:
    sparse = (kernels @ live.T).abs()  # [n, H]
    return sparse <= tolerance * sparse.max(1, keepdim=True).values


def _independent(found: Tensor, live: Tensor, tolerance: float, batch: int) -> Tensor | None:
    """The sparsest ``batch`` of the directions that none of the others makes up; None where there are not so many."""
    if len(found) < batch:
        return None
    order = _zeros(live, found, tolerance).sum(1).argsort(descending=True, stable=True)
    chosen: list[int] = []
    for index in order.tolist():
        if torch.linalg.matrix_rank(found[[*chosen, index]], rtol=1e-4) == len(chosen) + 1:
            chosen.append(index)
        if len(chosen) == batch:
            return torch.tensor(chosen, device=found.device)
    return None
