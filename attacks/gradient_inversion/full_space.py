"""The received message as a target of search in full space: a simulated client over many lanes at once, and distances to the message.

A lane is one start. Closed form where the network is a plain ReLU chain (checked against the public client algorithm), else the public
client itself under ``vmap``, else one lane after the other. Everything is in double precision: L-BFGS stops early in single.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attacks.gradient_inversion.dense import Chain
from attacks.gradient_inversion.gap import Gap
from attacks.gradient_inversion.message import as_gradient, first_linear, in_lanes, known_count, to_compare_by, unlabelled
from suites.contracts import Observation, Params, Secret, Skip, Target

_SAME = 1e-6  # relative distance of two simulated messages that are one and the same


class FullSpace:
    """One message, and what records and labels would have sent.

    Raises ``Skip`` for Adam, whose updates have no slope to follow.
    """

    def __init__(self, seen: Observation, target: Target, key: Secret | None) -> None:
        if target.optimiser == "adam":
            raise Skip("Adam's updates keep little but signs, whose slope is zero nearly everywhere; use cosine_inversion")
        one_step = target.optimiser == "sgd" and target.steps == 1
        plain = replace(target, optimiser="gradient", update=as_gradient(target)) if one_step else target
        self.params = {name: t.double() if t.is_floating_point() else t for name, t in plain.params.items()}
        self.received = {name: t.double() for name, t in plain.update.items() if t.is_floating_point()}
        self.target = replace(plain, params=self.params)
        self.features, self.classes = known_count(seen.known, "features"), known_count(seen.known, "classes")

        def one(x: Tensor, soft: Tensor) -> Params:
            return seen.simulate(self.target, x, soft, key)

        self._one = one
        self.chain = self._chain(target.batch) if plain.optimiser == "gradient" and not unlabelled(seen.known) else None
        size = max(sum(float(there.square().sum()) for there in self.received.values()), 1e-300)
        self._sizes = {name: (size, max(float(there.square().sum()), 1e-300)) for name, there in self.received.items()}
        if self.chain is not None:
            names = self.chain.weights
            first = self.params[names[0]]
            self._euclidean = Gap(names, self.params, first, self.received, size)
            self._relative = Gap(names, self.params, first, self.received)

    def sent(self, x: Tensor, soft: Tensor) -> Params:
        """Messages with a lane axis of records ``x`` [L, B, F] with labels ``soft`` [L, B, K]."""
        return in_lanes(self._one, x, soft)

    def euclidean(self, x: Tensor, soft: Tensor) -> Tensor:
        """Squared distance [L] of all tensors as one vector, in units of the received one's square: what Zhu et al. minimise."""
        return self._euclidean(x, soft) if self.chain is not None else self._apart(x, soft, 0)

    def relative(self, x: Tensor, soft: Tensor) -> Tensor:
        """Sum over tensors of the relative squared distance [L]: no tensor is drowned by a larger one."""
        return self._relative(x, soft) if self.chain is not None else self._apart(x, soft, 1)

    def _apart(self, x: Tensor, soft: Tensor, unit: int) -> Tensor:
        sent = self.sent(x, soft)
        gaps = [
            (sent[name] - there).flatten(1).square().sum(1) / self._sizes[name][unit]
            for name, there in self.received.items()
            if name in sent
        ]
        return torch.stack(gaps).sum(0)

    def _chain(self, batch: int) -> Chain | None:
        chain = Chain.found(self.params, self.features, self.classes)
        if chain is None or self.params[first_linear(self.params, self.features).weight].shape[1] != self.features:
            return None
        device = next(iter(self.params.values())).device
        x = to_compare_by(1, batch, self.features).to(device)
        soft = to_compare_by(1, batch, self.classes).softmax(-1).to(device)
        ours, exact = chain.gradients(self.params, self.params[chain.weights[0]][None], x, soft), self._one(x[0], soft[0])
        same = set(ours) == set(exact) and all((ours[n][0] - exact[n]).norm() <= _SAME * exact[n].norm() + 1e-12 for n in exact)
        return chain if same else None
