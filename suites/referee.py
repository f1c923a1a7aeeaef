"""The referee: trains, records, cuts observations, runs attacks and has their guesses scored. It alone holds truth and secrets.

Three kinds of cell, each a JSON spec and a folder to write into: ``train_cell`` (one target federation), ``reference_cell`` (some reference
federations), ``attack_cell`` (one attack on one target). Secrets are derived again in memory where they are needed; no cell writes one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from suites import registry, transcript, yardsticks
from suites.auditing.insertion import SITE, Inserting, insert
from suites.checks_flags import flag_messages
from suites.contracts import (
    Attack,
    Claim,
    Defense,
    Federation,
    Guess,
    Local,
    Params,
    Probe,
    Records,
    Reference,
    Secret,
    Shape,
    Skip,
    Task,
    Threat,
)
from suites.federation import PEEKS, POOLED, Assignment, Trained, build, call, train
from suites.lanes import wire
from suites.meter import flop, peak_memory
from suites.observation import Evidence, Guarded, Scene, Seen, why_not
from suites.prepared import Prepared, prepare
from suites.randomness import keys, stream
from suites.scoring import (
    Measure,
    as_control,
    as_upper_bound,
    score_key,
    score_membership,
    score_reconstruction,
    score_utility,
    score_vectors,
)
from suites.scoring_audit import score_audit
from suites.scoring_rero import rero_measures
from suites.stack import Stack
from suites.tasks.structured import UNTRAINED, Structured

Row = dict[str, Any]
ROWS, CURVES, CLAIM = "rows.json", "curves.json", "claim.json"
REFERENCES = "references.safetensors"
DRAWABLE = ("pbmc68k", "synthetic")  # cohorts whose single records may be drawn beside their reconstructions
_PRIORS = ("class_mean", "random_guess")  # controls that look at no message; the best of them is the prior of a reconstruction


class Bench:
    """Everything that one (task, defense, seed) has in common: its data, its planned stack, its coordinates."""

    def __init__(self, spec: Mapping[str, Any], cache: Path | None) -> None:
        torch.set_num_threads(1)
        self.spec = spec
        data = spec["data"].get("name") or Path(str(spec["data"]["path"])).stem
        self.where = (spec["suite"], registry.portable(spec["task"]), data, "seed", spec["seed"])
        self.prepared: Prepared = self._inserted(prepare(spec, cache))
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
            tuple([sum(sizes)] if stack.topology == "centralized" else sizes), self.prepared.pool.x.shape[1], self.prepared.pool.classes
        )
        self.stack: Stack = stack.plan(self.federation, self.shape)

    def _inserted(self, prepared: Prepared) -> Prepared:
        """With the records that an attack brings, each by a coin of the referee's own."""
        if not self.spec.get("inserts"):
            return prepared
        name = registry.portable(self.spec["inserts"])
        attack: Inserting = registry.find("attacks", self.spec["inserts"]).make()
        return insert(prepared, attack, stream(*self.where, "canaries", name), stream(*self.where, "inclusion", name))

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
                settings = {name: spec[name] for name in ("optimiser", "steps", "lr") if name in spec}
                made.append(Probe(f"{number}.{index}", spec.get("round", 0), chosen, **settings))
        return made

    def train(self, assignments: Sequence[Assignment], *, target: bool) -> list[Trained]:
        every = self.spec.get("engine", {}).get("keep_every", 1)
        last = self.federation.rounds - 1
        return train(
            self.task,
            self.stack,
            self.federation,
            self.prepared.pool,
            assignments,
            validation=self.prepared.test if PEEKS in self.federation.flaws else self.prepared.validation,
            probes=self.probes() if target else (),
            keep=lambda r: target and (r % every == 0 or r == last),
            chunk=self.spec.get("engine", {}).get("chunk", 16),
        )

    def one_epoch(self) -> None:
        """The first local epoch of every site once more, unrecorded: what ``flop`` counts."""
        federation = replace(self.federation, rounds=1, local=replace(self.federation.local, epochs=1))
        records = self.prepared.validation
        train(self.task, self.stack, federation, self.prepared.pool, [self.assignment()], validation=records, keep=lambda _: False, chunk=1)

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
            return call(module, params, self.stack.prepare(x, None if keyless else secret))

        return outputs

    def utilities(self, predict: Any, params: Params) -> dict[str, float]:
        test = self.prepared.test
        return self.task.utility(predict(params, self.prepared.pool.x[test]), self.prepared.pool.y[test], self.prepared.pool.classes)

    def floor(self) -> dict[str, float]:
        y = self.prepared.pool.y
        if isinstance(self.task, Structured):
            test = self.prepared.records(self.prepared.test)
            return self.task.utility(self.task.nothing(test), test.y, self.prepared.pool.classes)
        return self.task.floor(y[torch.cat(self.prepared.sites)], y[self.prepared.test], self.prepared.pool.classes)

    def yardsticks(self, metrics: Mapping[str, float]) -> list[Measure]:
        """Beside a centralised network the task's simple methods, which see the same training records; beside any its own untrained start.

        The start only where it says something: of a network that is told no labels it may do as well as the trained one.
        """
        prepared, task = self.prepared, self.task
        train, test, classes = prepared.records(torch.cat(prepared.sites)), prepared.records(prepared.test), prepared.pool.classes
        beside: dict[str, dict[str, float]] = {}
        if self.stack.topology == "centralized" and isinstance(task, yardsticks.Compared):
            beside |= {name: task.utility(outputs, test.y, classes) for name, outputs in task.baselines(train, test, classes).items()}
        if isinstance(task, Structured):
            secret = self.secret()
            width = self.stack.prepare(prepared.pool.x[:1], secret).shape[1]
            start = stream(*self.assignment().coordinates, "initialisation")
            beside[UNTRAINED] = self.utilities(self.predict(secret), wire(build(task, self.stack, width, classes, secret, start)))
        return yardsticks.measures(metrics, beside, len(test), self.lower)

    @property
    def lower(self) -> frozenset[str]:
        """The task's metrics of which less is better."""
        return self.task.lower if isinstance(self.task, Structured) else frozenset()


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


