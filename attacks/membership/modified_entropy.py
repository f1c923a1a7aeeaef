"""Entropy of the prediction that knows the label: low for records that were fitted (Song and Mittal 2021, equation 9).

-(1 - p_y) log p_y - sum over other classes of p_c log(1 - p_c): unlike plain entropy, a confident mistake counts as high. A threshold of
its own for each class, as the authors propose, is taken from the adversary's auxiliary records: the median, which centres the classes.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from attacks.gradient_inversion.message import unlabelled
from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Guess, Observation, Sees, Skip


class ModifiedEntropy:
    """Membership by the negative modified entropy of the released model, centred for each class on auxiliary records."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "auxiliary", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        key, asked, public = key_to_use(seen), seen.candidates, seen.auxiliary
        if asked.y.is_floating_point() or unlabelled(seen.known):
            raise Skip("modified entropy is defined for class labels, and this task predicts none")
        with torch.no_grad():
            score = -modified_entropy(seen.predict(seen.released, asked.x, key), asked.y)
            if len(public):
                known = -modified_entropy(seen.predict(seen.released, public.x, key), public.y)
                for label in torch.unique(asked.y):
                    if bool((public.y == label).any()):
                        score[asked.y == label] -= known[public.y == label].median()
        return Guess(score)


def modified_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """[n] from logits [n, K] and labels [n]; in double precision, since both ends saturate."""
    logits = outputs.double()
    logs = functional.log_softmax(logits, -1)
    p = logs.exp()
    rest = torch.log1p(-p.clamp(max=1 - 1e-15))
    own = functional.one_hot(labels, logits.shape[-1]).bool()
    return -torch.where(own, (1 - p) * logs, p * rest).sum(-1)
