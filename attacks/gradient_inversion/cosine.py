"""Records and labels whose simulated message points where the received one does (Geiping et al. 2020, "Inverting gradients").

One minus the cosine of the two messages is minimised by Adam over records and soft labels together, from several starts. All starts of
all targets of one checkpoint run in one batch. The start is kept whose *observable* loss is lowest; nothing reads the truth. The cosine
does not see the records' scale: judge a result by scale-aware scores too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient, certified, known_count, output_bias
from suites.contracts import Goal, Guess, Observation, Params, Secret, Sees, Target

_SURE = 40.0  # logit of a label that is known


class CosineInversion:
    """Records by gradient descent on the cosine distance between simulated and received message.

    Parameters
    ----------
    budget : int
        Adam iterations; evaluate a defense that hides something at 1, 10 and 100 times this.
    restarts : int
        Starts a target, x ~ N(0, 1) in public units.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    prior : float
        Weight of the mean square of x: the negative log density of standard normal records.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "simulate", "key"})
    signed: ClassVar[bool] = False  # whether Adam is given the slope's sign alone

    def __init__(self, budget: int = 80, restarts: int = 2, limit: int = 3, prior: float = 0.01, lr: float = 0.1) -> None:
        self.budget, self.restarts, self.limit, self.prior, self.lr = budget, restarts, limit, prior, lr

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        everything = self.messages(seen)
        targets, key = list(everything[: self.limit]), seen.key
        features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        values: dict[int, Tensor] = {}
        losses: dict[int, float] = {}
        proven: dict[int, bool] = {}
        for group in alike(targets):
            members = [targets[index] for index in group]
            x, labels, loss = self._descend(seen, members, features, classes, key, rng)
            for position, index in enumerate(group):
                best = int(loss[position].argmin())
                values[index], losses[index] = x[position, best], float(loss[position, best])
                proven[index] = certified(seen, targets[index], values[index], labels[position, best], key)
        order = range(len(targets))
        return Guess(
            [values[index] for index in order],
            confidence=-torch.tensor([losses[index] for index in order]),
            certified=torch.tensor([proven[index] for index in order]),
            notes={"targets": float(len(targets)), "of": float(len(everything)), "iterations": float(self.budget)},
        )

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    def labels(self, seen: Observation, target: Target, classes: int) -> Tensor | None:
        """Labels [B] that are known before the search; None searches them too."""
        return None

    def schedule(self, optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """How the rate falls."""
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.budget, 1), eta_min=self.lr / 100)

    def _descend(
        self, seen: Observation, targets: Sequence[Target], features: int, classes: int, key: Secret | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Records [T, R, B, F], soft labels [T, R, B, K] and losses [T, R] of targets that share checkpoint and protocol."""
        first = targets[0]
        # Adam's first steps keep little but signs, whose slope is zero nearly everywhere: plain steps stand for them, smooth and alike.
        client = replace(first, optimiser="sgd") if first.optimiser == "adam" else first
        lanes = len(targets) * self.restarts
        device = next(iter(first.params.values())).device
        names = [name for name, tensor in first.update.items() if tensor.is_floating_point()]
        received = {name: torch.stack([target.update[name] for target in targets]).repeat_interleave(self.restarts, 0) for name in names}
        start = torch.stack([_label_start(target, classes) for target in targets]).repeat_interleave(self.restarts, 0)  # [L, K]
        x = torch.randn(lanes, first.batch, features, generator=rng).to(device).requires_grad_()
        logits = (start[:, None].to(device) + 0.5 * torch.randn(lanes, first.batch, classes, generator=rng).to(device)).requires_grad_()
        known = [labels for target in targets if (labels := self.labels(seen, target, classes)) is not None]
        if known:
            logits = _SURE * torch.nn.functional.one_hot(torch.stack(known), classes).to(x).repeat_interleave(self.restarts, 0)

        def objective(records: Tensor, scores: Tensor, message: Params) -> Tensor:
            simulated = seen.simulate(client, records, scores.softmax(-1), key)
            shared = [name for name in names if name in simulated]  # without a key, only what the path without one trains
            dot = sum(((simulated[name] * message[name]).sum() for name in shared), torch.zeros((), device=device))
            ours = sum((simulated[name].square().sum() for name in shared), torch.zeros((), device=device))
            theirs = sum((message[name].square().sum() for name in shared), torch.zeros((), device=device))
            return 1 - dot / (ours * theirs).clamp_min(1e-30).sqrt()

        batched = batch(objective)
        searched = [x] if known else [x, logits]
        optimiser = torch.optim.Adam(searched, lr=self.lr)
        schedule = self.schedule(optimiser)
        for _ in range(self.budget):
            optimiser.zero_grad()
            (batched(x, logits, received).sum() + self.prior * x.square().mean((1, 2)).sum()).backward()  # type: ignore[no-untyped-call]
            for free in searched:
                if free.grad is not None:
                    free.grad.nan_to_num_(0.0, 0.0, 0.0)  # one start that leaves the numbers does not stop the others
                    if self.signed:
                        free.grad.sign_()
            optimiser.step()
            schedule.step()
        loss = batched(x, logits, received).detach().nan_to_num(torch.inf)
        per_target = (len(targets), self.restarts, first.batch)
        return x.detach().view(*per_target, features), logits.detach().softmax(-1).view(*per_target, classes), loss.view(per_target[:2])


class CosineInversionOfSum(CosineInversion):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "simulate", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def batch(objective: Callable[[Tensor, Tensor, Params], Tensor]) -> Callable[[Tensor, Tensor, Params], Tensor]:
    """The objective over a leading axis: by vmap where the simulated client allows it, else one lane after the other."""
    together = torch.func.vmap(objective)
    one_by_one = False

    def run(x: Tensor, logits: Tensor, received: Params) -> Tensor:
        nonlocal one_by_one
        if not one_by_one:
            try:
                return together(x, logits, received)
            except (RuntimeError, NotImplementedError):  # an operation without a batching rule
                one_by_one = True
        lanes = [objective(x[i], logits[i], {name: tensor[i] for name, tensor in received.items()}) for i in range(len(x))]
        return torch.stack(lanes)

    return run


def alike(targets: Sequence[Target]) -> list[list[int]]:
    """Indices of targets grouped by checkpoint and protocol: within a group one simulated client serves all."""

    def same(a: Target, b: Target) -> bool:
        if _asked(a) != _asked(b):
            return False
        return a.params is b.params or all(torch.equal(a.params[name], b.params[name]) for name in a.params)

    groups: list[list[int]] = []
    for index, target in enumerate(targets):
        home = next((group for group in groups if same(targets[group[0]], target)), None)
        if home is None:
            groups.append([index])
        else:
            home.append(index)
    return groups


def _asked(target: Target) -> tuple[object, ...]:
    """What the simulated client does at a target, beside the checkpoint."""
    return target.optimiser, target.steps, target.lr, target.momentum, target.batch, target.contributors, target.round


def _label_start(target: Target, classes: int) -> Tensor:
    """Logits [K] to start from: the sign of the output bias' gradient says which classes occur; zeros where there is none."""
    gradient = as_gradient(target)
    name = output_bias(gradient, classes)
    if name is None:
        return torch.zeros(classes)
    slope = gradient[name].float().cpu()
    return -4 * slope / slope.abs().max().clamp_min(1e-30)
