"""Secret elimination: whatever a defense hides, is it hidden from an adversary who knows everything else?

For any defense with a secret, on the small federation of the checks, without a line about any particular defense: is the secret in a
message; does it enter a layer in closed form; is it low-dimensional enough to be optimised away; can it be searched; does an invariant
remain without it; what do a wrong key, a fraction of the key and one colluding site open. A hit is a warning, since a defense may promise
less than it hides; the contract's own promises stay with ``suites.checks_defense``. Attacks are found by name, as everywhere, and run at
1, 10 and 100 times their budget.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from suites import registry
from suites.checks_attack import Examination
from suites.checks_result import CheckResult
from suites.checks_stage import SITES, Stage
from suites.contracts import Defense, Probe, Secret, Skip, Threat
from suites.observation import why_not
from suites.scoring import Measure
from suites.stack import Stack

_MESSAGES = {  # what is sent of the first records of each site: optimiser, steps, rate
    "gradient": ("gradient", 1, 0.0),
    "one step of SGD": ("sgd", 1, 5e-4),
    "20 steps of SGD": ("sgd", 20, 5e-4),
    "one step of Adam": ("adam", 1, 1e-3),
    "20 steps of Adam": ("adam", 20, 1e-3),
}
_BATCH = 8
_PATIENCE = 60.0  # seconds that one run may take
_INVARIANTS = {  # attack -> what it shows to survive
    "closed_form": "inputs in closed form",
    "norms": "lengths",
    "gram_search": "inner products",
    "joint_key": "one record beside an optimised key",
    "span": "row space",
    "row_space": "rows by search",
}


class _Sending(Stage):
    """The small federation, whose sites send one kind of message about eight records."""

    def __init__(self, layers: Sequence[Defense], kind: str) -> None:
        super().__init__(Stack(layers), rounds=1)
        self.kind = kind

    @property
    def probes(self) -> list[Probe]:
        optimiser, steps, rate = _MESSAGES[self.kind]
        rows = tuple(tuple(self.sites[site][:_BATCH].tolist()) for site in range(SITES))
        return [Probe(self.kind, 0, rows, optimiser, steps, rate)]  # type: ignore[arg-type]


def eliminate(ref: str, *, budgets: Sequence[int] = (1, 10, 100), planned: Sequence[Defense] | None = None) -> list[CheckResult]:
    """What remains of the secret of ``ref`` at growing ``budgets`` (multiples of each attack's own); an empty list where it has none."""
    layers = [plugin.make() for plugin in registry.stack(ref)] if planned is None else list(planned)
    demanded = max((layer.minimum for layer in layers), default=1)
    for layer in layers:
        layer.minimum = 1
    stage = Stage(Stack(layers))
    if stage.trained.secret is None:
        return []
    said = f"looks at messages of 1 and {_BATCH} records; the defense demands {demanded}, refuses those and promises nothing for them"
    below = [CheckResult("below the minimum", "warn", said)] if demanded > _BATCH else []
    return [*below, *_in_sight(stage), *_enters_a_layer(layers), *_remains(stage, budgets), *_keys(stage)]


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
    for kind, (optimiser, _, _) in _MESSAGES.items():
        name = f"secret in closed form from {kind}"
        stage = _Sending(layers, kind)
        scores = _attempt(stage, f"key_vector:optimiser={optimiser}")
        if isinstance(scores, str):
            yield CheckResult(name, "pass", scores)
            continue
        error, cosine = scores["relative_error"].value, scores["cosine"].value
        yield _found(name, cosine > 0.7, f"relative error {error:.1e}, cosine {cosine:.3f} with what the key makes of itself")


def _remains(stage: Stage, budgets: Sequence[int]) -> Iterator[CheckResult]:
    """Each attack at growing budgets until it hits, or until the next would take longer than a check may."""
    for attack, what in _INVARIANTS.items():
        name, hit, seconds = f"without the key: {what} ({attack})", False, 0.0
        shown: list[str] = []
        for times in budgets:
            ref = _budgeted(attack, times)
            if times > 1 and (ref is None or hit or seconds * 10 > _PATIENCE):
                break
            started = time.perf_counter()
            scores = _attempt(stage, ref or attack)
            seconds = time.perf_counter() - started
            if isinstance(scores, str):
                shown = []
                break
            hit = scores["leakage"].low > 0
            if "reidentified" in scores:
                hit = hit or scores["reidentified"].low > 2 * scores["chance_reidentified"].value
            parts = [f"{metric} {scores[metric].value:.2f}" for metric in ("exact", "reidentified", "auc") if metric in scores]
            shown.append(
                ", ".join(
                    [f"{times}x budget: leakage {scores['leakage'].value:.3f}" if ref else f"leakage {scores['leakage'].value:.3f}", *parts]
                )
            )
        yield _found(name, hit, "; ".join(shown)) if shown else CheckResult(name, "skip", str(scores))


def _keys(stage: Stage) -> Iterator[CheckResult]:
    yield _opens("wrong keys", _attempt(stage, "open_with_wrong_keys"))
    for fraction in (0.1, 0.5, 0.9):
        yield _opens(f"{fraction:.0%} of the key", _attempt(stage, "open_with_held_key", Threat(key="partial", key_fraction=fraction)))
    yield _opens("one colluding site", _attempt(stage, "open_with_held_key", Threat(key="leaked")))
    plugin = registry.find("attacks", "seed_search:budget=256")
    attack: Any = plugin.make()
    scores = _attempt(stage, plugin.ref, attack=attack)
    if isinstance(scores, str):
        yield CheckResult("searched", "pass", scores)
    else:
        seconds = getattr(attack, "seconds_for_all", math.nan)
        done = f"found as number {attack.tried}" if attack.found else f"not among {attack.tried} tried"
        yield _found("searched", True, f"{done}; all {attack.total} take {seconds:.0f} s at this rate")


def _opens(who: str, scores: dict[str, Measure] | str) -> CheckResult:
    name = f"opened by {who}"
    if isinstance(scores, str):
        return CheckResult(name, "skip", scores)
    if not math.isfinite(scores["leakage"].value):
        return CheckResult(name, "skip", scores["leakage"].reason)
    return _found(name, scores["leakage"].value > 0.5, f"{scores['leakage'].value:.2f} of the right key's use above the majority guess")


def _attempt(stage: Stage, ref: str, threat: Threat | None = None, *, attack: Any = None) -> dict[str, Measure] | str:
    """An attack's scores on this federation, or why there are none."""
    try:
        attack = registry.find("attacks", ref).make() if attack is None else attack
        reason = why_not(attack, "server", stage.stack, has_references=False)
        if reason is not None:
            return reason
        return Examination(attack, ref, stage=stage).scored(threat or Threat())
    except Skip as skip:
        return str(skip)


def _budgeted(ref: str, times: int) -> str | None:
    """The same attack with ``times`` its own budget; None where it has none."""
    own = getattr(registry.find("attacks", ref).make(), "budget", None)
    return f"{ref}:budget={own * times}" if isinstance(own, int) else None


def _found(name: str, hit: bool, detail: str) -> CheckResult:
    return CheckResult(name, "warn" if hit else "pass", detail)
