"""How hard a check tries: each attack at 1, 10 and 100 times its own budget until it hits, and in words why it stopped there.

A "found nothing" says how far was looked: whether the attack has no budget that could be raised, whether all budgets were tried, or whether
the next would take longer than the check may (then it says how long, and the caller can grant it).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from suites import registry
from suites.scoring import Measure

Scores = Mapping[str, Measure]


@dataclass(frozen=True, slots=True)
class Limits:
    """``budgets`` are multiples of an attack's own, rising; ``patience`` the CPU seconds that one run may be expected to take."""

    budgets: tuple[int, ...] = (1, 10, 100)
    patience: float = 60.0


@dataclass(frozen=True, slots=True)
class Found:
    """What one run showed; ``exhausted`` says why no budget could find more, where nothing is left to try."""

    hit: bool
    shown: str
    exhausted: str = ""


def tried(ref: str, run: Callable[[Any], Scores | str], judge: Callable[[Any, Scores], Found], limits: Limits) -> Found | str:
    """Attack ``ref`` at growing budgets: whether it hit, and each multiple with what it showed; a sentence where it cannot run at all.

    ``run`` gives an attack's scores, or why there are none; ``judge`` reads them.
    """
    plugin = registry.find("attacks", ref)
    attack: Any = plugin.make()
    own = getattr(attack, "budget", 0)
    grows = isinstance(own, int) and "budget" in inspect.signature(type(attack).__init__).parameters
    budgets = limits.budgets if grows else (1,)
    lines: list[tuple[str, str]] = []  # what was shown, and at which multiples
    found, stopped = Found(False, ""), "all budgets tried"
    for place, times in enumerate(budgets):
        attack = type(attack)(**{**plugin.parameters, "budget": own * times}) if grows and times > 1 else attack
        started = time.process_time()
        scores = run(attack)
        seconds = time.process_time() - started
        if isinstance(scores, str):
            if not lines:
                return scores
            stopped = f"at {times}x: {scores}"
            break
        found = judge(attack, scores)
        said = found.shown
        lines = [*lines[:-1], (said, f"{lines[-1][1]}, {times}x")] if lines and lines[-1][0] == said else [*lines, (said, f"{times}x")]
        if found.hit or found.exhausted:
            stopped = "a hit" if found.hit else found.exhausted
            break
        following = budgets[place + 1] if place + 1 < len(budgets) else None
        if following is not None and seconds * following / times > limits.patience:
            needs = f"about {seconds * following / times:.0f} s, more than the limit of {limits.patience:g} s (--patience)"
            stopped = f"{following}x would take {needs}"
            break
    if not grows:
        return Found(found.hit, f"{found.shown}; no budget to raise: it does not search")
    text = "; ".join(f"at {multiples} budget: {said}" for said, multiples in lines)
    return Found(found.hit, f"{text}; stopped: {stopped}")
