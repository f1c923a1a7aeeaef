"""What a threat sees, and nothing else: the only place that turns a transcript into an observation.

``suites.sight`` says which sights a view gets under a defense; an attack that needs more is skipped with that reason, so that no table
sets one site's update beside a masked sum. ``Guarded`` is what the attack is handed: it logs every read and raises on one that the attack
did not declare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args, overload

import torch
from torch import Tensor, nn

from suites.contracts import (
    Attack,
    Claim,
    Fact,
    Federation,
    KeySource,
    Message,
    Own,
    Pair,
    Params,
    ProbeRecord,
    Records,
    Reference,
    Round,
    RoundView,
    Secret,
    Sees,
    Skip,
    Target,
    Task,
    Threat,
)
from suites.modules import build, call
from suites.randomness import stream
from suites.room import by_rows
from suites.sight import NO_CHOICE, NO_NEIGHBOURS, skip_reason
from suites.simulation import simulate
from suites.stack import Stack

_HELD = 64  # keyed modules kept for reuse


class Views(Sequence[RoundView]):
    """Rounds as a threat sees them, each cut when it is asked for: a transcript of large models is never in memory as a whole."""

    def __init__(self, rounds: Sequence[Any], cut: Callable[[Any], RoundView]) -> None:
        self._rounds, self._cut = rounds, cut

    def __len__(self) -> int:
        return len(self._rounds)

    @overload
    def __getitem__(self, at: int) -> RoundView: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RoundView]: ...
    def __getitem__(self, at: int | slice) -> RoundView | Sequence[RoundView]:
        return Views(self._rounds[at], self._cut) if isinstance(at, slice) else self._cut(self._rounds[at])


class UndeclaredReadError(RuntimeError):
    """An attack read something that its ``needs`` does not list."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The referee's record of one federation, without secrets."""

    rounds: Sequence[Round]
    finals: Sequence[Params]
    samples: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """All that the referee knows when it cuts an observation; attacks never hold one.

    ``references`` trains or loads the first n reference models; ``keys`` is the adversary's own key stream; ``truth`` answers ``oracle``.
    """

    task: Task
    stack: Stack  # planned
    federation: Federation
    classes: int
    features: int
    secret: Secret | None
    candidates: Records
    auxiliary: Records
    members: int
    keys: KeySource
    references: Callable[[int], Sequence[Reference]]
    truth: Callable[[], Any]
    own_records: Records | None = None
    claim: Claim | None = None
    colluder: int = 0  # the site that looks, at view "site"
    pool: Records | None = None  # all records, as probes count them: what ``known_pairs`` are cut from


def why_not(attack: type[Attack] | Attack, view: str, stack: Stack, *, has_references: bool) -> str | None:
    """Why an attack cannot run on what this view sees, or None."""
    if getattr(attack, "active", False) and view != "server":
        return NO_CHOICE
    return skip_reason(attack.needs, view, topology=stack.topology, masked=stack.channel is not None, has_references=has_references)


def _own(stack: Stack) -> int:
    """How many columns of a record, the first, are its own; raises ``Skip`` where all of them are."""
    if stack.layout is None or not stack.layout.own:
        raise Skip(NO_NEIGHBOURS)
    return stack.layout.own


