"""The engine: trains R federations of C sites in one process and records what crossed the wire.

Everything is trained here: the target federation, its repeats, and the reference federations of membership attacks. The referee
records, the player does not: a defense only transforms what it is handed.

``centralized`` is one site that holds all records (nothing crosses a wire); ``local_only`` is one federation a site.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from suites.contracts import (
    Federation,
    Local,
    Message,
    Params,
    Probe,
    ProbeRecord,
    RequestError,
    Round,
    Secret,
    Shape,
    Task,
)
from suites.gaps import fill, may_fill
from suites.lanes import Lane, Scratch, Trainer, schedule, wire
from suites.modules import build, call
from suites.randomness import keys, stream
from suites.room import Room, Rows, gathered, give_back, only
from suites.stack import Stack
from suites.wire import Wire
from suites.witness import Witness

POOLED, PEEKS = "pooled_client", "test_set_choice"  # the protocol's own deliberate faults


@dataclass(frozen=True, slots=True)
class Pool:
    """All records of a run in public units: ``x`` [N, F] float32, ``y`` [N]; sites and splits are indices into it."""

    x: Tensor
    y: Tensor
    classes: int
    person: Tensor | None = None  # [N] who gave each record, where that is known
    gaps: Tensor | None = None  # [N, F] bool: what each site fills by its own means (``suites.gaps``)


@dataclass(frozen=True, slots=True)
class Assignment:
    """One federation to train: each site's pool indices, and the coordinates of its randomness.

    ``coordinates`` (initialisation, batches, dropout) are equal for every defense, so that differences between defenses are paired;
    ``defense_coordinates`` (keys, noise, masks) are not.
    """

    sites: tuple[Tensor, ...]
    coordinates: tuple[object, ...]
    defense_coordinates: tuple[object, ...]


@dataclass(slots=True)
class Trained:
    """A trained federation. ``module`` holds the secret in its non-persistent buffers and is never stored."""

    rounds: list[Round]  # kept rounds only
    finals: list[Params]  # one; one a site for local_only
    module: nn.Module
    secret: Secret | None
    chosen_round: int
    seconds: float
    samples: int  # records x epochs x rounds, as executed
    validation: list[float] = field(default_factory=list)


class Filing(Protocol):
    """Puts records away as they come, and returns what stands in their place in ``Trained.rounds`` (``suites.transcript``)."""

    def probe(self, index: int, record: ProbeRecord) -> ProbeRecord: ...  # of the round to come
    def round(self, record: Round) -> Round: ...


def train(
    task: Task,
    stack: Stack,
    federation: Federation,
    pool: Pool,
    assignments: Sequence[Assignment],
    *,
    validation: Tensor | None = None,
    probes: Sequence[Probe] = (),
    keep: Callable[[int], bool] = lambda _: True,
    chunk: int = 16,
    witness: Witness | None = None,
    colluder: int = 0,
    filing: Filing | None = None,
) -> list[Trained]:
    """Train every assignment under one defense stack.

    Parameters
    ----------
    stack : already planned (``stack.plan(federation, shape)``).
    validation : pool indices on which ``selection="validation"`` chooses the round (the test records, where the protocol has that flaw).
    probes : extra updates, made for every assignment; one of fewer records than ``stack.minimum`` is refused by the sites and not sent.
    keep : which rounds' messages are recorded (probed rounds always are).
    chunk : lanes that share a tensor operation; 1 trains each alone. Of wide networks fewer do, as memory demands (``suites.room``).
    witness : takes notes of the first assignment's batches, noise and clipping.
    colluder : the site whose own part of each recorded mean is noted where a channel hides it (``Round.own``).
    filing : puts away what is recorded of the first assignment as soon as it is there; None keeps all of it in memory.

    Raises
    ------
    RequestError
        A choice of rounds by validation under a formal privacy claim, since that release is not accounted for; gaps that sites fill under
        a promise for less than a site.
    """
    claim = stack.claim(federation, _shape(pool, assignments[0]))
    if pool.gaps is not None and not may_fill(stack.clip, claim):
        raise RequestError(
            "gaps filled by each site's own means under clipping or a privacy claim for its records would let a record move others' "
            "inputs, which no epsilon covers; use missing: impute (--missing impute)"
        )
    flaws = federation.flaws & {POOLED, PEEKS}
    if flaws and claim is not None and claim.kind == "dp":
        raise RequestError(
            f"the flaw {' and '.join(sorted(flaws))} under a differential-privacy claim would use records in a way that epsilon does not "
            "cover; leave the flaw out of the suite's federation, or put as_published on the other defenses only"
        )
    if federation.selection == "validation" or PEEKS in flaws:
        if validation is None or len(validation) == 0:
            raise RequestError("selection 'validation' needs validation records; give split.validation a share or use selection 'last'")
        if claim is not None and claim.kind == "dp":
            raise RequestError(
                "selection 'validation' under a differential-privacy claim would release a choice that epsilon does not cover; use 'last'"
            )
    trained = partial(_trained, task, stack, federation, pool, validation, chunk)
    if stack.topology == "local_only":
        return [_local_only(trained, assignment) for assignment in assignments]
    if stack.topology == "centralized":
        assignments = [Assignment((torch.cat(a.sites),), a.coordinates, a.defense_coordinates) for a in assignments]
        probes, keep = (), _no_round  # no message crosses a wire
    elif POOLED in flaws:
        assignments = [Assignment((*a.sites, torch.cat(a.sites)), a.coordinates, a.defense_coordinates) for a in assignments]
    return trained(assignments, witness, colluder, probes, keep, filing)


def _no_round(_: int) -> bool:
    return False


def answer(
    task: Task, stack: Stack, federation: Federation, pool: Pool, assignment: Assignment, probes: Sequence[Probe], params: Params
) -> tuple[ProbeRecord, ...]:
    """The sites' answers to probes at an active server's parameters: through the whole defense, with noise and masks of their own.

    A site keeps nothing between an honest round and this (``Defense.encode_kept`` starts anew).
    """
    run = _Run(task, stack, federation, pool, [assignment], None, 1)
    run.globals = {name: tensor[None] for name, tensor in params.items()}
    asked = [replace(probe, name=f"crafted {probe.name}") for probe in probes if stack.sends(probe)]
    return tuple(replace(record, sent=params) for record in run._probes(asked, 0))


def _shape(pool: Pool, assignment: Assignment) -> Shape:
    persons = None if pool.person is None else tuple(len(torch.unique(pool.person[site])) for site in assignment.sites)
    return Shape(tuple(len(site) for site in assignment.sites), pool.x.shape[1], pool.classes, persons)


def _local_only(trained: Callable[[Sequence[Assignment]], list[Trained]], assignment: Assignment) -> Trained:
    """Each site a federation of its own, and all of them as one."""
    alone = [
        Assignment((site,), (*assignment.coordinates, "site", i), assignment.defense_coordinates) for i, site in enumerate(assignment.sites)
    ]
    parts = trained(alone)
    return Trained(
        rounds=[],
        finals=[part.finals[0] for part in parts],
        module=parts[0].module,
        secret=None,
        chosen_round=max(part.chosen_round for part in parts),
        seconds=sum(part.seconds for part in parts),
        samples=sum(part.samples for part in parts),
    )


def _trained(
    task: Task,
    stack: Stack,
    federation: Federation,
    pool: Pool,
    validation: Tensor | None,
    chunk: int,
    assignments: Sequence[Assignment],
    witness: Witness | None = None,
    colluder: int = 0,
    probes: Sequence[Probe] = (),
    keep: Callable[[int], bool] = _no_round,
    filing: Filing | None = None,
) -> list[Trained]:
    """As many federations at a time as there is room for, in order; the first has the witness and the filing."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; leave it as it was
        room = Room.of(task.net(pool.x.shape[1], pool.classes), pool.x, federation.local, clips=stack.clip is not None)
    step = room.federations(max(len(assignment.sites) for assignment in assignments), own_pool=stack.prepares)
    found: list[Trained] = []
    for first in range(0, len(assignments), step):
        own, files = (witness, filing) if first == 0 else (None, None)
        run = _Run(task, stack, federation, pool, assignments[first : first + step], validation, min(chunk, room.lanes), own, colluder)
        give_back(pool.x)  # what preparing the records took
        found += run.rounds(probes, keep, files)
        del run  # before the next is made
        give_back(pool.x)
    return found


