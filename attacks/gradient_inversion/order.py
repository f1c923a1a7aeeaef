"""Mini-batches in an order that only the site knows: the order by how well the message fits, and records under the best one.

What a message of small steps tells of the order is of second order in their rate: which of two records came first, since the later one's
gradient is taken where the earlier one has moved the model. Orders are compared by simulating the public client along each. All orders
of one short epoch are tried; of more, two records of different mini-batches change places as long as that helps, from several starts.
Records that are only nearly right are searched again by L-BFGS under the best few orders, which are then compared anew (Dimitrov et al.
2022 search records under one order that they draw). Every message is in the row space of the first layer's update (``row_problem``).

Measured on MLP 1000-64-64-14, eight records, rate .05, three draws: in fours, one epoch and five, and in twos, one epoch, every record to
1e-6 and every message certified (as if each step took all: R² .98 to .996 and none certified). With layer norms before the ReLUs no unit
leaves a zero: records get nearer (three draws at 200 features: R² .93 to .98, before −1.6 to .95) but the order is not found. Steps so
small that the update's rounding passes 1e-6 of it are found and not certified.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from attacks.gradient_inversion.lbfgs import minimise
from attacks.gradient_inversion.row_problem import Problem
from suites.contracts import Observation, Params, Secret, Target

EVERY = 2520  # orders of one epoch up to which all are tried: eight records in fours, or in twos
MOVES = 32  # tried at once
LANES = 64  # messages simulated at once
KICKS = (3, 12)  # moves, at least and at most, that lead out of an order that no single one betters
FEW = 8  # of the best orders, under each of which imprecise records are searched again
TURNS = 4  # of that


@dataclass(frozen=True, slots=True)
class Found:
    """Records [B, r] in the row space, their labels [B], the loss, and the mini-batches [steps, B] under which it is so small.

    No ``order``: as if each step took all.
    """

    inside: Tensor
    labels: Tensor
    loss: float
    order: Tensor | None = None


def shuffles(target: Target) -> bool:
    """Whether a message is of one site's mini-batches; in a sum, nobody knows whose records are whose either."""
    return target.minibatch is not None and target.minibatch < target.batch and target.contributors == 1 and target.steps > 1