class Seen:
    """The observation itself; implements ``contracts.Observation``."""

    def __init__(self, scene: Scene, evidence: Evidence, threat: Threat) -> None:
        self._scene, self._evidence, self.threat = scene, evidence, threat
        self._modules: dict[int, tuple[Secret | None, nn.Module]] = {}
        self._drawn: dict[int, Secret | None] = {}
        n = len(scene.auxiliary) if threat.auxiliary <= 0 else min(threat.auxiliary, len(scene.auxiliary))
        if n < len(scene.auxiliary):  # drawn: the file's order may be by class
            chosen = torch.randperm(len(scene.auxiliary), generator=stream("auxiliary records of a threat", n))[:n]
            held = scene.auxiliary.attribute
            kept = None if held is None else held[chosen]
            self.auxiliary = Records(scene.auxiliary.x[chosen], scene.auxiliary.y[chosen], attribute=kept)
        else:
            self.auxiliary = Records(scene.auxiliary.x, scene.auxiliary.y, attribute=scene.auxiliary.attribute)
        self._columns = torch.ones(scene.features, dtype=torch.bool, device=scene.candidates.x.device)
        self.candidates = scene.candidates
        if threat.neighbours == "unknown":
            self._columns[_own(scene.stack) :] = False
            self.candidates = replace(scene.candidates, x=torch.where(self._columns, scene.candidates.x, 0.0))

    @property
    def known(self) -> Mapping[str, Fact]:
        scene = self._scene
        laid_out = {} if scene.stack.layout is None else {"layout": Fact(scene.stack.layout, "public")}
        # Steps, and so messages, are taken in training mode: an attack's simulation, which drops nothing, is then not the victim's.
        share = getattr(scene.task, "dropout", None)
        return {
            **laid_out,
            **({} if share is None else {"dropout": Fact(share, "protocol")}),
            "protocol": Fact(scene.federation, "protocol"),
            "classes": Fact(scene.classes, "public"),
            "features": Fact(scene.features, "public"),
            "members": Fact(scene.members, "public"),
            "clip": Fact(scene.stack.clip, "protocol"),
            "claim": Fact(scene.claim, "public"),
            "columns": Fact(self._columns, "public"),
        }

    @property
    def released(self) -> Params:
        return self._evidence.finals[0]

    @property
    def own_records(self) -> Records:
        if self._scene.own_records is None:
            raise UndeclaredReadError("this view owns no training records")
        return self._scene.own_records

    @property
    def rounds(self) -> Sequence[RoundView]:
        return Views(self._evidence.rounds, self._round)

    def _round(self, record: Round) -> RoundView:
        clear = {m.site: m for m in record.messages if m.kind == "update" and self.threat.view == "server"}
        return RoundView(
            record.index,
            record.broadcast,
            {site: m.payload for site, m in clear.items()},
            self._others(record.combined, record.own or self._in_the_clear(record.messages)),
            {site: m.records for site, m in clear.items() if m.records is not None},
            tuple(m.site for m in record.messages) if self.threat.view == "server" else (),
        )

    def _in_the_clear(self, messages: Sequence[Message], *, equal: bool = False) -> Own | None:
        """The looking site's part of a mean of plain messages, ``equal`` or by their record counts; None where it sent none."""
        plain = [m for m in messages if m.kind in ("update", "gradient")]
        weights = [1.0 if equal or m.records is None else float(m.records) for m in plain]
        return next((Own(m.payload, w, sum(weights)) for m, w in zip(plain, weights) if m.site == self._scene.colluder), None)

    def _others(self, combined: Params, own: Own | None) -> Params | None:
        """The mean that a threat is left with: a site takes out its own part, whatever else hides single updates; None if nobody is left.

        A site is granted the weights of its own part and of the whole: sites' sizes are public (``Shape``), and the sum states its total.
        """
        if self.threat.view != "site" or own is None:
            return combined
        rest = own.total - own.weight
        if rest <= 0:
            return None
        return {
            name: ((own.total * mean.double() - own.weight * own.update[name].double()) / rest).to(mean.dtype)
            if mean.is_floating_point() and name in own.update
            else mean
            for name, mean in combined.items()
        }

    @property
    def targets(self) -> Sequence[Target]:
        """Single sites' messages where they are in the clear, else the sites' combination; without those whose records are known."""
        every = [target for record in self._evidence.rounds for probe in record.probes for target in self._targets(record, probe)]
        return every[self.threat.known_pairs :]

    @property
    def known_pairs(self) -> Sequence[Pair]:
        """The first messages with the records behind them."""
        if self._scene.pool is None:
            raise ValueError("this scene holds no pool, so nobody can know the records behind its messages")
        every = [(target, p.probe) for record in self._evidence.rounds for p in record.probes for target in self._targets(record, p)]
        pool, found = self._scene.pool, []
        for target, probe in every[: self.threat.known_pairs]:
            rows = list(probe.records[target.site]) if target.site is not None else [row for part in probe.records for row in part]
            found.append(Pair(target, Records(pool.x[rows], pool.y[rows])))
        return found

    def _targets(self, record: Round, probe: ProbeRecord) -> list[Target]:
        p = probe.probe

        def target(update: Params, batch: int, site: int | None, contributors: int) -> Target:
            params = probe.sent or record.broadcast
            return Target(params, update, batch, p.optimiser, p.steps, p.lr, site, contributors, record.index, p.momentum, p.minibatch)

        clear: list[Message] = [m for m in probe.messages if m.kind in ("update", "gradient")]
        if clear and self._scene.stack.channel is None:
            return [target(m.payload, len(p.records[m.site]), m.site, 1) for m in clear]
        return self._sum_targets(record, probe)

    def _sum_targets(self, record: Round, probe: ProbeRecord) -> list[Target]:
        """The sites' combined answer to a probe as this threat reads it; none where only the looking site answered."""
        p, looker = probe.probe, self._scene.colluder if self.threat.view == "site" else None
        sizes = [len(own) for site, own in enumerate(p.records) if own and site != looker]
        update = self._others(probe.combined, probe.own or self._in_the_clear(probe.messages, equal=True))
        if update is None:
            return []
        params = probe.sent or record.broadcast
        return [Target(params, update, sum(sizes), p.optimiser, p.steps, p.lr, None, len(sizes), record.index, p.momentum, p.minibatch)]

    @property
    def target_sums(self) -> Sequence[Target]:
        return [target for record in self._evidence.rounds for probe in record.probes for target in self._sum_targets(record, probe)]

    @property
    def key(self) -> Secret | None:
        """none: no key; wrong: one the adversary drew; partial: the weakened key; right and leaked: the key."""
        scene, held = self._scene, self.threat.key
        if scene.secret is None or held == "none":
            return None
        if held == "wrong":
            return self.draw_key(0)
        if held == "partial":
            return scene.stack.weaken(scene.secret, self.threat.key_fraction, scene.keys.child("weaken"))
        return scene.secret

    def draw_key(self, index: int) -> Secret | None:
        if index not in self._drawn:
            self._drawn[index] = self._scene.stack.secret(self._scene.keys.child("own key", index))
        return self._drawn[index]

    def derive_key(self, source: KeySource) -> Secret | None:
        return self._scene.stack.secret(source)

    def _module(self, key: Secret | None) -> nn.Module:
        """The public model with this key in its place, or on its path without one."""
        if id(key) not in self._modules:
            scene = self._scene
            if len(self._modules) >= _HELD:
                del self._modules[next(iter(self._modules))]  # whoever tries keys by the thousand needs each but once
            keyed = scene.stack.secret(scene.keys.child("shape")) if key is None else key
            width = scene.stack.prepare(torch.zeros(1, scene.features), keyed).shape[1]
            module = build(scene.task, scene.stack, width, scene.classes, keyed, stream("observation"))
            module = module.to(scene.auxiliary.x.device).eval()
            self._modules[id(key)] = (key, scene.stack.without_key(module) if key is None and keyed is not None else module)
        return self._modules[id(key)][1]

    def simulate(
        self, target: Target, x: Tensor, y: Tensor, key: Secret | None = None, *, prepared: bool = False, order: Tensor | None = None
    ) -> Params:
        scene = self._scene
        inputs = scene.stack.prepare(x, key) if scene.stack.prepares and not prepared else x
        return simulate(self._module(key), scene.task.loss, target, inputs, y, scene.stack.clip, order)

    def predict(self, params: Params, x: Tensor, key: Secret | None = None) -> Tensor:
        module, stack = self._module(key), self._scene.stack
        if not stack.prepares:
            return call(module, params, x)
        followed = x.requires_grad or any(tensor.requires_grad for tensor in params.values())  # whoever differentiates reads all at once

        def outputs(x: Tensor) -> Tensor:
            return call(module, params, stack.prepare(x, key))

        return outputs(x) if followed else by_rows(outputs, x)

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._scene.task.signal(outputs, y)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return self._scene.task.loss(outputs, y)

    def restore(self, x: Tensor, key: Secret | None = None) -> Tensor:
        if key is not None:
            return self._scene.stack.restore(x, key)
        missing = self._scene.features - x.shape[-1]
        return x[..., : self._scene.features] if missing <= 0 else torch.nn.functional.pad(x, (0, missing))

    def references(self, count: int) -> Sequence[Reference]:
        return self._scene.references(count)

    def oracle(self) -> Any:
        return self._scene.truth()


