"""Attack × what it needs × cost × where it is strongest: one row an attack, out of a results table. ``docs/attacks.md`` is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports import words
from reports.tables import Table

FEDAVG = "fedavg"


def attacks_table(summary: pd.DataFrame, results: pd.DataFrame, record: Mapping[str, Any], name: str) -> Table | None:
    """What each attack reads, takes and reaches; ``summary`` is ``reports.stats.summarise`` of ``results``.

    ``record["attacks"]`` says what each needs; without it that column stays empty. Seconds are medians over cells.
    """
    ok = (summary["status"] == "ok") & (summary["role"] == "score")
    scored = summary[ok & (summary["metric"] == "leakage") & summary["value"].notna()]
    if scored.empty:
        return None
    said = dict(record.get("attacks") or {})
    spent = results[results["status"] == "ok"].groupby(["attack", "defense", "view", "key", "seed"])["seconds"].max()
    seconds = spent.groupby("attack").median().to_dict()
    rows, shown = [], []
    for (goal, attack), own in scored.groupby(["goal", "attack"], sort=False):
        ranked = own.sort_values("value").to_dict("records")
        best, plain = ranked[-1], [row for row in ranked if row["defense"] == FEDAVG]
        needs = ", ".join(dict(said.get(str(attack)) or {}).get("needs", ()))
        skipped = results[(results["status"] == "skipped") & (results["attack"] == attack) & ~results["defense"].isin(own["defense"])]
        hidden = [str(d) for d in dict.fromkeys(skipped["defense"])]
        row = {
            "goal": goal,
            "attack": attack,
            "needs": needs,
            "seconds": float(seconds.get(attack, math.nan)),
            "leakage_fedavg": plain[-1]["value"] if plain else math.nan,
            "strongest_on": best["defense"],
            "view": best["view"],
            "key": best["key"],
            **{name: float(best[column]) for name, column in (("leakage", "value"), ("low", "low"), ("high", "high"))},
            "cannot_look_at": "; ".join(hidden),
        }
        rows.append(row)
        shown.append(
            {
                "Goal": words.GOALS.get(str(goal), str(goal)),
                "attack": words.attack(str(attack)),
                "needs": needs or words.MISSING,
                "seconds a cell": words.number(float(seconds.get(attack, math.nan)), 2),
                "on FedAvg": _leak(plain[-1]) if plain else words.MISSING,
                "strongest on": f"{words.defense(str(best['defense']))} {_leak(best)}",
                "as": words.threat(str(best["view"]), str(best["key"])),
                "cannot look at": ", ".join(words.defense(d) for d in hidden) or words.MISSING,
            }
        )
    caption = "Every attack: what it needs, what it takes, what it reaches as whom (leakage, 0 guess to 1 truth, 95 % over seeds)"
    return Table(name, caption, pd.DataFrame(rows), pd.DataFrame(shown), ("seconds a cell",))


def _leak(row: Mapping[Any, Any]) -> str:
    return f"{words.number(row['value'], 2)} [{words.number(row['low'], 2)}, {words.number(row['high'], 2)}]"
