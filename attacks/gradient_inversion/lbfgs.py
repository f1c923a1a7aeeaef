"""L-BFGS over many independent problems at once: every lane has its own history, step and stop, all share each evaluation.

Source: Nocedal and Wright 2006, algorithms 7.4 and 7.5, with Armijo backtracking (quadratic interpolation) and curvature pairs kept
only where they are positive, which needs no second gradient inside the line search.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]  # [L, n] -> losses [L], each lane's depending on its own row only

PATIENCE = 60  # evaluations within which the best lane must gain one per cent
_ARMIJO = 1e-4
_TRIES = 12


def minimise(
    objective: Objective, start: Tensor, budget: int, history: int = 20, stop: Callable[[Tensor], bool] | None = None
) -> tuple[Tensor, Tensor]:
    """Minimise from ``start`` [L, n] within ``budget`` evaluations; returns points [L, n] and losses [L].

    ``stop`` is asked after each iteration whether the losses suffice. Lanes that cannot descend further stay where they are; the
    search ends early when even the best lane gains nothing any more.
    """
    x = start.clone()
    loss, slope = _evaluate(objective, x)
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    weights: list[Tensor] = []  # 1 / (s . y), 0 where a lane skips the pair
    used, seen_at, seen_best = 1, 1, float(loss.min())
    while used < budget and not (stop is not None and stop(loss)):
        direction = -_two_loop(slope, steps, changes, weights)
        gain = (direction * slope).sum(1)
        uphill = gain >= 0
        direction = torch.where(uphill[:, None], -slope, direction)
        gain = torch.where(uphill, -slope.square().sum(1), gain)
        first = 1.0 if steps else (1 / slope.abs().sum(1)).clamp(max=1.0)[:, None]
        length = torch.ones_like(loss) * (first if isinstance(first, float) else first[:, 0])
        new_x, new_loss, new_slope = x, loss, slope
        open_ = torch.ones_like(loss, dtype=torch.bool)
        for _ in range(_TRIES):
            trial = torch.where(open_[:, None], x + length[:, None] * direction, new_x)
            trial_loss, trial_slope = _evaluate(objective, trial)
            used += 1
            good = open_ & (trial_loss <= loss + _ARMIJO * length * gain)
            new_x = torch.where(good[:, None], trial, new_x)
            new_loss = torch.where(good, trial_loss, new_loss)
            new_slope = torch.where(good[:, None], trial_slope, new_slope)
            open_ = open_ & ~good
            if not bool(open_.any()) or used >= budget:
                break
            shrink = (-gain * length / (2 * (trial_loss - loss - gain * length)).clamp_min(1e-300)).clamp(0.1, 0.5)
            length = torch.where(open_, length * shrink.nan_to_num(0.1), length)
        if bool(open_.all()):
            break
        s, y = new_x - x, new_slope - slope
        product = (s * y).sum(1)
        steps, changes = [*steps[-history + 1 :], s], [*changes[-history + 1 :], y]
        usable = product > 1e-10 * s.norm(dim=1) * y.norm(dim=1)
        weights = [*weights[-history + 1 :], torch.where(usable, 1 / product, 0.0)]
        x, loss, slope = new_x, new_loss, new_slope
        if used - seen_at >= PATIENCE:
            best = float(loss.min())
            if best > 0.99 * seen_best:
                break
            seen_at, seen_best = used, best
    return x, loss


def _evaluate(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().requires_grad_()
    loss = objective(point)
    (slope,) = torch.autograd.grad(loss.sum(), point)
    finite = loss.isfinite() & slope.isfinite().all(1)
    return torch.where(finite, loss.detach(), torch.inf), torch.where(finite[:, None], slope, 0.0)


def _two_loop(slope: Tensor, steps: list[Tensor], changes: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The inverse Hessian's estimate times ``slope`` [L, n]."""
    q = slope
    taken: list[Tensor] = []
    for s, y, weight in zip(reversed(steps), reversed(changes), reversed(weights)):
        amount = weight * (s * q).sum(1)
        q = q - amount[:, None] * y
        taken.append(amount)
    scale = torch.ones_like(slope[:, 0])
    for y, weight in zip(changes, weights):  # the newest usable pair's
        scale = torch.where(weight > 0, 1 / (weight * y.square().sum(1)).clamp_min(1e-300), scale)
    q = q * scale[:, None]
    for s, y, weight, amount in zip(steps, changes, weights, reversed(taken)):
        q = q + (amount - weight * (y * q).sum(1))[:, None] * s
    return q
