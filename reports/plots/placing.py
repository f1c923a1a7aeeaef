"""Labels beside their marks, on top of nothing.

A small deterministic search: every label has candidate places on rings round its mark; each takes in turn the cheapest place given the
others, until nobody moves. Cost counts overlap with labels, marks and lines, distance, and crossing leaders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from reports.plots.style import MUTED, PAPER

_RINGS: Final = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 62.0, 90.0)  # points
_ANGLES: Final = 16
_SWEEPS: Final = 12

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
Segment = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """What stands beside the mark at data coordinates (x, y)."""

    x: float
    y: float
    text: str
    colour: str


def place(
    axes: Any,
    labels: Sequence[Label],
    *,
    lines: Sequence[Segment] = (),
    radius: float = 6.0,
    size: float = 8.5,
    span: tuple[float, float] | None = None,
) -> list[Any]:
    """Write ``labels`` into ``axes`` so that none covers another, a mark, or one of ``lines`` (data coordinates), where there is room.

    ``radius`` is a mark's half width in points, ``span`` the stretch of the x axis that labels keep to (all of it). Limits and size of the
    axes must be final. Returns the text artists.
    """
    figure = axes.figure
    scale = figure.dpi / 72.0
    points = np.array([axes.transData.transform((label.x, label.y)) for label in labels])
    texts = [
        axes.annotate(label.text, (label.x, label.y), fontsize=size, color=label.colour, linespacing=1.05, zorder=6, annotation_clip=False)
        for label in labels
    ]
    for text in texts:
        text.set_path_effects([withStroke(linewidth=2.2, foreground=PAPER)])
    renderer = figure.canvas.get_renderer()
    sizes = [(extent.width, extent.height) for extent in (text.get_window_extent(renderer) for text in texts)]
    window = axes.get_window_extent(renderer)
    left, right = (window.x0, window.x1) if span is None else (axes.transData.transform((x, 0))[0] for x in span)
    frame = (left + 2, window.y0 + 2, right - 2, window.y1 - 2)
    reach = radius * scale
    blocks = np.concatenate([points - reach, points + reach], axis=1)
    strokes = axes.transData.transform(np.array(lines, dtype=float).reshape(-1, 2)).reshape(-1, 4)
    chosen = _search(points, sizes, blocks, strokes, frame, scale)
    for label, text, box, point in zip(labels, texts, chosen, points, strict=True):
        text.set_position(axes.transData.inverted().transform((box[:2] + box[2:]) / 2))
        text.set_ha("center")
        text.set_va("center")
        foot = np.clip(point, box[:2], box[2:])
        if math.dist(foot, point) > 14 * scale:
            end = axes.transData.inverted().transform(foot)
            axes.plot([label.x, end[0]], [label.y, end[1]], color=MUTED, linewidth=0.6, zorder=2, clip_on=False)
    return texts


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as may be to ``wanted`` with at least ``gap`` between them, inside [low, high]; the order is kept."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    blocks: list[list[float]] = []  # start, count: neighbours that touch move as one
    for index in order:
        blocks.append([wanted[index], 1.0])
        while len(blocks) > 1 and blocks[-2][0] + blocks[-2][1] * gap > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2], blocks[-1]
            blocks[-2:] = [[(m * a + n * (b - m * gap)) / (m + n), m + n]]
        blocks[-1][0] = min(max(blocks[-1][0], low), high - (blocks[-1][1] - 1) * gap)
    placed = [start + step * gap for start, count in blocks for step in range(int(count))]
    for above in range(len(placed) - 2, -1, -1):
        placed[above] = min(placed[above], placed[above + 1] - gap)
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result


def _search(
    points: Floats, sizes: Sequence[tuple[float, float]], blocks: Floats, strokes: Floats, frame: Box, scale: float
) -> list[Floats]:
    """The chosen box of every label; ``points`` [n, 2], ``blocks`` [n, 4] and ``strokes`` [m, 4] in pixels."""
    options = [_candidates(point, size, scale) for point, size in zip(points, sizes, strict=True)]
    alone = [_alone(boxes, points, blocks, strokes, frame, scale, own) for own, boxes in enumerate(options)]
    pick = [int(cost.argmin()) for cost in alone]
    for _ in range(_SWEEPS):
        moved = False
        for i, boxes in enumerate(options):
            cost = alone[i].copy()
            for j, theirs in enumerate(options):
                if j != i:
                    cost += _pair(boxes, points[i], theirs[pick[j]], points[j])
            best = int(cost.argmin())
            moved |= best != pick[i]
            pick[i] = best
        if not moved:
            break
    return [boxes[choice] for boxes, choice in zip(options, pick, strict=True)]


def _candidates(point: Floats, size: tuple[float, float], scale: float) -> Floats:
    """Boxes [c, 4] that touch a ring round the mark with the side or corner that faces it, nearest rings first."""
    angle = 2 * np.pi * np.arange(_ANGLES) / _ANGLES
    ring, dx, dy = (part.ravel() for part in np.broadcast_arrays(np.array(_RINGS)[:, None] * scale, np.cos(angle), np.sin(angle)))
    x = point[0] + dx * ring + size[0] / 2 * np.clip(1.8 * dx, -1, 1)
    y = point[1] + dy * ring + size[1] / 2 * np.clip(1.8 * dy, -1, 1)
    return np.stack([x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2], axis=1)


def _alone(boxes: Floats, points: Floats, blocks: Floats, strokes: Floats, frame: Box, scale: float, own: int) -> Floats:
    """What each candidate of one label costs, whatever the others do [c]."""
    point = points[own]
    leaders = _leaders(boxes, point)
    cost: Floats = np.hypot(leaders[:, 2] - point[0], leaders[:, 3] - point[1]) / scale
    cost += 0.15 * np.abs((boxes[:, 1] + boxes[:, 3]) / 2 - point[1]) / scale  # sideways reads better than above
    covers = _overlap(boxes[:, None], blocks[None])  # [c, n]
    foreign = np.arange(len(blocks)) != own
    cost += np.where(covers, np.where(foreign, 400.0, 150.0), 60.0 * (foreign & _crosses(leaders[:, None], blocks[None]))).sum(axis=1)
    if len(strokes):
        cost += 45.0 * _crosses(strokes[None], boxes[:, None]).sum(axis=1)
    outside = np.maximum(np.array(frame[:2]) - boxes[:, :2], 0).sum(axis=1) + np.maximum(boxes[:, 2:] - np.array(frame[2:]), 0).sum(axis=1)
    return cost + np.where(outside > 0, 1e4 + outside, 0.0)


def _pair(boxes: Floats, point: Floats, other: Floats, apart: Floats) -> Floats:
    """What each candidate costs beside another label's place [c]."""
    leaders, theirs = _leaders(boxes, point), _leaders(other[None], apart)[0]
    tangled = 120.0 * (_crosses(leaders, other) | _crosses(theirs, boxes)) + 80.0 * _meet(leaders, theirs)
    return np.where(_overlap(boxes + np.array([-1.5, -1.5, 1.5, 1.5]), other), 2000.0, tangled)


