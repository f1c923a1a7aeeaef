"""The grid as cells: task × defense × attack × threat × seed becomes two stages of JSON specs with content ids.

A cell's id hashes its spec, the data's digest, the static import closure of the code it uses and the versions of what computes. The
train key is part of the attack key, so one trained federation feeds all attacks, and an edited attack reruns alone. What cannot apply
becomes a ``skipped`` row here, without a process.

The specs, all JSON: a train spec has suite, task, data, data_digest, split, partition, federation, probes, defense, seed, engine and
device, and ``inserts`` where an attack brings records of its own into training. A reference spec adds ``first`` and ``count`` (references
first … first + count - 1; the k-th does not depend on how many are asked for). An attack spec adds attack, threat, references and budget;
its inputs are the folders ``train`` and ``reference:0``, ``reference:1`` …
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from suites import ensembles, registry
from suites.closure import Code, closure, combined
from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.config import SuiteSpec, ThreatSpec
from suites.errors import RequestError
from suites.registry import Plugin
from suites.sight import NO_CHOICE, NO_NEIGHBOURS, NO_PAIRS, PASSIVE, goal_of, skip_reason

Stage = Literal["train", "reference", "attack"]
Spec = Mapping[str, Any]
CELL_FUNCTIONS: Mapping[str, str] = {
    "train": "suites.referee:train_cell",
    "reference": "suites.referee:reference_cell",
    "attack": "suites.referee:attack_cell",
}
_ORDER: Mapping[str, int] = {"train": 0, "reference": 1, "attack": 2}
COMPUTES = ("torch", "numpy", "scipy", "scikit-learn", "opacus", "cryptography", "anndata", "scanpy")


@dataclass(frozen=True, slots=True)
class Cell:
    """One process's work: ``call`` is given ``spec``, a folder to fill and, for attacks, the folders of ``inputs``."""

    stage: Stage
    id: str
    call: str
    spec: Spec
    columns: Spec  # constant columns of its rows
    inputs: Mapping[str, str] = field(default_factory=dict)  # name -> id

    @property
    def title(self) -> str:
        parts = (self.columns["defense"], self.columns["attack"], self.columns["view"], self.columns["key"], f"seed {self.columns['seed']}")
        return " / ".join([self.stage, *(str(part) for part in parts if part)])


@dataclass(frozen=True, slots=True)
class Skipped:
    """A combination that cannot apply; a row with its reason."""

    columns: Spec
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    suite: SuiteSpec
    cells: tuple[Cell, ...]
    skipped: tuple[Skipped, ...]
    data: str  # digest
    code: Code
    versions: Mapping[str, str]


def plan(suite: SuiteSpec, device: str, functions: Mapping[str, str] = CELL_FUNCTIONS) -> Plan:
    """All cells of a suite, target trainings first; raises ``RequestError`` for whatever the suite names and nobody has."""
    found = [_Planner(part, device, functions).plan() for part in suite.each]
    if len(found) == 1:
        return replace(found[0], suite=suite)
    cells = sorted((cell for one in found for cell in one.cells), key=lambda cell: _ORDER[cell.stage])
    skipped = tuple(cell for one in found for cell in one.skipped)
    code = {name: held for one in found for name, held in one.code.items()}
    data = "; ".join(dict.fromkeys(one.data for one in found))
    return Plan(suite, tuple(cells), skipped, data, dict(sorted(code.items())), versions())


def data_digest(data: DataSpec) -> str:
    """The digest of a file's bytes; a named cohort is pinned by the code that loads it, which the closure holds."""
    if data.path is None:
        return f"named {card(str(data.name)).name}"
    path = Path(data.path).expanduser()
    if not path.exists():
        raise RequestError(f"there is no data file {data.path}; check the path")
    if not path.is_file():
        raise RequestError(f"{data.path} is not a file; give one .h5ad file")
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise RequestError(f"the data file {data.path} cannot be read ({error.strerror}); check its permissions") from None


