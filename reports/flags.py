"""Flags on attacks whose numbers mean nothing, read off a finished table.

A flag is a row of role "flag" whose ``metric`` starts with "flag:" and whose ``reason`` is a sentence for the reader; it changes no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from reports.beside import beside
from reports.insensitive import insensitive
from reports.power import OPEN, scored
from reports.schema import CELL, HEADLINE_KEYS, RESULTS, SCHEMA_VERSION
from reports.stats import summarise


def with_flags(df: pd.DataFrame) -> pd.DataFrame:
    """The table with its flag rows at the end; columns that flags do not have are empty there."""
    found = flag_results(df)
    if len(found) == 0:
        return df
    found = found.assign(
        **{
            name: "" if df[name].map(lambda value: isinstance(value, str)).all() else np.nan
            for name in df.columns.difference(found.columns)
        }
    )
    return pd.concat([df, found[list(df.columns)].astype(df.dtypes.to_dict())], ignore_index=True)


def flag_results(df: pd.DataFrame) -> pd.DataFrame:
    """Flag rows (``metric`` starts with "flag:") on the attacks of a results table; an empty table where all is well.

    no_power: on FedAvg the attack's leakage is not above the prior, so its silence elsewhere means nothing. above_oracle: it leaks more
    than the truth itself. still_improving: the largest budget leaks clearly more than the one before. oblivious_beats_aware: without the
    key it leaks clearly more than with it, so the attack that holds the key was not tried hard enough. insensitive: a metric of utility
    in which training, or federating, makes no clear difference. floor_is_as_good, untrained_is_as_good, simple_is_as_good: a network that
    is not shown to be ahead of guessing without features, of its own start, or of the field's simple method.
    """
    held = scored(df)
    found = [*_no_power(held), *_above_oracle(held), *_still_improving(held), *_oblivious(held), *insensitive(df), *beside(df)]
    columns = list(RESULTS)
    rows = [
        {
            **{name: row[name] for name in CELL},
            "seed": int(df["seed"].min()),
            "metric": f"flag:{flag}",
            "value": 1.0,
            "low": np.nan,
            "high": np.nan,
        }
        | {"n": 1, "direction": "lower", "role": "flag", "status": "ok", "reason": reason, "seconds": 0.0, "schema_version": SCHEMA_VERSION}
        for row, flag, reason in found
    ]
    return pd.DataFrame(rows, columns=columns)


Found = Iterator[tuple[Mapping[str, Any], str, str]]


def _records(df: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in df.to_dict("records")]


def _no_power(held: pd.DataFrame) -> Found:
    for row in _records(summarise(held[(held["defense"] == OPEN) & (held["goal"] != "key")])):
        if not row["low"] > 0:
            shown = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            yield row, "no_power", f"{row['attack']} leaks {shown} on {OPEN}, where nothing protects: its silence elsewhere means nothing"


def _above_oracle(held: pd.DataFrame) -> Found:
    for row in _records(summarise(held)):
        low = row["low"] if np.isfinite(row["low"]) else row["value"]
        if low > 1 + 1e-6:
            yield row, "above_oracle", f"leakage {row['value']:.3f} is more than the truth itself gives: the scale's upper end is wrong"


def _still_improving(held: pd.DataFrame) -> Found:
    if "budget" not in held.columns or held["budget"].isna().all():
        return
    by_seed = held.groupby([*CELL, "budget", "seed"])["value"].mean().unstack("seed")
    for key, part in by_seed.groupby(level=list(CELL), sort=False):
        ordered = part.sort_index(level="budget")
        if len(ordered) < 2:
            continue
        gains = (ordered.iloc[-1] - ordered.iloc[-2]).dropna().to_numpy()
        if len(gains) and gains.mean() > 0.02 and (gains > 0).mean() >= 0.5:
            row = dict(zip(CELL, key if isinstance(key, tuple) else (key,)))
            steps = " to ".join(f"{budget:g}" for budget in ordered.index.get_level_values("budget")[-2:])
            yield row, "still_improving", f"leakage rises by {gains.mean():.3f} from budget {steps}: it was stopped while improving"


def _oblivious(held: pd.DataFrame) -> Found:
    cells = summarise(held)
    same = [name for name in CELL if name != "key"]
    blind, aware = cells[cells["key"].isin(HEADLINE_KEYS)], cells[cells["key"] == "right"]
    for row in _records(blind.merge(aware, on=same, suffixes=("", "_aware"))):
        if row["low"] > row["high_aware"]:
            shown = f"{row['value']:.3f} without the key, {row['value_aware']:.3f} with it"
            yield row, "oblivious_beats_aware", f"{row['attack']} leaks {shown}: whoever holds the key was not tried hard enough"
