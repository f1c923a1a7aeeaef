"""What the project's attacks see when there is no federation: arrays, a model's outputs, and a training loop's recorded updates.

It has the properties of ``contracts.Observation`` and goes through the same read-logging guard, so the attacks are the very plug-ins that
run on federations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor

from suites import registry
from suites.contracts import Attack, Fact, Params, Records, Reference, RoundView, Secret, Skip, Threat
from suites.observation import Guarded, Seen
from suites.randomness import stream
from suites.tasks.classification import Classification

Outputs = Callable[[Tensor], Tensor]  # records [n, F] -> logits [n, K]
_TASK = Classification()


@dataclass
class ArrayScene:
    """An observation made of arrays; ``target`` are the released model's outputs, ``at`` those under given parameters."""

    candidates: Records
    auxiliary: Records
    member: Tensor  # the truth, for the oracle control alone
    classes: int
    view: str = "outsider"
    target: Outputs | None = None
    at: Callable[[Params, Tensor], Tensor] | None = None
    models: Sequence[Reference] = ()
    rounds: Sequence[RoundView] = ()
    released: Params = field(default_factory=dict)
    key: Secret | None = None

    @property
    def threat(self) -> Threat:
        return Threat(view=self.view)  # type: ignore[arg-type]

    @property
    def known(self) -> Mapping[str, Fact]:
        count = len(self.candidates)
        facts = {"classes": self.classes, "features": self.candidates.x.shape[1], "members": count // 2, "n_references": len(self.models)}
        return {name: Fact(value, "public") for name, value in facts.items()}

    def draw_key(self, index: int) -> Secret | None:
        return None

    def predict(self, params: Params, x: Tensor, key: Secret | None = None) -> Tensor:
        if self.at is not None:
            return self.at(params, x)
        if self.target is None:
            raise Skip("no model is given whose outputs could be asked for")
        return self.target(x)

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        return _TASK.signal(outputs, y)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return _TASK.loss(outputs, y)

    def restore(self, x: Tensor, key: Secret | None = None) -> Tensor:
        return x

    def references(self, count: int) -> Sequence[Reference]:
        return self.models[:count]

    def oracle(self) -> Any:
        return self.member

    def scores(self, name: str, seed: int) -> Tensor:
        """The scores [n] of an installed attack; raises ``Skip`` where it cannot run here."""
        attack: Attack = registry.find("attacks", name).make()
        guess = attack.run(cast(Any, Guarded(cast(Seen, self), frozenset(attack.needs))), stream("audit", name, seed))
        value: Tensor = guess.value
        return value
