"""Records with categories, and how sure of each of their values to be (Vero et al. 2023, ICML, "TabLeak").

Three ideas. A one-hot group is searched as a softmax over its categories, so that no step leaves the simplex. Several searches from
different starts are pooled: their records are put in one order by an assignment to the best one's, then numbers take the median and
groups the mean of their shares. And where the pooled searches agree, the value is right: the entropy of a group's shares and the spread
of a number say how far to trust it, without the truth.

Here L-BFGS minimises the relative squared distance of each tensor, which unlike the paper's cosine sees the records' scale. Searches count
by how well they explain the message (weights inverse to their loss), and of the pooled records and the best search's own those are returned
that explain it better. Which columns are categories is told from the adversary's own records (``categories``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.gradient_inversion.categories import Categories
from attacks.gradient_inversion.full_space import FullSpace
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.lbfgs import minimise
from attacks.gradient_inversion.message import certified, unlabelled
from suites.contracts import Goal, Guess, Observation, RequestError, Sees, Skip, Target


class TabLeak:
    """Records by a pooled ensemble of searches with softmax-relaxed categories.

    ``Guess.confidence`` is [records of all targets, F], in [0, 1]: for a category one minus the relative entropy of its group over the
    ensemble, for a number ``1 / (1 + s^2)`` with s the ensemble's spread about the guess in public units.

    Parameters
    ----------
    budget : int
        Evaluations a target, all searches together counting as one.
    restarts : int
        Searches of the ensemble.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "key"})

    def __init__(self, budget: int = 300, restarts: int = 8, limit: int = 3) -> None:
        if min(budget, restarts, limit) < 1:
            raise RequestError("tableak needs a budget (evaluations), restarts and a limit (messages) of at least 1")
        self.budget, self.restarts, self.limit = budget, restarts, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        if unlabelled(seen.known):
            raise Skip("structured records have no label, and their search has a network to predict them by; use row_space")
        everything, key, public = self.messages(seen), seen.key, seen.auxiliary.x
        columns = Categories.found(public)
        values, trust, proven = [], [], []
        for target in everything[: self.limit]:
            problem = FullSpace(seen, target, key)
            outputs = seen.predict(target.params, public, key).detach() if len(public) else None
            labels = label_list(target, problem.classes, outputs)
            if labels is None:
                raise Skip("the message holds no output bias, so the labels cannot be counted")
            value, sure = self._pooled(problem, labels, columns, rng)
            values.append(value.float())
            trust.append(sure.float())
            proven.append(certified(seen, target, value, labels, key))
        notes = {"targets": float(len(values)), "of": float(len(everything)), "groups": float(len(columns.groups))}
        return Guess(values, confidence=torch.cat(trust), certified=torch.tensor(proven), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    def _pooled(self, problem: FullSpace, labels: Tensor, columns: Categories, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Records and confidences, both [B, F]."""
        shape = (self.restarts, problem.target.batch, problem.features)
        soft = torch.nn.functional.one_hot(labels, problem.classes).double()

        def loss(x: Tensor) -> Tensor:
            return problem.relative(x, soft.expand(len(x), -1, -1))

        start = torch.randn(shape, generator=rng).double().to(soft.device)
        points, losses = minimise(lambda flat: loss(columns.relaxed(flat.view(shape))), start.flatten(1), self.budget)
        found = columns.relaxed(points.view(shape))
        best = int(losses.argmin())
        together = torch.stack([aligned(one, found[best]) for one in found])  # [R, B, F]
        weight = (1 / losses.clamp_min(1e-30) / (1 / losses.clamp_min(1e-30)).sum())[:, None, None]
        shares = (weight * columns.shares_of(together)).sum(0)
        middle = together.median(0).values
        pooled = torch.where(columns.marked, columns.low + shares * (columns.high - columns.low), middle)
        soft_or_best = torch.stack([pooled, found[best]])
        either = torch.cat([soft_or_best, columns.hardened(soft_or_best)])
        value = either[int(loss(either).nan_to_num(torch.inf).argmin())]
        spread = (weight * (together - value).square()).sum(0)
        return value, torch.where(columns.marked, columns.certainty(shares), 1 / (1 + spread))


class TabLeakOfSum(TabLeak):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "predict", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def aligned(x: Tensor, reference: Tensor) -> Tensor:
    """Records [B, F] in the order in which they lie nearest, all together, to those of ``reference`` [B, F]."""
    order = linear_sum_assignment(torch.cdist(reference, x).nan_to_num(1e30).cpu().numpy())[1]
    return x[torch.as_tensor(order, device=x.device)]
