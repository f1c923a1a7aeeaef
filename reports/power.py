"""Whether an attack that took nothing could have taken anything: what the same attack does on FedAvg, where nothing protects.

A defense on which every attack that applies is one that fails on FedAvg too has not been measured, however low its leakage. Keys are left
out: FedAvg has none, and their scale has the right key at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import pandas as pd

from reports import words
from reports.intervals import over_seeds
from reports.schema import GOALS, HEADLINE_KEYS, upper_bound

OPEN: Final = "fedavg"  # the defense that protects nothing
WITHOUT: Final = "without"
Power = Mapping[tuple[str, str, str], bool]  # goal, view, attack -> whether it works on FedAvg; absent: it has no number there


def scored(results: pd.DataFrame) -> pd.DataFrame:
    """Rows that state a leakage: controls and upper bounds left out."""
    known = (results["metric"] == "leakage") & (results["role"] == "score") & (results["status"] == "ok") & ~upper_bound(results)
    found: pd.DataFrame = results[known & np.isfinite(results["value"])]
    return found


def powers(results: pd.DataFrame) -> dict[tuple[str, str, str], bool]:
    """Which attacks take more than their controls on FedAvg: the lower end of the leakage over seeds lies above 0, at some budget."""
    held = scored(results)
    held = held[(held["defense"] == OPEN) & (held["goal"] != "key")]
    effort = [name for name in ("key", "budget", "checkpoint") if name in held.columns]
    found: dict[tuple[str, str, str], bool] = {}
    for at, own in held.groupby(["goal", "view", "attack", *effort], sort=False, dropna=False):
        goal, view, attack, *_ = (str(part) for part in at)
        low, _ = over_seeds(own["value"], own["low"], own["high"])
        found[goal, view, attack] = found.get((goal, view, attack), False) or bool(low > 0)
    return found


def silences(results: pd.DataFrame, power: Power | None = None) -> dict[tuple[str, str, str, str], str]:
    """Why a low leakage would mean nothing, by goal, view, defense and key ("without" for none and wrong); absent where it would not.

    Only attacks with a number on that defense count; one of them that works on FedAvg is enough for a silence to mean something.
    """
    power = powers(results) if power is None else power
    held = scored(results)
    held = held[held["goal"].isin(GOALS) & (held["goal"] != "key")]
    held = held.assign(held=held["key"].where(~held["key"].isin(HEADLINE_KEYS), WITHOUT))
    ran = bool(((results["defense"] == OPEN) & (results["status"] == "ok")).any())
    tried: dict[tuple[str, str, str, str], dict[str, None]] = {}
    columns = held[["goal", "view", "defense", "held", "attack"]].drop_duplicates()
    for goal, view, defense, key, attack in columns.itertuples(index=False, name=None):
        tried.setdefault((goal, view, defense, key), {})[attack] = None
    return {
        at: _why(at[2], {attack: power.get((at[0], at[1], attack)) for attack in attacks}, ran=ran)
        for at, attacks in tried.items()
        if not any(power.get((at[0], at[1], attack)) for attack in attacks)
    }


def _why(defense: str, tried: Mapping[str, bool | None], *, ran: bool) -> str:
    """A clause on attacks of which none is known to work; each is weak (False) or without a number on FedAvg (None)."""
    names = [words.attack(attack) for attack in tried]
    only = f"the only attack that applies, {names[0]}," if len(names) == 1 else f"none of the attacks that apply ({_and(names)})"
    floor = words.defense(OPEN)
    if defense == OPEN:
        return f"{only} {'is not shown' if len(names) == 1 else 'is shown'} to work even here, where nothing protects"
    if not ran:
        return f"{floor} was not run, so nothing shows that {_and(names)} can take anything at all"
    if all(known is None for known in tried.values()):
        return f"{only} has {'no' if len(names) == 1 else 'a'} number on {floor}, so nothing shows that it can take anything at all"
    if any(known is None for known in tried.values()):
        weak = [words.attack(attack) for attack, known in tried.items() if known is not None]
        rest = [words.attack(attack) for attack, known in tried.items() if known is None]
        return (
            f"of the attacks that apply {_and(weak)} {_are(weak)} not shown to work on {floor} either and {_and(rest)} {_have(rest)} no "
            "number there"
        )
    return f"{only} {'is not shown' if len(names) == 1 else 'is shown'} to work on {floor} either"


def _and(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _have(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"