@cache
def versions() -> Mapping[str, str]:
    """Versions of what computes; they are part of every id, so that one table never mixes two."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in COMPUTES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class _Planner:
    def __init__(self, suite: SuiteSpec, device: str, functions: Mapping[str, str]) -> None:
        self.suite, self.functions = suite, functions
        self.task = registry.find("tasks", suite.task)
        self.defenses = [registry.stack(ref) for ref in dict.fromkeys(suite.defenses)]
        self.unattacked = [registry.stack(ref) for ref in dict.fromkeys(suite.utility_only)]
        self.attacks = [registry.find("attacks", ref) for ref in ensembles.expanded(suite.attacks)]
        for attack in self.attacks:
            if attack.goal is None:
                raise RequestError(
                    f"attack '{attack.label}' states no goal in plain sight; give its class a line such as goal = 'membership'"
                )
        _refuse_twins([registry.label(layers) for layers in (*self.defenses, *self.unattacked)], "defenses and utility_only")
        _refuse_twins([attack.label for attack in self.attacks], "attacks")
        _refuse_twins([f"view {t.view_label}, key {t.key_label}, unit {t.unit}" for t in suite.threats], "threats")
        self.data = data_digest(suite.data)
        self.code: Code = {}
        keys = ("suite", "data", "split", "partition", "federation", "probes", "engine")
        dumped = suite.model_dump(mode="json")
        prepared = (
            combined(closure("suites.prepared", self.task.module or self.task.path)) + self.data + json.dumps(dict(versions()))
        )  # prepared files outlive an edit of their code
        digest = hashlib.sha256(prepared.encode()).hexdigest()
        self.common = {**{key: dumped[key] for key in keys}, "data_digest": digest, "task": self.task.ref, "device": device}

    def plan(self) -> Plan:
        trained = [(layers, seed, self._train(layers, seed)) for layers in self.defenses for seed in range(self.suite.seeds)]
        cells = [cell for _, _, cell in trained]
        cells += [self._train(layers, seed) for layers in self.unattacked for seed in range(self.suite.seeds)]
        skipped: list[Skipped] = []
        for layers, seed, target in trained:
            attacks = [item for attack in self.attacks for item in self._on(layers, attack, target, seed)]
            asked = any(isinstance(item, tuple) and "references" in (item[0].needs or ("references",)) for item in attacks)
            references = self._references(layers, seed) if asked and self.suite.references else []
            cells.extend(references)
            inserted: dict[str, Cell] = {}  # an attack that brings records of its own has a federation of its own
            for item in attacks:
                if isinstance(item, Skipped):
                    skipped.append(item)
                    continue
                attack = item[0]
                if attack.inserts and attack.ref not in inserted:
                    inserted[attack.ref] = self._train(layers, seed, attack)
                    cells.append(inserted[attack.ref])
                own = [] if attack.inserts else references
                cells.append(self._attack(layers, *item, inserted.get(attack.ref, target), own, seed))
        cells.sort(key=lambda cell: _ORDER[cell.stage])
        return Plan(self.suite, tuple(cells), tuple(skipped), self.data, dict(sorted(self.code.items())), versions())

    def _train(self, layers: Sequence[Plugin], seed: int, inserting: Plugin | None = None) -> Cell:
        spec = {**self.common, "stage": "train", "defense": _ref(layers), "seed": seed}
        if inserting is None:
            spec |= {"noise_draws": self.suite.noise_draws} if self.suite.noise_draws > 1 else {}
            return self._cell("train", spec, (*layers, self.task), self._columns(layers, seed))
        every = {**self.common["engine"], "keep_every": 1}  # an auditor reads each round
        spec |= {"inserts": inserting.ref, "probes": [], "engine": every}
        return self._cell("train", spec, (*layers, self.task, inserting), self._columns(layers, seed))

    def _references(self, layers: Sequence[Plugin], seed: int) -> list[Cell]:
        """Whole chunks only: the last one trains a few more than asked rather than let the k-th depend on the number."""
        count = self.suite.engine.reference_chunk
        common = {**self.common, "stage": "reference", "defense": _ref(layers), "seed": seed, "probes": [], "count": count}
        chunks = range(0, self.suite.references, count)
        return [self._cell("reference", {**common, "first": k}, (*layers, self.task), self._columns(layers, seed)) for k in chunks]

    def _attack(
        self, layers: Sequence[Plugin], attack: Plugin, threat: ThreatSpec, target: Cell, references: Sequence[Cell], seed: int
    ) -> Cell:
        reads = references if attack.needs is None or "references" in attack.needs else []
        spec = {
            **target.spec,
            "stage": "attack",
            "attack": attack.ref,
            "threat": threat.model_dump(mode="json"),
            "references": self.suite.references if reads else 0,
            "budget": self._budget(attack),
        }
        inputs = {"train": target.id, **{f"reference:{k}": cell.id for k, cell in enumerate(reads)}}
        return self._cell("attack", spec, (attack,), self._columns(layers, seed, attack, threat), inputs)

    def _on(self, layers: Sequence[Plugin], attack: Plugin, target: Cell, seed: int) -> Iterator[tuple[Plugin, ThreatSpec] | Skipped]:
        """The threats under which an attack on a defense says something of its own, or why it cannot."""
        keyed = any(layer.keyed for layer in layers)
        masks = [layer.masked for layer in layers]
        topologies = [layer.topology for layer in layers]
        topology = next((t for t in topologies if t not in (None, "federated")), None if None in topologies else "federated")
        asks = attack.needs is None or "candidates" in attack.needs
        pairs = attack.needs is None or "known_pairs" in attack.needs
        asked = _of_goal(self.suite.threats, attack.goal, asks=asks, pairs=pairs)
        uses_key = attack.needs is None or "key" in attack.needs
        for threat in _worth_asking(asked, keyed=keyed, uses_key=uses_key, crafts=attack.active):
            reason = None
            if attack.active and not threat.active:
                reason = PASSIVE if threat.view == "server" else NO_CHOICE
            elif threat.neighbours == "unknown" and "shared_inputs" not in self.task.facts.names:
                reason = NO_NEIGHBOURS
            elif attack.needs is not None and "known_pairs" in attack.needs and not threat.known_pairs:
                reason = NO_PAIRS
            elif attack.goal == "key" and not keyed:
                reason = "the defense has no key"
            elif keyed and threat.view == "site" and threat.key in ("none", "wrong"):
                reason = "every site holds the key of this defense; ask with key: right"
            elif attack.holder and threat.key == "none":
                reason = "this threat holds no key"
            elif attack.needs is not None and topology is not None and (True in masks or None not in masks):
                has = self.suite.references > 0 and not attack.inserts
                reason = skip_reason(attack.needs, threat.view, topology=topology, masked=True in masks, has_references=has)
            yield Skipped(self._columns(layers, seed, attack, threat), reason) if reason else (attack, threat)

    def _columns(
        self, layers: Sequence[Plugin], seed: int, attack: Plugin | None = None, threat: ThreatSpec | None = None
    ) -> dict[str, Any]:
        data = self.suite.data
        return {
            "suite": self.suite.suite,
            "task": self.task.label,
            "data": data.name or Path(str(data.path)).stem,
            "defense": registry.label(layers),
            "attack": attack.label if attack else "",
            "goal": goal_of(attack.goal or "", threat.unit if threat else "record") if attack else "",
            "view": threat.view_label if threat else "",
            "key": threat.key_label if threat else "",
            "seed": seed,
            "unit": threat.unit if threat else self.suite.split.unit,
            "budget": self._budget(attack) if attack else 1.0,
        }

    def _budget(self, attack: Plugin) -> float:
        """The suite's, for attacks that have an effort to multiply."""
        return self.suite.budget if "budget" in (attack.facts.parameters or ()) else 1.0

    def _cell(self, stage: Stage, spec: Spec, plugins: Sequence[Plugin], columns: Spec, inputs: Mapping[str, str] | None = None) -> Cell:
        call = self.functions[stage]
        code = closure(call, *(plugin.module or plugin.path for plugin in plugins))
        self.code.update(code)
        refs = {key: registry.portable(spec[key]) for key in ("task", "defense", "attack", "inserts") if key in spec}
        hashed = {**spec, "data": {**spec["data"], "path": None}, **refs}
        material = [hashed, self.data, combined(code), dict(versions()), dict(inputs or {})]
        digest = hashlib.sha256(json.dumps(material, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]
        return Cell(stage, digest, call, spec, columns, inputs or {})


def _worth_asking(threats: Sequence[ThreatSpec], *, keyed: bool, uses_key: bool, crafts: bool) -> list[ThreatSpec]:
    """Threats that differ only in a key that nobody reads are one threat: the one without a key, else the first.

    So are those that differ only in being active, to an attack that chooses nothing.
    """
    if not crafts:
        threats = [t for t in threats if not t.active or t.model_copy(update={"active": False}) not in threats]
    if keyed and uses_key:
        return list(threats)
    groups: dict[tuple[Any, ...], list[ThreatSpec]] = {}
    for threat in threats:
        groups.setdefault((threat.view_label, threat.colluders, threat.auxiliary, threat.unit), []).append(threat)
    chosen = [next((t for t in group if t.key == "none"), group[0] if keyed else None) for group in groups.values()]
    return [threat for threat in chosen if threat is not None]


def _of_goal(threats: Sequence[ThreatSpec], goal: str | None, *, asks: bool, pairs: bool) -> list[ThreatSpec]:
    """The unit is what membership is asked of; every other goal looks at the same thing under each unit, once.

    So does an attack that asks about no candidates, or only about its own, whatever is known of theirs; and one that uses no known pairs.
    """
    same: dict[str, Any] = {} if goal == "membership" else {"unit": "record"}
    same |= {} if asks and goal != "audit" else {"neighbours": "known"}
    same |= {} if pairs else {"known_pairs": 0}
    return list(dict.fromkeys(threat.model_copy(update=same) for threat in threats))


def _refuse_twins(labels: Sequence[str], what: str) -> None:
    twins = [label for label in labels if labels.count(label) > 1]
    if twins:
        raise RequestError(f"{what} holds '{twins[0]}' twice, and tables could not tell the two apart; keep one")


def _ref(layers: Sequence[Plugin]) -> str:
    return "+".join(layer.ref for layer in layers)