_PROPERTIES: dict[str, frozenset[Sees]] = {
    "rounds": frozenset({"broadcasts", "updates", "sums"}),
    "targets": frozenset({"probes"}),
    "target_sums": frozenset({"probe_sums"}),
    "known_pairs": frozenset({"known_pairs"}),
    "released": frozenset({"released"}),
    "candidates": frozenset({"candidates"}),
    "auxiliary": frozenset({"auxiliary"}),
    "own_records": frozenset({"own_records"}),
    "key": frozenset({"key"}),
    "draw_key": frozenset({"key", "own_keys"}),
    "derive_key": frozenset({"own_keys"}),
    "simulate": frozenset({"simulate"}),
    "predict": frozenset({"predict"}),
    "signal": frozenset(get_args(Sees)),
    "loss": frozenset(get_args(Sees)),
    "restore": frozenset({"key", "simulate", "predict"}),
    "references": frozenset({"references"}),
    "oracle": frozenset({"oracle"}),
    "threat": frozenset(get_args(Sees)),
    "known": frozenset(get_args(Sees)),
}


@dataclass(slots=True)
class Guarded:
    """The read-logging proxy that an attack is handed; ``reads`` lists what it looked at, ``upper_bound`` says that it read the truth."""

    _seen: Seen
    _needs: frozenset[Sees]
    reads: set[str] = field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        if name not in _PROPERTIES:
            raise AttributeError(f"an observation has no {name!r}")
        if not (_PROPERTIES[name] & self._needs) and name not in ("threat", "known", "signal", "loss"):
            declared = ", ".join(sorted(self._needs)) or "nothing"
            wanted = " or ".join(sorted(_PROPERTIES[name]))
            raise UndeclaredReadError(f"the attack read {name!r} without declaring it: add {wanted} to its needs (declared: {declared})")
        self.reads.add(name)
        value = getattr(self._seen, name)
        if name == "rounds":
            return Views(value, self._trim)
        return value

    def _trim(self, view: RoundView) -> RoundView:
        """Within a round, only what was declared."""
        return RoundView(
            view.index,
            view.broadcast if "broadcasts" in self._needs else None,
            view.updates if "updates" in self._needs else {},
            view.combined if "sums" in self._needs else None,
            view.weights if "updates" in self._needs else {},
            view.participants if self._needs & {"updates", "sums"} else (),
        )

    @property
    def upper_bound(self) -> bool:
        return "oracle" in self.reads
