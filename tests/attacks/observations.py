"""A small federation seen in the open: plain torch, no engine, so that an attack's test depends on nothing but the attack.

``Lab`` holds the truth and is what a test asks; ``Lab.seen(...)`` is what an attack gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from suites.contracts import Fact, Params, Records, Reference, RoundView, Secret, Target, Threat


def mlp(widths: Sequence[int], seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for index, (left, right) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(left, right))
            if index < len(widths) - 2:
                layers += ([nn.LayerNorm(right)] if norm else []) + [nn.ReLU()]
        return nn.Sequential(*layers)


class KeyedRows(nn.Module):
    """A linear layer whose rows a secret scales: what a row-scaling key does to the first layer."""

    def __init__(self, features: int, out: int, scale: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, features))
        self.bias = nn.Parameter(torch.zeros(out))
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.get_buffer("scale")[:, None] * self.weight, self.bias)


def normal(*shape: int, seed: int) -> Tensor:
    """Data come from numpy, attacks draw from torch: their streams cannot meet."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@dataclass
class FakeObservation:
    """All that the contract lists, readable without a guard."""

    module: nn.Module
    features: int
    classes: int
    targets: Sequence[Target] = ()
    rounds: Sequence[RoundView] = ()
    released: Params = field(default_factory=dict)
    candidates: Records = field(default_factory=lambda: Records(torch.empty(0, 1), torch.empty(0, dtype=torch.int64)))
    auxiliary: Records = field(default_factory=lambda: Records(torch.empty(0, 1), torch.empty(0, dtype=torch.int64)))
    models: Sequence[Reference] = ()
    truth: Any = None
    key: Secret | None = None
    threat: Threat = field(default_factory=Threat)

    @property
    def known(self) -> Mapping[str, Fact]:
        return {
            "features": Fact(self.features, "public"),
            "classes": Fact(self.classes, "public"),
            "n_candidates": Fact(len(self.candidates), "protocol"),
            "n_references": Fact(len(self.models), "protocol"),
            "module": Fact(self.module, "protocol"),
        }

    @property
    def target_sums(self) -> Sequence[Target]:
        return self.targets

    @property
    def own_records(self) -> Records:
        raise AssertionError("a server has no records of its own")

    def draw_key(self, index: int) -> Secret | None:
        return None

    def simulate(self, target: Target, x: Tensor, y: Tensor, key: Secret | None = None, *, order: Tensor | None = None) -> Params:
        return message(self.module, target.params, x, y, target.optimiser, target.steps, target.lr, order)

    def predict(self, params: Params, x: Tensor, key: Secret | None = None) -> Tensor:
        return torch.func.functional_call(self.module, params, (x,))

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        chosen = outputs.log_softmax(-1).gather(1, y[:, None])[:, 0]
        return chosen - torch.log1p(-chosen.exp().clamp_max(1 - 1e-7))

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, y, reduction="none")

    def restore(self, x: Tensor, key: Secret | None = None) -> Tensor:
        return functional.pad(x[:, : self.features], (0, max(0, self.features - x.shape[1])))

    def references(self, count: int) -> Sequence[Reference]:
        return self.models[:count]

    def oracle(self) -> Any:
        return self.truth


def message(
    module: nn.Module,
    params: Params,
    x: Tensor,
    y: Tensor,
    optimiser: str = "gradient",
    steps: int = 1,
    lr: float = 0.0,
    order: Tensor | None = None,
) -> Params:
    """What a client sends after steps on (x, y), or on the records that each row of ``order`` [steps, B] marks: differentiable in both."""

    def mean_loss(current: Params, step: int = 1) -> Tensor:
        losses = functional.cross_entropy(torch.func.functional_call(module, current, (x,)), y, reduction="none")
        return losses.mean() if order is None else (losses * order[step - 1].to(x)).sum() / order[step - 1].to(x).sum()

    if optimiser == "gradient":
        return dict(torch.func.grad(mean_loss)(params))
    now = dict(params)
    first = {name: torch.zeros_like(t) for name, t in params.items()}
    second = {name: torch.zeros_like(t) for name, t in params.items()}
    for step in range(1, steps + 1):
        slope = torch.func.grad(mean_loss)(now, step)
        if optimiser == "sgd":
            now = {name: t - lr * slope[name] for name, t in now.items()}
            continue
        first = {name: 0.9 * t + 0.1 * slope[name] for name, t in first.items()}
        second = {name: 0.999 * t + 0.001 * slope[name].square() for name, t in second.items()}
        scale = math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        root = {name: t.clamp_min(1e-30).sqrt() + 1e-8 * math.sqrt(1 - 0.999**step) for name, t in second.items()}
        now = {name: t - lr * scale * first[name] / root[name] for name, t in now.items()}
    return {name: now[name] - params[name] for name in params}


def wire(module: nn.Module) -> Params:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def probe(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    optimiser: Any = "gradient",
    steps: int = 1,
    lr: float = 0.0,
    noise: Callable[[Tensor], Tensor] | None = None,
    contributors: int = 1,
    minibatch: int | None = None,
    order: Tensor | None = None,
) -> Target:
    """One visible message of records ``x`` [B, F]; ``noise`` is added to each of its tensors, ``order`` goes into it and no further."""
    params = wire(module)
    update = {name: t.detach() for name, t in message(module, params, x, y, optimiser, steps, lr, order).items()}
    if noise is not None:
        update = {name: noise(t) for name, t in update.items()}
    return Target(params, update, len(x), optimiser, steps, lr, 0 if contributors == 1 else None, contributors, 0, minibatch=minibatch)


def cosine(guess: Tensor, truth: Tensor) -> Tensor:
    return functional.cosine_similarity(guess.double(), truth.double(), dim=-1)


def r2(guess: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """1 - squared error over squared truth: 0 for the public mean, which is the origin."""
    error = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(guess, truth))
    return 1 - error / sum(float(b.double().square().sum()) for b in truth)


def auc(scores: Tensor, member: Tensor) -> float:
    """Mann-Whitney, ties by half."""
    inside, outside = scores[member].double(), scores[~member].double()
    above = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    return float(above.mean())


def auc_error(member: Tensor) -> float:
    """The standard deviation of a null AUC."""
    a, b = int(member.sum()), int((~member).sum())
    return math.sqrt((a + b + 1) / (12 * a * b))
