"""Secret elimination: whatever a defense hides, is it hidden from an adversary who knows everything else?

For any defense with a secret, on the small federation of the checks, without a line about any particular defense: is the secret in a
message; does it enter a layer in closed form; is it low-dimensional enough to be optimised away; can it be searched; does an invariant
remain without it; do known plaintexts, principal axes or marginals undo it; what do a wrong key, a fraction of the key and one colluding
site open, and what does that site read of the others. A hit is a warning, since a defense may promise less than it hides; the contract's
own promises stay with ``suites.checks_defense``. Attacks are found by name, as everywhere, and each looks at the scene in which it shows
its power (``Ground``). Each is run at 1, 10 and 100 times its budget until it hits; every line says how far it got and why it stopped there
(``suites.checks_budget``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from suites import registry
from suites.checks_attack import Examination
from suites.checks_budget import Found, Limits, Scores, tried
from suites.checks_result import CheckResult
from suites.checks_stage import SITES, Stage
from suites.contracts import Defense, Ground, Probe, Secret, Skip, Threat
from suites.observation import why_not
from suites.stack import Stack

_LEARNT = Ground(factors=4)  # where few directions hold most, a model is learnt well enough for a key to open something
_SEEDS = 256  # keys tried at the plain budget
_MESSAGES = {  # what is sent of the first records of each site: optimiser, steps, rate, momentum (whose first step is plain SGD's)
    "gradient": ("gradient", 1, 0.0, 0.0),
    "one step of SGD": ("sgd", 1, 5e-4, 0.0),
    "20 steps of SGD": ("sgd", 20, 5e-4, 0.0),
    "20 steps of SGD with momentum": ("sgd", 20, 5e-4, 0.9),
    "one step of Adam": ("adam", 1, 1e-3, 0.0),
    "20 steps of Adam": ("adam", 20, 1e-3, 0.0),
}
_BATCH = 8
_INVARIANTS = {  # attack -> what it shows to survive
    "closed_form": "inputs in closed form",
    "norms": "lengths",
    "gram_search": "inner products",
    "known_plaintext": "records beside known plaintexts",
    "principal_components": "principal axes, class means and marginals",
    "joint_key": "one record beside an optimised key",
    "span": "row space",
    "row_space": "rows by search",
}
_HOLDERS = {  # who holds the key, and what they read with it of the records of others
    "one colluding site reads the others' records": ("ladder_of_sum", Threat("site", "right")),
    "one colluding site reads the others' membership": ("span_of_sum", Threat("site", "right")),
    "a server to which one site lent its key reads records": ("ladder", Threat("server", "leaked")),
}


class _Sending(Stage):
    """The small federation, whose sites send one kind of message about eight records."""

    def __init__(self, layers: Sequence[Defense], kind: str) -> None:
        super().__init__(Stack(layers), rounds=1)
        self.kind = kind

    @property
    def probes(self) -> list[Probe]:
        optimiser, steps, rate, momentum = _MESSAGES[self.kind]
        rows = tuple(tuple(self.sites[site][:_BATCH].tolist()) for site in range(SITES))
        return [Probe(self.kind, 0, rows, optimiser, steps, rate, momentum)]  # type: ignore[arg-type]


def eliminate(ref: str, limits: Limits = Limits(), *, planned: Sequence[Defense] | None = None) -> list[CheckResult]:  # noqa: B008 (frozen)
    """What remains of the secret of ``ref`` at growing budgets; an empty list where it has none."""
    layers = [plugin.make() for plugin in registry.stack(ref)] if planned is None else list(planned)
    demanded = max((layer.minimum for layer in layers), default=1)
    for layer in layers:
        layer.minimum = 1
    scenes = Scenes(layers)
    stage = scenes(Ground())
    if stage.trained.secret is None:
        return []
    said = f"looks at messages of 1 and {_BATCH} records; the defense demands {demanded}, refuses those and promises nothing for them"
    below = [CheckResult("below the minimum", "warn", said)] if demanded > _BATCH else []
    found = [*_in_sight(stage), *_enters_a_layer(layers), *_remains(scenes, limits), *_keys(scenes(_LEARNT)), searched(stage, limits)]
    return [*below, *found, *_held(scenes, limits)]


class Scenes:
    """The small federation under these layers, in each scene that an attack names for itself; trained once each."""

    def __init__(self, layers: Sequence[Defense]) -> None:
        self.layers = layers
        self._held: dict[Ground, Stage] = {}

    def __call__(self, ground: Ground) -> Stage:
        """What is sent and known is the attack's business; the defense, its faults and its key space are not."""
        plain = replace(ground, defense="", flaws=frozenset(), keys=0, known_pairs=0)
        if plain not in self._held:
            self._held[plain] = Stage(Stack(self.layers), ground=plain)
            _ = self._held[plain].evidence  # trained here, so that no attack's time holds it
        return self._held[plain]


def _in_sight(stage: Stage) -> Iterator[CheckResult]:
    """Names and metadata; tensors' bytes are the contract's ``no secret on the wire``."""
    secret = stage.trained.secret
    assert secret is not None
    claim = stage.stack.claim(stage.federation, stage.shape)
    said = " ".join(map(repr, (*stage.stack.cards, claim)))
    names = [name for record in stage.trained.rounds for name in (*record.broadcast, *(n for m in record.messages for n in m.payload))]
    found = [place for place, text in (("a card or claim", said), ("a name on the wire", " ".join(names))) if _spelt(secret, text)]
    yield _found("secret in names and metadata", bool(found), f"spelt out in {' and '.join(found)}" if found else "not spelt out anywhere")


