"""Batches that share records give them away one by one, however large they are, while a batch has fewer records than hidden units.

Threat: a server that sees several messages whose batches overlap (redrawn batches, a site's next epoch). The rows of dW_1 span the
mixed records of its batch exactly, so where two messages share records their row spaces meet in those records' span and nowhere else; met
with further messages that span shrinks to a single line (Marchand et al. 2023, "SRATTA", intersect batches in the same spirit). Sign and
length follow from the bias: dW_1 = G' Z and db = G' 1, so the solution w of dW_1 w = db in the row space has z'w = 1 for every record z
of the batch. No inversion, no key, no plaintext; the records are then named by their Gram matrix. One-record messages need no company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient, first_linear, widest, width
from attacks.key.matching import DECIDED, search
from suites.contracts import Goal, Guess, Observation, RequestError, Sees, Skip, Target

_MEET = 2e-3  # 1 - cosine of a principal angle below which two row spaces share a direction
_SAME = 5e-3  # 1 - |cosine| below which two lines are one
_CUT = 1e-5  # singular values below this share of the largest are rounding


class Overlap:
    """Mixed records isolated where row spaces meet, then matched to candidates by their Gram matrix.

    Parameters
    ----------
    budget : int
        Random chains of messages that are intersected, and a tenth of it as many beam searches.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "candidates"})

    def __init__(self, budget: int = 2000) -> None:
        if budget < 1:
            raise RequestError(f"overlap needs a budget of at least 1 but got {budget}: it counts chains of messages")
        self.budget = budget

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        targets, x, columns = seen.targets, seen.candidates.x, widest(seen.known)
        features = width(columns)
        if len(targets) < 2:
            raise Skip("one message shares its records with no other in sight")
        lines, within = isolated(targets, features, self.budget, rng)
        placed, margins = torch.zeros(len(lines), dtype=torch.int64), torch.zeros(len(lines), dtype=torch.float64)
        if len(lines) >= 3:
            allowed = torch.ones(len(lines), len(x), dtype=torch.bool)
            placed, margins = search(lines, x[:, columns], allowed, rng, starts=max(self.budget // 250, 1))
        sure = (margins > DECIDED) & bool(margins.median() > DECIDED if len(lines) else False)
        values, certain = [], []
        for target, own in zip(targets, within):
            known = own[: target.batch]
            fill = torch.randperm(len(x), generator=rng)[: target.batch - len(known)]  # a blind guess for the others
            values.append(torch.cat([x[placed[known]], x[fill.to(x.device)]]))
            certain.append(torch.cat([sure[known], torch.zeros(len(fill), dtype=torch.bool)]))
        return Guess(values, certified=torch.cat(certain), notes={"isolated": float(len(lines))})


def isolated(targets: Sequence[Target], features: int, budget: int, rng: torch.Generator) -> tuple[Tensor, list[list[int]]]:
    """Single mixed records [L, F'] where row spaces meet along random chains of messages, and the numbers of those in each message."""
    gradients = [as_gradient(target) for target in targets]
    layer = first_linear(gradients[0], features)
    if layer.bias is None:
        raise Skip("the first layer has no bias, so signs and lengths of records stay open")
    weights = [gradient[layer.weight].double().cpu() for gradient in gradients]
    spaces = [_rows(weight, target.batch) for weight, target in zip(weights, targets)]
    products = {(a, b): spaces[a] @ spaces[b].T for a in range(len(spaces)) for b in range(len(spaces)) if a != b}
    found = torch.zeros(0, weights[0].shape[1], dtype=torch.float64)
    for _ in range(budget):
        order = torch.randperm(len(spaces), generator=rng).tolist()
        start, inside = order[0], torch.eye(len(spaces[order[0]]), dtype=torch.float64)
        for other in order[1:]:
            left, values, _ = torch.linalg.svd(inside @ products[start, other], full_matrices=False)
            shared = left[:, values > 1 - _MEET].T @ inside
            inside = shared if len(shared) else inside  # nothing in common with this one: try the next
            if len(inside) == 1:
                break
        if len(inside) == 1:
            line = inside @ spaces[start]
            if not bool(((found @ line.T).abs() > 1 - _SAME).any()):
                found = torch.cat([found, line])
    holds = torch.stack([(found @ space.T).norm(dim=1) > 1 - _MEET for space in spaces])  # [messages, L]
    inverse = torch.full((len(spaces), len(found)), torch.nan, dtype=torch.float64)
    for row, (gradient, weight, space) in enumerate(zip(gradients, weights, spaces)):
        level = torch.linalg.lstsq(weight @ space.T, gradient[layer.bias].double().cpu()[:, None]).solution[:, 0] if len(space) else None
        if level is not None:
            inverse[row, holds[row]] = found[holds[row]] @ (level @ space)  # z'w = 1
    signed = found / inverse.nanmedian(0).values.nan_to_num(1.0)[:, None]
    return signed, [row.nonzero().squeeze(1).tolist() for row in holds]


def _rows(weight: Tensor, batch: int) -> Tensor:
    """Orthonormal rows [r, F'] of the span of a batch; none where it may hold more records than the layer has units."""
    _, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = int((values > _CUT * values[0].clamp_min(1e-300)).sum())
    rows: Tensor = right[:batch] if rank >= batch and batch <= len(weight) else right[:0]
    return rows
