"""L-BFGS over many independent problems at once: every lane has its own history, step length and stop, all share each evaluation.

Source: Nocedal and Wright 2006, chapter 7, with the inverse Hessian in compact form (Byrd, Nocedal and Schnabel 1994, theorem 2.2) and
Armijo backtracking by quadratic interpolation. A lane whose trial step is good takes its next step in the very next evaluation while others
still shorten theirs, so that one lane in trouble costs the others nothing. Curvature pairs are kept only where they are positive, which
needs no second gradient inside the line search.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]  # [L, n] -> losses [L], each lane's depending on its own row only

PATIENCE = 60  # evaluations within which some lane must gain one per cent: the best may sit in a trap while others get past it
_ARMIJO = 1e-4
_TRIES = 12  # shorter steps before a lane forgets its history, and again before it rests


def minimise(
    objective: Objective, start: Tensor, budget: int, history: int = 20, stop: Callable[[Tensor], bool] | None = None
) -> tuple[Tensor, Tensor]:
    """Minimise from ``start`` [L, n] within ``budget`` evaluations; returns points [L, n] and losses [L].

    ``stop`` is asked after each evaluation whether the losses suffice. Lanes that cannot descend further stay where they are; the
    search ends early when no lane gains anything any more.
    """

    def suffice(losses: Tensor, left: Tensor) -> Tensor:
        return torch.tensor([stop is not None and stop(losses[0])])

    x, loss = minimise_each(lambda left: objective, start[None], budget, suffice, history)
    return x[0], loss[0]


def minimise_each(
    family: Callable[[Tensor], Objective], start: Tensor, budget: int, stop: Callable[[Tensor, Tensor], Tensor], history: int = 20
) -> tuple[Tensor, Tensor]:
    """The same for several problems with equally many lanes, ``start`` [P, L, n]: points [P, L, n] and losses [P, L].

    Each problem ends when it would alone, and leaves the evaluations then. ``family`` gives the objective of the problems ``left`` [p]
    (their lanes in a row, [p L, n]); ``stop`` says of their losses [p, L] which suffice [p].
    """
    problems, lanes, size = start.shape
    points, losses = start.clone(), start.new_full((problems, lanes), torch.inf)
    left = torch.arange(problems)
    objective = family(left)
    x = start.reshape(-1, size).clone()
    loss, slope = _evaluate(objective, x)
    past = _History(x, history)
    direction, gain, length = _first(slope)
    tries = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    resting, plain = torch.zeros_like(tries, dtype=torch.bool), torch.ones_like(tries, dtype=torch.bool)
    used, seen_at, seen_loss = 1, 1, loss
    stuck = torch.zeros(problems, dtype=torch.bool, device=x.device)
    while True:
        ended = stuck | resting.view(-1, lanes).all(1) | stop(loss.view(-1, lanes), left).to(x.device)
        if used >= budget:
            ended = torch.ones_like(ended)
        if bool(ended.any()):
            over = left.to(x.device)[ended]
            points[over], losses[over] = x.view(-1, lanes, size)[ended], loss.view(-1, lanes)[ended]
            if bool(ended.all()):
                return points, losses
            on = ~ended.repeat_interleave(lanes)
            left, objective = left[~ended.cpu()], family(left[~ended.cpu()])
            past.keep(on)
            x, loss, slope, direction, gain, length = (part[on] for part in (x, loss, slope, direction, gain, length))
            tries, resting, plain, seen_loss = tries[on], resting[on], plain[on], seen_loss[on]
        trial = torch.where(resting[:, None], x, x + length[:, None] * direction)
        trial_loss, trial_slope = _evaluate(objective, trial)
        used += 1
        good = ~resting & (trial_loss <= loss + _ARMIJO * length * gain)
        past.add(good, trial - x, trial_slope - slope)
        shrink = (-gain * length / (2 * (trial_loss - loss - gain * length)).clamp_min(1e-300)).clamp(0.1, 0.5).nan_to_num(0.1)
        length = torch.where(good, 1.0, length * shrink)
        x, slope = torch.where(good[:, None], trial, x), torch.where(good[:, None], trial_slope, slope)
        loss, tries = torch.where(good, trial_loss, loss), torch.where(good, 0, tries + 1)
        onward = -past.times(slope)
        lost = (tries >= _TRIES) | (good & ((onward * slope).sum(1) >= 0))
        resting |= lost & plain
        anew = lost & ~plain
        past.forget(anew)
        steepest, steep, short = _first(slope)
        direction = torch.where(anew[:, None], steepest, torch.where(good[:, None], onward, direction))
        gain = torch.where(anew, steep, torch.where(good, (onward * slope).sum(1), gain))
        length, tries = torch.where(anew, short, length), torch.where(anew, 0, tries)
        plain = anew | (plain & ~good)
        stuck = torch.zeros(len(left), dtype=torch.bool, device=x.device)
        if used - seen_at >= PATIENCE:
            stuck = (loss > 0.99 * seen_loss).view(-1, lanes).all(1)
            seen_at, seen_loss = used, loss


class _History:
    """Each lane's last steps s and changes of slope y [L, m, n]; an empty place holds zeros."""

    def __init__(self, x: Tensor, length: int) -> None:
        self.steps = x.new_zeros(len(x), length, x.shape[1])
        self.changes = torch.zeros_like(self.steps)
        self.scale = x.new_ones(len(x))

    def add(self, lanes: Tensor, step: Tensor, change: Tensor) -> None:
        product = (step * change).sum(1)
        kept = lanes & (product > 1e-10 * step.norm(dim=1) * change.norm(dim=1))
        self.steps = torch.where(kept[:, None, None], torch.cat([self.steps[:, 1:], step[:, None]], 1), self.steps)
        self.changes = torch.where(kept[:, None, None], torch.cat([self.changes[:, 1:], change[:, None]], 1), self.changes)
        self.scale = torch.where(kept, product / change.square().sum(1).clamp_min(1e-300), self.scale)

    def forget(self, lanes: Tensor) -> None:
        self.steps, self.changes = (torch.where(lanes[:, None, None], 0.0, held) for held in (self.steps, self.changes))
        self.scale = torch.where(lanes, 1.0, self.scale)

    def keep(self, lanes: Tensor) -> None:
        self.steps, self.changes, self.scale = self.steps[lanes], self.changes[lanes], self.scale[lanes]

    def times(self, slope: Tensor) -> Tensor:
        """The inverse Hessian's estimate times ``slope`` [L, n]."""
        s, y, scale = self.steps, self.changes, self.scale[:, None, None]
        between = s @ y.mT
        diagonal = between.diagonal(dim1=1, dim2=2)
        upper = between.triu() + torch.diag_embed((diagonal == 0).to(s))
        g = slope[:, :, None]
        u = torch.linalg.solve_triangular(upper, s @ g, upper=True)
        inner = diagonal[:, :, None] * u + scale * (y @ (y.mT @ u)) - scale * (y @ g)
        outer = torch.linalg.solve_triangular(upper.mT, inner, upper=False)
        found: Tensor = scale * g + s.mT @ outer - scale * (y.mT @ u)
        return found[:, :, 0]


def _first(slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steepest descent: direction [L, n], its gain [L] and a cautious length [L]."""
    return -slope, -slope.square().sum(1), (1 / slope.abs().sum(1).clamp_min(1e-300)).clamp(max=1.0)


def _evaluate(objective: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x.detach().requires_grad_()
    loss = objective(point)
    (slope,) = torch.autograd.grad(loss.sum(), point)
    finite = loss.isfinite() & slope.isfinite().all(1)
    return torch.where(finite, loss.detach(), torch.inf), torch.where(finite[:, None], slope, 0.0)
