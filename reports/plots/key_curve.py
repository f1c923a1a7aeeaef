"""The key curve: how much of a keyed model's utility opens as an adversary holds more of the key."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from reports import words
from reports.plots import style
from reports.plots.placing import spread
from reports.standing import each, limits, openings

_NONE = -0.22  # where "no key" stands, left of the axis of shares
_DRAWN_KEYS = 60  # single wrong keys shown as dots


def key_curve(results: pd.DataFrame, curves: pd.DataFrame | None = None, *, colours: dict[str, style.Mark] | None = None) -> Figure:
    """Utility opened against the share of the key that is held, a line a keyed defense, with 95 % intervals over seeds.

    Parameters
    ----------
    results : DataFrame
        A results table (``reports.schema``) of one task and one cohort; rows of goal "key" with metric "opened" are drawn.
    curves : DataFrame, optional
        Rows with ``curve == "key_curve"`` and y = utility add a pale dot for every single wrong key.

    Returns
    -------
    Figure
        "Wrong key" is another key of the same distribution and stands at share 0; "no key" is the model on its path without one. A key
        that protects falls to the dashed line (what no features give) everywhere left of 1.
    """
    marks = colours or style.marks(results["defense"])
    table = openings(results)
    _, _, floor, metric = limits(results)
    with style.look():
        figure, grid = style.panels(1, 1, (style.WIDTH - 0.75, 3.0), (0.65, 0.1, 0.35, 0.65), (0, 0))
        axes = grid[0, 0]
        axes.set_title("What a key opens")
        axes.set_ylabel(f"{words.metric(metric)} opened on test records")
        axes.set_xlabel("share of the key that is held")
        if table.empty:
            axes.text(0.5, 0.5, "no keyed defense was tried", transform=axes.transAxes, ha="center", color=style.MUTED)
            return figure
        names = style.ordered(table["defense"])
        offsets = {name: 0.012 * (i - (len(names) - 1) / 2) for i, name in enumerate(names)}
        for name in names:
            _line(axes, table[table["defense"] == name], marks[name], offsets[name])
            if curves is not None:
                _dots(
                    axes,
                    curves[(curves["curve"] == "key_curve") & (curves["key"] == "wrong") & (curves["defense"] == name)],
                    marks[name],
                    offsets[name],
                )
        _frame(axes, table, floor, words.floor(metric).removeprefix("the "))
        _names(axes, table, names, marks)
    return figure


def position(key: str) -> float:
    """Where a held key stands on the axis of shares."""
    if key.startswith("partial:"):
        return float(key.removeprefix("partial:"))
    return {"none": _NONE, "wrong": 0.0}.get(key, 1.0)


def _line(axes: Any, table: pd.DataFrame, mark: style.Mark, offset: float) -> None:
    table = table.assign(at=table["key"].map(position)).sort_values("at", kind="stable")
    table = table[~((table["key"] == "leaked") & (table["at"].duplicated(keep=False)))]  # the right key in other hands: the same point
    x = table["at"].to_numpy(float) + offset
    held = table["key"].to_numpy() != "none"
    axes.plot(x[held], table["value"].to_numpy()[held], color=mark.colour, linewidth=1.4, zorder=3)
    for at, row in zip(x, each(table), strict=True):
        if math.isfinite(row.low):
            axes.plot([at, at], [row.low, row.high], color=mark.colour, linewidth=1.3, zorder=3)
    axes.plot(
        x,
        table["value"],
        mark.shape,
        color=mark.colour,
        markersize=mark.size,
        markeredgecolor=style.PAPER,
        markeredgewidth=0.8,
        linestyle="none",
        zorder=4,
    )


def _dots(axes: Any, table: pd.DataFrame, mark: style.Mark, offset: float) -> None:
    if table.empty:
        return
    y = np.sort(table["y"].to_numpy(float))[:: max(len(table) // _DRAWN_KEYS, 1)]
    golden = (np.arange(len(y)) * 0.618034) % 1.0  # spreads dots evenly without a random draw
    axes.plot(offset - 0.02 - 0.05 * golden, y, ".", color=mark.colour, alpha=0.35, markersize=3.5, markeredgewidth=0, zorder=2)


def _frame(axes: Any, table: pd.DataFrame, floor: float, what: str) -> None:
    values = np.concatenate(
        [table[c].dropna().to_numpy(float) for c in ("value", "low", "high")] + [[floor] if math.isfinite(floor) else []]
    )
    pad = 0.08 * max(float(np.ptp(values)), 0.05)
    axes.set(ylim=(max(values.min() - pad, -0.02), min(values.max() + pad, 1.02)), xlim=(_NONE - 0.1, 1.42))
    ticks: dict[float, str] = {_NONE: "no key", 0.0: "0\nwrong key", 1.0: "1\nright or leaked"}
    ticks |= {position(k): f"{position(k):g}" for k in table["key"] if k.startswith("partial:")}
    axes.set_xticks(sorted(ticks), [ticks[at] for at in sorted(ticks)])
    axes.axvline(_NONE / 2, color=style.RULE, linewidth=0.8)
    axes.spines["bottom"].set_bounds(_NONE - 0.1, 1.06)
    axes.grid(visible=True, axis="y", alpha=0.7)
    if math.isfinite(floor):
        axes.plot([_NONE - 0.1, 1.06], [floor, floor], color=style.MUTED, linewidth=0.9, dashes=(3, 2), zorder=1)
        axes.annotate(what, (1.07, floor), va="center", fontsize=8, color=style.MUTED)


def _names(axes: Any, table: pd.DataFrame, names: list[str], marks: dict[str, style.Mark]) -> None:
    ends = [_last(table[table["defense"] == name]) for name in names]
    low, high = axes.get_ylim()
    for name, at, end in zip(names, spread(ends, 0.085 * (high - low), low, high), ends, strict=True):
        colour = marks[name].colour
        axes.plot([1.012, 1.06], [end, at], color=colour, linewidth=0.7)
        label = words.defense(name).replace(" + ", "\n+ ")
        axes.text(1.07, at, label, va="center", fontsize=8.5, color=style.darker(colour), linespacing=1.0)


def _last(table: pd.DataFrame) -> float:
    return float(table.loc[table["key"].map(position).sort_values(kind="stable").index, "value"].iloc[-1])
