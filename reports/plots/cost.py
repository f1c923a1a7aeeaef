"""What a defense costs: time, memory, arithmetic and traffic."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from reports import words
from reports.plots import style
from reports.standing import COSTS, costs, each


def cost(results: pd.DataFrame, *, colours: dict[str, style.Mark] | None = None) -> Figure:
    """A panel a measure (seconds, peak memory, FLOP, bytes a round), a row a defense; every axis starts at 0.

    Parameters
    ----------
    results : DataFrame
        A results table (``reports.schema``) of one task and one cohort; rows of goal "cost" are drawn.
    """
    marks = colours or style.marks(results["defense"])
    table = costs(results)
    names = style.ordered(table["defense"])
    measures = [m for m in COSTS if m in set(table["measure"])]
    with style.look():
        side = max([style.width_of(words.defense(name)) for name in names], default=0.0) + 0.2
        top = 0.35 + 0.16 * max([COSTS[m][0].count("\n") for m in measures], default=0)
        figure, grid = style.panels(1, max(len(measures), 1), (1.12, 0.27 * max(len(names), 2)), (side, 0.15, top, 0.1), (0.24, 0))
        panels = grid[0]
        for axes, measure in zip(panels, measures, strict=False):
            _panel(axes, table[table["measure"] == measure], names, marks, measure)
        for axes in panels:
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_yticks([])
        panels[0].set_yticks(range(len(names)), [words.defense(name) for name in names])
    return figure


def _panel(axes: Any, table: pd.DataFrame, names: list[str], marks: dict[str, style.Mark], measure: str) -> None:
    title, unit = COSTS[measure]
    axes.set_title(title, fontsize=9)
    top = float(table[["value", "high"]].max().max())
    axes.set_xlim(0, top * 2.05 if top > 0 else 1.0)  # the right part is for the numbers
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    for row in each(table):
        y = names.index(row.defense)
        axes.barh(y, row.value, height=0.62, color=marks[row.defense].colour, alpha=0.85, zorder=2)
        end = row.value
        if math.isfinite(row.low) and row.high > row.low:
            axes.plot([max(row.low, 0.0), row.high], [y, y], color=style.INK, linewidth=1.0, zorder=3)
            end = max(row.value, row.high)
        axes.text(end + 0.03 * axes.get_xlim()[1], y, words.amount(row.value, unit), va="center", fontsize=8)
