"""One threat against one recorded federation: the scene that an attack sees, and the scoring of its guess by who knows the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from reports.calibration import CONFIDENCE
from suites import transcript
from suites.auditing.insertion import SITE
from suites.bench import CLAIM, REFERENCES, Bench, Row, cell_columns, row
from suites.contracts import (
    Attack,
    Claim,
    Guess,
    Params,
    Probe,
    ProbeRecord,
    Records,
    Reference,
    RequestError,
    Skip,
    Threat,
)
from suites.crafting import Crafting, answered
from suites.federation import answer
from suites.modules import build
from suites.observation import Guarded, Scene, Seen
from suites.priors import priors
from suites.properties import Properties
from suites.randomness import keys, stream
from suites.scoring import (
    Measure,
    as_control,
    as_upper_bound,
    score_key,
    score_membership,
    score_reconstruction,
    score_vectors,
)
from suites.scoring_audit import score_audit
from suites.scoring_confidence import confidence_measures, confidence_pairs
from suites.scoring_exposure import exposure_measures
from suites.scoring_reconstruction import explained
from suites.scoring_rero import rero_measures
from suites.scoring_shrinkage import shrinkage_points
from suites.scoring_units import unit_measures

DRAWABLE = (
    "pbmc68k",
    "synthetic",
    "synthetic_perturbation",
    "synthetic_tissue",
    "synthetic_paired",
)  # cohorts whose single records may be drawn beside their reconstructions


class Trial:
    """One threat against one recorded federation: the scene, and the scoring of whatever an attack guesses there."""

    def __init__(self, bench: Bench, threat: Threat, trained: Path, references: Sequence[Path]) -> None:
        self.bench, self.threat, self.reference_folders = bench, threat, references
        self.evidence = transcript.load(trained)
        prepared = bench.prepared
        self.pristine = prepared.pool.x._version
        self.secret = bench.secret()
        self.adversary = keys(*bench.where, "adversary", bench.defense)
        candidates = prepared.records(prepared.candidates)
        if prepared.person is not None and threat.unit == "person":
            candidates = Records(candidates.x, candidates.y, person=prepared.person[prepared.candidates])
        if prepared.home is not None and threat.unit == "site":  # which records are one site's, under names that tell nothing
            names = torch.randperm(int(prepared.home.max()) + 1, generator=stream(*bench.where, "names of sites"))
            candidates = Records(candidates.x, candidates.y, site=names[prepared.home])
        self.truth: dict[str, Any] = {}
        own = prepared.sites[bench.colluder]
        self.scene = Scene(
            bench.task,
            bench.stack,
            bench.federation,
            prepared.pool.classes,
            prepared.pool.x.shape[1],
            self.secret,
            candidates,
            prepared.auxiliary_records(),
            len(prepared.candidates) // 2 if bench.spec.get("inserts") else int(prepared.member.sum()),  # coins are the referee's
            self.adversary,
            self.references,
            lambda: self.truth["value"],
            Records(bench.inputs[own], prepared.pool.y[own]) if threat.view == "site" else None,
            _claimed(trained),
            bench.colluder,
            Records(bench.inputs, prepared.pool.y),
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
        guess = attack.run(guarded, self.rng(name))
        if self.bench.prepared.pool.x._version != self.pristine:  # candidates and auxiliary records are views of it
            raise ValueError(f"{name} wrote into the records that it was given, which others read too; let it work on a clone")
        return guess, guarded

    def run(self, attack: Attack, name: str, where: Mapping[str, str]) -> tuple[list[Row], list[Row]]:
        self.truth["value"] = self._truth(attack)
        if attack.goal == "membership":
            self._units()  # a unit that cannot be asked about is skipped before anything is computed
        if self.threat.unit == "site" and "references" in attack.needs:
            raise Skip("reference federations draw records from every site and leave none out, so what they say is not about sites")
        crafted = self._craft(attack, name)
        guess, guarded = self.guess(attack, name)
        measures, curves = getattr(self, f"_score_{attack.goal}")(attack, guess)
        measures += [
            Measure(f"note:{note}", float(value), math.nan, math.nan, 1, "higher", "flag")
            for note, value in guess.notes.items()
            if isinstance(value, int | float)
        ]
        if guarded.upper_bound or (crafted is not None and crafted.upper_bound):
            measures = as_upper_bound(measures, "the truth")
        if getattr(attack, "control", False):
            measures = as_control(measures)
        return [row(self.bench, measure, **where) for measure in measures], [
            {**cell_columns(self.bench), **where, **curve} for curve in curves
        ]

    def _craft(self, attack: Attack, name: str) -> Guarded | None:
        """Have the sites answer at what an active attack sends, in place of what they answered at the honest broadcast.

        Returns what the attack read to choose it, which counts as its reading.
        """
        if not isinstance(attack, Crafting):
            if getattr(attack, "active", False):
                raise ValueError(f"{name} says active = True and has no craft(seen, target, rng), so it sends nothing; write it")
            return None
        bench = self.bench

        def ask(probes: Sequence[Probe], params: Params) -> tuple[ProbeRecord, ...]:
            try:
                return answer(bench.task, bench.stack, bench.federation, bench.prepared.pool, bench.assignment(), probes, params)
            except RequestError as refusal:
                raise Skip(f"the sites do not answer what this attack sends: {refusal}") from None

        guarded = Guarded(self.seen, frozenset(attack.needs))
        self.evidence = answered(attack, guarded, self.evidence, ask, stream(*bench.where, "crafting", name, bench.defense))
        self.seen = Seen(self.scene, self.evidence, self.threat)
        return guarded

    # ---- truth and scores by goal

    def _truth(self, attack: Attack) -> Any:
        if attack.goal in ("membership", "audit"):
            return self.bench.prepared.member.float()
        if attack.goal == "property":
            return Properties(self.bench, self._looker).truth(attack)
        if attack.goal == "reconstruction":
            return self._records(attack)
        return self.secret

    def _records(self, attack: Attack) -> list[Tensor]:
        """The records behind each target, in the order in which the observation lists them."""
        x = self.bench.inputs
        found: list[Tensor] = []
        for record in self.evidence.rounds:
            for probe in record.probes:
                if self._sums(attack):
                    asked = [i for site, own in enumerate(probe.probe.records) if site != self._looker for i in own]
                    if asked:  # a site that answered alone has nobody else's part to read
                        found.append(x[torch.tensor(asked, dtype=torch.int64)])
                else:
                    found += [x[torch.tensor(probe.probe.records[message.site])] for message in probe.messages]
        if not found:
            raise Skip("no probe message crossed the wire here, so there is nothing to reconstruct")
        if self._sums(attack):
            return found
        if len(found) <= self.threat.known_pairs:
            raise Skip(f"the records behind all {len(found)} messages are known here, so none is left to ask about; give fewer known_pairs")
        return found[self.threat.known_pairs :]

    def _rounds(self, attack: Attack) -> list[int]:
        """The round of each target, in the order of ``_records``."""
        found: list[int] = []
        for record in self.evidence.rounds:
            for probe in record.probes:
                others = any(own for site, own in enumerate(probe.probe.records) if site != self._looker)
                found += [record.index] * (int(others) if self._sums(attack) else len(probe.messages))
        return found if self._sums(attack) else found[self.threat.known_pairs :]

    def _visits(self) -> float:
        """Records, each as often as it is used, that a site trains on in one round."""
        sizes = [len(site) for site in self.bench.prepared.sites]
        return self.bench.federation.local.epochs * sum(sizes) / len(sizes)

    def _sums(self, attack: Attack) -> bool:
        """Whether this attack's targets are sums: it asks for them, or a channel leaves nothing else."""
        return self.bench.stack.channel is not None or ("probe_sums" in attack.needs and "probes" not in attack.needs)

    def _score_membership(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        asked, units, prepared = self._asked(), self._units(), self.bench.prepared
        if units is not None:
            ratio = bool(getattr(attack, "log_ratio", False))
            scores, member = guess.value[asked].detach().cpu().numpy(), prepared.member[asked].numpy()
            return unit_measures(scores, member, units[asked].numpy(), log_ratio=ratio, name=self.threat.unit), []
        person = None if prepared.person is None else prepared.person[prepared.candidates]
        measures = score_membership(guess.value[asked], prepared.member[asked], groups=None if person is None else person[asked])
        return measures, self._roc(guess)

    def _score_property(self, attack: Attack, guess: Guess) -> tuple[list[Measure], list[Row]]:
        return Properties(self.bench, self._looker).score(attack, guess), []

    def _units(self) -> Tensor | None:
        """The person or site of each candidate where that is the threat's unit; raises ``Skip`` where their membership is no question."""
        prepared, unit = self.bench.prepared, self.threat.unit
        if unit == "person":
            if prepared.person is None:
                raise Skip("membership of persons needs to know who gave each record, and this cohort has no person column")
            if self.bench.spec["split"].get("unit") != "person":
                raise Skip("a split by record puts a person's records inside and outside training; split by person (split: {unit: person})")
            return prepared.person[prepared.candidates]
        if unit == "site":
            if prepared.home is None or not bool((prepared.home[~prepared.member] >= 0).any()):
                raise Skip("every site takes part, so there is none to set them against; hold some out (partition: {held_out: 3})")
            return prepared.home
        return None

    def _asked(self) -> Tensor:
        """The candidates whose membership is a question: a site knows its own records."""
        prepared = self.bench.prepared
        if self.threat.view != "site":
            return torch.ones(len(prepared.candidates), dtype=torch.bool)
        return ~torch.isin(prepared.candidates, prepared.sites[self.bench.colluder])

    @property
    def _looker(self) -> int | None:
        """The site that looks, whose own records nobody is asked about."""
        return self.bench.colluder if self.threat.view == "site" else None

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
        cut = self._inverted()
        truth = [records[:, cut] for records in self._records(attack)[: len(guess.value)]]
        trust = guess.confidence
        if trust is not None and trust.ndim == 2 and trust.shape[1] == self.bench.prepared.pool.x.shape[1]:
            trust = trust[:, cut]
        guess = replace(guess, value=[records[:, cut] for records in guess.value], confidence=trust)
        several = any(len(records) > 1 for records in truth)
        fixed, draws = priors(attack, lambda control, name: self.guess(control, name)[0], self._sums(attack), len(truth), several)
        controls = {name: [records[:, cut] for records in made] for name, made in fixed.items()}
        drawn = {name: [[records[:, cut] for records in one] for one in made] for name, made in draws.items()}
        prepared, public = self.bench.prepared, self.scene.auxiliary
        filled = prepared.pool.gaps is not None  # else the candidates are what was fed, and need no second copy
        pool = (self.bench.inputs[prepared.candidates] if filled else self.scene.candidates.x)[:, cut]
        raw = (prepared.mean[cut], prepared.scale[cut])
        auxiliary = Records(public.x[:, cut], public.y)
        measures = score_reconstruction(guess, truth, pool, auxiliary, controls, self.rng("scorer"), raw=raw, drawn=drawn)
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
        measures += exposure_measures(explained(guess.value, truth)[0], self._rounds(attack)[: len(truth)], self._visits())
        curves += shrinkage_points(guess, truth, auxiliary.x, controls, drawn)
        pairs = confidence_pairs(guess, truth)
        if pairs is not None:  # no record, but two numbers each, so of any cohort
            measures += confidence_measures(pairs)
            curves += [{"curve": CONFIDENCE, "x": float(x), "y": float(y)} for x, y in zip(pairs.confidence, pairs.right)]
        return measures, curves

    def _inverted(self) -> slice:
        """The columns of a record that a message depends on: all, but for what a structured record carries aside and no loss reads."""
        layout = self.bench.prepared.layout
        return slice(None) if layout is None else slice(0, layout.private)

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


def _claimed(folder: Path) -> Claim | None:
    """The claim that a train cell wrote down: fitting it again costs an accountant's time."""
    path = folder / CLAIM
    held = json.loads(path.read_text()) if path.is_file() else {}
    return Claim(**{**held, "per_site": tuple(held["per_site"])}) if held else None