# ------------------------------------------------------------------------------------------------------------- cells


def train_cell(spec: Mapping[str, Any], folder: Path) -> None:
    """Train the target federation; write its transcript, and rows of utility, cost and claim."""
    started, bench = time.perf_counter(), Bench(spec, _cache(folder))
    trained = bench.train([bench.assignment()], target=True)[0]
    evidence = Evidence(trained.rounds, trained.finals, trained.samples)
    transcript.save(folder, evidence)
    predict = bench.predict(trained.secret)
    each = [bench.utilities(predict, params) for params in trained.finals]
    metrics = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    measures = score_utility(metrics, bench.floor(), len(bench.prepared.test), bench.lower)
    measures += bench.yardsticks(metrics)
    rows = [_row(bench, measure, goal="utility") for measure in measures]
    rows += [_row(bench, measure, goal="cost") for measure in _costs(bench, trained)]
    claim = bench.stack.claim(bench.federation, bench.shape)
    rows += [_row(bench, measure, goal="utility") for measure in _claims(claim)]
    inputs = bench.stack.prepare(bench.prepared.pool.x, trained.secret)
    flags = flag_messages(evidence, bench.stack, bench.task, trained.module, inputs, bench.prepared.pool.y, claim)
    rows += [_row(bench, measure, goal="utility") for measure in flags]
    rows = [] if spec.get("inserts") else rows  # a federation with canaries in it is no measure of utility or cost
    _write(folder, rows, [], time.perf_counter() - started)
    (folder / CLAIM).write_text(json.dumps({} if claim is None else asdict(claim)))


def reference_cell(spec: Mapping[str, Any], folder: Path) -> None:
    """Train references ``first`` … ``first + count - 1`` under the same defense, with the adversary's own keys."""
    bench = Bench(spec, _cache(folder))
    indices = range(spec["first"], spec["first"] + spec["count"])
    drawn = [bench.reference_assignment(index) for index in indices]
    finals = bench.train([assignment for assignment, _ in drawn], target=False)
    tensors: Params = {}
    for index, (_, included), trained in zip(indices, drawn, finals):
        tensors[f"{index}//included"] = included
        tensors |= {f"{index}//final//{name}": value.cpu().contiguous() for name, value in trained.finals[0].items()}
    save_file(tensors, folder / REFERENCES)


