"""RMIA: is a record's probability raised more by the released model than that of other records (Zarifzadeh et al. 2024)?

For a record x the ratio is p(x | released) / p(x), p(x) its mean probability over references; its score is the share of population
records z whose ratio lies below x's by the factor gamma. Population records are the auxiliary ones. The share saturates, so ties are
broken by the raw ratio, which changes no order between different shares.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.lira import ask_references
from attacks.membership.loss import released
from attacks.membership.per_record import Predict, losses
from suites.contracts import Goal, Guess, Observation, Sees

GAMMA = 1.0


class RMIA:
    """Membership by pairwise likelihood ratios against population records, with reference models.

    Parameters
    ----------
    count : int | None
        How many references to ask for; None takes all that the suite trains.
    """

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "auxiliary", "predict", "references", "key"})

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        candidates, population = seen.candidates, seen.auxiliary
        references = ask_references(seen, self.count)

        def of(predict: Predict) -> Tensor:
            return torch.cat([losses(seen, predict, records) for records in (candidates, population)])

        with torch.no_grad():
            target = -of(released(seen)).double()
            rows = torch.stack([-of(reference.predict).double() for reference in references])
        included = torch.stack([reference.included.bool() for reference in references]).to(rows.device)
        ratio = log_ratio(target, rows, included)
        return Guess(pairwise(ratio[: len(candidates)], ratio[len(candidates) :]), notes={"references": float(len(references))})


def log_ratio(target: Tensor, rows: Tensor, included: Tensor) -> Tensor:
    """Log of p(x | released) / p(x) [n] from log-probabilities [n] and [R, n]; p(x) averages models with and without x evenly."""

    def side(chosen: Tensor) -> Tensor:
        return torch.where(chosen, rows, torch.full_like(rows, -torch.inf)).logsumexp(0) - chosen.sum(0).log()  # NaN where empty

    inside, outside = side(included), side(~included)
    both = torch.logaddexp(inside, outside) - torch.log(torch.tensor(2.0, dtype=rows.dtype))
    evidence = torch.where(inside.isnan(), outside, torch.where(outside.isnan(), inside, both))
    return target - evidence


def pairwise(ratio: Tensor, population: Tensor, gamma: float = GAMMA) -> Tensor:
    """Share [n] of ``population`` [m] log ratios that ``ratio`` [n] exceeds by log gamma, ties broken by the raw ratio."""
    level = torch.log(torch.tensor(gamma, dtype=ratio.dtype))
    share = torch.searchsorted(population.sort().values, ratio - level, right=True) / max(len(population), 1)
    return share + torch.sigmoid(ratio) / (2 * max(len(population), 1))  # the tie-break is below one step of the share
