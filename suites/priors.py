"""Guesses of those who look at no message: what a reconstruction has to beat before it is one.

Whoever is given candidates may also draw from them, and is then right now and then: under 128 records of a message and 400 candidates,
for a third of them. So that draw belongs to the prior of an attack that is given candidates, and to no other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from suites import registry
from suites.contracts import Attack, Guess, Skip

DRAWS = 4  # answers of a control that draws records, whose mean level counts
_ALWAYS = ("class_mean", "random_guess")

Answers = dict[str, Sequence[Tensor]]


def priors(
    attack: Attack, run: Callable[[Attack, str], Guess], sums: bool, targets: int, several: bool
) -> tuple[Answers, dict[str, list[Sequence[Tensor]]]]:
    """The answers of the controls to the first ``targets`` targets, and those of controls that draw records, ``DRAWS`` each.

    Parameters
    ----------
    run : (control, its name, which is its randomness) -> guess
    sums : whether the attack looks at sums of sites
    several : whether some message has several records; a draw for a single one is never near it
    """

    def asked(name: str, stream: str) -> Sequence[Tensor]:
        control: Any = registry.find("attacks", name).make()
        found: Sequence[Tensor] = run(control.of_sums() if sums else control, stream).value[:targets]
        return found

    fixed: Answers = {}
    drawn: dict[str, list[Sequence[Tensor]]] = {}
    for name in _ALWAYS:
        try:
            fixed[name] = asked(name, name)
        except Skip:
            continue
    for name in ("random_record", *(["random_candidate"] if "candidates" in attack.needs else [])) if several else ():
        try:
            drawn[name] = [asked(name, f"{name} {draw}") for draw in range(DRAWS)]
        except Skip:
            continue
    return fixed, drawn
