"""The two tables that everything else reads: results (one metric a row) and curves (what does not fit a row).

Reports know only these columns, so they also draw other people's results. Further columns may be added; none is dropped.

Conventions. ``direction`` says which way the measured thing does better (accuracy and an attack's AUC: higher; seconds: lower). A row
of a utility or a cost has ``goal`` "utility" or "cost", and ``attack``, ``view`` and ``key`` empty. A skipped or failed cell is one row
with ``metric`` empty, ``value`` NaN and its ``reason``. A value that cannot be stated (a target FPR too small for the number of
non-members) is NaN with status ok and a reason. A row whose attack read the truth has a ``reason`` that starts with ``UPPER_BOUND``; it
enters no headline.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import pandas as pd

SCHEMA_VERSION: Final = 1

TEXT: Final = "object"  # what strings are is left to pandas: object in 2.3, str in 3

RESULTS: Final[dict[str, str]] = {
    "suite": TEXT,
    "task": TEXT,
    "data": TEXT,
    "defense": TEXT,
    "attack": TEXT,
    "goal": TEXT,
    "view": TEXT,
    "key": TEXT,
    "seed": "int64",
    "metric": TEXT,
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "direction": TEXT,
    "role": TEXT,
    "status": TEXT,
    "reason": TEXT,
    "seconds": "float64",
    "schema_version": "int64",
}
OPTIONAL: Final[dict[str, str]] = {
    "unit": TEXT,
    "budget": "float64",  # 1, 10, 100 times the attack's own
    "checkpoint": "float64",  # the round whose parameters were attacked
    "protocol": TEXT,  # of membership and audits: the ROC's convention and what becomes of ties ("reports.roc.CONVENTION"); else ""
    "n_references": "float64",
}
CURVES: Final[dict[str, str]] = {
    "suite": TEXT,
    "task": TEXT,
    "data": TEXT,
    "defense": TEXT,
    "attack": TEXT,
    "goal": TEXT,
    "view": TEXT,
    "key": TEXT,
    "seed": "int64",
    "curve": TEXT,  # roc, key_curve, confidence (x: as the attack says it, y: 1 where right), reconstruction:<target>:<truth|guess>,
    # shrink:<target>:<who> and shrink_by:<target>:<who> ("reports.shrinkage")
    "x": "float64",
    "y": "float64",
}

CELL: Final = ("suite", "task", "data", "defense", "attack", "goal", "view", "key")  # one seed of these is one cell of the grid

GOALS: Final = ("reconstruction", "membership", "membership:person", "membership:site", "key", "property", "audit")
_WHO: Final = ("server", "active_server", "site", "outsider")
# Further views: of the records asked about, only what is a record's own is known; of some messages the records are known.
VIEWS: Final = (*_WHO, *(f"{who}_neighbours_unknown" for who in _WHO), "server_known_pairs")
KEYS: Final = ("none", "wrong", "right", "leaked")  # and partial:<share>
ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    "goal": (*GOALS, "utility", "cost"),
    "view": (*VIEWS, ""),
    "direction": ("higher", "lower"),
    "role": ("score", "control", "utility", "cost", "claim", "flag"),
    "status": ("ok", "skipped", "failed"),
}
# Goals whose oracle is 1 by definition; a key may open more than the right one, by luck.
CAPPED = ("membership", "membership:person", "membership:site", "reconstruction")
HEADLINE_KEYS: Final = ("none", "wrong")  # an adversary without the key; partial, right and leaked stand apart
UPPER_BOUND: Final = "upper bound"

_PARTIAL: Final = re.compile(r"partial:(0?\.\d+|0|1|1\.0)")
_CURVE: Final = re.compile(r"[a-z_]+|reconstruction:\d+:(truth|guess)|shrink(_by)?:\d+:[a-z_]+")


class SchemaError(ValueError):
    """A table that is not a results or a curves table; the message is one sentence."""


def empty() -> pd.DataFrame:
    """A results table without rows."""
    return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in RESULTS.items()})


def empty_curves() -> pd.DataFrame:
    """A curves table without rows."""
    return pd.DataFrame({name: pd.Series([], dtype=kind) for name, kind in CURVES.items()})


def validate(df: pd.DataFrame) -> pd.DataFrame:
    """Return ``df`` if it is a results table, otherwise raise ``SchemaError`` with one sentence on the first thing wrong."""
    _columns(df, RESULTS, OPTIONAL, "results")
    if len(df) == 0:
        return df
    for name, allowed in ALLOWED.items():
        _among(df, name, df[name].isin(allowed), ", ".join(value or "''" for value in allowed))
    _among(df, "key", _keys(df), "none, wrong, right, leaked, partial:<share between 0 and 1> or ''")
    _among(
        df, "schema_version", df["schema_version"] == SCHEMA_VERSION, f"{SCHEMA_VERSION} (another version of infl-bench wrote the table)"
    )
    attacked = df["goal"].isin(GOALS)
    _row(
        df,
        attacked & ((df["attack"] == "") | (df["view"] == "") | (df["key"] == "")),
        "needs an attack, a view and a key, since its goal is an attack's",
    )
    _row(df, ~attacked & (df["attack"] != ""), "names an attack although its goal is utility or cost")
    _row(df, (df["status"] == "ok") & (df["metric"] == ""), "has status ok but no metric")
    _row(df, (df["status"] != "ok") & (df["reason"] == ""), "was skipped or failed but gives no reason")
    _row(df, (df["status"] == "ok") & df["value"].isna() & (df["reason"] == ""), "has no value and no reason for that")
    _row(df, df["low"] > df["high"], "has an interval whose low end lies above its high end")
    _row(df, np.isinf(df["value"]), "has an infinite value; give NaN and a reason")
    _row(df, df["n"] < 0, "counts fewer than zero observations")
    return df


def validate_curves(df: pd.DataFrame) -> pd.DataFrame:
    """Return ``df`` if it is a curves table, otherwise raise ``SchemaError``."""
    _columns(df, CURVES, {}, "curves")
    if len(df):
        _among(df, "goal", df["goal"].isin(GOALS), ", ".join(GOALS))
        _among(df, "view", df["view"].isin(VIEWS), ", ".join(VIEWS))
        _among(df, "key", _keys(df) & (df["key"] != ""), "none, wrong, right, leaked or partial:<share between 0 and 1>")
        _among(
            df,
            "curve",
            df["curve"].isin([name for name in df["curve"].unique() if _CURVE.fullmatch(name) is not None]),
            "roc, key_curve, reconstruction:<target>:<truth|guess> or shrink:<target>:<who>",
        )
    return df


def upper_bound(df: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are upper bounds (their attack read the truth)."""
    return df["reason"].astype(str).str.startswith(UPPER_BOUND)


