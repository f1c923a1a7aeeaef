"""The privacy–utility plane: how useful a defended model is against how much its worst attack takes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reports import words
from reports.plots import style
from reports.plots.placing import Label, Segment, place
from reports.standing import each, grouped, limits, standing

LEFT, RIGHT = -0.1, 1.05  # leakage is clipped to this range in pictures only
EDGE = 0.055  # room beyond the range for arrows
ASIDE = 0.36  # room right of that, where defenses stand that no working attack was tried on
_CHARS = 118  # of a line of notes
_TIED = "\N{NO-BREAK SPACE}"


def plane(
    results: pd.DataFrame,
    goal: str,
    view: str,
    key: str,
    *,
    colours: dict[str, style.Mark] | None = None,
    stand: pd.DataFrame | None = None,
) -> Figure:
    """Utility against worst-case leakage for one goal and one threat, a mark a defense with 95 % intervals both ways.

    Parameters
    ----------
    results : DataFrame
        A results table (``reports.schema``) of one task and one cohort.
    goal, view, key : str
        The threat, as in the table's columns. A defense that has no key is drawn with what the same adversary does to it without one.
    colours : dict, optional
        Marks by defense (``reports.plots.style.marks``), so that several pictures agree.
    stand : DataFrame, optional
        ``reports.standing.standing`` of the threat, where it is at hand.

    Returns
    -------
    Figure
        Leakage is 0 where the best control without an update stands and 1 where the oracle stands. Filled marks are measurements; a
        hollow one is what the *claim* (ε, δ) would still allow. The stepped line joins defenses that no other beats on both axes. A
        defense that no attack of known power was tried on has no place on the leakage axis: it stands right of it, hollow and grey.
    """
    marks = colours or style.marks(results["defense"])
    table = standing(results, goal, view, key) if stand is None else stand
    known = table[table["leakage"].notna() & table["utility"].notna()]
    drawn, silent = (known[mask].reset_index(drop=True) for mask in (known["silent"] == "", known["silent"] != ""))
    low, high, floor, metric = limits(results)
    notes = _missing(table)
    height = 5.1 + 0.16 * len(notes)
    with style.look():
        figure = Figure(figsize=(style.WIDTH, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.085, (0.55 + 0.16 * len(notes)) / height, 0.9, 4.0 / height))
        axes.set(xlim=(LEFT - EDGE, RIGHT + EDGE + ASIDE * (len(silent) > 0)), ylim=(low, high), xticks=np.linspace(0, 1, 6))
        axes.set_xlabel("worst-case leakage: 0 = guessing without looking, 1 = the truth itself   (less is better)")
        axes.set_ylabel(f"{words.metric(metric)} on test records   (more is better)")
        axes.grid(visible=True, alpha=0.7)
        lines = _front(axes, drawn) + _ends(axes, floor, words.floor(metric).removeprefix("the "))
        labels = []
        lines += _claim_name(axes, drawn) if goal == "membership" else []
        for row in each(drawn):
            lines += _measured(axes, row, marks[row.defense])
            lines += _claimed(axes, row, goal, marks[row.defense])
            labels.append(Label(_clip(row.leakage), row.utility, _caption(row), style.darker(marks[row.defense].colour)))
        lines += _apart(axes, silent, marks)
        edge = RIGHT + EDGE
        apart = [
            Label(edge + 0.5 * ASIDE, row.utility, words.defense(row.defense).replace(" + ", "\n+ "), style.MUTED) for row in each(silent)
        ]
        axes.set_title(f"{words.GOALS.get(goal, goal)}: {words.threat(view, key)}", pad=20)
        for index, note in enumerate(notes):
            figure.text(0.01, (0.16 * (len(notes) - index) - 0.02) / height, note, fontsize=7.5, color=style.MUTED, va="top")
        for own, span in ((labels, (LEFT - EDGE, edge)), (apart, (edge, edge + ASIDE))):
            if own:
                place(axes, own, lines=lines, radius=6.5, span=span)
        if not labels and not apart:
            axes.text(
                0.5, 0.5, "no attack of this goal applies under this threat", transform=axes.transAxes, ha="center", color=style.MUTED
            )
    return figure


def _missing(table: pd.DataFrame) -> list[str]:
    """Why a defense is not on the axis, a line a reason: absent is not private."""
    texts = []
    for why, part in table[(table["silent"] != "") & table["utility"].notna()].groupby("silent", sort=False):
        names = _named(words.defense(row.defense) for row in each(part))
        texts.append(f"Not measured (hollow, grey): {names}. {str(why)[0].upper()}{str(why)[1:]}, so the silence means nothing.")
    empty = table[table["leakage"].isna() | table["utility"].isna()]
    texts += [f"Not drawn, since {reason}: {_named(names)}." for reason, names in grouped(empty).items()]
    return [
        line.replace(_TIED, " ") for text in texts for line in textwrap.wrap(text, _CHARS, subsequent_indent="    ", break_on_hyphens=False)
    ]


def _named(names: Iterable[str]) -> str:
    """A list whose names no line break tears."""
    return ", ".join(name.replace(" ", _TIED) for name in names)


def front(leakage: np.ndarray, utility: np.ndarray) -> list[int]:
    """Indices of the points that no other beats on both axes (less leakage, more utility), by rising leakage."""
    best, kept = -math.inf, []
    for index in sorted(range(len(leakage)), key=lambda i: (leakage[i], -utility[i])):
        if utility[index] > best:
            best = utility[index]
            kept.append(index)
    return kept


def allowed(epsilon: float, delta: float) -> float:
    """The largest membership leakage 2·AUC − 1 that (ε, δ)-differential privacy allows.

    From the trade-off function f(α) = max(0, 1 − δ − e^ε α, e^−ε (1 − δ − α)) (Wasserman and Zhou 2010; Dong, Roth and Su 2022): the best
    test's ROC is 1 − f, so AUC = 1 − ∫f. The two branches meet at α* = (1 − δ)/(1 + e^ε); integrating gives ∫f below.
    """
    grows = math.exp(min(epsilon, 500.0))
    rest = 1 - delta
    meet = rest / (1 + grows)
    missed = rest * meet - grows * meet**2 / 2 + (rest - meet) ** 2 / (2 * grows)
    return 1 - 2 * missed


def _clip(value: float) -> float:
    return min(max(value, LEFT), RIGHT)


def _ends(axes: Any, floor: float, what: str) -> list[Segment]:
    """The scales' ends: what guessing without looking takes, the truth, and the utility of no model at all."""
    lines: list[Segment] = []
    for x, name in ((0.0, "controls"), (1.0, "oracle")):
        axes.axvline(x, color=style.MUTED, linewidth=0.9, dashes=(3, 2), zorder=1)
        axes.annotate(
            name,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=style.MUTED,
        )
        lines.append((x, axes.get_ylim()[0], x, axes.get_ylim()[1]))
    if math.isfinite(floor):
        axes.axhline(floor, color=style.MUTED, linewidth=0.9, dashes=(3, 2), zorder=1)
        lines += [*_write(axes, 0.98, floor, what, -10.5), (LEFT - EDGE, floor, RIGHT + EDGE, floor)]
    return lines


