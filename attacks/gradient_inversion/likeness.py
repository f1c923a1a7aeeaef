"""As many records as one likes in the likeness of a few, to train on where the few would be learnt by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from suites.contracts import Records

_COMPONENTS, _EACH = 32, 8  # at most; records for each


class Likeness:
    """Records in the likeness of the adversary's own: two of one class blended, and what no component explains shuffled among records.

    A blend keeps its class's spread. Without the shuffled rest all records drawn would lie in the span of a hundred, which an inverter
    learns, and no victim does.
    """

    def __init__(self, public: Records) -> None:
        self.x, self.y = public.x, public.y
        middle = self.x.mean(0)
        _, strength, right = torch.linalg.svd(self.x - middle, full_matrices=False)
        count = max(1, min(_COMPONENTS, len(self.x) // _EACH, len(strength)))
        self.axes, self.middle = right[:count], middle
        self.components = self.axes * (strength[:count, None] / len(self.x) ** 0.5)  # [q, F], one standard deviation each
        self.rest = self._rest(self.x)
        same = self.y[:, None] == self.y
        self.odds = same.double() / same.sum(1, keepdim=True)
        self.means = self.odds.to(self.x) @ self.x

    def draw(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` records [count, F] and their labels."""
        one = torch.randint(len(self.x), (count,), generator=rng)
        other = torch.multinomial(self.odds.cpu()[one], 1, generator=rng)[:, 0]
        one, other = one.to(self.y.device), other.to(self.y.device)
        share = torch.rand(count, 1, generator=rng).to(self.x)
        blend = ((1 - share) * (self.x[one] - self.means[one]) + share * (self.x[other] - self.means[one])) / (
            share**2 + (1 - share) ** 2
        ).sqrt()
        x = self.means[one] + torch.where((one == other)[:, None], self.x[one] - self.means[one], blend)
        rows = torch.randint(len(self.x), (count, self.x.shape[1]), generator=rng).to(self.y.device)
        return x - self._rest(x) + self.rest.gather(0, rows), self.y[one]

    def _rest(self, x: Tensor) -> Tensor:
        centred = x - self.middle
        rest: Tensor = centred - centred @ self.axes.T @ self.axes
        return rest
