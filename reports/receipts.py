"""The receipts of trainings under differential privacy as a table: what was claimed beside what ran, and why one was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import pandas as pd

from reports import words
from reports.tables import Table

_COLUMNS: Final = ("unit", "relation", "sampler", "steps", "noise_multiplier", "measured", "low", "high", "delta")
_RELATIONS: Final = {"add_remove": "added or removed", "replace_one": "replaced"}
CAPTION: Final = (
    "Receipts: what every training under an ε really drew. Batches and noise are counted as the defense runs, from outside it; the "
    "accountants share no code, and are asked about the steps counted and the noise claimed, or the noise drawn where its interval (which "
    "misses once in a million) lies below the claim. A receipt is refused where claim and run part."
)


def receipts_table(record: Mapping[str, Any], name: str) -> Table | None:
    """One row a defense (and task and cohort, where there are several), over its seeds; None where nothing claims an ε."""
    held = list(record.get("receipts") or [])
    if not held:
        return None
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for one in held:
        groups.setdefault((one["task"], one["data"], one["defense"]), []).append(one)
    several = len({key[:2] for key in groups}) > 1
    rows, shown = [], []
    for (task, data, defense), own in groups.items():
        worst = next((one for one in own if not one["accepted"]), own[0])
        accepted = sum(bool(one["accepted"]) for one in own)
        epsilons = dict(worst["epsilons"])
        site: Mapping[str, Any] = min(worst["sites"], key=lambda each: each["units"], default={})
        drawn = f"{_n(site.get('drawn'))} of {site.get('units')}, expected {_n(site.get('expected'))}" if site else words.MISSING
        rows.append(
            {
                "task": task,
                "data": data,
                "defense": defense,
                "accepted": accepted,
                "receipts": len(own),
                **{key: worst[key] for key in _COLUMNS},
                "epsilon": worst["claimed"],
                **{f"epsilon:{key}": value for key, value in epsilons.items()},
            }
        )
        shown.append(
            {
                **({"cohort": data, "task": task} if several else {}),
                "defense": words.defense(defense),
                "receipt": "accepted" if accepted == len(own) else f"refused ({len(own) - accepted} of {len(own)})",
                "protects": f"one {worst['unit']}, {_RELATIONS.get(worst['relation'], worst['relation'])}",
                "drawn a step (smallest site)": drawn,
                "steps": str(worst["steps"]),
                "noise claimed": _n(worst["noise_multiplier"]),
                "noise drawn": f"{_n(worst['measured'])} [{_n(worst['low'])}, {_n(worst['high'])}]",
                "δ": words.scientific(worst["delta"]) if worst["delta"] else words.MISSING,
                "ε claimed": _n(worst["claimed"]),
                "ε by accountant": ", ".join(f"{key} {_n(value)}" for key, value in epsilons.items()),
            }
        )
    return Table(name, CAPTION, pd.DataFrame(rows), pd.DataFrame(shown), ("steps", "noise claimed", "noise drawn", "ε claimed"))


def refusals(record: Mapping[str, Any]) -> list[str]:
    """Each reason once, with the defenses and seeds that it refused; then what no receipt covers."""
    held = list(record.get("receipts") or [])
    found: dict[tuple[str, str], list[str]] = {}
    for one in held:
        for reason in one["reasons"]:
            found.setdefault((one["defense"], reason), []).append(str(one["seed"]))
    said = [f"{words.defense(defense)}, seed {', '.join(seeds)}: refused, since {reason}." for (defense, reason), seeds in found.items()]
    said += [f"{words.defense(one['defense'])}: {note}." for one in held for note in one.get("notes", ())]
    return _once(said) + [f"No receipt covers this: {caveat}." for caveat in _once(caveat for one in held for caveat in one["caveats"])]


def _once(given: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(given))


def _n(value: Any) -> str:
    return "∞" if value is None else f"{value:.4g}"
