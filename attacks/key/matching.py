"""Which mixed record is which candidate: assignments by inner products alone, and by regression once some are known.

Mixed records z = M x with a secret linear M = B S A (rotations around a spectrum) keep their inner products up to noise:
z'w = x'(M'M)w is mean(s^2) x'w plus a part of relative size sd(s^2) / sqrt(F). Three tools:

- ``beam``: a search over assignments that starts from no pair at all and compares Gram entries.
- ``Regression``: with pairs known or supposed, a candidate's mixed record is predicted by kernel regression, z ~ Z_S' (X_S X_S')^-1 X_S x,
  whose error inside span(Z_S) is that of the candidate's own remainder only. For a rotation this is Procrustes' prediction.
- ``extend``: seeded matching by percolation: the most certain third becomes pairs, then twice as many, until all are placed.

Nothing reads the truth; ``nll`` compares whole assignments by what the adversary sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

ENTRIES = 8_000_000  # states times candidates of one step of the beam
_BLOCK = 4_000_000  # numbers held at once
_SMOOTH = 1e-3  # of a squared length: the beam's floor for remainders in single precision
_RIDGE = 1e-6
_FOLDS = 24  # a record never predicts itself: held out in folds
_ROUNDS = 12
DECIDED = 10.0  # median margin from which a search counts as come home
_ENOUGH = 14  # known pairs from which no search is needed


def scale(gram: Tensor, among: Tensor) -> float:
    """mean(s^2) as the ratio of median squared lengths."""
    return float(gram.diagonal().median() / among.diagonal().median().clamp_min(1e-300))


def order_by_rarity(gram: Tensor, among: Tensor, rng: torch.Generator | None = None, trusted: Tensor | None = None) -> list[int]:
    """Mixed records, those first whose inner products few candidate pairs share; ``rng`` perturbs the order for another start."""
    count = len(gram)
    size = gram.diagonal().sqrt()
    cosine = gram / torch.outer(size, size).clamp_min(1e-300)
    other = among.diagonal().clamp_min(1e-300).sqrt()
    pairs = (among / torch.outer(other, other))[torch.triu(torch.ones_like(among, dtype=torch.bool), 1)]
    counts = torch.histc(pairs, 80, -1.0, 1.0) + 1
    rare = -counts.log()[((cosine + 1) * 40).long().clamp(0, 79)]
    if rng is not None:
        noise = torch.rand(count, count, generator=rng).to(rare)
        rare = rare + 2 * (noise + noise.T)
    if trusted is not None:
        rare = rare - 1e3 * (~trusted).to(rare)[None] - 1e3 * (~trusted).to(rare)[:, None]
    rare.fill_diagonal_(-torch.inf)
    chosen = [int(rare.max(1).values.argmax())]
    gain = rare[chosen[0]].clone()
    while len(chosen) < count:
        gain[chosen] = -torch.inf
        chosen.append(int(gain.argmax()))
        gain = gain + rare[chosen[-1]]
    return chosen


def beam(gram: Tensor, among: Tensor, allowed: Tensor, order: list[int], *, entries: int = ENTRIES) -> tuple[Tensor, Tensor]:
    """Best assignments of the mixed records in ``order`` to candidates, by Stein's loss: states [W, len(order)], costs [W].

    If M'M scatters about the identity as a Wishart matrix does, the likelihood of a Gram matrix G at candidates with Gram matrix C is
    that of tr(C^-1 G) + log det C; a record adds |z - Z_S' a|^2 / r + log r with the candidate's regression a on those before and its
    remainder r. So the large components that all records share cost no more than they tell.

    Parameters
    ----------
    gram : [K, K] of mixed records, divided by ``scale``
    among : [n, n] of candidates
    allowed : [K, n] bool, candidates that a record can be (its label's)
    """
    gram, among = gram.float(), among.float()
    own, n = among.diagonal(), len(among)
    first = (gram[order[0], order[0]] / own.clamp_min(1e-30) + own.clamp_min(1e-30).log()).masked_fill(~allowed[order[0]], torch.inf)
    states = torch.isfinite(first).nonzero()
    cost = first[states[:, 0]]
    for step, k in enumerate(order[1:], start=1):
        before = order[:step]
        outer, seen = gram[before][:, before], gram[before, k]  # [t, t], [t]
        totals = []
        blocks = -(-len(states) * n * step // _BLOCK)
        for part, spent in zip(states.tensor_split(blocks), cost.tensor_split(blocks)):
            inner = among[part[:, :, None], part[:, None]] + _SMOOTH * own.mean() * torch.eye(step)  # [W, t, t]
            rows = among[part]  # [W, t, n]
            recipe = torch.linalg.inv(inner) @ rows
            left = torch.maximum(own - (recipe * rows).sum(1), _SMOOTH * own)  # [W, n]
            gap = gram[k, k] - 2 * (seen @ recipe) + (recipe * (outer @ recipe)).sum(1)
            extra = (gap / left + left.log()).masked_fill(~allowed[k], torch.inf)
            totals.append(spent[:, None] + extra.scatter(1, part, torch.inf))  # nobody twice
        total = torch.cat(totals).flatten()
        width = max(entries // (n * (step + 1)), 50)
        cost, picked = total.topk(min(width, int(torch.isfinite(total).sum())), largest=False)
        states = torch.cat([states[picked // n], (picked % n)[:, None]], 1)
    return states, cost


@dataclass(frozen=True, slots=True)
class Regression:
    """Distances of mixed records from what supposed pairs predict for each candidate.

    ``error`` [K, n] squared residual inside span(Z_S); ``rest`` [K, n] the candidate's squared remainder outside span(X_S), in units of the
    mixed records; ``length`` [K, n] log ratio of the squared remainders' lengths; ``pairs`` [K] how many pairs a row rests on.
    """

    error: Tensor
    rest: Tensor
    length: Tensor
    pairs: Tensor

    def nll(self, assigned: Tensor) -> Tensor:
        """Negative log-likelihood [K, n] with the noise fitted at ``assigned`` [K] (-1: not placed): Gaussian, variance ~ remainder."""
        placed = (assigned >= 0).nonzero().squeeze(1)
        index = assigned[placed]
        noise = (self.error[placed, index] / (self.rest[placed, index] * self.pairs[placed])).median().clamp_min(1e-12)
        half = self.pairs[:, None] / 2
        cost = self.error / (2 * noise * self.rest) + half * (noise * self.rest).log()
        spread = self.length[placed, index].square().median().clamp_min(1e-10)
        return cost + self.length.square() / (2 * spread) + 0.5 * spread.log()


def regress(gram: Tensor, among: Tensor, assigned: Tensor) -> Regression:
    """Cross-fitted regression on the pairs ``assigned`` [K] (-1: none)."""
    gram, among = gram.double(), among.double()
    held = (assigned >= 0).nonzero().squeeze(1)
    k, n = len(gram), len(among)
    error, rest, length = (torch.zeros(k, n, dtype=torch.float64) for _ in range(3))
    pairs = torch.zeros(k, dtype=torch.float64)
    ratio = scale(gram, among)

    def fill(rows: Tensor, seeds: Tensor) -> None:
        known = assigned[seeds]
        inner, outer = among[known][:, known], gram[seeds][:, seeds]
        eye = torch.eye(len(seeds), dtype=torch.float64)
        recipe = torch.linalg.solve(inner + _RIDGE * inner.diagonal().mean() * eye, among[known])  # [m, n]
        level = outer.diagonal().mean().clamp_min(_RIDGE)  # under noise a message may give records of length zero
        root = torch.linalg.cholesky(outer + _RIDGE * level * eye)
        seen = torch.linalg.solve_triangular(root, gram[seeds][:, rows], upper=False)  # [m, rows]
        predicted = torch.linalg.solve_triangular(root, outer @ recipe, upper=False)  # [m, n]
        error[rows] = torch.cdist(seen.T, predicted.T).square()
        left = (among.diagonal() - 2 * (recipe * among[known]).sum(0) + (recipe * (inner @ recipe)).sum(0)).clamp_min(
            _RIDGE * among.diagonal()
        )
        rest[rows] = (ratio * left)[None]
        outside = (gram.diagonal()[rows] - seen.square().sum(0)).clamp_min(_RIDGE * gram.diagonal()[rows].clamp_min(_RIDGE))
        length[rows] = outside.log()[:, None] - (ratio * left).log()[None]
        pairs[rows] = len(seeds)

    fresh = (assigned < 0).nonzero().squeeze(1)
    if len(fresh) and len(held):
        fill(fresh, held)
    for fold in held.tensor_split(min(_FOLDS, len(held))) if len(held) > 1 else ():
        fill(fold, held[~torch.isin(held, fold)])
    return Regression(error, rest, length, pairs)


def extend(gram: Tensor, among: Tensor, allowed: Tensor, assigned: Tensor, fixed: Tensor) -> tuple[Tensor, float]:
    """Seeded matching: an assignment [K] of all mixed records from the pairs in ``assigned`` (-1: none), and its mean NLL.

    ``fixed`` [K] bool marks pairs that are known and never moved.
    """
    assigned = assigned.clone()
    best, value, steady = assigned, torch.inf, 0
    size = max(int((assigned >= 0).sum()), 2)
    for _ in range(_ROUNDS):
        cost = regress(gram, among, assigned).nll(assigned).masked_fill(~allowed, torch.inf)
        placed = _hungarian(cost, assigned, fixed)
        own = cost[torch.arange(len(cost)), placed]
        level = float(own.median() if len(own) < 4 else own.mean())
        size = min(2 * size, len(gram))
        if size == len(gram) or int((assigned >= 0).sum()) == len(gram):
            if level < value - 1e-9:
                best, value, steady = placed, level, 0
            elif steady:
                break
            else:
                steady = 1
        runner = cost.scatter(1, placed[:, None], torch.inf).min(1).values
        margin = (runner - own).nan_to_num(-torch.inf).masked_fill(fixed, torch.inf)
        keep = margin.topk(size).indices
        following = torch.full_like(placed, -1)
        following[keep] = placed[keep]
        if torch.equal(following, assigned):
            break
        assigned = following
    return (best, value) if (best >= 0).all() else (placed, level)


def _hungarian(cost: Tensor, assigned: Tensor, fixed: Tensor) -> Tensor:
    """One candidate a record, nobody twice; known pairs stay."""
    large = cost.nan_to_num(nan=1e12, posinf=1e12)
    for k in fixed.nonzero().squeeze(1).tolist():
        large[:, assigned[k]] = 1e13
        large[k] = 1e13
        large[k, assigned[k]] = -1e13
    if len(cost) > cost.shape[1]:
        return large.argmin(1)
    return torch.from_numpy(linear_sum_assignment(large.numpy())[1])


def _different(states: Tensor) -> Tensor:
    """The best state of each first candidate, best first: a wrong start rarely mends, so variants of one start are tried once."""
    seen: set[int] = set()
    rows = [row for row, first in enumerate(states[:, 0].tolist()) if not (first in seen or seen.add(first))]  # type: ignore[func-returns-value]
    return states[rows]


def search(
    z: Tensor,
    x: Tensor,
    allowed: Tensor,
    rng: torch.Generator,
    *,
    starts: int = 8,
    depth: int = 14,
    tries: int = 12,
    trusted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Match mixed records ``z`` [K, F'] to candidates ``x`` [n, F] by directions alone: assignment [K], and the margins [K].

    A margin is the log-likelihood by which a record's candidate beats the next: tens where the search came home, about zero or less where
    it did not, which no truth is needed to see. Records with one allowed candidate are known pairs. ``starts`` beams run over different
    orders of ``depth`` records (``trusted`` ones first); the ``tries`` best states of each are extended to all.
    """
    z, x = normalize(z.double(), dim=1), normalize(x.double(), dim=1)
    gram, among = z @ z.T, x @ x.T
    fixed = allowed.sum(1) == 1
    known = torch.where(fixed, allowed.int().argmax(1), -1)
    best, value = known.clamp_min(0), torch.inf
    if len(z) < 3 or int(fixed.sum()) >= _ENOUGH:
        starts = 1
    for start in range(starts):
        if int(fixed.sum()) >= _ENOUGH:
            states, order = known[fixed][None], fixed.nonzero().squeeze(1).tolist()
        else:
            order = order_by_rarity(gram, among, rng if start else None, trusted)
            order = (sorted(order, key=lambda k: not bool(fixed[k])))[:depth]
            states = _different(beam(gram, among, allowed, order)[0])
        for state in states[:tries]:
            assigned = known.clone()
            assigned[order] = state
            found, level = (assigned, 0.0) if len(z) < 3 else extend(gram, among, allowed, assigned, fixed)
            if level < value:
                best, value = found, level
        if len(z) < 3:
            return best, torch.zeros(len(z), dtype=torch.float64)
        margins = margin(gram, among, allowed, best)
        if margins.median() > DECIDED:
            break
    return best, margins


def margin(gram: Tensor, among: Tensor, allowed: Tensor, assigned: Tensor) -> Tensor:
    """Log-likelihood [K] by which each chosen candidate beats the second best."""
    cost = regress(gram, among, assigned).nll(assigned).masked_fill(~allowed, torch.inf)
    own = cost[torch.arange(len(cost)), assigned]
    return (cost.scatter(1, assigned[:, None], torch.inf).min(1).values - own).nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6).clamp(-1e6, 1e6)
