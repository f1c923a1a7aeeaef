"""``infl:additive``: the authors' earlier variant, a bias that a small network draws from each neuron's index. It has no secret at all.

RoyZry98/INFL-Pytorch, all code before June 2026 and every result file that the authors published: y = W x + b + delta, with delta_j from
a network 16 -> H -> H -> 1 (ReLU) on the positional encoding of the neuron's index j, scaled to [-1, 1]: sin and cos of 2^0 .. 2^7 times
it. H is 4 or 8. (Their perturbation code weighs the two terms, .4 and .6; here is the plain sum.) Since delta reads no record and no
key, the layer is a plain one whose bias is written in another way; ``fold`` writes it back.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from infl.encoder import reset
from infl.graft import exchange, linears, of_base, refuse_without_weight
from suites.contracts import Card, Claim, Defense, Federation, RequestError, Secret, Shape
from suites.stacked import linear

FREQUENCIES = 8


def positions(neurons: int) -> Tensor:
    """The encoding of each neuron's index [out, 16]: the sines of all frequencies, then the cosines."""
    place = 2 * torch.arange(neurons) / max(1, neurons - 1) - (1 if neurons > 1 else 0)
    angle = place[:, None] * 2.0 ** torch.arange(FREQUENCIES)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Delta(nn.Module):
    """What is added to each neuron [out]; the same for every record."""

    positions: Tensor
    lane_axis = True  # suites.stacked
    batch_shared = True  # suites.ghost

    def __init__(self, neurons: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 * FREQUENCIES, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.register_buffer("positions", positions(neurons), persistent=False)  # a constant: nothing to send

    def forward(self) -> Tensor:
        added: Tensor = self.net(self.positions).squeeze(-1)
        return added


class AdditiveLinear(nn.Module):
    """y = W x + b + delta."""

    lane_axis = True
    bias: nn.Parameter | None

    def __init__(self, base: nn.Linear, hidden: int) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.delta = Delta(base.out_features, hidden).to(base.weight)
        self._base = (base,)  # in a tuple, so that torch does not register it

    def forward(self, x: Tensor) -> Tensor:
        added = self.delta()
        out: Tensor = linear(x, self.weight, self.bias) + (added.unsqueeze(1) if self.weight.dim() == 3 else added)
        return out

    def initialise(self, generator: torch.Generator | None) -> None:
        bound = self.in_features**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)
        reset(self.delta, generator)

    def plain(self) -> nn.Linear:
        """The linear layer that this one was put around, with the base weights, which it shares: without the drawn bias."""
        return of_base(self, *self._base)

    def folded(self) -> nn.Linear:
        """The plain layer that this one is."""
        with torch.no_grad():
            plain = nn.Linear(self.in_features, self.out_features).to(self.weight)
            plain.weight.copy_(self.weight)
            plain.bias.copy_(self.delta() if self.bias is None else self.bias + self.delta())
        return plain.train(self.training)


def add(model: nn.Module, *, hidden: int = 8, generator: torch.Generator | None = None) -> nn.Module:
    """A copy of ``model`` in which every ``nn.Linear`` has a drawn bias; base weights are kept."""
    refuse_without_weight(model)
    model = copy.deepcopy(model)
    layers = {id(layer): AdditiveLinear(layer, hidden) for layer in linears(model)}
    if not layers:
        raise RequestError("infl:additive adds to nn.Linear layers and this model has none: add a linear layer, or use another defense")
    for layer in layers.values():
        reset(layer.delta, generator)
    return exchange(model, layers)


def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with plain linear layers that computes the same: what any reader of the parameters can write."""
    model = copy.deepcopy(model)
    return exchange(model, {id(layer): layer.folded() for layer in model.modules() if isinstance(layer, AdditiveLinear)})


class Additive(Defense):
    """A bias from the neuron's index, learnt with the model and averaged with it; no key.

    Parameters
    ----------
    hidden : int
        H, the width of the small network; 4 or 8 in the authors' code.
    """

    card = Card(
        server="Every site's plain update. The added bias is computed from parameters that the server holds, so it can fold it away.",
        site="The broadcast model and the sum, as under plain FedAvg.",
        outsider="The released model, which opens for everybody.",
        does_not_protect="Anything: there is no secret. The layer is a plain linear layer whose bias is written as the output of a small "
        "network, so every attack on FedAvg works unchanged.",
    )

    def __init__(self, *, hidden: int = 8) -> None:
        if hidden < 1:
            raise RequestError(
                f"infl:additive needs hidden >= 1 but got {hidden}: it is the width of the network behind the bias; give 4 or 8"
            )
        self.hidden = int(hidden)

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        return add(net, hidden=self.hidden)

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        return Claim(
            kind="none",
            server_sees="every site's update in the clear",
            sentence="The method's authors claimed privacy by an implicit representation of the model, but no part of it is secret.",
        )
