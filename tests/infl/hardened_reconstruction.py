"""Reconstruction in docs/hardened.md: the attacks of the standard ensemble at the minimum's 128 records, FedAvg beside hardened.

``seeds`` reads finished runs into docs/hardened_reconstruction.csv, one row an attack, defense and seed; everything else is made of that
file: ``rows`` for hardened_standard.csv, ``worst`` for what the page states, ``table`` for the page.

Two scales. *calibrated leakage*: R² of guesses shrunk as the other seeds say (``reports.shrinkage``), from the best of those who look at
no message (0) to the truth (1). *named*: the share of records at which the guess points among all candidates, from that of records drawn
at random for the same classes and matched alike (0; candidates where the attack is given these, else the adversary's own) to all (1).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from reports.intervals import ratio_interval, t_interval
from reports.worst import crossfit
from tests.infl.hardened_tables import OURS, PLAIN, interval

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- reconstruction -->", "<!-- end of reconstruction -->"
KEYS = ["data", "attack", "defense", "seed"]
METRICS = ("r2", "leakage", "r2_calibrated", "leakage_calibrated", "reidentified")
DRAWN = ("reidentified:random_candidate", "reidentified:random_record")  # the first that an attack's cell has is its chance
SCALES = {"leakage_calibrated": "calibrated leakage", "named": "named above chance"}


class Worst(NamedTuple):
    """The worst attack, chosen and scored on different seeds: mean and interval under both, and the second as a share of the first."""

    plain: tuple[float, float, float]
    ours: tuple[float, float, float]
    ratio: tuple[float, float, float]
    seeds: int


def seeds(results: Iterable[Path]) -> pd.DataFrame:
    """One row an attack, defense and seed, out of results of infl-bench or ``hardened_together``."""
    held = pd.concat([pd.read_parquet(path) for path in results])
    held = held[(held["status"] == "ok") & (held["goal"] == "reconstruction")]
    wide = held[held["metric"].isin((*METRICS, *DRAWN))].pivot_table(index=KEYS, columns="metric", values="value").reset_index()
    chance = wide.reindex(columns=list(DRAWN)).bfill(axis=1).iloc[:, 0]
    found = wide.reindex(columns=[*KEYS, *METRICS]).assign(chance=chance, named=(wide["reidentified"] - chance) / (1 - chance))
    return found.sort_values(KEYS).round(6).reset_index(drop=True)


def rows(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with Student's intervals, as hardened_standard.csv has them: ``low`` and ``high`` are the raw leakage's."""
    made = []
    for (data, attack, defense), own in table.groupby(["data", "attack", "defense"]):
        row = {"data": data, "goal": "reconstruction", "attack": attack, "defense": defense, "seeds": len(own)}
        row |= dict(zip(("leakage", "low", "high"), interval(own["leakage"])))
        row |= {"reidentified": own["reidentified"].mean(), "chance_reidentified": own["chance"].mean()}
        for name in ("r2_calibrated", *SCALES):
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(own[name].dropna())))
        made.append(row)
    return pd.DataFrame(made).round(4)


def worst(table: pd.DataFrame, scale: str) -> Worst:
    """By ``scale``, over seeds that both defenses have. Who does worse than guessing would guess, at 0: the attacks' own is told here."""
    both = sorted(set(table[table["defense"] == PLAIN]["seed"]) & set(table[table["defense"] == OURS]["seed"]))
    scores = {}
    for defense in (PLAIN, OURS):
        grid = table[table["defense"] == defense].pivot(index="attack", columns="seed", values=scale)[both].to_numpy(dtype=float)
        chosen, at = crossfit(grid)
        scores[defense] = grid[chosen, at][np.argsort(at)]
    plain, ours = scores[PLAIN], scores[OURS]
    ends = [(float(one.mean()), *t_interval(one)) for one in (plain, ours)]
    nan = float("nan")  # a share of nothing is none
    ratio = (float(ours.mean() / plain.mean()), *ratio_interval(ours, plain)) if plain.mean() > 0 else (nan, nan, nan)
    return Worst(ends[0], ends[1], ratio, len(both))


def write(results: Iterable[Path]) -> None:
    """docs/hardened_reconstruction.csv, the rows of hardened_standard.csv made of it, and the page's table."""
    found = seeds(results)
    found.to_csv(DOCS / "hardened_reconstruction.csv", index=False, lineterminator="\n")
    standard, page = DOCS / "hardened_standard.csv", DOCS / "hardened.md"
    others = pd.read_csv(standard).query("goal != 'reconstruction'")
    pd.concat([others, rows(found)], ignore_index=True).to_csv(standard, index=False, lineterminator="\n")
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(f"{BEGIN}\n")
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def table(per_seed: pd.DataFrame) -> str:
    """The page's table, worst on FedAvg first: raw R², and both scales with their intervals over seeds."""
    means = rows(per_seed).sort_values(["data", "defense", "named"], ascending=[False, True, False])
    held = {(row["data"], row["attack"], row["defense"]): row for row in means.to_dict("records")}
    raw = per_seed.groupby(["data", "attack", "defense"])["r2"].mean()
    heads = [f"{title}, {name}" for title in ("raw R²", *SCALES.values()) for name in ("FedAvg", OURS)]
    lines = [f"| cohort | attack | seeds | {' | '.join(heads)} |", f"|{'---|' * (3 + len(heads))}"]
    for data, attack in means.loc[means["defense"] == PLAIN, ["data", "attack"]].itertuples(index=False, name=None):
        shown = [f"{raw[(data, attack, defense)]:.2f}" for defense in (PLAIN, OURS)]
        for scale in SCALES:
            shown += [_said(held[data, attack, defense], scale) for defense in (PLAIN, OURS)]
        lines.append(f"| {data} | {attack} | {held[data, attack, PLAIN]['seeds']:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _said(row: Mapping[Hashable, Any], scale: str) -> str:
    value, low, high = (float(row[name]) for name in (scale, f"{scale}_low", f"{scale}_high"))
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" + ("" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]")
