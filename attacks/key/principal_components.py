"""Unmixing by statistics alone: principal axes of mixed records are laid on those of the adversary's own records.

Threat: a server that sees single records' messages and holds auxiliary records of the same population; no key, no plaintext and no
candidates. A rotation moves principal axes and keeps what lies along them. Where labels are read off the output bias, the class means of
both sides are laid on each other by Procrustes' rotation inside the leading axes (Schönemann 1966). Without labels axes keep their order,
and each takes the sign under which the marginal of the mixed scores lies nearer to the auxiliary one (Wasserstein-1).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks.key.mixed import by_target, mixed_records
from suites.contracts import Goal, Ground, Guess, Observation, RequestError, Sees, Skip


class PrincipalComponents:
    """Records in public units from ``axes`` matched principal axes (0: one fewer than classes, or a tenth of the mixed records)."""

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict"})
    ground: ClassVar[Ground] = Ground(factors=4)  # where all directions are alike there are no axes to find

    def __init__(self, axes: int = 0) -> None:
        if axes < 0:
            raise RequestError(f"principal_components needs axes >= 0 but got {axes}: it counts matched principal axes")
        self.axes = axes

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        mixed, public = mixed_records(seen, seen.targets, rng), seen.auxiliary
        if min(len(mixed.z), len(public)) < 8:
            raise Skip("principal axes need at least eight visible records and as many auxiliary ones")
        z, x = mixed.z, public.x.double()
        lengths = z.norm(dim=1), x.norm(dim=1)
        if lengths[0].log().std() < 0.5 * lengths[1].log().std():  # the defense brought its records to one length
            x = normalize(x, dim=1) * lengths[1].median()
        labels = (mixed.label, public.y.cpu()) if (mixed.label >= 0).all() else None
        count = self.axes or max(len(torch.unique(mixed.label)) - 1 if labels else len(z) // 10, 1)
        straight = unmixed(z, x, count)
        rows = z if straight else aligned(z, x, count, labels)
        return Guess(by_target(rows.float(), mixed), notes={"axes": float(count), "unmixed": float(straight)})


def unmixed(z: Tensor, x: Tensor, count: int) -> bool:
    """Whether ``z`` has at least half the share of its energy on the public principal axes that unseen public records have."""
    if z.shape[1] != x.shape[1]:
        return False
    axes = torch.linalg.svd(x[::2] - x[::2].mean(0), full_matrices=False)[2][:count]

    def share(rows: Tensor) -> float:
        return float(((rows @ axes.T).square().sum(1) / rows.square().sum(1).clamp_min(1e-300)).mean())

    return share(z) > 0.5 * share(x[1::2])


def aligned(z: Tensor, x: Tensor, count: int, labels: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Mixed records ``z`` [K, F'] in the units of the public ``x`` [n, F] by ``count`` principal axes: [K, F]; ``labels`` of both."""
    z = z * (x.norm(dim=1).median() / z.norm(dim=1).median().clamp_min(1e-300))
    if labels is not None:  # the same classes in the same shares on both sides, so that the means are of one thing
        common = [c for c in torch.unique(labels[0]).tolist() if (labels[1] == c).any()]
        share = torch.stack([(labels[0] == c).double().mean() for c in common])
        means = torch.stack([z[labels[0] == c].mean(0) for c in common]), torch.stack([x[labels[1] == c].mean(0) for c in common])
        middle = share @ means[1] / share.sum()
    else:
        middle = x.mean(0)
    away, apart = z - z.mean(0), x - middle
    own = torch.linalg.svd(away, full_matrices=False)[2][:count]
    axes = torch.linalg.svd(apart, full_matrices=False)[2][: len(own)]
    own = own[: len(axes)]
    if labels is not None:
        here, there = (means[0] - z.mean(0)) @ own.T, (means[1] - middle) @ axes.T
        left, _, right = torch.linalg.svd(here.T @ (share[:, None] * there))
        turn = left @ right
    else:
        scores, public = away @ own.T, apart @ axes.T
        scores = scores * (public.std(0) / scores.std(0).clamp_min(1e-300))
        levels = torch.linspace(0.02, 0.98, 49, dtype=scores.dtype)
        wanted = torch.quantile(public, levels, dim=0)
        plus, minus = ((torch.quantile(sign * scores, levels, dim=0) - wanted).abs().mean(0) for sign in (1, -1))
        turn = torch.diag(torch.where(plus <= minus, 1.0, -1.0).to(scores))
    result: Tensor = middle + away @ own.T @ turn @ axes
    return result
