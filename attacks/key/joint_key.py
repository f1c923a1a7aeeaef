"""A secret of real numbers is one more unknown: it is optimised together with the records until the message is reproduced.

Threat: a server that sees messages of few records; the algorithm is public (Kerckhoffs), so the simulated client is differentiable in the
key as well. Records keep to the row space of the first layer's update (one record: a single number beside the key). Any key that
reproduces the message serves, the federation's own or not; whether it was reproduced is the certificate. A secret of bits cannot be
descended.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import invert
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.lbfgs import minimise
from attacks.gradient_inversion.message import distance, first_linear, known_count
from attacks.key.mixed import one_label
from suites.contracts import Goal, Guess, Observation, RequestError, Secret, Sees, Skip, Target

REPRODUCED = 1e-5  # relative distance of messages: far above rounding, far below what a wrong record leaves (tens of thousands of numbers)


class JointKey:
    """Records (and with them a key) by L-BFGS over both.

    Parameters
    ----------
    budget : int
        Evaluations a target and start.
    restarts : int
        Keys of the adversary's own drawing from which to start; the first that reproduces the message ends the search.
    limit : int
        Only the first ``limit`` targets are attacked.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "own_keys"})

    def __init__(self, budget: int = 400, restarts: int = 1, limit: int = 2) -> None:
        if min(budget, restarts, limit) < 1:
            raise RequestError("joint_key needs budget, restarts and limit of at least 1")
        self.budget, self.restarts, self.limit = budget, restarts, limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        values, losses = [], []
        for target in seen.targets[: self.limit]:
            found = [solve(seen, target, seen.draw_key(start), self.budget) for start in range(1)]
            for start in range(1, self.restarts):
                if found[-1][1] <= REPRODUCED or found[-1][2] == 0:
                    break
                found.append(solve(seen, target, seen.draw_key(start), self.budget))
            best = min(found, key=lambda one: one[1])
            values.append(best[0].float())
            losses.append(best[1])
        away = torch.tensor(losses)
        notes = {"unknowns_of_the_key": float(best[2]), "targets": float(len(values)), "distance": float(away.median())}
        return Guess(values, confidence=-away, certified=away <= REPRODUCED, notes=notes)


def solve(seen: Observation, target: Target, start: Secret | None, budget: int) -> tuple[Tensor, float, int]:
    """Records [B, F] for one message, the relative distance of the message they and the key give, and the key's number of unknowns."""
    features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
    public = seen.auxiliary.x
    outputs = seen.predict(target.params, public, start).detach() if len(public) else None
    labels = torch.tensor([one_label(target, classes)]) if target.batch == 1 else label_list(target, classes, outputs)
    if labels is None or int(labels.min()) < 0:
        raise Skip("the message holds no output bias, so the labels cannot be read off")
    names = [] if start is None else [name for name in start.names if start[name].is_floating_point()]
    if start is not None and len(names) < len(start.names):
        raise Skip("this secret is of bits, which cannot be descended")
    norm = float(public.norm(dim=1).median()) if len(public) else features**0.5
    layer = first_linear(target.update, features)
    rows = torch.linalg.svd(target.update[layer.weight].double(), full_matrices=False)[2][: target.batch]
    guess = invert(target, features, norm, public)[0].double() @ rows.T  # [B, r]
    params = {name: value.double() if value.is_floating_point() else value for name, value in target.params.items()}
    received = {name: value.double() for name, value in target.update.items() if value.is_floating_point()}
    exact = replace(target, params=params, update=received)
    shapes = [] if start is None else [start[name].shape for name in names]
    inside = guess.numel()
    scale = float(guess.square().mean().sqrt()) or 1.0

    def message(flat: Tensor) -> dict[str, Tensor]:
        x = (scale * flat[:inside]).view_as(guess) @ rows
        parts, place = {}, inside
        for name, shape in zip(names, shapes):
            parts[name] = flat[place : place + shape.numel()].view(shape)
            place += shape.numel()
        return seen.simulate(exact, x, labels, Secret(**parts) if parts else None)

    sizes = {name: value.square().sum().clamp_min(1e-300) for name, value in received.items()}

    def loss(lanes: Tensor) -> Tensor:
        total = []
        for flat in lanes:
            sent = message(flat)
            gaps = [(sent[name] - value).square().sum() / sizes[name] for name, value in received.items() if name in sent]
            total.append(torch.stack(gaps).sum())
        return torch.stack(total)

    tails = [] if start is None else [start[name].double().flatten() for name in names]
    begin = torch.cat([(guess / scale).flatten(), *tails])[None]
    point, _ = minimise(loss, begin, budget, stop=lambda losses: bool((losses < REPRODUCED**2).all()))
    away = float(distance(message(point[0]), received))
    return (scale * point[0, :inside]).view_as(guess) @ rows, away, sum(shape.numel() for shape in shapes)
