"""Quantile regression: a threshold for every record, learnt from auxiliary records, with no reference model (Bertran et al. 2023).

How well would the released model fit this record had it *not* seen it? The signal of unseen records is regressed on what is public about
them (their features, label and class margin), and a candidate's score is how many residual standard deviations its own signal lies above. A
ridge fit gives the mean and a second one the log spread, so all quantiles come from one Gaussian.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.loss import key_to_use
from attacks.membership.per_record import signals
from attacks.membership.span import principal
from suites.contracts import Goal, Guess, Observation, Records, Sees, Skip

COMPONENTS = 20  # principal components of the auxiliary records that describe a record
RIDGES = (1.0, 10.0, 100.0, 1000.0)


class QuantileRegression:
    """Membership by how far a record's signal lies above what unseen records like it get from the same model."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "auxiliary", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        candidates, public, key = seen.candidates, seen.auxiliary, key_to_use(seen)
        if len(public) < 8:
            raise Skip("quantile regression learns from auxiliary records and there are fewer than eight")
        components = principal(public.x, min(COMPONENTS, len(public) // 4))
        classes = int(torch.cat([public.y, candidates.y]).max()) + 1

        def describe(records: Records) -> Tensor:
            label = torch.nn.functional.one_hot(records.y, classes).double()
            return torch.cat([label, (records.x @ components.T).double(), records.x.square().mean(1, keepdim=True).double()], 1)

        def signal(records: Records) -> Tensor:
            with torch.no_grad():
                return signals(seen, lambda x: seen.predict(seen.released, x, key), records).double()

        return Guess(standing(describe(public), signal(public), describe(candidates), signal(candidates)))


def standing(known: Tensor, values: Tensor, asked: Tensor, signal: Tensor) -> Tensor:
    """Residual z-scores [n] of ``signal`` at descriptions ``asked`` [n, d], given ``values`` [m] at ``known`` [m, d]."""
    centre, scale = known.mean(0), known.std(0).clamp_min(1e-9)
    known, asked = (known - centre) / scale, (asked - centre) / scale
    middle, residual = ridge(known, values)
    spread, _ = ridge(known, residual.square().clamp_min(1e-12).log())
    # E log r^2 of a Gaussian lies 1.27 below the log of its variance; a shared factor does not move the order of scores.
    return (signal - middle(asked)) / (spread(asked) / 2).clamp(-20, 20).exp()


def ridge(x: Tensor, y: Tensor) -> tuple[_Line, Tensor]:
    """The ridge fit of ``y`` [m] on ``x`` [m, d] whose leave-one-out error is least, and its leave-one-out residuals [m]."""
    best: tuple[float, _Line, Tensor] | None = None
    gram = x.T @ x
    for penalty in RIDGES:
        inverse = torch.linalg.inv(gram + penalty * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))
        weight = inverse @ x.T @ (y - y.mean())
        leverage = ((x @ inverse) * x).sum(1) + 1 / len(x)
        residual = (y - y.mean() - x @ weight) / (1 - leverage).clamp_min(1e-6)
        error = float(residual.square().mean())
        if best is None or error < best[0]:
            best = error, _Line(weight, y.mean()), residual
    assert best is not None
    return best[1], best[2]


class _Line:
    """x -> x w + b."""

    def __init__(self, weight: Tensor, offset: Tensor) -> None:
        self.weight, self.offset = weight, offset

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.offset