class Shuffled:
    """One such message, and what records [B, r] with ``labels`` [B] would have sent in any order.

    An order is kept for whole epochs, [steps or more, B]: 1 where a record is in a step's mini-batch.
    """

    def __init__(self, seen: Observation, problem: Problem, labels: Tensor, key: Secret | None) -> None:
        self.problem, self.target, self.labels = problem, problem.target, labels
        assert self.target.minibatch is not None
        self.records, self.size = len(labels), self.target.minibatch
        self.epoch = -(-self.records // self.size)  # steps
        self.epochs = -(-self.target.steps // self.epoch)
        self.client = torch.func.vmap(problem.client(seen, key, torch.nn.functional.one_hot(labels, problem.classes).double()))

    def loss(self, x: Tensor, order: Tensor) -> Tensor:
        """Sum over tensors of relative squared distances [L] for records ``x`` [L, B, r] in the orders [L, ., B]."""
        return torch.cat([self.problem.apart(self._sent(*part)) for part in zip(torch.split(x, LANES), torch.split(order, LANES))])

    def _sent(self, x: Tensor, order: Tensor) -> Params:
        message: Params = self.client(x, order[:, : self.target.steps])
        return message

    @torch.no_grad()
    def losses(self, x: Tensor, orders: Tensor) -> Tensor:
        """The same for one batch of records ``x`` [B, r] in many orders."""
        return self.loss(x.expand(len(orders), -1, -1), orders).nan_to_num(torch.inf)

    def best(self, x: Tensor, budget: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The best few orders [n, ., B] for records ``x`` [B, r], and their losses, from about ``budget`` simulated messages."""
        if self.epochs == 1 and self._count() <= EVERY:
            orders = self._every().to(x)
            losses = self.losses(x, orders)
            first = losses.argsort()[:FEW]
            return orders[first], losses[first]
        kept: list[tuple[float, Tensor]] = []
        here, used = self._drawn(rng).to(x), 0
        while used < budget:
            here, loss, cost = self._descended(x, here, rng)
            used += cost
            kept = sorted([*kept, (loss, here)], key=lambda pair: pair[0])[:FEW]
            if loss < self.problem.solved:
                break
            here = self._kicked(kept[0][1], rng) if len(kept) % 2 or used > budget // 2 else self._drawn(rng).to(x)
        return torch.stack([order for _, order in kept]), torch.tensor([loss for loss, _ in kept])

    def _descended(self, x: Tensor, order: Tensor, rng: torch.Generator) -> tuple[Tensor, float, int]:
        """An order that no move betters, its loss, and how many messages were simulated."""
        loss, used = float(self.losses(x, order[None])[0]), 1
        while loss >= self.problem.solved:
            moves = self._moves(order)
            better = False
            for part in torch.split(moves[torch.randperm(len(moves), generator=rng)], MOVES):
                trial = self._moved(order, part)
                losses = self.losses(x, trial)
                used += len(part)
                at = int(losses.argmin())
                if losses[at] < loss:
                    order, loss, better = trial[at], float(losses[at]), True
                    break
            if not better:
                break
        return order, loss, used

    def _moves(self, order: Tensor) -> Tensor:
        """Pairs of swaps [n, 2, 3], each (epoch, record, record) of different mini-batches.

        Either one swap alone, or two that undo each other in all but the epochs: which record came first how often stays as it was, and
        with it what the message tells most clearly.
        """
        step = order.view(self.epochs, self.epoch, -1).argmax(1).cpu()  # [epochs, B]
        first = (step[:, :, None] < step[:, None, :]).nonzero()
        alone = torch.stack([first, first[:, [0, 1, 1]]], 1)
        one, two = ((first[:, None, 1] == first[None, :, 2]) & (first[:, None, 2] == first[None, :, 1])).triu().nonzero().unbind(1)
        return torch.cat([alone, torch.stack([first[one], first[two]], 1)])

    def _moved(self, order: Tensor, moves: Tensor) -> Tensor:
        trial = order.view(self.epochs, self.epoch, -1).repeat(len(moves), 1, 1, 1)
        lane = torch.arange(len(moves))
        for epoch, one, two in (swap.unbind(1) for swap in moves.unbind(1)):
            trial[lane, epoch, :, one], trial[lane, epoch, :, two] = trial[lane, epoch, :, two], trial[lane, epoch, :, one]
        return trial.flatten(1, 2)

    def _kicked(self, order: Tensor, rng: torch.Generator) -> Tensor:
        for _ in range(int(torch.randint(*KICKS, (1,), generator=rng))):
            moves = self._moves(order)
            order = self._moved(order, moves[torch.randint(len(moves), (1,), generator=rng)])[0]
        return order

    def _drawn(self, rng: torch.Generator) -> Tensor:
        order = torch.zeros(self.epochs * self.epoch, self.records, dtype=torch.float64)
        for start in range(0, len(order), self.epoch):
            for step, part in enumerate(torch.split(torch.randperm(self.records, generator=rng), self.size)):
                order[start + step, part] = 1
        return order

    def _sizes(self) -> list[int]:
        return [min(self.size, self.records - first) for first in range(0, self.records, self.size)]

    def _count(self) -> int:
        return math.factorial(self.records) // math.prod(math.factorial(size) for size in self._sizes())

    def _every(self) -> Tensor:
        """All orders of one epoch [n, steps, B]."""
        found: list[list[tuple[int, ...]]] = [[]]
        for size in self._sizes():
            found = [
                [*parts, part]
                for parts in found
                for part in combinations([b for b in range(self.records) if not any(b in taken for taken in parts)], size)
            ]
        order = torch.zeros(len(found), self.epoch, self.records, dtype=torch.float64)
        for lane, parts in enumerate(found):
            for step, part in enumerate(parts):
                order[lane, step, list(part)] = 1
        return order

    def solve(self, inside: Tensor, budget: int, rng: torch.Generator) -> Found:
        """Records from ``inside`` [B, r] and their order; ``budget`` counts simulated messages in twenties, as a search of records does."""
        scarce = 1 if self.problem.reduced else 10  # where each message costs all features
        orders, losses = self.best(inside, 20 * budget // scarce, rng)
        order, loss = orders[0], float(losses[0])
        for _ in range(TURNS):
            if loss < self.problem.solved:
                break
            moved, left = self._refined(inside, orders, max(budget // 8, 1))
            at = int(left.argmin())
            if left[at] > 0.99 * loss:
                break
            inside, order, loss = moved[at], orders[at], float(left[at])
            orders, losses = self.best(inside, 5 * budget // scarce, rng)
            if losses[0] < loss:
                order, loss = orders[0], float(losses[0])
        return Found(inside, self.labels, loss, order[: self.target.steps])

    def _refined(self, inside: Tensor, orders: Tensor, budget: int) -> tuple[Tensor, Tensor]:
        """Records [n, B, r] searched from ``inside`` [B, r] under each of the orders, and their losses."""

        def objective(flat: Tensor) -> Tensor:
            return self.loss(flat.view(len(orders), *inside.shape), orders)

        def enough(losses: Tensor) -> bool:
            return bool((losses < self.problem.solved).any())

        flat, left = minimise(objective, inside.flatten().expand(len(orders), -1), budget, stop=enough)
        return flat.view(len(orders), *inside.shape), left