def _write(axes: Any, x: float, y: float, text: str, above: float) -> list[Segment]:
    """A line's name at its right end, and the stretches that labels should leave free."""
    axes.annotate(text, (x, y), xytext=(0, above), textcoords="offset points", ha="right", fontsize=8, style="italic", color=style.MUTED)
    bottom, top = axes.get_ylim()
    heights = [y + (above + up) / 72 / 4.0 * (top - bottom) for up in (0, 3.5, 7)]
    return [(x - 0.0115 * len(text), height, x, height) for height in heights]


def _front(axes: Any, drawn: pd.DataFrame) -> list[Segment]:
    if drawn.empty:
        return []
    x = drawn["leakage"].clip(LEFT, RIGHT).to_numpy(float)
    y = drawn["utility"].to_numpy(float)
    kept = front(x, y)
    low, _ = axes.get_ylim()
    end = RIGHT + EDGE
    steps = [(x[kept[0]], low)]
    for before, after in zip(kept, [*kept[1:], None], strict=True):
        steps.append((x[before], y[before]))
        steps.append((end if after is None else x[after], y[before]))
    across, up = zip(*steps, strict=True)
    axes.fill_between(across, up, low, color=style.MUTED, alpha=0.06, linewidth=0, zorder=0)
    axes.plot(across, up, color=style.INK, linewidth=1.0, alpha=0.55, zorder=1.5)
    named = _write(axes, 0.98, up[-1], "Pareto front", 3) if x[kept[-1]] < 0.75 else []
    return [*named, *((a[0], a[1], b[0], b[1]) for a, b in pairwise(steps[1:]))]


