"""Two runs side by side: the same questions, what changed in the answers, and what was different in the asking."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports import words
from reports.drawing import Picture
from reports.page import Block, Section
from reports.plots.compare import compared
from reports.schema import OPTIONAL, TEXT
from reports.standing import each, headline, standings, utilities
from reports.stats import paired_difference
from reports.tables import Table
from reports.worst import WITHOUT

_READING = (
    "For each defense the filled mark is this run and the hollow one the other, with 95 % intervals over seeds; "
    "marks that coincide did not change."
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run's tables and record under a name."""

    name: str
    results: pd.DataFrame
    curves: pd.DataFrame
    record: Mapping[str, Any]


def comparison(this: Run, other: Run) -> Section:
    """The section that sets ``this`` beside ``other``: a picture, a table, and the settings that differ."""
    table = beside(this.results, other.results)
    blocks = [Block("text", f"This run is set beside the one in “{other.name}”.")]
    blocks.append(Block("list", changes(table) + unshared(this.results, other.results)))
    if len(table):
        alt = "; ".join(
            f"{words.defense(r.defense)}, {r.measure}: {words.number(r.value)} against {words.number(r.other)}" for r in each(table)
        )
        blocks.append(Block("picture", Picture("comparison", "This run and the other", compared(table), _READING, alt)))
        blocks.append(Block("table", _table(table)))
    else:
        blocks.append(Block("text", "The two runs have no defense and measure in common."))
    differ = differences(this.record, other.record)
    blocks += (
        [Block("heading", "What was asked differently"), Block("terms", differ)]
        if differ
        else [Block("text", "Both runs asked for the same, with the same versions.")]
    )
    return Section("comparison", "Side by side", blocks)


def changes(table: pd.DataFrame) -> list[str]:
    """What differs between the answers, in words; ``table`` as ``beside`` makes it.

    A utility changed where its difference paired by seed lies beyond its interval, a leakage where the two intervals do not meet.
    """
    if table.empty:
        return []
    said = []
    for row in each(table):
        paired = math.isfinite(row.difference_low)
        beyond = row.difference_low > 0 or row.difference_high < 0 if paired else row.low > row.other_high or row.high < row.other_low
        if beyond:
            way = "higher" if row.value > row.other else "lower"
            here, there = words.interval(row.value, row.low, row.high, 2), words.interval(row.other, row.other_low, row.other_high, 2)
            how = "paired by seed" if paired else "the intervals do not meet"
            said.append(f"{words.defense(row.defense)}: {row.measure} is {way} here, {here} against {there} ({how}).")
    moved = int((table["value"] != table["other"]).sum())
    if moved == 0:
        return ["All numbers that both runs have are the same."]
    rest = f"{moved} of {len(table)} shared numbers differ, {len(said) or 'none'} of them beyond the intervals."
    return [rest, *said]


def unshared(this: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """Defenses and attacks that only one of two runs has."""
    said = []
    for column, name in (("defense", words.defense), ("attack", words.attack)):
        sides = [{str(value) for value in table[column] if value} for table in (this, other)]
        for where, only in (("this run", sides[0] - sides[1]), ("the other run", sides[1] - sides[0])):
            if only:
                said.append(f"Only in {where}, {column}{'s' * (len(only) > 1)}: {', '.join(name(value) for value in sorted(only))}.")
    return said


def beside(this: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Defense, measure, value, low, high, other, other_low, other_high, and for utility the difference paired by seed with its interval."""
    sides = [_measured(table) for table in (this, other)]
    both = sides[0].merge(sides[1], on=["defense", "measure"], suffixes=("", "_other"))
    both = both.rename(columns={"value_other": "other", "low_other": "other_low", "high_other": "other_high"})
    for column in ("difference", "difference_low", "difference_high"):
        both[column] = math.nan
    metric = headline(this)
    run = pd.concat([this.assign(run="this"), other.assign(run="other")], ignore_index=True)
    run = run.assign(**{name: run[name].fillna("") for name, kind in OPTIONAL.items() if kind == TEXT and name in run})  # older tables
    run = run[(run["metric"] == metric) & (run["role"] == "utility")]
    if metric == headline(other):
        gaps = paired_difference(run, {"run": "this"}, {"run": "other"}, metric)
        for gap in each(gaps):
            at = (both["defense"] == gap.defense) & (both["measure"] == words.metric(metric))
            both.loc[at, ["difference", "difference_low", "difference_high"]] = [gap.difference, gap.low, gap.high]
    return both


def _measured(results: pd.DataFrame) -> pd.DataFrame:
    metric = headline(results)
    parts = [utilities(results, metric).assign(measure=words.metric(metric))[["defense", "measure", "value", "low", "high"]]]
    for (goal, view, key), stand in standings(results).items():
        if key == WITHOUT:
            table = stand.rename(columns={"leakage": "value", "leakage_low": "low", "leakage_high": "high"})
            parts.append(
                table.assign(measure=f"{goal} leakage, {words.VIEWS.get(view, view)}")[["defense", "measure", "value", "low", "high"]]
            )
    made = pd.concat(parts, ignore_index=True)
    return made[made["value"].notna()]


def _table(table: pd.DataFrame) -> Table:
    shown = pd.DataFrame(
        {
            "Defense": table["defense"].map(words.defense),
            "measure": table["measure"],
            "this run": [words.interval(r.value, r.low, r.high) for r in each(table)],
            "the other": [words.interval(r.other, r.other_low, r.other_high) for r in each(table)],
            "difference": [
                words.interval(r.difference, r.difference_low, r.difference_high)
                if math.isfinite(r.difference)
                else words.number(r.value - r.other)
                for r in each(table)
            ],
        }
    )
    caption = "Both runs; the difference of utilities is paired by seed and has an interval, that of worst cases is the plain one"
    return Table("comparison", caption, table, shown, ("this run", "the other", "difference"))


def differences(this: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings, versions and digests that are not the same, as ``(path, "this → other")``."""
    kept = ("request", "versions", "infl_bench", "cohort", "data_digest", "code_hash", "seeds", "machine")
    flat = [_flat({k: record[k] for k in kept if k in record}) for record in (this, other)]
    names = [*flat[0], *(name for name in flat[1] if name not in flat[0])]
    return [
        (name, f"{flat[0].get(name, words.MISSING)} here, {flat[1].get(name, words.MISSING)} there")
        for name in names
        if flat[0].get(name) != flat[1].get(name)
    ]


def _flat(held: Mapping[str, Any], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in held.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = json.dumps(value, ensure_ascii=False)
    return found
