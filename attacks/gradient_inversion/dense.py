"""Closed-form gradients of a plain ReLU network, batched over lanes: one bmm a layer instead of a backward pass inside a forward one.

``Chain.found`` reads the layers off the message's names and shapes; whether the network really is such a chain is then checked against
the public client algorithm by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from attacks.gradient_inversion.gap import bias_of
from attacks.gradient_inversion.message import first_linear
from suites.contracts import Params


@dataclass(frozen=True, slots=True)
class Chain:
    """The names of dense layers from input to output; every layer has a bias."""

    weights: tuple[str, ...]

    @classmethod
    def found(cls, params: Params, features: int, classes: int) -> Chain | None:
        """The chain that explains *all* tensors of a message, or None."""
        names = [name for name in params if name.endswith("weight")]
        if {name.removesuffix("weight") + "bias" for name in names} | set(names) != set(params):
            return None
        width = params[first_linear(params, features).weight].shape[1]
        for name in names:
            if params[name].ndim != 2 or params[name].shape[1] != width:
                return None
            width = params[name].shape[0]
        return cls(tuple(names)) if width == classes else None

    def gradients(self, params: Params, first: Tensor, x: Tensor, y: Tensor) -> Params:
        """Gradients of the mean cross-entropy, each with a leading lane axis.

        ``first`` [L, H, r] stands for the first weight, ``x`` [L, B, r], ``y`` [L, B, K] probabilities.
        """
        found: Params = {}
        for name, slope, value in self._factors(params, first, x, y):
            found[name] = slope.mT @ value
            found[bias_of(name)] = slope.sum(1)
        return found

    def _factors(self, params: Params, first: Tensor, x: Tensor, y: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Per layer, last first: its weight's name, slopes at its outputs [L, B, out] and values at its inputs [L, B, in]."""
        values, on = [x], []
        for index, name in enumerate(self.weights):
            weight = first if index == 0 else params[name]
            inside = values[-1] @ weight.mT + params[bias_of(name)]
            on.append(inside > 0)
            values.append(inside if index == len(self.weights) - 1 else inside.relu())
        slope = (values[-1].softmax(-1) * y.sum(-1, keepdim=True) - y) / x.shape[1]
        for index in reversed(range(len(self.weights))):
            yield self.weights[index], slope, values[index]
            if index:
                slope = (slope @ params[self.weights[index]]) * on[index - 1]