def _spelt(secret: Secret, text: str) -> bool:
    """Whether eight consecutive bytes of a secret's numbers stand in a text as hexadecimal, or three of its numbers in decimal."""
    lower = text.lower()
    for name in secret.names:
        value = secret[name].detach().cpu().reshape(-1)
        raw = value.numpy().tobytes()
        if any(raw[i : i + 8].hex() in lower for i in range(0, max(len(raw) - 7, 1), 8)):
            return True
        numbers = [f"{float(one):.6g}" for one in value[:3]]
        if value.is_floating_point() and len(numbers) == 3 and all(one in text for one in numbers):
            return True
    return False


def _enters_a_layer(layers: Sequence[Defense]) -> Iterator[CheckResult]:
    def judge(_: Any, scores: Scores) -> Found:
        error, cosine = scores["relative_error"].value, scores["cosine"].value
        return Found(cosine > 0.7, f"relative error {error:.1e}, cosine {cosine:.3f} with what the key makes of itself")

    for kind, (optimiser, *_) in _MESSAGES.items():
        stage, ref = _Sending(layers, kind), f"key_vector:optimiser={optimiser}"
        yield _line(f"secret in closed form from {kind}", tried(ref, partial(_attempt, stage, ref), judge, Limits()), idle="pass")


def _remains(scenes: Scenes, limits: Limits) -> Iterator[CheckResult]:
    for attack, what in _INVARIANTS.items():
        ground: Ground = getattr(registry.find("attacks", attack).load(), "ground", Ground())
        run = partial(_attempt, scenes(ground), attack, threat=Threat(known_pairs=ground.known_pairs))
        yield _line(f"without the key: {what} ({attack})", tried(attack, run, _read, limits))


def _held(scenes: Scenes, limits: Limits) -> Iterator[CheckResult]:
    """What whoever holds the key reads of records that are not theirs."""
    for who, (attack, threat) in _HOLDERS.items():
        yield _line(f"{who} ({attack})", tried(attack, partial(_attempt, scenes(Ground()), attack, threat=threat), _read, limits))


def _read(_: Any, scores: Scores) -> Found:
    """Records or their membership: a hit beyond what a guess without the message reaches, or records pointed out among candidates."""
    hit = scores["leakage"].low > 0
    if "reidentified" in scores:
        hit = hit or scores["reidentified"].low > 2 * scores["chance_reidentified"].value
    parts = [f"{metric} {scores[metric].value:.2f}" for metric in ("exact", "reidentified", "auc") if metric in scores]
    return Found(hit, ", ".join([f"leakage {scores['leakage'].value:.3f}", *parts]))


def _keys(stage: Stage) -> Iterator[CheckResult]:
    yield _opens("wrong keys", "open_with_wrong_keys", stage, Threat())
    for fraction in (0.1, 0.5, 0.9):
        yield _opens(f"{fraction:.0%} of the key", "open_with_held_key", stage, Threat(key="partial", key_fraction=fraction))
    yield _opens("one colluding site", "open_with_held_key", stage, Threat(key="leaked"))


def _opens(who: str, ref: str, stage: Stage, threat: Threat) -> CheckResult:
    def run(attack: Any) -> Scores | str:
        scores = _attempt(stage, ref, attack, threat=threat)
        return scores["leakage"].reason if not isinstance(scores, str) and not math.isfinite(scores["leakage"].value) else scores

    def judge(_: Any, scores: Scores) -> Found:
        return Found(scores["leakage"].value > 0.5, f"{scores['leakage'].value:.2f} of the right key's use above the majority guess")

    return _line(f"opened by {who}", tried(ref, run, judge, Limits()))


def searched(stage: Stage, limits: Limits = Limits()) -> CheckResult:  # noqa: B008 (frozen)
    """Whether the key is drawn from so few bits that trying them finds it, and how long all of them take."""

    def judge(attack: Any, _: Scores) -> Found:
        done = f"found as number {attack.tried}" if attack.found else f"not among {attack.tried} tried"
        left = "" if attack.tried < attack.total else "all keys tried"
        return Found(bool(attack.found), f"{done}; all {attack.total} take {attack.seconds_for_all:.0f} s at this rate", left)

    ref = f"seed_search:budget={_SEEDS}"
    found = tried(ref, partial(_attempt, stage, ref), judge, limits)
    if isinstance(found, str):
        return CheckResult("searched", "pass", found)
    return CheckResult("searched", "warn", found.shown)  # few enough keys to be tried are too few, found yet or not


def _attempt(stage: Stage, ref: str, attack: Any, *, threat: Threat = Threat()) -> Scores | str:  # noqa: B008 (frozen)
    """An attack's scores on this federation, or why there are none."""
    try:
        reason = why_not(attack, threat.view, stage.stack, has_references=False)
        return Examination(attack, ref, stage=stage).scored(threat) if reason is None else reason
    except Skip as skip:
        return str(skip)


def _line(name: str, found: Found | str, *, idle: Literal["pass", "skip"] = "skip") -> CheckResult:
    """``idle`` is what it means that the attack had nothing to look at."""
    if isinstance(found, str):
        return CheckResult(name, idle, found)
    return _found(name, found.hit, found.shown)


def _found(name: str, hit: bool, detail: str) -> CheckResult:
    return CheckResult(name, "warn" if hit else "pass", detail)
