"""Two runs in one picture."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports import words
from reports.plots import style

_SHIFT = 0.16  # rows apart


def compared(table: pd.DataFrame) -> Figure:
    """Filled marks for one run, hollow ones for the other, a panel a measure and a row a defense.

    Parameters
    ----------
    table : DataFrame
        Columns defense, measure, value, low, high, other, other_low, other_high (see ``reports.compare.beside``).
    """
    names = style.ordered(table["defense"])
    measures = list(dict.fromkeys(table["measure"]))
    marks = style.marks(names)
    columns = min(3, len(measures))
    rows = math.ceil(len(measures) / columns)
    with style.look():
        figure = Figure(figsize=(style.WIDTH + 0.8, rows * (0.7 + 0.3 * len(names))), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for index, axes in enumerate(panels.flat):
            if index >= len(measures):
                axes.set_visible(False)
                continue
            axes.set_title(measures[index], fontsize=9)
            axes.grid(visible=True, alpha=0.7)
            for row in table[table["measure"] == measures[index]].itertuples(index=False):
                y, mark = names.index(row.defense), marks[row.defense]
                sides = (
                    (row.value, row.low, row.high, -_SHIFT, mark.colour),
                    (row.other, row.other_low, row.other_high, _SHIFT, style.PAPER),
                )
                for value, low, high, shift, fill in sides:
                    if math.isfinite(low):
                        axes.plot([low, high], [y + shift] * 2, color=mark.colour, linewidth=1.2, zorder=2)
                    axes.plot(
                        [value],
                        [y + shift],
                        mark.shape,
                        markerfacecolor=fill,
                        markeredgecolor=mark.colour,
                        markersize=0.8 * mark.size,
                        zorder=3,
                    )
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.set_yticks(range(len(names)), [words.defense(name) for name in names])
            axes.tick_params(axis="y", length=0, labelleft=index % columns == 0)
    return figure
