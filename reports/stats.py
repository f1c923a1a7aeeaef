"""From the table of single results to statements: means over seeds, the worst case over attacks, and paired differences.

One import line for reports: intervals and ROC reading are re-exported. Seeds are the independent repeats throughout; records and targets of
one seed share a model, so they widen an interval over seeds but never replace it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd

from reports.intervals import (
    BCA_FROM,
    Floats,
    bca,
    clopper_pearson,
    familywise,
    hierarchical,
    holm,
    mean_interval,
    null_test,
    over_seeds,
    ratio_interval,
    student_tail,
    t_interval,
)
from reports.roc import CONVENTION, advantage, auc, roc_band, roc_points, tpr_at
from reports.schema import CAPPED, CELL, OPTIONAL
from reports.worst import LEAKAGES, worst_case

__all__ = [
    "BCA_FROM",
    "CONVENTION",
    "advantage",
    "auc",
    "bca",
    "clopper_pearson",
    "familywise",
    "hierarchical",
    "holm",
    "mean_interval",
    "null_test",
    "over_seeds",
    "paired_difference",
    "ratio_interval",
    "roc_band",
    "roc_points",
    "summarise",
    "t_interval",
    "tpr_at",
    "worst_case",
]


SHARES = frozenset(
    {"accuracy", "balanced_accuracy", "macro_f1", "f1_macro", "weighted_f1", "f1_weighted", "auc", "weighted_auc", "auc_weighted", "tpr"}
    | {"exact", "reidentified", "chance_reidentified", "certified", "top_overlap"}
    | {"confidence_auc", "expected_calibration_error", "expected_calibration_error:perfect", "brier", "brier:share_alone"}
)


def summarise(df: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and metric, over its seeds.

    Columns: the cell's and the optional ones that ``df`` has, ``metric value low high n n_seeds direction role status reason``; ``n`` sums
    the single rows'. The interval is that of ``over_seeds``. A cell that was skipped or failed on every seed keeps one row with its reason;
    on some seeds, its reason is kept beside the value of the others.
    """
    columns = [*CELL, *(name for name in OPTIONAL if name in df.columns), "metric"]
    group = df.groupby(columns, sort=False, dropna=False).ngroup().to_numpy()
    order = np.argsort(group, kind="stable")  # arrays, since a frame a group is most of a report's arithmetic
    starts = np.flatnonzero(np.diff(group[order], prepend=-1)) if len(df) else np.array([], dtype=np.intp)
    numbers = df[["value", "low", "high", "n", "seed"]].to_numpy(dtype=np.float64)[order]
    texts = [df[name].to_numpy()[order] for name in ("direction", "role", "status", "reason")]
    rows = []
    for start, end in pairwise([*starts, len(df)]):
        held = numbers[start:end][np.isfinite(numbers[start:end, 0])]
        low, high = over_seeds(held[:, 0], held[:, 1], held[:, 2])
        direction, role, status, reason = (text[start:end] for text in texts)
        rows.append(
            {"value": float(held[:, 0].mean()) if len(held) else np.nan, "low": low, "high": high, "n": int(held[:, 3].sum())}
            | {"n_seeds": len(np.unique(held[:, 4])), "direction": direction[0], "role": role[0]}
            | {"status": _status(status), "reason": "; ".join(dict.fromkeys(text for text in reason if text))}
        )
    found = pd.DataFrame(rows, columns=["value", "low", "high", "n", "n_seeds", "direction", "role", "status", "reason"])
    return _possible(pd.concat([df.iloc[order[starts]][columns].reset_index(drop=True), found], axis=1))


def _possible(summary: pd.DataFrame) -> pd.DataFrame:
    """Intervals cut to the values that a metric can take, which costs no coverage."""
    head = summary["metric"].str.replace(r"^(metric:|opened:)|(@.*)$", "", regex=True)
    shares = head.isin(SHARES)
    summary.loc[shares, "low"] = summary.loc[shares, "low"].clip(lower=0)
    leaks = head.isin(LEAKAGES) & summary["goal"].isin(CAPPED)
    topped = shares | leaks | head.isin(("r2", "r2_calibrated", "cosine", "advantage"))
    topped &= ~(summary["value"] > 1)  # whatever is above its own top keeps its interval, to be seen
    summary.loc[topped, "high"] = summary.loc[topped, "high"].clip(upper=1)
    return summary


def paired_difference(df: pd.DataFrame, a: Mapping[str, str], b: Mapping[str, str], metric: str | None = None) -> pd.DataFrame:
    """``a`` minus ``b`` on the same seeds and otherwise equal cells.

    ``paired_difference(df, {"defense": "infl"}, {"defense": "fedavg"})`` gives one row for each value of the other columns and
    metric: ``difference low high n_seeds p p_holm``. Equal seeds share data, split, initialisation and batches, so their difference varies
    far less than either. ``p`` is the two-sided paired t-test's,
    ``p_holm`` is adjusted over all rows returned.
    """
    if set(a) != set(b) or not set(a) <= {*df.columns}:
        raise ValueError(f"both sides must choose by the same columns of the table, but they choose by {sorted(a)} and {sorted(b)}")
    ok = df[(df["status"] == "ok") & np.isfinite(df["value"])]
    if metric is not None:
        ok = ok[ok["metric"] == metric]
    shared = [name for name in (*CELL, *(n for n in OPTIONAL if n in df.columns), "metric") if name not in a]
    sides = [ok[np.logical_and.reduce([ok[name] == value for name, value in side.items()])] for side in (a, b)]
    both = sides[0].merge(sides[1], on=[*shared, "seed"], suffixes=("_a", "_b"))
    rows = []
    for key, part in both.groupby(shared, sort=False, dropna=False):
        gaps = (part["value_a"] - part["value_b"]).groupby(part["seed"]).mean().to_numpy(dtype=np.float64)
        low, high = mean_interval(gaps)
        rows.append([*(key if isinstance(key, tuple) else (key,)), float(gaps.mean()), low, high, len(gaps), _paired_p(gaps)])
    table = pd.DataFrame(rows, columns=[*shared, "difference", "low", "high", "n_seeds", "p"])
    table["p_holm"] = np.nan
    known = table["p"].notna().to_numpy()
    if known.any():
        table.loc[known, "p_holm"] = holm(table.loc[known, "p"].to_numpy())
    return table


def _paired_p(gaps: Floats) -> float:
    if len(gaps) < 2:
        return float("nan")
    if np.ptp(gaps) == 0:
        return 1.0 if gaps[0] == 0 else 0.0
    return 2 * student_tail(abs(float(gaps.mean() / (gaps.std(ddof=1) / np.sqrt(len(gaps))))), len(gaps) - 1)


def _status(statuses: Iterable[str]) -> str:
    held = set(statuses)
    return next((status for status in ("ok", "failed") if status in held), "skipped")
