"""Two runs in one picture."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from reports import words
from reports.plots import style
from reports.standing import each

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
        side = max([style.width_of(words.defense(name)) for name in names], default=0.0) + 0.25
        figure, grid = style.panels(rows, columns, (2.05, 0.3 * len(names)), (side, 0.2, 0.5, 0.35), (0.2, 0.8))
        for index, axes in enumerate(grid.flat):
            if index >= len(measures):
                axes.set_visible(False)
                continue
            axes.set_title(measures[index].replace(", ", "\n"), fontsize=9)
            axes.grid(visible=True, alpha=0.7)
            for row in each(table[table["measure"] == measures[index]]):
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
