"""ROC curves of membership attacks on log axes: what matters is the left end, where few non-members are accused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from reports import words
from reports.intervals import mean_interval
from reports.plots import style
from reports.roc import roc_band

COLUMNS = 4
NAMED = 4  # attacks that are named in a panel, the strongest by area; more would cover the curves


def roc(curves: pd.DataFrame, view: str, key: str) -> Figure:
    """Log–log ROC of every membership attack, a panel a defense, with 95 % bands over seeds.

    Parameters
    ----------
    curves : DataFrame
        A curves table (``reports.schema``) of one task and one cohort; rows with ``curve == "roc"`` hold x = FPR and y = TPR.
    view, key : str
        The threat.

    Returns
    -------
    Figure
        The dashed diagonal is guessing. The grey field is not resolvable: with n₀ non-members a false-positive rate below 3/n₀ cannot be
        told from 0. The number beside an attack's name is its area under the curve (linear axes), with its interval over seeds; of
        more than four attacks the weaker ones are thin and grey.
    """
    table = curves[(curves["curve"] == "roc") & (curves["goal"] == "membership") & (curves["view"] == view) & (curves["key"] == key)]
    defenses = style.ordered(table["defense"])
    attacks = sorted(table["attack"].unique())
    looks = {
        name: (style.ATTACK_COLOURS[i % len(style.ATTACK_COLOURS)], style.ATTACK_DASHES[i % len(style.ATTACK_DASHES)])
        for i, name in enumerate(attacks)
    }
    others = _non_members(table)
    columns = min(COLUMNS, max(len(defenses), 1))
    rows = max(math.ceil(len(defenses) / columns), 1)
    with style.look():
        figure, panels = style.panels(rows, columns, (1.95, 1.95), (0.7, 0.15, 0.75, 0.72), (0.24, 0.42))
        width, height = figure.get_size_inches()
        title = f"Membership: {words.threat(view, key)}"
        figure.text(0.1 / width, 1 - 0.1 / height, title, va="top", fontsize=10, weight="bold")
        if others:
            note = f"grey: not resolvable with {others} non-members (a false-positive rate below 3/{others})"
            figure.text(0.1 / width, 0.1 / height, note, fontsize=8, color=style.MUTED)
        smallest = 1 / others if others else 1e-3
        for index, axes in enumerate(panels.flat):
            if index >= len(defenses):
                axes.set_visible(False)
                continue
            _frame(axes, smallest, labelled=(index + columns >= len(defenses), index % columns == 0))
            axes.set_title(words.defense(defenses[index]).replace(" + ", "\n+ "), fontsize=8.5, linespacing=1.0)
            _panel(axes, table[table["defense"] == defenses[index]], attacks, looks, smallest)
    return figure


def _non_members(table: pd.DataFrame) -> int:
    """The number of non-members behind the curves: false-positive rates come in steps of 1/n₀."""
    rates = np.unique(np.round(table["x"].to_numpy(float), 9))
    steps = np.diff(rates)
    steps = steps[steps > 1e-8]
    return round(1 / float(steps.min())) if len(steps) else 0


def _frame(axes: Any, smallest: float, labelled: tuple[bool, bool]) -> None:
    low = smallest / 1.6
    axes.set(xscale="log", yscale="log", xlim=(low, 1.15), ylim=(low, 1.15))
    limit = min(3 * smallest, 1.0)
    axes.axvspan(low, limit, color=style.MUTED, alpha=0.13, linewidth=0, zorder=0)
    axes.axvline(limit, color=style.MUTED, linewidth=0.6, zorder=0)
    axes.plot([low, 1], [low, 1], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.grid(visible=True, which="major", alpha=0.7)
    ticks = [10.0**power for power in range(math.ceil(math.log10(low)), 1)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(_percent))
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=labelled[0], labelleft=labelled[1], labelsize=8)
    if labelled[0]:
        axes.set_xlabel("false-positive rate", fontsize=8)
    if labelled[1]:
        axes.set_ylabel("true-positive rate", fontsize=8)


def _percent(value: float, _: object) -> str:
    return f"{100 * value:g}\N{NO-BREAK SPACE}%"


def _panel(axes: Any, table: pd.DataFrame, attacks: list[str], looks: dict[str, tuple[str, Any]], smallest: float) -> None:
    grid = np.geomspace(smallest, 1, 90)
    tiny = smallest / 4  # below the axis: a TPR of 0 has no place on a log scale
    seeds = {name: _seeds(table[table["attack"] == name]) for name in attacks}
    areas = {name: [area(x, y) for x, y in curves] for name, curves in seeds.items() if curves}
    ranked = sorted(areas, key=lambda name: (-float(np.mean(areas[name])), name))
    for place, name in enumerate(reversed(ranked)):
        band = roc_band(seeds[name], grid)
        high = np.maximum(band.tpr, tiny)
        if name not in ranked[:NAMED]:
            axes.plot(grid, high, color=style.MUTED, linewidth=0.7, alpha=0.7, drawstyle="steps-post", zorder=2)
            continue
        colour, dash = looks[name]
        if np.isfinite(band.low).all():
            ends = np.maximum(band.low, tiny), np.maximum(band.high, tiny)
            axes.fill_between(grid, *ends, color=colour, alpha=0.16, linewidth=0, zorder=2, step="post")
        axes.plot(grid, high, color=colour, linestyle=dash, linewidth=1.4, drawstyle="steps-post", zorder=3)
        low, upper = (min(max(end, 0.0), 1.0) for end in mean_interval(areas[name]))  # what an area can be; NaN stays
        text = f"{words.attack(name)} {np.mean(areas[name]):.2f}" + (f" [{low:.2f}, {upper:.2f}]" if math.isfinite(low) else "")
        y = 0.03 + 0.085 * (place - max(len(ranked) - NAMED, 0))
        label = axes.text(0.985, y, text, transform=axes.transAxes, ha="right", fontsize=6.3, color=style.darker(colour), zorder=4)
        label.set_path_effects([withStroke(linewidth=1.8, foreground=style.PAPER)])


def _seeds(table: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(part["x"].to_numpy(float), part["y"].to_numpy(float)) for _, part in table.groupby("seed", sort=True)]


def area(x: np.ndarray, y: np.ndarray) -> float:
    """Area under ROC points (trapezes, which count a tied pair as one half)."""
    order = np.lexsort((y, x))
    x, y = np.concatenate([[0.0], x[order], [1.0]]), np.concatenate([[0.0], y[order], [1.0]])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
