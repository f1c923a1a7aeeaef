"""Parameters under which a network's first layer sorts records into bins: what an active server sends to imprint them.

A server chooses parameters, not architecture. So the crafted layer is the network's own first one, and everything behind it only carries
a slope back that is the same for every unit that is on: then neighbouring units' gradients differ by the records between their two
thresholds (Fowl et al. 2022, "Robbing the Fed"; Boenisch et al. 2023, "When the curious abandon honesty").

- *Chain* (dense layers and ReLU): the first layer's own ReLU switches. One unit of each further layer passes the units' sum on.
- *Residual* (the suite's network, whose first layer no ReLU follows): each block's branch is switched off, so the embedding reaches the
  head, whose ReLU switches, one head unit for each bin. A layer norm would divide out what all units share; one unit with a large constant
  and one that weighs against all others hold its mean and deviation still, so that it hands them on as they are. What it adds to every
  row alike shows in that of a unit that measures nothing.

Everything else is sent as zeros, a key's modulators too: a layer whose scale is 1 + tanh(0) is no longer keyed.

Limits. BatchNorm mixes a batch's records in every row, and dropout between the first layer and its ReLU leaves records out at random:
neither is undone here. Nothing here hides what is sent: a site that looks at its parameters sees equal rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.gradient_inversion.dense import Chain
from attacks.gradient_inversion.message import first_linear
from suites.contracts import Params, Skip

SMALL = 1e-4  # deviation of what a unit says
STILL = 1e5  # the constant that holds a layer norm still, in these deviations
GOLDEN = (5**0.5 - 1) / 2  # whose multiples lie apart
GAIN = 0.3  # slope at a unit that is on, for a slope of one at the outputs: no entry then outgrows what a masked sum carries


@dataclass(frozen=True, slots=True)
class Carrier:
    """How one network is made to carry: ``units`` rows of the layer ``first`` can each be a threshold."""

    first: str
    units: int
    classes: int
    chain: Chain | None  # None: the residual network
    spare: int | None = None  # of the residual network: a row that measures nothing

    @classmethod
    def found(cls, params: Params, features: int, classes: int) -> Carrier:
        """The one for a network with these parameters; raises ``Skip`` where there is none."""
        if any("running_" in name for name in params):
            raise Skip(
                "BatchNorm mixes the records of a batch in every row of a gradient, so neighbouring rows do not differ by single ones"
            )
        first = first_linear(params, features).weight
        width = len(params[first])
        if {"embedding.weight", "fc1.weight", "fc2.weight"} <= set(params) and first == "embedding.weight":
            if width < 5:
                raise Skip("the first layer has too few units: three of them hold the norms still, and two neighbours make a bin")
            return cls(first, min(width - 3, len(params["fc1.weight"])), classes, None, width - 2)
        chain = Chain.found(params, features, classes)
        if chain is None or len(chain.weights) < 2:
            raise Skip(
                "no way through this network is known by which equal slopes reach the first layer (it is neither a chain nor residual)"
            )
        return cls(first, width, classes, chain)

    def read(self, sent: Params) -> tuple[Tensor, Tensor]:
        """Directions [units, F'] and thresholds [units] out of what was sent, as the sites' precision has them."""
        weight, bias = sent[self.first][: self.units].double(), sent[_bias(self.first)][: self.units].double()
        return weight / SMALL, -bias / SMALL

    def cleaned(self, gradient: Tensor) -> Tensor:
        """The units' rows [units, ...] of the first layer's gradient [H, ...] without what a norm adds to all of them."""
        return gradient[: self.units] if self.spare is None else gradient[: self.units] - gradient[self.spare]

    def slopes(self) -> Tensor:
        """What each class's output adds to the slope [K]: of either sign, none near their mean, and no sum of some near another's.

        The slope at a unit that is on is ``GAIN slopes @ (p - y)`` for outputs ``p`` and the label ``y``.
        """
        order = torch.arange(self.classes, dtype=torch.float64)
        return (1 - 2 * (order % 2)) * (1 + (order + 1) * GOLDEN % 1)

    def params(self, honest: Params, directions: Tensor, thresholds: Tensor) -> Params:
        """What to send: unit i says ``SMALL (directions[i] x - thresholds[i])``, [units, F'] and [units]."""
        sent = {name: torch.zeros_like(tensor) for name, tensor in honest.items()}
        sent[self.first][: self.units] = (SMALL * directions).to(sent[self.first].dtype)
        bias = sent[_bias(self.first)]
        bias[: self.units] = (-SMALL * thresholds).to(bias.dtype)
        outputs = (self.slopes() * GAIN)[:, None]
        if self.chain is None:
            self._residual(sent, outputs)
        else:
            inner, last = self.chain.weights[1:-1], self.chain.weights[-1]
            for name in inner[:1]:
                sent[name][0] = 1.0
            for name in inner[1:]:
                sent[name][0, 0] = 1.0
            columns = sent[last][:, :1] if inner else sent[last]
            columns += outputs.to(columns.dtype)
        return sent

    def _residual(self, sent: Params, outputs: Tensor) -> None:
        weight, bias = sent[self.first], sent[_bias(self.first)]
        weight[self.units], bias[-1] = -weight[: self.units].sum(0), SMALL * STILL
        mean, deviation = bias.mean(), (bias.var(unbiased=False) + 1e-5).sqrt()
        for name in [name for name in sent if name.endswith("norm2.weight")]:
            sent[name] += deviation
            sent[_bias(name)] += mean
        head = sent["fc1.weight"]
        head[: self.units, : self.units] = torch.eye(self.units, dtype=head.dtype)
        sent["fc2.weight"][:, : self.units] = outputs.to(head.dtype)


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"
