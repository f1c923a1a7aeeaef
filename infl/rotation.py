"""What a rotation costs: a trained federation changes its key, and its rounds are counted until it is as useful as before.

The new version is drawn afresh, so nothing carries over but the model. (A holder of both versions could carry the first layer of
``infl:hardened`` over without training, W M_old M_new^-1; but who saw both models would then know how the two mixings relate, and an old
key that leaked, the usual reason to rotate, would open the new one.) The control is a federation that starts anew under the new version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infl.deploy import KeyedSite, average
from infl.key import Key
from suites.contracts import Defense, Local, Params, RequestError, Task
from suites.federation import Pool
from suites.modules import initialise
from suites.randomness import stream


@dataclass(frozen=True, slots=True)
class RotationCost:
    """The headline utility before the rotation and after each round since (``after[0]``: none), beside a start from nothing."""

    before: float
    after: tuple[float, ...]
    anew: tuple[float, ...]
    within: float
    steps_a_round: int  # of the largest site

    @property
    def rounds(self) -> int | None:
        """Rounds until the old utility less ``within`` is back; None where the limit came first."""
        return self._reached(self.after)

    @property
    def steps(self) -> int | None:
        """The same in optimiser steps of the largest site."""
        return None if self.rounds is None else self.rounds * self.steps_a_round

    @property
    def rounds_anew(self) -> int | None:
        return self._reached(self.anew)

    def _reached(self, curve: Sequence[float]) -> int | None:
        return next((index for index, value in enumerate(curve) if value >= self.before - self.within), None)


def rotation_cost(
    task: Task,
    defense: Defense,
    pool: Pool,
    sites: Sequence[Tensor],
    test: Tensor,
    *,
    old: Key,
    new: Key,
    local: Local,
    rounds: int,
    limit: int,
    within: float = 0.01,
    coordinates: tuple[object, ...] = (),
) -> RotationCost:
    """Train under ``old`` for ``rounds``, rotate, and train under ``new`` for up to ``limit`` rounds.

    Parameters
    ----------
    sites, test : indices into the pool
    local : what a site does in a round; dropout is off
    within : how much of the headline metric may stay lost
    coordinates : of the initialisation and the batches
    """
    if old.identity == new.identity:
        raise RequestError("a rotation needs two versions of a key and got one twice; make the next one with `infl-bench key rotate`")
    with torch.random.fork_rng(devices=[]):
        net = task.net(pool.x.shape[1], pool.classes)

    def federation(key: Key) -> list[KeyedSite]:
        with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; leave it as it was
            members = [KeyedSite(str(i), key, defense, net, pool.x[index], classes=pool.classes) for i, index in enumerate(sites)]
        initialise(members[0].model, stream(*coordinates, "initialisation"))  # its broadcast is the start of all, keyed parts included
        return members

    def utility(site: KeyedSite, state: Params) -> float:
        site.receive(state)
        return next(iter(task.utility(site.outputs(pool.x[test]), pool.y[test], pool.classes).values()))

    def learn(members: list[KeyedSite], state: Params, count: int, role: str, until: Callable[[float], bool]) -> tuple[Params, list[float]]:
        seen = [utility(members[0], state)]
        for index in range(count):
            if until(seen[-1]):
                break
            updates = []
            for i, (site, records) in enumerate(zip(members, sites)):
                site.receive(state)
                _fit(site.model, site.x, pool.y[records], task, local, stream(*coordinates, role, index, i))
                updates.append(site.update(state, index)[0])
            mean = average(updates, [float(len(records)) for records in sites])
            state = {name: value + mean[name] for name, value in state.items()}
            seen.append(utility(members[0], state))
        return state, seen

    first, second = federation(old), federation(new)
    trained, seen = learn(first, first[0].broadcast(), rounds, "before", lambda _: False)
    before = seen[-1]
    fresh = second[0].broadcast()
    _, after = learn(second, trained, limit, "after", lambda value: value >= before - within)
    _, anew = learn(second, fresh, limit, "after", lambda value: value >= before - within)
    largest = max(len(records) for records in sites)
    return RotationCost(before, tuple(after), tuple(anew), within, local.epochs * -(-largest // local.batch))


def _fit(model: nn.Module, x: Tensor, y: Tensor, task: Task, local: Local, draw: torch.Generator) -> None:
    """One round of local training with a fresh optimiser."""
    optimiser: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=local.lr, weight_decay=local.weight_decay)
    if local.optimiser == "sgd":
        optimiser = torch.optim.SGD(model.parameters(), lr=local.lr, weight_decay=local.weight_decay, momentum=local.momentum)
    model.train()
    for _ in range(local.epochs):
        for batch in torch.split(torch.randperm(len(x), generator=draw), local.batch):
            optimiser.zero_grad()
            task.loss(model(x[batch]), y[batch]).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