def _leaders(boxes: Floats, point: Floats) -> Floats:
    """Segments from a mark to the nearest point of each box [c, 4]."""
    foot = np.clip(point, boxes[:, :2], boxes[:, 2:])
    return np.concatenate([np.broadcast_to(point, foot.shape), foot], axis=1)


def _overlap(a: Floats, b: Floats) -> Flags:
    sides = (a[..., 0] < b[..., 2], b[..., 0] < a[..., 2], a[..., 1] < b[..., 3], b[..., 1] < a[..., 3])
    return np.asarray(np.logical_and.reduce(np.broadcast_arrays(*sides)))


def _crosses(segments: Floats, boxes: Floats) -> Flags:
    """Whether segments pass through boxes (Liang and Barsky's clipping), broadcast over leading axes."""
    x0, y0, x1, y1 = (segments[..., i] for i in range(4))
    enter, leave, inside = np.array(0.0), np.array(1.0), np.array(True)
    edges = ((x0 - x1, x0 - boxes[..., 0]), (x1 - x0, boxes[..., 2] - x0), (y0 - y1, y0 - boxes[..., 1]), (y1 - y0, boxes[..., 3] - y0))
    for along, room in edges:
        p, q = np.broadcast_arrays(along, room)
        t = np.divide(q, p, out=np.zeros(p.shape), where=p != 0)
        enter = np.where(p < 0, np.maximum(enter, t), enter)
        leave = np.where(p > 0, np.minimum(leave, t), leave)
        inside = inside & ~((p == 0) & (q < 0))
    return np.asarray(inside & (enter < leave))


def _meet(a: Floats, b: Floats) -> Flags:
    def side(s: Floats, x: Floats, y: Floats) -> Floats:
        return np.asarray((s[..., 2] - s[..., 0]) * (y - s[..., 1]) - (s[..., 3] - s[..., 1]) * (x - s[..., 0]))

    across = side(a, b[..., 0], b[..., 1]) * side(a, b[..., 2], b[..., 3]) < 0
    return np.asarray(across & (side(b, a[..., 0], a[..., 1]) * side(b, a[..., 2], a[..., 3]) < 0))
