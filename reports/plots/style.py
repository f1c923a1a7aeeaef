"""One look for every picture: colours, marks and sizes, the same defense alike everywhere.

Colours are Okabe and Ito's (2008, safe for every kind of colour vision); a defense also has its own mark, so that no picture depends
on colour alone.
A family of defenses (``dp_sgd:epsilon=8``, ``…=32``) shares hue and mark shape and differs in lightness.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

# The four neutral colours are replaced by CSS variables when a picture is put into HTML, so that it follows light and dark.
INK: Final = "#1b1f23"
MUTED: Final = "#636c76"
RULE: Final = "#d5dade"
PAPER: Final = "#fefefe"
NEUTRALS: Final = {INK: "ink", MUTED: "muted", RULE: "rule", PAPER: "paper"}

WIDTH: Final = 7.2  # inches: the text width of a page, and about a screen's column
SALT: Final = "infl-bench"
_POINTS, _DOTS = 10.0, 600.0
_FONT: Final = FontProperties(family="DejaVu Sans", size=_POINTS)
_RULER: Final = RendererAgg(8, 8, _DOTS)  # measures texts

_FAMILY: Final = {  # hue, mark
    "fedavg": ("#6b6b6b", "o"),
    "centralized": ("#8f8f8f", "s"),
    "local_only": ("#8f8f8f", "D"),
    "dp_sgd": ("#0072b2", "v"),
    "dp_fedavg": ("#56b4e9", "^"),
    "secure_aggregation": ("#009e73", "P"),
    "infl": ("#d55e00", "*"),
    "ppml_omics": ("#b8860b", "X"),
    "homomorphic": ("#cc79a7", "h"),
}
_STACKED: Final = ("#cc79a7", "#7b5ea7", "#a0522d")
_OTHERS: Final = (
    ("#e69f00", "p"),
    ("#56b4e9", "^"),
    ("#cc79a7", "h"),
    ("#b8860b", "X"),
    ("#009e73", ">"),
    ("#0072b2", "<"),
    ("#d55e00", "d"),
)
ATTACK_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b5ea7", "#a0522d", "#6b6b6b")
ATTACK_DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)))


@dataclass(frozen=True, slots=True)
class Mark:
    """How one defense is drawn; ``size`` is the mark's width in points."""

    colour: str
    shape: str
    size: float


def marks(defenses: Iterable[str]) -> dict[str, Mark]:
    """A mark for every defense of a table; depends on the set of names alone, not on their order."""
    families: dict[str, list[str]] = {}
    for name in sorted(set(defenses), key=_order):
        families.setdefault(_family(name), []).append(name)
    found: dict[str, Mark] = {}
    other = stacked = 0
    for family, members in families.items():
        if family in _FAMILY:
            hue, shape = _FAMILY[family]
        elif "+" in family:
            hue, shape = _STACKED[stacked % len(_STACKED)], _FAMILY.get(family.split("+")[0], ("", "o"))[1]
            stacked += 1
        else:
            hue, shape = _OTHERS[other % len(_OTHERS)]
            other += 1
        for position, name in enumerate(members):
            share = 0.0 if len(members) == 1 else position / (len(members) - 1)
            found[name] = Mark(_lighter(hue, 0.27 * share), shape, 11.0 if shape == "*" else 7.5)
    return found


def ordered(defenses: Iterable[str]) -> list[str]:
    """Defenses in the order of every picture and table: the two ends, FedAvg, then families with their parameter rising."""
    return sorted(set(defenses), key=_order)


def _family(name: str) -> str:
    return "+".join(layer.split(":")[0] for layer in name.split("+"))


def _order(name: str) -> tuple[int, int, str, tuple[tuple[float, str], ...], str]:
    family = _family(name)
    first = ("centralized", "local_only", "fedavg")
    rank = first.index(family) if family in first else len(first) + list(_FAMILY).index(family) if family in _FAMILY else 99
    told = [part for part in name.replace("+", ":").split(":") if "=" in part]
    parameters = tuple(_number(part) for part in sorted(told, key=lambda part: not part.startswith(("epsilon=", "noise_multiplier="))))
    return (family.count("+"), rank, family, parameters, name)


def _number(part: str) -> tuple[float, str]:
    name, _, value = part.partition("=")
    try:
        # noise_multiplier=0 is "no noise": it comes after every epsilon
        return (float("inf") if name == "noise_multiplier" and float(value) == 0 else float(value), name)
    except ValueError:
        return (float("inf"), part)


def _lighter(colour: str, by: float) -> str:
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    return str(to_hex(colorsys.hls_to_rgb(hue, min(max(light + by, 0.33), 0.7), saturation)))


def darker(colour: str) -> str:
    """The same hue, dark enough to be read as text on a light ground and light enough on a dark one."""
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    return str(to_hex(colorsys.hls_to_rgb(hue, min(max(light, 0.33), 0.42), saturation)))


def width_of(text: str, size: float = 9.0) -> float:
    """Width in inches of a text (of its longest line) at ``size`` points."""
    return max(_wide(line) for line in text.split("\n")) * size


@cache
def _wide(line: str) -> float:
    """Inches that a line takes at one point; measured large, where hinting rounds little."""
    width, _, _ = _RULER.get_text_width_height_descent(line, _FONT, False)
    return float(width) / (_DOTS * _POINTS)


def panels(
    rows: int, columns: int, cell: tuple[float, float], margins: tuple[float, float, float, float], gaps: tuple[float, float]
) -> tuple[Figure, Any]:
    """A figure of ``rows`` × ``columns`` axes, in inches: ``cell`` (width, height), ``margins`` (left, right, top, bottom), ``gaps``.

    Placed by arithmetic, since a layout engine measures all texts anew for every file that is written.
    """
    left, right, top, bottom = margins
    width = left + columns * cell[0] + (columns - 1) * gaps[0] + right
    height = top + rows * cell[1] + (rows - 1) * gaps[1] + bottom
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    grid = np.empty((rows, columns), dtype=object)
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * (cell[0] + gaps[0]), bottom + (rows - 1 - row) * (cell[1] + gaps[1])
            grid[row, column] = figure.add_axes((x / width, y / height, cell[0] / width, cell[1] / height))
    return figure, grid


@contextmanager
def look() -> Iterator[None]:
    """Within this block figures are made, and written, in the report's look; the caller's matplotlib settings come back afterwards."""
    with mpl.rc_context(dict(_SETTINGS)):
        yield


_SETTINGS: Final[Mapping[str, Any]] = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same glyphs everywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.titley": 1.0,  # a fixed place: matplotlib would measure every tick anew for each file
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.linewidth": 0.6,
    "hatch.color": MUTED,
    "lines.linewidth": 1.5,
    "svg.hashsalt": SALT,
    "svg.fonttype": "path",
    "pdf.fonttype": 3,
    "path.simplify": True,
    "text.usetex": False,
    "mathtext.fontset": "dejavusans",
}
