"""Reliability diagrams: whether an attack that says it is sure of a reconstruction is right as often as it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter

from reports import words
from reports.calibration import calibration_error, perfect_error, reliability
from reports.plots import style

COLUMNS = 4
_TICKS = (0.0, 0.5, 1.0)


def reliability_diagrams(pairs: pd.DataFrame) -> Figure:
    """Share of guesses that were right against the chance that their confidence stood for, a panel an attack.

    Parameters
    ----------
    pairs : DataFrame
        As of ``reports.calibration.held_out``, of one threat: chances were fitted on other seeds than those whose guesses they are of.

    Returns
    -------
    Figure
        A mark a bin of ten with Clopper and Pearson's 95 % interval and its number of guesses, all defenses together, in each of which the
        fit is its own. The dashed diagonal is a confidence that keeps its word; below it the attack is over-confident.
    """
    attacks = sorted(pairs["attack"].unique())
    columns = min(COLUMNS, max(len(attacks), 1))
    rows = max(math.ceil(len(attacks) / columns), 1)
    with style.look():
        figure, panels = style.panels(rows, columns, (1.45, 1.45), (0.6, 0.15, 0.55, 0.55), (0.3, 0.85))
        for index, axes in enumerate(panels.flat):
            if index >= len(attacks):
                axes.set_visible(False)
                continue
            own = pairs[pairs["attack"] == attacks[index]]
            _frame(axes, labelled=(index + columns >= len(attacks), index % columns == 0))
            axes.set_title(words.attack(attacks[index]).replace(", ", ",\n"), fontsize=8, linespacing=1.0, pad=12)
            _panel(axes, own, style.ATTACK_COLOURS[index % len(style.ATTACK_COLOURS)])
    return figure


def _frame(axes: Any, *, labelled: tuple[bool, bool]) -> None:
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(_TICKS))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}\N{NO-BREAK SPACE}%"))
    axes.grid(visible=True, alpha=0.7)
    axes.tick_params(labelbottom=labelled[0], labelleft=labelled[1], labelsize=7.5)
    if labelled[0]:
        axes.set_xlabel("stated chance", fontsize=8)
    if labelled[1]:
        axes.set_ylabel("share right", fontsize=8)


def _panel(axes: Any, own: pd.DataFrame, colour: str) -> None:
    chance, right = own["chance"].to_numpy(float), own["right"].to_numpy(bool)
    halo = [withStroke(linewidth=1.8, foreground=style.PAPER)]
    for held in reliability(chance, right):
        axes.plot([held.chance, held.chance], [held.low, held.high], color=colour, linewidth=1.1, zorder=3)
        axes.plot(held.chance, held.right, "o", color=colour, markersize=4.5, markeredgecolor=style.PAPER, markeredgewidth=0.6, zorder=4)
        upward = held.right < 0.5
        at, align = (held.high + 0.02, "bottom") if upward else (held.low - 0.02, "top")
        said = axes.text(
            held.chance, np.clip(at, 0, 1), str(held.n), ha="center", va=align, fontsize=6, color=style.darker(colour), zorder=5
        )
        said.set_path_effects(halo)
    text = f"error {calibration_error(chance, right):.2f} (perfect {perfect_error(chance):.2f})"
    axes.text(1.0, 1.02, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=6, color=style.MUTED)
