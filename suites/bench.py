"""What one (task, defense, seed) has in common: its data, its planned stack, its coordinates; and the columns of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from suites import registry, yardsticks
from suites.auditing.insertion import SITE, Inserting, insert
from suites.contracts import (
    Federation,
    Local,
    Params,
    Probe,
    RequestError,
    Secret,
    Shape,
    Task,
)
from suites.federation import PEEKS, POOLED, Assignment, Filing, Trained, train
from suites.gaps import fill, may_fill
from suites.lanes import wire
from suites.modules import build, call
from suites.prepared import Prepared, prepare
from suites.randomness import keys, stream
from suites.room import Rows, by_rows, gathered, give_back
from suites.scoring import (
    Measure,
)
from suites.stack import Stack
from suites.tasks.networks import first_width
from suites.tasks.structured import UNTRAINED, Structured
from suites.witness import Witness

Row = dict[str, Any]
CLAIM, REFERENCES = "claim.json", "references.safetensors"  # files of a train and of a reference cell


class Bench:
    """Everything that one (task, defense, seed) has in common: its data, its planned stack, its coordinates."""

    def __init__(self, spec: Mapping[str, Any], cache: Path | None, prepared: Prepared | None = None) -> None:
        torch.set_num_threads(1)
        self.spec = spec
        data = spec["data"].get("name") or Path(str(spec["data"]["path"])).stem
        self.where = (spec["suite"], registry.portable(spec["task"]), data, "seed", spec["seed"])
        self.prepared: Prepared = self._inserted(prepared or prepare(spec, cache))
        self.task: Task = registry.find("tasks", spec["task"]).make()
        if isinstance(self.task, Structured) and self.prepared.layout is not None:
            self.task.learn(self.prepared.layout, self.prepared.public)
        self.defense: str = registry.portable(spec["defense"])  # names it in tables and coordinates, wherever its file lies
        settings = dict(spec["federation"])
        given = Local(**settings.pop("local", {}))
        flaws = frozenset(settings.pop("flaws", ()))
        sites = len(self.prepared.sites)
        stack = Stack([plugin.make() for plugin in registry.stack(spec["defense"])], self.prepared.layout)
        self.federation = stack.protocol(
            Federation(topology=stack.topology, sites=sites, local=stack.local(given), flaws=flaws, **settings)
        )
        sizes = [len(site) for site in self.prepared.sites]
        if POOLED in self.federation.flaws and stack.topology == "federated":
            sizes.append(sum(sizes))
            self.federation = replace(self.federation, sites=len(sizes))
        self.shape = Shape(
            tuple([sum(sizes)] if stack.topology == "centralized" else sizes),
            self.prepared.pool.x.shape[1],
            self.prepared.pool.classes,
            self._persons(stack, sizes),
            self._first_width(),
        )
        self.stack: Stack = stack.plan(self.federation, self.shape)
        if self.prepared.pool.gaps is not None and not may_fill(self.stack.clip, self.stack.claim(self.federation, self.shape)):
            self.prepared = replace(self.prepared, pool=replace(self.prepared.pool, gaps=None))

    @cached_property
    def inputs(self) -> Tensor:
        """The pool as those who train feed it, [N, F] in public units: gaps of training records filled by their site."""
        pool, sites = self.prepared.pool, self.prepared.sites
        return fill(pool.x, pool.gaps, (torch.cat(sites),) if self.stack.topology == "centralized" else sites)[0]

    def _first_width(self) -> int:
        features = self.prepared.pool.x.shape[1]
        with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; leave it as it was
            return first_width(self.task.net(features, self.prepared.pool.classes), features)

    def _inserted(self, prepared: Prepared) -> Prepared:
        """With the records that an attack brings, each by a coin of the referee's own."""
        if not self.spec.get("inserts"):
            return prepared
        name = registry.portable(self.spec["inserts"])
        attack: Inserting = registry.find("attacks", self.spec["inserts"]).make()
        return insert(prepared, attack, stream(*self.where, "canaries", name), stream(*self.where, "inclusion", name))

    def _persons(self, stack: Stack, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """How many persons gave each site's records; refused where they are what is clipped and one is in two parts or at two sites."""
        by_person = stack.clip is not None and stack.clip.unit == "person"
        if by_person and self.spec["split"].get("unit") != "person":
            raise RequestError(
                "protecting persons (unit=person) covers what is trained on, and with split.unit record a person's other records are "
                "public as auxiliary and test records; split by person (split: {unit: person})"
            )
        person = self.prepared.person
        if person is None:
            return None
        sites = [torch.unique(person[site]) for site in self.prepared.sites]
        together = len(torch.unique(torch.cat(sites)))
        if by_person and sum(len(site) for site in sites) > together:
            raise RequestError(
                "protecting persons (unit=person) rests on each being at one site, and here some have records at several, whose losses add "
                "up; split by person (split: {unit: person}), or make the sites by a column that keeps persons whole"
            )
        if stack.topology == "centralized":
            return (together,)
        return (*(len(site) for site in sites), *([together] if len(sizes) > len(sites) else []))

    def assignment(self) -> Assignment:
        return Assignment(self.prepared.sites, (*self.where, "target"), (*self.where, "target", self.defense))

    def reference_assignment(self, index: int) -> tuple[Assignment, Tensor]:
        """The k-th reference federation and its inclusion mask over candidates and auxiliary records; independent of how many there are."""
        own = (*self.where, "reference", index)
        asked = torch.cat([self.prepared.candidates, self.prepared.auxiliary])
        size = sum(len(site) for site in self.prepared.sites)
        chosen = _draw_units(
            asked, self.prepared.person if self.spec["split"].get("unit") == "person" else None, size, stream(*own, "inclusion")
        )
        included = torch.zeros(len(asked), dtype=torch.bool)
        included[chosen] = True
        records = asked[chosen]
        if self.prepared.site_of is None:
            sizes = [len(site) for site in self.prepared.sites]
            cuts = torch.tensor(sizes).cumsum(0)[:-1] * len(records) // size
            sites = tuple(part for part in records.tensor_split(cuts) if len(part) >= 2)
        else:
            home = self.prepared.site_of[records]
            sites = tuple(part for site in torch.unique(home) if len(part := records[home == site]) >= 2)
        return Assignment(sites, own, (*own, self.defense)), included

    def probes(self) -> list[Probe]:
        """Target records of each site, drawn once a seed and the same for every defense."""
        made: list[Probe] = []
        for number, spec in enumerate(self.spec.get("probes", ())):
            for index in range(spec.get("gradients", 1)):
                size = spec.get("batch", 1)
                draw = stream(*self.where, "probe", number, index)
                chosen = tuple(
                    tuple(site[torch.randperm(len(site), generator=draw)[: min(size, len(site))]].tolist()) for site in self.prepared.sites
                )
                settings = {name: spec[name] for name in ("optimiser", "steps", "lr", "momentum", "minibatch") if name in spec}
                made.append(Probe(f"{number}.{index}", spec.get("round", 0), chosen, **settings))
        return made

    def refused_probes(self) -> str | None:
        """Why nobody answered the suite's probes, where a layer demands more records behind a message than any of them has."""
        probes = self.probes()
        if not probes or any(self.stack.sends(probe, probes) for probe in probes):
            return None
        most = max(min(len(chosen) for chosen in probe.records if chosen) for probe in probes)
        if most >= self.stack.minimum:
            return (
                f"the sites send no message with fewer than {self.stack.minimum} records behind it for each round in which the same "
                "records answer, and the probes ask for the same ones again; ask in one round, or lower the defense's minimum and read "
                "its card first"
            )
        return (
            f"the sites send no message with fewer than {self.stack.minimum} records behind it, and the probes here have at most {most}; "
            f"give a probe batch: {self.stack.minimum}, or lower the defense's minimum and read its card first"
        )

    def train(
        self, assignments: Sequence[Assignment], *, target: bool, witness: Witness | None = None, filing: Filing | None = None
    ) -> list[Trained]:
        every = self.spec.get("engine", {}).get("keep_every", 1)
        last = self.federation.rounds - 1
        return train(
            self.task,
            self.stack,
            self.federation,
            self.prepared.pool,
            assignments,
            validation=self._judges,
            probes=self.probes() if target else (),
            keep=lambda r: target and (r % every == 0 or r == last),
            chunk=self.spec.get("engine", {}).get("chunk", 16),
            witness=witness,
            colluder=self.colluder,
            filing=filing,
        )

    def utility(self, target: Trained) -> dict[str, float]:
        """Metrics on test records: the mean over the models of a federation, and over ``noise_draws`` federations where noise is claimed.

        The others share everything with the target but what the defense draws. A single draw says little of a noisy defense: at ε 8
        and 350 records, accuracies of two draws differ by four points (sd).
        """
        claim, draws = self.stack.claim(self.federation, self.shape), self.spec.get("noise_draws", 1)
        own, drawn = self.assignment(), [target]
        if draws > 1 and claim is not None and claim.kind == "dp":
            others = [replace(own, defense_coordinates=(*own.defense_coordinates, "draw", index)) for index in range(1, draws)]
            drawn += self.train(others, target=False)
        each = [self.utilities(self.predict(trained.secret), params) for trained in drawn for params in trained.finals]
        return {name: sum(one[name] for one in each) / len(each) for name in each[0]}

    @property
    def colluder(self) -> int:
        """The site that looks, at view "site": the first, but the second in an audit, whose canaries the first one holds."""
        return min(SITE + 1, len(self.prepared.sites) - 1) if self.spec.get("inserts") else SITE

    def short(self, rounds: int = 1, epochs: int = 1) -> None:
        """So many rounds of so many local epochs, unrecorded: what ``flop`` counts and what a dry run times."""
        federation = replace(self.federation, rounds=rounds, local=replace(self.federation.local, epochs=epochs))
        train(
            self.task,
            self.stack,
            federation,
            self.prepared.pool,
            [self.assignment()],
            validation=self._judges,
            keep=lambda _: False,
            chunk=1,
        )

    @property
    def _judges(self) -> Tensor:
        """The records on which a choice of rounds is made, where one is: by the flaw, the test records."""
        return self.prepared.test if PEEKS in self.federation.flaws else self.prepared.validation

    def secret(self) -> Secret | None:
        return self.stack.secret(keys(*self.assignment().defense_coordinates, "secret"))

    def predict(self, secret: Secret | None, *, keyless: bool = False) -> Any:
        """A function (params, records) -> outputs under a secret (``keyless``: on the path without a key)."""
        width = self.stack.prepare(self.prepared.pool.x[:1], secret).shape[1]
        module = build(self.task, self.stack, width, self.prepared.pool.classes, secret, stream("skeleton"))
        if keyless:
            module = self.stack.without_key(module)

        @torch.no_grad()
        def outputs(params: Params, x: Tensor) -> Tensor:
            if not self.stack.prepares:
                return call(module, params, x)
            return by_rows(lambda part: call(module, params, self.stack.prepare(part, None if keyless else secret)), x)

        return outputs

    def fed(self, secret: Secret | None) -> Fed:
        """The pool as sites feed it to their model."""
        return Fed(self.stack, self.inputs, secret)

    def utilities(self, predict: Any, params: Params) -> dict[str, float]:
        return self._judged(partial(predict, params))

    def _judged(self, outputs: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The task's metrics of ``outputs`` on the test records; the records are gathered a part at a time."""
        pool, test = self.prepared.pool, self.prepared.test
        found = self.task.utility(gathered(outputs, Rows(pool.x, test)), pool.y[test], pool.classes)
        give_back(pool.x)
        return found

    def floor(self) -> dict[str, float]:
        y = self.prepared.pool.y
        if isinstance(self.task, Structured):
            return self._judged(self.task.nothing)
        return self.task.floor(y[torch.cat(self.prepared.sites)], y[self.prepared.test], self.prepared.pool.classes)

    def yardsticks(self, metrics: Mapping[str, float]) -> list[Measure]:
        """The task's simple methods on all training records, in the cells of the centralised and the open network; an untrained start.

        The report sets the other defenses beside the same methods (``reports.beside``). The start only where it says something: of a
        network that is told no labels it may do as well as the trained one.
        """
        prepared, task = self.prepared, self.task
        classes = prepared.pool.classes
        beside: dict[str, dict[str, float]] = {}
        pooled = self.stack.topology == "centralized" or self.defense == yardsticks.OPEN
        if pooled and isinstance(task, yardsticks.Compared):
            members = torch.cat(prepared.sites)
            fitted = task.baselines(Rows(self.inputs, members), prepared.pool.y[members], classes)
            give_back(prepared.pool.x)
            beside |= {name: self._judged(outputs) for name, outputs in fitted.items()}
        if isinstance(task, Structured):
            secret = self.secret()
            width = self.stack.prepare(prepared.pool.x[:1], secret).shape[1]
            start = stream(*self.assignment().coordinates, "initialisation")
            beside[UNTRAINED] = self.utilities(self.predict(secret), wire(build(task, self.stack, width, classes, secret, start)))
        return yardsticks.measures(metrics, beside, len(prepared.test), self.lower)

    @property
    def lower(self) -> frozenset[str]:
        """The task's metrics of which less is better."""
        return self.task.lower if isinstance(self.task, Structured) else frozenset()


@dataclass(frozen=True, slots=True)
class Fed:
    """Records as a model is fed them, prepared when they are asked for: the whole pool would be one more matrix."""

    stack: Stack
    x: Tensor
    secret: Secret | None

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return self.stack.prepare(self.x[rows], self.secret)


def _draw_units(asked: Tensor, person: Tensor | None, size: int, generator: torch.Generator) -> Tensor:
    """Positions in ``asked`` of about ``size`` records drawn at random; whole persons where the unit is the person."""
    if person is None:
        return torch.randperm(len(asked), generator=generator)[:size]
    owners = person[asked]
    unique = torch.unique(owners)
    order = unique[torch.randperm(len(unique), generator=generator)]
    counts = torch.stack([(owners == one).sum() for one in order]).cumsum(0)
    taken = order[: max(1, int((counts <= size).sum()))]
    positions = torch.isin(owners, taken).nonzero().squeeze(1)
    return positions[torch.randperm(len(positions), generator=generator)]


def cell_columns(bench: Bench) -> Row:
    data = bench.spec["data"].get("name") or Path(str(bench.spec["data"]["path"])).stem
    return {"suite": bench.spec["suite"], "task": bench.spec["task"], "data": data, "defense": bench.defense, "seed": bench.spec["seed"]}


def row(bench: Bench, measure: Measure, *, goal: str, attack: str = "", view: str = "", key: str = "", status: str = "ok") -> Row:
    row = {**cell_columns(bench), "attack": attack, "goal": goal, "view": view, "key": key, "status": status, **asdict(measure)}
    return {**row, "unit": bench.spec["split"].get("unit", "record")}
