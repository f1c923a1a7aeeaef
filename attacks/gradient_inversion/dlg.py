"""Deep leakage from gradients (Zhu, Liu and Han 2019, arXiv 1906.08935): the first inversion attack, kept as the yardstick it is.

Dummy records and dummy labels, both drawn from N(0, 1), are moved together by L-BFGS until the gradient that they give is the received one
in the squared Euclidean distance. No prior, no analysis of the message. Of several starts the one of lowest distance is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.full_space import FullSpace
from attacks.gradient_inversion.lbfgs import minimise
from attacks.gradient_inversion.message import certified
from suites.contracts import Goal, Guess, Observation, RequestError, Sees, Target


class DLG:
    """Records and labels by L-BFGS on the squared distance of simulated and received message.

    Parameters
    ----------
    budget : int
        Evaluations a target, all starts together counting as one (the paper: 300 iterations).
    restarts : int
        Starts a target.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "simulate", "key"})

    def __init__(self, budget: int = 300, restarts: int = 2, limit: int = 3) -> None:
        if min(budget, restarts, limit) < 1:
            raise RequestError(f"{type(self).__name__.lower()} needs a budget (evaluations), restarts and a limit (messages) of at least 1")
        self.budget, self.restarts, self.limit = budget, restarts, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        everything, key = self.messages(seen), seen.key
        values, losses, proven = [], [], []
        for target in everything[: self.limit]:
            problem = FullSpace(seen, target, key)
            labels = self.labels(seen, target, problem.classes)
            x, soft, loss = self._descend(problem, labels, rng)
            values.append(x.float())
            losses.append(loss)
            proven.append(certified(seen, target, x, soft, key))
        notes: dict[str, float | str] = {"targets": float(len(values)), "of": float(len(everything)), "budget": float(self.budget)}
        return Guess(values, confidence=-torch.tensor(losses), certified=torch.tensor(proven), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    def labels(self, seen: Observation, target: Target, classes: int) -> Tensor | None:
        """Labels [B, K] that are known before the search; None searches them too."""
        return None

    def _descend(self, problem: FullSpace, labels: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """Records [B, F], labels [B, K] and the loss of the best start."""
        batch, features, classes = problem.target.batch, problem.features, problem.classes
        free = 0 if labels is not None else classes
        device = next(iter(problem.params.values())).device
        drawn = [torch.randn(self.restarts, batch, width, generator=rng) for width in (features, free)]
        start = torch.cat(drawn, -1).double().to(device)

        def parts(flat: Tensor) -> tuple[Tensor, Tensor]:
            x, scores = torch.split(flat.view(-1, batch, features + free), [features, free], -1)
            return x, scores.softmax(-1) if labels is None else labels.to(x).expand(len(x), -1, -1)

        points, loss = minimise(lambda flat: problem.euclidean(*parts(flat)), start.flatten(1), self.budget)
        best = int(loss.argmin())
        x, soft = parts(points[best])
        return x[0], soft[0], float(loss[best])


class DLGOfSum(DLG):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "simulate", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
