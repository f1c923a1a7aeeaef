"""The small federation on which ``infl-bench check`` tries a plug-in: known truth, an overfitted model, and records that it never saw.

The records are drawn from torch's generator at seed 0, the target of the k-th message being the k-th row, with intent: an attack that seeds
itself with a small integer instead of the generator it is handed then starts at the truth and is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from suites.auditing.insertion import Inserting
from suites.contracts import Federation, Ground, Local, Params, Probe, ProbeRecord, Records, Reference, Shape, Threat
from suites.crafting import Ask
from suites.federation import Assignment, Pool, Trained, answer, train
from suites.modules import build, call
from suites.observation import Evidence, Scene, Seen
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES, SITES, PER_SITE = 96, 4, 5, 16  # rows of 16 numbers: torch draws normals in blocks of 16
MEMBERS = SITES * PER_SITE
OTHERS = 80  # as many again are unseen, auxiliary and test records
REFERENCES = 16
PROBES = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """One scene and what the scorer needs beside it."""

    scene: Scene
    evidence: Evidence
    truth: Any
    ask: Ask  # the sites' answers at what an active attack sends

    def seen(self, threat: Threat) -> Seen:
        return Seen(self.scene, self.evidence, threat)


class Stage:
    """One defense on the small federation; everything is trained when first asked for.

    Parameters
    ----------
    stack : unplanned layers
    rounds : of federated training; the default overfits on purpose
    inserting : an attack that brings canaries, each added to the first site by a coin
    ground : flaws, records, messages and size of the key space (its defense is the caller's business)
    """

    def __init__(self, stack: Stack, *, rounds: int = 6, inserting: Inserting | None = None, ground: Ground | None = None) -> None:
        torch.set_num_threads(1)
        self.ground = Ground() if ground is None else ground
        wide, share = self.ground.one_step, self.ground.participation
        self.task = Classification(hidden=128 if wide else 32, blocks=2, head=16, dropout=0.0, network="mlp")
        local = Local(1, PER_SITE, "sgd", lr=0.3) if wide else Local(epochs=4, batch=8, lr=3e-3)
        federation = stack.protocol(Federation(stack.topology, SITES, rounds, local, share, flaws=self.ground.flaws))
        everybody = MEMBERS + 4 * OTHERS
        x = torch.randn(everybody, FEATURES, generator=torch.Generator().manual_seed(0))
        x = x**3 / 15**0.5 if self.ground.tails else x  # of variance one
        x = _programmes(x, self.ground.factors) if self.ground.factors else x
        teacher = torch.randn(FEATURES, CLASSES, generator=stream("check", "teacher"))
        y = (x @ teacher + 6 * torch.randn(everybody, CLASSES, generator=stream("check", "label noise"))).argmax(1)
        row = torch.arange(everybody)  # two records of one site after the other are a person's
        self.pool = Pool(x, y, CLASSES, row % SITES + SITES * (row // (2 * SITES)))
        rows = torch.arange(everybody)
        self.members, self.outside, self.unseen, self.public, self.test = torch.split(rows, [MEMBERS, OTHERS, OTHERS, OTHERS, OTHERS])
        self.sites = tuple(self.members[site::SITES] for site in range(SITES))
        self.canaries, self.coins = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.bool)
        if inserting is not None:
            self._insert(inserting)
        sizes = [len(site) for site in self.sites]
        self.federation = federation
        persons = [len(torch.unique(self._person(site))) for site in self.sites]
        together = stack.topology == "centralized"
        self.shape = Shape(tuple([sum(sizes)] if together else sizes), FEATURES, CLASSES, tuple([sum(persons)] if together else persons))
        self.stack = stack.plan(federation, self.shape)

    def _insert(self, attack: Inserting) -> None:
        made = attack.inserts(self.records(self.public), CLASSES, stream("check", "canaries"))
        self.canaries = torch.arange(len(self.pool.x), len(self.pool.x) + len(made))
        self.coins = torch.rand(len(made), generator=stream("check", "coins")) < 0.5
        person = torch.cat([self._person(torch.arange(len(self.pool.x))), self.canaries])  # each canary is one of its own
        self.pool = Pool(torch.cat([self.pool.x, made.x]), torch.cat([self.pool.y, made.y]), CLASSES, person)
        self.sites = (torch.cat([self.sites[0], self.canaries[self.coins]]), *self.sites[1:])

    def _person(self, index: Tensor) -> Tensor:
        assert self.pool.person is not None
        return self.pool.person[index]

    def records(self, index: Tensor) -> Records:
        return Records(self.pool.x[index], self.pool.y[index])

    @property
    def probes(self) -> list[Probe]:
        return [Probe(f"{k}", 0, rows) for k, rows in enumerate(self._behind(self.members))]

    def _behind(self, rows: Tensor) -> list[tuple[tuple[int, ...], ...]]:
        """Which of ``rows`` stand behind each site's part of each probe: with one record, the k-th behind the k-th message."""
        batch = self.ground.batch
        probes = min(PER_SITE if self.ground.factors else PROBES, PER_SITE // batch)  # axes are learnt from many messages
        own = [rows[site:MEMBERS:SITES][: probes * batch].view(probes, batch) for site in range(SITES)]
        return [tuple(tuple(part.tolist()) for part in parts) for parts in zip(*own)]

    @cached_property
    def assignment(self) -> Assignment:
        return Assignment(self.sites, ("check", "target"), self._coordinates())

    def _coordinates(self) -> tuple[object, ...]:
        """Those of the defense's randomness; where a short seed is to be found by trying, the first whose seed is a small number."""
        plain: tuple[object, ...] = ("check", "target", "defense")
        if not self.ground.keys:
            return plain
        every = ((*plain, number) for number in count())
        return next(c for c in every if int.from_bytes(keys(*c, "secret").child("layer", 0).bytes(2), "little") < self.ground.keys)

    def train(self) -> Trained:
        """Trained anew at each call, with the same coordinates."""
        own = self.stack.topology == "federated"
        probes, chosen_on = self.probes if own else (), self.test
        return train(
            self.task,
            self.stack,
            self.federation,
            self.pool,
            [self.assignment],
            validation=chosen_on,
            probes=probes,
            chunk=SITES,
            colluder=self.colluder,
        )[0]

    @property
    def colluder(self) -> int:
        """The site that looks, at view "site": not the one that holds canaries."""
        return 1 if len(self.canaries) else 0

    @cached_property
    def trained(self) -> Trained:
        return self.train()

    @cached_property
    def evidence(self) -> Evidence:
        return Evidence(self.trained.rounds, self.trained.finals, self.trained.samples)

    @cached_property
    def _references(self) -> list[tuple[Tensor, Trained]]:
        """Reference federations, each with its inclusion over members, outside, unseen and auxiliary records."""
        asked = torch.cat([self.members, self.outside, self.unseen, self.public])
        made, masks = [], []
        for k in range(REFERENCES):
            chosen = torch.randperm(len(asked), generator=stream("check", "reference", k))[:MEMBERS]
            masks.append(torch.zeros(len(asked), dtype=torch.bool).index_fill(0, chosen, value=True))
            made.append(Assignment(tuple(asked[chosen].chunk(SITES)), ("check", "reference", k), ("check", "reference", k, "defense")))
        trained = train(self.task, self.stack, self.federation, self.pool, made, validation=self.test, chunk=16, keep=lambda _: False)
        return list(zip(masks, trained))

    def references(self, candidates: Tensor) -> Callable[[int], Sequence[Reference]]:
        """The references as an adversary sees them who is asked about these ``candidates`` (rows of the pool)."""
        order = torch.cat([candidates, self.public])

        def give(count: int) -> Sequence[Reference]:
            return [
                Reference(k, mask[order], trained.finals[0], self.predict(trained))
                for k, (mask, trained) in enumerate(self._references[:count])
            ]

        return give

    def predict(self, trained: Trained) -> Callable[[Tensor], Tensor]:
        @torch.no_grad()
        def outputs(x: Tensor) -> Tensor:
            return call(trained.module, trained.finals[0], self.stack.prepare(x, trained.secret))

        return outputs

    def module(self, secret: Any) -> nn.Module:
        width = self.stack.prepare(self.pool.x[:1], secret).shape[1]
        return build(self.task, self.stack, width, CLASSES, secret, stream("check", "skeleton"))

    def trial(self, goal: str, *, null: bool = False, sums: bool = False, view: str = "server", known: int = 0) -> Trial:
        """A scene for a goal; under ``null`` nothing of the truth is seen: only records are asked about that no model or message saw.

        The records behind the first ``known`` messages are not asked about.
        """
        mixed = torch.cat([self.outside, self.unseen] if null else [self.members, self.outside])
        mixed = mixed[torch.randperm(len(mixed), generator=stream("check", "candidates", null))]
        if view == "site":  # which knows its own
            mixed = mixed[~torch.isin(mixed, self.sites[self.colluder])]
        member = torch.isin(mixed, self.outside if null else self.members)
        if goal == "audit":  # null: other coins, which had nothing to do with training
            mixed = self.canaries
            member = torch.rand(len(mixed), generator=stream("check", "other coins")) < 0.5 if null else self.coins
        memberships = {"membership": member.float(), "audit": member.float()}
        truth = {**memberships, "reconstruction": self._targets(null, sums, view)[known:]}.get(goal, self.trained.secret)
        scene = Scene(
            task=self.task,
            stack=self.stack,
            federation=self.federation,
            classes=CLASSES,
            features=FEATURES,
            secret=self.trained.secret,
            candidates=self.records(mixed),
            auxiliary=self.records(self.public),
            members=len(mixed) // 2 if goal == "audit" else int(member.sum()),
            keys=keys("check", "adversary"),
            references=self.references(mixed),
            truth=lambda: truth,
            own_records=self.records(self.sites[self.colluder]) if view == "site" else None,
            colluder=self.colluder,
            pool=Records(self.pool.x, self.pool.y),
        )
        return Trial(scene, self.evidence, truth, self.answer)

    def answer(self, probes: Sequence[Probe], params: Params) -> tuple[ProbeRecord, ...]:
        return answer(self.task, self.stack, self.federation, self.pool, self.assignment, probes, params)

    def _targets(self, null: bool, sums: bool, view: str) -> list[Tensor]:
        """The records behind each message in order; under ``null`` records that no message saw."""
        messages = self._behind(self.unseen if null else self.members)
        if sums or self.stack.channel is not None:
            looker = self.colluder if view == "site" else None
            return [self.pool.x[[row for site, part in enumerate(parts) if site != looker for row in part]] for parts in messages]
        return [self.pool.x[list(part)] for parts in messages for part in parts]


def _programmes(x: Tensor, factors: int) -> Tensor:
    """Records [n, F] of which ``factors`` orthogonal directions with skewed scores, each half as strong as the last, hold nine tenths."""
    axes = torch.linalg.qr(torch.randn(x.shape[1], factors, generator=stream("check", "axes")))[0]
    scores = -torch.rand(len(x), factors, generator=stream("check", "scores")).clamp_min(1e-12).log() - 1  # of variance one
    share = 0.5 ** torch.arange(factors)
    mixed: Tensor = (0.9 * x.shape[1] * share / share.sum()).sqrt() * scores @ axes.T + 0.1**0.5 * x
    return mixed


def with_truth(trial: Trial, truth: Any) -> Trial:
    """The same scene whose oracle answers something else."""
    return replace(trial, scene=replace(trial.scene, truth=lambda: truth))


def same(a: Params, b: Params) -> bool:
    """Equal names, types and bytes."""
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