def attack_cell(spec: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> None:
    """Run one attack under one threat on one recorded federation, and score its guess.

    ``inputs`` has the train cell's folder under "train" and the reference cells' under names that start with "reference".
    """
    started, bench = time.perf_counter(), Bench(spec, _cache(folder))
    threat = Threat(**spec["threat"])
    plugin = registry.find("attacks", spec["attack"])
    attack: Attack = plugin.make()
    if spec.get("budget", 1) != 1 and hasattr(attack, "budget"):
        attack.budget = max(1, round(attack.budget * spec["budget"]))
    name = registry.portable(spec["attack"])
    where = {"attack": name, "goal": attack.goal, "view": threat.view, "key": threat.key_label}
    reference_folders = [path for name, path in sorted(inputs.items()) if name.startswith("reference")]
    reason = why_not(attack, threat.view, bench.stack, has_references=bool(reference_folders))
    curves: list[Row] = []
    if reason is None:
        try:
            rows, curves = Trial(bench, threat, inputs["train"], reference_folders).run(attack, name, where)
        except Skip as skip:
            reason = str(skip)
    if reason is not None:
        rows = [_row(bench, Measure("", math.nan, math.nan, math.nan, 0, "higher", "score", reason), status="skipped", **where)]
    _write(folder, rows, curves, time.perf_counter() - started)


class Trial:
    """One threat against one recorded federation: the scene, and the scoring of whatever an attack guesses there."""

    def __init__(self, bench: Bench, threat: Threat, trained: Path, references: Sequence[Path]) -> None:
        self.bench, self.threat, self.reference_folders = bench, threat, references
        self.evidence = transcript.load(trained)
        prepared = bench.prepared
        self.secret = bench.secret()
        self.adversary = keys(*bench.where, "adversary", bench.defense)
        candidates = prepared.records(prepared.candidates)
        if prepared.person is not None and threat.unit == "person":
            candidates = Records(candidates.x, candidates.y, person=prepared.person[prepared.candidates])
        self.truth: dict[str, Any] = {}
        self.scene = Scene(
            bench.task,
            bench.stack,
            bench.federation,
            prepared.pool.classes,
            prepared.pool.x.shape[1],
            self.secret,
            candidates,
            prepared.records(prepared.auxiliary),
            len(prepared.candidates) // 2 if bench.spec.get("inserts") else int(prepared.member.sum()),  # coins are the referee's
            self.adversary,
            self.references,
            lambda: self.truth["value"],
            prepared.records(prepared.sites[0]) if threat.view == "site" else None,
            _claimed(trained),
        )
        self.seen = Seen(self.scene, self.evidence, threat)

    def references(self, count: int) -> list[Reference]:
        found: list[Reference] = []
        for folder in self.reference_folders:
            groups: dict[int, Params] = {}
            included: dict[int, Tensor] = {}
            for name, tensor in load_file(folder / REFERENCES).items():
                index, _, own = name.partition("//")
                if own == "included":
                    included[int(index)] = tensor
                else:
                    groups.setdefault(int(index), {})[own.removeprefix("final//")] = tensor
            for k, params in groups.items():
                assignment, _ = self.bench.reference_assignment(k)
                secret = self.bench.stack.secret(keys(*assignment.defense_coordinates, "secret"))
                found.append(Reference(k, included[k], params, partial(self.bench.predict(secret), params)))
        return sorted(found, key=lambda reference: reference.index)[:count]

    def rng(self, attack: str) -> torch.Generator:
        threat = self.threat
        return stream(*self.bench.where, "attack", attack, self.bench.defense, threat.view, threat.key_label)

    def guess(self, attack: Attack, name: str) -> tuple[Guess, Guarded]:
        guarded = Guarded(self.seen, frozenset(attack.needs))
        return attack.run(guarded, self.rng(name)), guarded

    def run(self, attack: Attack, name: str, where: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
        self.truth["value"] = self._truth(attack)
        guess, guarded = self.guess(attack, name)
        measures, curves = getattr(self, f"_score_{attack.goal}")(attack, guess)
        measures += [
            Measure(f"note:{note}", float(value), math.nan, math.nan, 1, "higher", "flag")
            for note, value in guess.notes.items()
            if isinstance(value, int | float)
        ]
        if guarded.upper_bound:
            measures = as_upper_bound(measures, "the truth")
        if getattr(attack, "control", False):
            measures = as_control(measures)
        return [_row(self.bench, measure, **where) for measure in measures], [{**_cell(self.bench), **where, **curve} for curve in curves]

    # ---- truth and scores by goal

    def _truth(self, attack: Attack) -> Any:
        if attack.goal in ("membership", "audit"):
            return self.bench.prepared.member.float()
        if attack.goal == "reconstruction":
            return self._records(attack)
        return self.secret

    def _records(self, attack: Attack) -> list[Tensor]:
        """The records behind each target, in the order in which the observation lists them."""
        x = self.bench.prepared.pool.x
        found: list[Tensor] = []
        for record in self.evidence.rounds:
            for probe in record.probes:
                if self._sums(attack):
                    found.append(x[torch.tensor([i for site in probe.probe.records for i in site])])
                else:
                    found += [x[torch.tensor(probe.probe.records[message.site])] for message in probe.messages]
        if not found:
            raise Skip("no probe message crossed the wire here, so there is nothing to reconstruct")
        return found

    def _sums(self, attack: Attack) -> bool:
        """Whether this attack's targets are sums: it asks for them, or a channel leaves nothing else."""
        return self.bench.stack.channel is not None or ("probe_sums" in attack.needs and "probes" not in attack.needs)

    def _score_membership(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        asked, person = self._asked(), self.scene.candidates.person
        measures = score_membership(guess.value[asked], self.bench.prepared.member[asked], groups=None if person is None else person[asked])
        return measures, self._roc(guess)

    def _asked(self) -> Tensor:
        """The candidates whose membership is a question: a site knows its own records."""
        prepared = self.bench.prepared
        if self.threat.view != "site":
            return torch.ones(len(prepared.candidates), dtype=torch.bool)
        return ~torch.isin(prepared.candidates, prepared.sites[0])

    def _score_audit(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        if not self.bench.spec.get("inserts"):
            raise Skip("an audit's canaries have to be inserted by the referee: give the attack a method inserts(auxiliary, classes, rng)")
        claim = self.scene.claim
        return score_audit(guess.value, self.bench.prepared.member, claim, SITE), self._roc(guess)

    def _roc(self, guess: Guess) -> list[Row]:
        from reports.roc import roc_points

        asked = self._asked()
        scores = guess.value.double()[asked]
        silent = scores.isnan()  # scored at the median, as the scorer does
        held = scores[~silent].median() if not bool(silent.all()) else torch.zeros((), dtype=scores.dtype)
        curve = roc_points(torch.where(silent, held, scores).numpy(), self.bench.prepared.member[asked].numpy())
        return [{"curve": "roc", "x": float(x), "y": float(y)} for x, y in zip(curve.fpr, curve.tpr)]

    def _score_reconstruction(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        truth = self._records(attack)[: len(guess.value)]
        controls: dict[str, list[Tensor]] = {}
        for name in _PRIORS:
            control = registry.find("attacks", name).make()
            try:
                controls[name] = self.guess(control.of_sums() if self._sums(attack) else control, name)[0].value[: len(truth)]
            except Skip:
                continue
        prepared = self.bench.prepared
        pool = prepared.pool.x[prepared.candidates]
        raw = (prepared.mean, prepared.scale)
        measures = score_reconstruction(guess, truth, pool, self.scene.auxiliary, controls, self.rng("scorer"), raw=raw)
        if not self._sums(attack):  # a sum's guesses are matched to several records
            asked = [record.probe for round_ in self.evidence.rounds for record in round_.probes]
            measures += rero_measures(self.scene.claim, self.bench.stack.clip, asked, len(pool), measures)
        drawable = self.bench.spec["data"].get("name") in DRAWABLE  # a user's own records never reach the tables
        curves = [
            {"curve": f"reconstruction:0:{who}", "x": float(i), "y": float(v)}
            for who, value in (("truth", truth[0]), ("guess", guess.value[0]))
            for i, v in enumerate(value[0])
            if drawable
        ]
        return measures, curves

    def _score_key(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        bench, final = self.bench, self.evidence.finals[0]
        if self.secret is None:
            raise Skip("this defense has no key")
        if isinstance(guess.value, Mapping):
            probed = [record for record in self.evidence.rounds if record.probes]
            first = (probed or list(self.evidence.rounds))[0]  # the checkpoint at which a key attack reads its message
            width = bench.stack.prepare(bench.prepared.pool.x[:1], self.secret).shape[1]
            module = build(bench.task, bench.stack, width, bench.prepared.pool.classes, self.secret, stream("skeleton"))
            module.load_state_dict(first.broadcast)
            derived = bench.stack.derived(module)
            if not derived:
                raise Skip("this defense derives no tensor from its key that an attack could aim for")
            return score_vectors(guess.value, derived), []
        headline = next(iter(bench.floor()))
        opened = [bench.utilities(bench.predict(key, keyless=key is None), final)[headline] for key in guess.value]
        right = bench.utilities(bench.predict(self.secret), final)[headline]
        return score_key(opened, right, bench.floor()[headline]), []


# ------------------------------------------------------------------------------------------------------------- rows


def _cell(bench: Bench) -> Row:
    data = bench.spec["data"].get("name") or Path(str(bench.spec["data"]["path"])).stem
    return {"suite": bench.spec["suite"], "task": bench.spec["task"], "data": data, "defense": bench.defense, "seed": bench.spec["seed"]}


def _row(bench: Bench, measure: Measure, *, goal: str, attack: str = "", view: str = "", key: str = "", status: str = "ok") -> Row:
    row = {**_cell(bench), "attack": attack, "goal": goal, "view": view, "key": key, "status": status, **asdict(measure)}
    return {**row, "unit": bench.spec["split"].get("unit", "record")}


def _claimed(folder: Path) -> Claim | None:
    """The claim that a train cell wrote down: fitting it again costs an accountant's time."""
    path = folder / CLAIM
    held = json.loads(path.read_text()) if path.is_file() else {}
    return Claim(**{**held, "per_site": tuple(held["per_site"])}) if held else None


def _claims(claim: Claim | None) -> list[Measure]:
    if claim is None or claim.epsilon is None:
        return []
    nan = math.nan
    rows = [Measure("epsilon", claim.epsilon, nan, nan, len(claim.per_site), "lower", "claim", claim.sentence)]
    rows += [] if claim.delta is None else [Measure("delta", claim.delta, nan, nan, 1, "lower", "claim")]
    rows += [Measure(f"epsilon:site {i}", value, nan, nan, 1, "lower", "claim") for i, value in enumerate(claim.per_site)]
    return rows


def _costs(bench: Bench, trained: Trained) -> list[Measure]:
    sent = [sum(t.numel() * t.element_size() for m in r.messages for t in m.payload.values()) for r in trained.rounds]
    back = [sum(t.numel() * t.element_size() for t in r.broadcast.values()) * len(r.messages) for r in trained.rounds]
    measured = {
        "training_seconds": trained.seconds,
        "samples_per_second": trained.samples / max(trained.seconds, 1e-9),
        "peak_memory_bytes": float(peak_memory()),
        "flop_per_round": float(flop(bench.one_epoch) * bench.federation.local.epochs),
        "bytes_up_per_round": sum(sent) / len(sent) if sent else 0.0,
        "bytes_down_per_round": sum(back) / len(back) if back else 0.0,
        "parameters": float(sum(t.numel() for t in trained.finals[0].values())),
    }
    higher = {"samples_per_second"}
    return [Measure(n, v, math.nan, math.nan, 1, "higher" if n in higher else "lower", "cost") for n, v in measured.items()]


def _write(folder: Path, rows: Sequence[Row], curves: Sequence[Row], seconds: float) -> None:
    (folder / ROWS).write_text(json.dumps([{**row, "seconds": seconds} for row in rows]))
    (folder / CURVES).write_text(json.dumps(list(curves)))


def _cache(folder: Path) -> Path:
    """Prepared data is kept beside the cells' folders."""
    return folder.parent.parent / "prepared"


__all__ = ["Bench", "Defense", "Trial", "attack_cell", "reference_cell", "train_cell"]
