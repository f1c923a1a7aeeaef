"""Attack by defense: the leakage of every cell, and in words why a cell is empty."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from reports import words
from reports.plots import style
from reports.power import Power, powers
from reports.standing import Cell, cells

ROW, COLUMN = 0.42, 0.86  # inches
_CHARS = 105  # of a line of reasons
_SLANT = 38  # degrees
_FAILED = "#c0392b"
_WEAK = "; not shown to work on FedAvg"


def heatmap(results: pd.DataFrame, *, table: list[Cell] | None = None, power: Power | None = None) -> Figure:
    """Leakage of every attack (rows, grouped by goal, with its threat) against every defense (columns).

    A cell shows the mean over seeds with its 95 % interval; bold where the interval's lower end lies above 0, the level of the controls.
    Hatched cells were skipped and crossed cells failed; the letter leads to the reason below the picture. A blank cell was not asked for.
    A wrong key that changes no number shares the row of no key.

    Parameters
    ----------
    results : DataFrame
        A results table (``reports.schema``) of one task and one cohort.
    table, power : optional
        ``reports.standing.cells`` and ``reports.power.powers`` of it, where they are at hand. An attack that takes nothing on FedAvg says
        so under its name: its pale cells mean nothing.
    """
    table = cells(results) if table is None else table
    power = powers(results) if power is None else power
    defenses = style.ordered(results["defense"])
    table, also = _folded(table)
    rows = list(dict.fromkeys((cell.goal, cell.attack, cell.view, cell.key) for cell in table))
    groups = list(dict.fromkeys(row[0] for row in rows))
    letters = {reason: _letter(i) for i, reason in enumerate(dict.fromkeys(cell.reason for cell in table if cell.reason))}
    notes = [line for reason, letter in letters.items() for line in textwrap.wrap(f"{letter}  {reason}", _CHARS, subsequent_indent="    ")]
    lines = len(rows) + 0.75 * len(groups)
    heads = [words.defense(name) for name in defenses]
    under = {
        row: words.threat(row[2], row[3])
        + (" or a wrong one" if row in also else "")
        + ("" if power.get((row[0], row[2], row[1]), True) else _WEAK)
        for row in rows
    }
    sides = [style.width_of(words.attack(row[1]), 9) for row in rows] + [style.width_of(said, 7.5) for said in under.values()]
    left, foot = max([1.2, *sides]) + 0.3, 0.3 + 0.165 * len(notes)
    long = max([style.width_of(head, 9) for head in heads], default=0.0)
    top = 0.45 + long * math.sin(math.radians(_SLANT))
    last = max(
        [
            style.width_of(head, 9) * math.cos(math.radians(_SLANT)) - 0.5 * COLUMN - COLUMN * (len(heads) - 1 - i)
            for i, head in enumerate(heads)
        ],
        default=0.0,
    )
    width, height = left + COLUMN * len(defenses) + max(last, 0.0) + 0.15, top + ROW * lines + foot
    with style.look():
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((left / width, foot / height, COLUMN * len(defenses) / width, ROW * lines / height))
        axes.set(xlim=(0, len(defenses)), ylim=(lines, 0))
        axes.set_axis_off()
        where, y = {}, 0.0
        for group in groups:
            axes.text(-left / COLUMN + 0.1, y + 0.5, words.GOALS.get(group, group), weight="bold", va="center")
            axes.plot([-left / COLUMN + 0.1, len(defenses)], [y + 0.12] * 2, color=style.RULE, linewidth=0.8, clip_on=False)
            y += 0.75
            for row in (row for row in rows if row[0] == group):
                where[row] = y
                axes.text(-0.12, y + 0.33, words.attack(row[1]), ha="right", va="center")
                axes.text(-0.12, y + 0.7, under[row], ha="right", va="center", fontsize=7.5, color=style.MUTED)
                y += 1
        for column in range(len(defenses)):
            axes.text(column + 0.42, -0.18, heads[column], rotation=_SLANT, ha="left", va="bottom", rotation_mode="anchor", linespacing=1.0)
        for cell in table:
            _draw(axes, cell, defenses.index(cell.defense), where[(cell.goal, cell.attack, cell.view, cell.key)], letters)
        for index, note in enumerate(notes):
            figure.text(0.1 / width, (foot - 0.2 - 0.165 * index) / height, note, fontsize=7.8, va="top", color=style.MUTED)
    return figure


Row = tuple[str, str, str, str]  # goal, attack, view, key


def _folded(table: list[Cell]) -> tuple[list[Cell], set[Row]]:
    """The table without rows of a wrong key that only repeat the one without a key, and the rows that thus stand for both."""
    said: dict[Row, dict[str, tuple[str, str]]] = {}
    for cell in table:
        said.setdefault((cell.goal, cell.attack, cell.view, cell.key), {})[cell.defense] = (
            cell.status,
            repr((cell.mean, cell.low, cell.high)),
        )
    same = {row for row, own in said.items() if row[3] == "wrong" and own.items() <= said.get((*row[:3], "none"), {}).items()}
    kept = [cell for cell in table if (cell.goal, cell.attack, cell.view, cell.key) not in same]
    return kept, {(*row[:3], "none") for row in same}


def _fixed(value: float) -> str:
    text = f"{value:.2f}"
    return ("0.00" if text == "-0.00" else text).replace("-", "\N{MINUS SIGN}")


def _letter(index: int) -> str:
    return chr(97 + index) if index < 26 else _letter(index // 26 - 1) + chr(97 + index % 26)


def scale() -> Colormap:
    """Pale to dark, rising in darkness alone, so that it also reads in grey."""
    return ListedColormap(colormaps["OrRd"](np.linspace(0.03, 1.0, 256)))


def _draw(axes: Any, cell: Cell, x: int, y: float, letters: dict[str, str]) -> None:
    box: dict[str, Any] = {"xy": (x + 0.03, y + 0.04), "width": 0.94, "height": 0.92}
    if cell.status == "skipped":
        axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=style.RULE, hatch="////", linewidth=0.8))
    elif cell.status == "failed":
        axes.add_patch(Rectangle(**box, facecolor="none", edgecolor=_FAILED, linewidth=1.4))
        axes.plot([x + 0.08, x + 0.92], [y + 0.1, y + 0.9], color=_FAILED, linewidth=0.8)
        axes.plot([x + 0.08, x + 0.92], [y + 0.9, y + 0.1], color=_FAILED, linewidth=0.8)
    if cell.status != "ok":
        note = letters[cell.reason]
        axes.text(
            x + 0.5, y + 0.5, note, ha="center", va="center", fontsize=8.5, weight="bold",
            bbox={"boxstyle": "circle,pad=0.16", "facecolor": style.PAPER, "edgecolor": "none"},
        )  # fmt: skip
        return
    shade = min(max(cell.mean, 0.0), 1.0) if math.isfinite(cell.mean) else 0.0
    colour = scale()(shade)
    axes.add_patch(Rectangle(**box, facecolor=colour, edgecolor=_FAILED if cell.reason.startswith("failed") else "none"))
    ink = "#ffffff" if 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] < 0.42 else "#101010"
    bold = "bold" if cell.low > 0 else "normal"
    mark = " " + letters[cell.reason] if cell.reason else ""
    axes.text(
        x + 0.5,
        y + 0.36,
        (_fixed(cell.mean) if math.isfinite(cell.mean) else words.MISSING) + mark,
        ha="center",
        va="center",
        fontsize=9,
        color=ink,
        weight=bold,
    )
    if math.isfinite(cell.low):
        axes.text(x + 0.5, y + 0.72, f"{_fixed(cell.low)} to {_fixed(cell.high)}", ha="center", va="center", fontsize=6.4, color=ink)