class _Run:
    """One call of ``train``: R federations of C sites, round by round."""

    def __init__(
        self,
        task: Task,
        stack: Stack,
        federation: Federation,
        pool: Pool,
        assignments: Sequence[Assignment],
        validation: Tensor | None,
        chunk: int,
        witness: Witness | None = None,
        colluder: int = 0,
    ) -> None:
        self.witness = witness
        self.task, self.stack, self.federation, self.pool = task, stack, federation, pool
        self.assignments, self.validation, self.chunk = list(assignments), validation, chunk
        self.started = time.perf_counter()
        self.modules: list[nn.Module] = []
        self.inputs: list[Tensor] = []
        self.secrets: list[Secret | None] = []
        self.lanes: list[list[Lane]] = []
        for assignment in self.assignments:
            secret = stack.secret(keys(*assignment.defense_coordinates, "secret"))
            own = fill(pool.x, pool.gaps, assignment.sites)
            different = {id(held): held for held in own}  # one for all sites, but where each fills its own gaps
            used = torch.cat([*assignment.sites, *([] if validation is None else [validation])])
            mixed = partial(stack.prepare, secret=secret)
            fed = {at: only(mixed, held, used) if stack.prepares else held for at, held in different.items()}
            x = fed[id(own[0])]
            module = build(task, stack, x.shape[1], pool.classes, secret, stream(*assignment.coordinates, "initialisation")).to(
                pool.x.device
            )
            self.secrets.append(secret)
            self.inputs.append(x)
            self.modules.append(module)
            self.lanes.append([self._lane(assignment, module, fed[id(held)], site) for site, held in enumerate(own)])
        if witness is not None:
            for lane in self.lanes[0]:
                witness.joins(lane.noise, lane.records, None if lane.person is None else lane.person[lane.records])
        equal = stack.equal_weights or POOLED in federation.flaws
        self.wire = Wire(stack, self.assignments, self.lanes, equal, witness, colluder)
        self.peeks, self.chooses = PEEKS in federation.flaws, PEEKS in federation.flaws or federation.selection == "validation"
        self.release = [stream(*a.defense_coordinates, "release") for a in self.assignments if stack.releases]
        if self.peeks or any(True for _ in self._persistent_buffers()):
            self.chunk = 1  # running statistics are updated in place, which a leading axis does not carry
        starts = [wire(module) for module in self.modules]
        self.globals: Params = {name: torch.stack([params[name] for params in starts]) for name in starts[0]}  # [R, ...], never in place
        self.trainers: dict[tuple[tuple[int, int], ...], Trainer] = {}
        self.scratch = Scratch()

    def _persistent_buffers(self) -> Iterable[str]:
        parameters = dict(self.modules[0].named_parameters())
        return (name for name in self.modules[0].state_dict() if name not in parameters)

    @property
    def _persons(self) -> Tensor | None:
        """Who gave each record, where persons are what is drawn and clipped."""
        if self.stack.clip is None or self.stack.clip.unit != "person":
            return None
        if self.pool.person is None:
            raise RequestError(
                "clipping by person needs to know who gave each record; name the person column of the data, or clip records (unit=record)"
            )
        return self.pool.person

    def _lane(self, assignment: Assignment, module: nn.Module, x: Tensor, site: int) -> Lane:
        def draw(role: str, coordinates: tuple[object, ...]) -> torch.Generator:
            return stream(*coordinates, role, site)

        return Lane(
            module,
            x,
            self.pool.y,
            assignment.sites[site],
            draw("batches", assignment.coordinates),
            draw("dropout", assignment.coordinates),
            draw("noise", assignment.defense_coordinates),
            self._persons,
        )

    def _global(self, r: int) -> Params:
        """Federation r's present model."""
        return {name: tensor[r] for name, tensor in self.globals.items()}

    def rounds(self, probes: Sequence[Probe], keep: Callable[[int], bool], filing: Filing | None = None) -> list[Trained]:
        count, federations = self.federation.rounds, range(len(self.assignments))
        kept: list[list[Round]] = [[] for _ in federations]
        losses: list[list[float]] = [[] for _ in federations]
        best = [(0, self._global(r)) for r in federations]
        stopped = [False for _ in federations]
        samples = 0
        for index in range(count):
            lost: list[dict[int, str]] = [{} for _ in federations]
            asked = [p for p in probes if p.round == index and self.stack.sends(p, probes)]
            probed = [self._probes(asked, r, filing if r == 0 and not stopped[r] else None) for r in federations]
            participants = [self._participants(r, index) for r in federations]
            if self.federation.vanishing and self.stack.topology == "federated":
                lost = [self._lost(r, index, sites) for r, sites in enumerate(participants)]
                if self.stack.channel is None:  # nothing of theirs arrives, and that is all
                    participants = [[site for at, site in enumerate(sites) if at not in own] for sites, own in zip(participants, lost)]
            updates = self._local(participants)
            samples += sum(len(self.assignments[r].sites[s]) for r, sites in enumerate(participants) for s in sites)
            combined, messages, own = self.wire.collect(index, participants, updates, self.globals, lost, record=keep(index) or any(probed))
            if self.stack.releases:
                combined = self._released(combined)
            if messages:
                for r in federations:
                    if stopped[r]:
                        continue
                    sums = {name: tensor[r] for name, tensor in combined.items()}
                    record = Round(index, self._global(r), messages[r], sums, tuple(probed[r]), own[r])
                    kept[r].append(record if filing is None or r > 0 else filing.round(record))
                    del record
            self.globals = {
                name: (value + combined[name]).to(value.dtype) if name in combined else value for name, value in self.globals.items()
            }
            if self.chooses:
                for r in federations:
                    if stopped[r]:
                        continue
                    losses[r].append(self._judged(r, self._global(r)))
                    if losses[r][-1] <= min(losses[r]):
                        best[r] = (index, self._global(r))
                    stopped[r] = self.federation.patience is not None and index - best[r][0] >= self.federation.patience
                if all(stopped):
                    break
            del updates, combined, messages, own, probed  # before the next round makes its own
        if not self.chooses:
            best = [(count - 1, self._global(r)) for r in federations]
        for r, module in enumerate(self.modules):  # is kept as long as the federation is: without a last gradient, and no second model
            module.zero_grad(set_to_none=True)
            for name, parameter in module.named_parameters():
                parameter.data = best[r][1][name]
        watching = 0.0 if self.witness is None else self.witness.seconds
        seconds = (time.perf_counter() - self.started - watching) / len(self.assignments)
        each = samples * self.federation.local.epochs // len(self.assignments)
        return [Trained(kept[r], [best[r][1]], self.modules[r], self.secrets[r], best[r][0], seconds, each, losses[r]) for r in federations]

    def _participants(self, r: int, index: int) -> list[int]:
        sites = len(self.assignments[r].sites)
        count = max(1, round(self.federation.participation * sites))
        if count >= sites:
            return list(range(sites))
        drawn = torch.randperm(sites, generator=stream(*self.assignments[r].coordinates, "participation", index))
        return sorted(drawn[:count].tolist())

    def _lost(self, r: int, index: int, participants: Sequence[int]) -> dict[int, str]:
        """Which participants (by position) vanish in this round, and at what stage of the channel; the same sites whatever the defense."""
        if self.federation.vanishing >= len(participants):
            raise RequestError(
                f"{self.federation.vanishing} of {len(participants)} sites are to vanish in every round, which leaves nobody; give fewer"
            )
        draw = stream(*self.assignments[r].coordinates, "vanishing", index)
        who = torch.randperm(len(participants), generator=draw)[: self.federation.vanishing].tolist()
        stages: Sequence[str] = getattr(self.stack.channel, "stages", ())
        return {at: stages[int(torch.randint(len(stages), (), generator=draw))] if stages else "" for at in who}

    def _trainer(self, members: tuple[tuple[int, int], ...]) -> Trainer:
        if members not in self.trainers:
            lanes, watched = [self.lanes[r][s] for r, s in members], all(r == 0 for r, _ in members)
            self.trainers[members] = Trainer(lanes, self.task.loss, self.stack, self.witness if watched else None, self.scratch)
        return self.trainers[members]

    def _local(self, participants: Sequence[Sequence[int]]) -> Params:
        """Each participating site's update of this round, [lanes, ...], federation by federation."""
        flat = [(r, s) for r, sites in enumerate(participants) for s in sites]
        updates = {name: tensor.new_empty(len(flat), *tensor.shape[1:]) for name, tensor in self.globals.items()}
        for first in range(0, len(flat), self.chunk):
            members = tuple(flat[first : first + self.chunk])
            rows = torch.tensor([r for r, _ in members], device=self.pool.x.device)
            start = {name: tensor[rows[0]][None] if len(rows) == 1 else tensor[rows] for name, tensor in self.globals.items()}
            trainer = self._trainer(members)
            after = self._best_epoch(trainer, start, members[0][0]) if self.peeks else trainer.run(start, self.federation.local)
            for name, state in after.items():
                torch.sub(state, start[name], out=updates[name][first : first + len(members)])
            if trainer.witness is not None and self.stack.clip is not None:
                for i, (r, s) in enumerate(members):
                    own = {name: rows[first + i] for name, rows in updates.items()}
                    trainer.witness.sent(self.lanes[r][s].noise, own, trainer.trained)
        return updates

    def _best_epoch(self, trainer: Trainer, start: Params, r: int) -> Params:
        """The flaw of a site that sends what did best on the test records after any of its local epochs."""
        found: list[tuple[float, Params]] = []

        def watch(step: int, steps: int, state: Params) -> None:
            if step % (steps // self.federation.local.epochs) == 0:
                state = {name: tensor.detach().clone() for name, tensor in state.items()}
                found.append((self._judged(r, state), state))

        trainer.run(start, self.federation.local, watch)
        return {name: tensor[None] for name, tensor in min(found, key=lambda each: each[0])[1].items()}

    def _released(self, combined: Params) -> Params:
        each = [self.stack.release({n: t[r] for n, t in combined.items()}, self.release[r]) for r in range(len(self.assignments))]
        return {name: torch.stack([mean[name] for mean in each]) for name in combined}

    def _probes(self, probes: Sequence[Probe], r: int, filing: Filing | None = None) -> list[ProbeRecord]:
        records: list[ProbeRecord] = []
        for probe in probes:
            sites = [site for site, chosen in enumerate(probe.records) if chosen]
            messages = [self._probe_message(probe, r, site) for site in sites]
            kind = b"probe " + probe.name.encode()
            delivery = self.wire.deliver(r, probe.round, sites, messages, [1.0] * len(sites), self._global(r), kind)
            sent = tuple(
                Message(m.site, "gradient", m.payload) if m.kind == "update" and probe.optimiser == "gradient" else m
                for m in delivery.messages
            )
            record = ProbeRecord(probe, sent, delivery.combined, delivery.own)
            records.append(record if filing is None else filing.probe(len(records), record))
        return records

    def _probe_message(self, probe: Probe, r: int, site: int) -> Params:
        own = self.lanes[r][site]
        batch = torch.tensor(probe.records[site], dtype=torch.int64)
        # Streams of its own: a probe never moves the federation, nor another probe.
        where = (*self.assignments[r].defense_coordinates, "probe", probe.name, site)
        batches, dropout, noise = (stream(*where, role) for role in ("batches", "dropout", "noise"))
        lane = Lane(own.module, own.x, own.y, batch, batches, dropout, noise, own.person)
        trainer = Trainer([lane], self.task.loss, self.stack)
        start = {name: tensor[r : r + 1] for name, tensor in self.globals.items()}
        if probe.optimiser == "gradient":
            return {name: value[0] for name, value in trainer.gradient(start, [batch]).items()}
        local = Local(epochs=probe.steps, batch=len(batch), optimiser=probe.optimiser, lr=probe.lr, momentum=probe.momentum)
        plan, size = [batch] * probe.steps, len(batch)
        if probe.minibatch is not None:
            size = min(probe.minibatch, lane.units)
            plan = schedule(lane, replace(local, batch=size), poisson=False)[: probe.steps]  # as many epochs as there are steps suffice
        state = trainer.follow(start, local, [plan], [size])
        return {name: (value - start[name])[0] for name, value in state.items()}

    @torch.no_grad()
    def _judged(self, r: int, params: Params) -> float:
        """How a choice judges a model, lower being better: the validation loss, or (the flaw) the headline metric on test records."""
        assert self.validation is not None
        rows, y = Rows(self.inputs[r], self.validation), self.pool.y[self.validation]
        outputs = gathered(partial(call, self.modules[r], params), rows)
        if self.peeks:
            return -next(iter(self.task.utility(outputs, y, self.pool.classes).values()))
        return float(self.task.loss(outputs, y).mean())