def _measured(axes: Any, row: Any, mark: style.Mark) -> list[Segment]:
    x, y = _clip(row.leakage), row.utility
    lines: list[Segment] = []
    if math.isfinite(row.leakage_low):
        left, right = _clip(row.leakage_low), _clip(row.leakage_high)
        axes.plot([left, right], [y, y], color=mark.colour, linewidth=1.3, solid_capstyle="butt", zorder=3)
        lines.append((left, y, right, y))
    if math.isfinite(row.utility_low):
        axes.plot(
            [x, x], [row.utility_low, row.utility_high], color=mark.colour, linewidth=1.3, solid_capstyle="butt", zorder=3, clip_on=True
        )
        lines.append((x, row.utility_low, x, row.utility_high))
    axes.plot(
        [x],
        [y],
        mark.shape,
        color=mark.colour,
        markersize=mark.size,
        markeredgecolor=style.PAPER,
        markeredgewidth=0.8,
        zorder=5,
        clip_on=False,
    )
    for ends, edge, way in (((row.leakage, row.leakage_low), LEFT, -1), ((row.leakage, row.leakage_high), RIGHT, 1)):
        if any(math.isfinite(value) and (value - edge) * way > 0 for value in ends):
            _arrow(axes, edge, y, way, mark.colour)
    return lines


def _apart(axes: Any, silent: pd.DataFrame, marks: dict[str, style.Mark]) -> list[Segment]:
    """Utility without a place on the leakage axis: the attacks that apply have no power where nothing protects."""
    if silent.empty:
        return []
    edge = RIGHT + EDGE
    axes.axvline(edge, color=style.MUTED, linewidth=0.8, zorder=1)
    axes.annotate(
        "not measured", (edge + ASIDE / 2, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
        ha="center", fontsize=8, color=style.MUTED,
    )  # fmt: skip
    lines: list[Segment] = [(edge, axes.get_ylim()[0], edge, axes.get_ylim()[1])]
    for row in each(silent):
        x, mark = edge + 0.5 * ASIDE, marks[row.defense]
        if math.isfinite(row.utility_low):
            axes.plot([x, x], [row.utility_low, row.utility_high], color=style.MUTED, linewidth=1.0, linestyle=(0, (2, 1.5)), zorder=3)
            lines.append((x, row.utility_low, x, row.utility_high))
        axes.plot(
            [x], [row.utility], mark.shape, markerfacecolor=style.PAPER, markeredgecolor=style.MUTED, markeredgewidth=1.2,
            markersize=mark.size, zorder=5,
        )  # fmt: skip
    return lines


def _arrow(axes: Any, x: float, y: float, way: int, colour: str) -> None:
    """The value lies beyond the picture's edge."""
    axes.annotate(
        "", (x + way * 0.85 * EDGE, y), xytext=(x, y), zorder=4,
        arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9},
    )  # fmt: skip


def _claimed(axes: Any, row: Any, goal: str, mark: style.Mark) -> list[Segment]:
    """Only for membership does (ε, δ) bound the measured quantity."""
    if goal != "membership" or not math.isfinite(row.epsilon):
        return []
    x = allowed(row.epsilon, row.delta if math.isfinite(row.delta) else 0.0)
    start = _clip(max(row.leakage, row.leakage_high if math.isfinite(row.leakage_high) else row.leakage))
    axes.plot([start, x], [row.utility, row.utility], color=mark.colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=2)
    axes.plot([x], [row.utility], mark.shape, markerfacecolor=style.PAPER, markeredgecolor=mark.colour, markersize=mark.size - 1, zorder=4)
    return [(start, row.utility, x, row.utility)]


def _claim_name(axes: Any, drawn: pd.DataFrame) -> list[Segment]:
    """Says once what the hollow marks are, beside the lowest of them."""
    held = drawn[drawn["epsilon"].notna()]
    if held.empty:
        return []
    row: Any = held.sort_values("utility", kind="stable").iloc[0]
    x = allowed(row["epsilon"], row["delta"] if math.isfinite(row["delta"]) else 0.0)
    return _write(axes, x - 0.025, row["utility"], "allowed by the claim", 3)


def _caption(row: Any) -> str:
    return words.defense(row.defense) + (f"\nclaims ε ≤ {row.epsilon:.3g}" if math.isfinite(row.epsilon) else "")
