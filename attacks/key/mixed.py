"""Single records in the coordinates that the network reads, whatever a secret did to them before: no key, no plaintext.

A secret in front of the network is invisible to the network: messages are those of a plain client on mixed records. So one record falls
out in closed form and small batches by the search in the row space, in mixed coordinates; what follows tries to name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import invert
from attacks.gradient_inversion.message import as_gradient, known_count, output_bias, unlabelled
from attacks.gradient_inversion.row_problem import Problem
from suites.contracts import Observation, Params, Secret, Skip, Target

_EXPLAINED = 1e-6  # loss a tensor below which a batch counts as taken apart


@dataclass(frozen=True, slots=True)
class Mixed:
    """``z`` [K, F'] mixed records; ``target`` [K] the message each came from; ``label`` [K] (-1: unknown); ``trusted`` [K] bool."""

    z: Tensor
    target: Tensor
    label: Tensor
    trusted: Tensor


class _InModelUnits:
    """The observation with the step before the network left out."""

    def __init__(self, seen: Observation) -> None:
        self._inner = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def simulate(
        self, target: Target, x: Tensor, y: Tensor, key: Secret | None = None, *, prepared: bool = True, order: Tensor | None = None
    ) -> Params:
        return self._inner.simulate(target, x, y, key, prepared=True, order=order)

    def restore(self, x: Tensor, key: Secret | None = None) -> Tensor:
        return x


def mixed_records(seen: Observation, targets: Sequence[Target], rng: torch.Generator, *, budget: int = 900, restarts: int = 8) -> Mixed:
    """The records behind each message, in order; ``budget`` and ``restarts`` are those of the row-space search for batches.

    Raises ``Skip`` where messages hold no linear layer or are not of plain gradients.
    """
    if not targets:
        raise Skip("no probe message is in sight, so there is no record to name")
    features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
    public = seen.auxiliary.x
    norm = float(public.norm(dim=1).median()) if len(public) else float(features) ** 0.5
    parts, owners, labels, trust = [], [], [], []
    for index, target in enumerate(targets):
        if target.batch == 1:
            raw, _, case = invert(target, features, norm, public)
            found, solved = raw.double(), case in ("plain", "keyed rows")
            own = torch.tensor([one_label(target, classes)])
        else:
            if unlabelled(seen.known):
                raise Skip(
                    "records of this task are more than what the first layer reads, and a mixed batch of them is not taken apart here"
                )
            problem = Problem(_InModelUnits(seen), target, None)
            inside, loss = problem.solve(budget, restarts, rng)
            solved = loss < _EXPLAINED * len(problem.received)
            found, own = inside @ problem.rows, problem.labels.cpu()
        parts.append(found.cpu())
        owners.append(torch.full((len(found),), index))
        labels.append(own)
        trust.append(torch.full((len(found),), solved))
    return Mixed(torch.cat(parts), torch.cat(owners), torch.cat(labels), torch.cat(trust))


def one_label(target: Target, classes: int) -> int:
    """The one class whose output bias must grow (iDLG), or -1 where that cannot be read off."""
    gradient = as_gradient(target)
    name = output_bias(gradient, classes)
    return -1 if name is None else int(gradient[name].argmin())


def may_be(mixed: Mixed, y: Tensor) -> Tensor:
    """Which candidates with labels ``y`` [n] each mixed record can be [K, n]: those of its own label."""
    allowed = (mixed.label[:, None] == y[None].cpu()) | (mixed.label < 0)[:, None]
    return allowed | ~allowed.any(1, keepdim=True)


def by_target(rows: Tensor, mixed: Mixed) -> list[Tensor]:
    """``rows`` [K, F] as one tensor a message."""
    return [rows[mixed.target == index] for index in range(int(mixed.target.max()) + 1)]