def _keys(df: pd.DataFrame) -> pd.Series[bool]:
    good = [key for key in df["key"].unique() if key == "" or key in KEYS or _PARTIAL.fullmatch(key) is not None]
    return df["key"].isin(good)


def _columns(df: pd.DataFrame, columns: dict[str, str], optional: dict[str, str], table: str) -> None:
    missing = [name for name in columns if name not in df.columns]
    if missing:
        raise SchemaError(
            f"the {table} table lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; see reports.schema for all of them"
        )
    if df.columns.duplicated().any():
        raise SchemaError(f"the {table} table has the column {df.columns[df.columns.duplicated()][0]} twice; keep one")
    for name, kind in {**columns, **{k: v for k, v in optional.items() if k in df.columns}}.items():
        held = df[name]
        if kind == TEXT:
            fits = pd.api.types.infer_dtype(held, skipna=False) == "string"
        elif kind == "int64":
            fits = pd.api.types.is_integer_dtype(held) and not held.isna().any()
        else:
            fits = pd.api.types.is_numeric_dtype(held) or bool(held.isna().all())
        if len(df) and not fits:
            wanted = "text ('' where missing)" if kind == TEXT else kind
            raise SchemaError(f"column {name} of the {table} table must hold {wanted}, but it is {held.dtype}; convert it")


def _among(df: pd.DataFrame, name: str, good: pd.Series[bool], allowed: str) -> None:
    if not good.all():
        raise SchemaError(f"column {name} holds {df.loc[~good, name].iloc[0]!r}, which is not one of: {allowed}")


def _row(df: pd.DataFrame, bad: pd.Series[bool], sentence: str) -> None:
    if bad.any():
        row = df.loc[bad].iloc[0]
        where = " / ".join(str(row[name]) for name in ("defense", "attack", "goal", "metric") if row[name] != "")
        raise SchemaError(f"row {df.index[bad][0]} ({where}) {sentence}")
