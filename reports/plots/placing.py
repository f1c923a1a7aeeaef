"""Labels beside their marks, on top of nothing.

A small deterministic search: every label has candidate places on rings round its mark; each takes in turn the cheapest place given the
others, until nobody moves. Cost counts overlap with labels, marks and lines, distance, and crossing leaders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.patheffects import withStroke

from reports.plots.style import MUTED, PAPER

_RINGS: Final = (7.0, 11.0, 16.0, 23.0, 32.0, 44.0, 62.0, 90.0)  # points
_ANGLES: Final = 16
_SWEEPS: Final = 12

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
Segment = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Label:
    """What stands beside the mark at data coordinates (x, y)."""

    x: float
    y: float
    text: str
    colour: str


def place(axes: Any, labels: Sequence[Label], *, lines: Sequence[Segment] = (), radius: float = 6.0, size: float = 8.5) -> list[Any]:
    """Write ``labels`` into ``axes`` so that none covers another, a mark, or one of ``lines`` (data coordinates), where there is room.

    ``radius`` is a mark's half width in points. Limits and size of the axes must be final. Returns the text artists.
    """
    figure = axes.figure
    figure.canvas.draw()  # fixes the layout, so that data coordinates have their final pixels
    scale = figure.dpi / 72.0
    points = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    texts = [
        axes.annotate(label.text, (label.x, label.y), fontsize=size, color=label.colour, linespacing=1.05, zorder=6, annotation_clip=False)
        for label in labels
    ]
    for text in texts:
        text.set_path_effects([withStroke(linewidth=2.2, foreground=PAPER)])
    renderer = figure.canvas.get_renderer()
    sizes = [(extent.width, extent.height) for extent in (text.get_window_extent(renderer) for text in texts)]
    window = axes.get_window_extent(renderer)
    frame = (window.x0 + 2, window.y0 + 2, window.x1 - 2, window.y1 - 2)
    reach = radius * scale
    blocks = [(x - reach, y - reach, x + reach, y + reach) for x, y in points]
    strokes = [(*axes.transData.transform((a, b)), *axes.transData.transform((c, d))) for a, b, c, d in lines]
    chosen = _search(points, sizes, blocks, strokes, frame, scale)
    for label, text, box, point in zip(labels, texts, chosen, points, strict=True):
        x, y = axes.transData.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        text.set_position((x, y))
        text.set_ha("center")
        text.set_va("center")
        foot = _nearest(box, point)
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
    points: Sequence[Any], sizes: Sequence[tuple[float, float]], blocks: Sequence[Box], strokes: Sequence[Segment], frame: Box, scale: float
) -> list[Box]:
    options = [_candidates(point, size, scale) for point, size in zip(points, sizes, strict=True)]
    alone = [
        [_alone(box, point, blocks, strokes, frame, scale, own) for box in boxes]
        for own, (boxes, point) in enumerate(zip(options, points, strict=True))
    ]
    pick = [min(range(len(cost)), key=cost.__getitem__) for cost in alone]
    for _ in range(_SWEEPS):
        moved = False
        for i, boxes in enumerate(options):
            others = [(options[j][pick[j]], points[j]) for j in range(len(options)) if j != i]
            cost = [alone[i][c] + sum(_pair(box, points[i], other, point) for other, point in others) for c, box in enumerate(boxes)]
            best = min(range(len(cost)), key=cost.__getitem__)
            moved |= best != pick[i]
            pick[i] = best
        if not moved:
            break
    return [boxes[choice] for boxes, choice in zip(options, pick, strict=True)]


def _candidates(point: Any, size: tuple[float, float], scale: float) -> list[Box]:
    x, y = point
    width, height = size
    found = []
    for ring in _RINGS:
        for step in range(_ANGLES):
            angle = 2 * math.pi * step / _ANGLES
            dx, dy = math.cos(angle), math.sin(angle)
            # the box touches the ring with the side or corner that faces the mark
            cx = x + dx * ring * scale + (width / 2) * max(-1.0, min(1.0, 1.8 * dx))
            cy = y + dy * ring * scale + (height / 2) * max(-1.0, min(1.0, 1.8 * dy))
            found.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return found


def _alone(box: Box, point: Any, blocks: Sequence[Box], strokes: Sequence[Segment], frame: Box, scale: float, own: int) -> float:
    cost: float = float(math.dist(_nearest(box, point), point) / scale)
    cost += 0.15 * abs((box[1] + box[3]) / 2 - point[1]) / scale  # sideways reads better than above
    for index, block in enumerate(blocks):
        if _overlap(box, block) > 0:
            cost += 400.0 if index != own else 150.0
        elif index != own and _crosses((*point, *_nearest(box, point)), block):
            cost += 60.0
    cost += sum(45.0 for stroke in strokes if _crosses(stroke, box))
    outside = max(frame[0] - box[0], 0) + max(frame[1] - box[1], 0) + max(box[2] - frame[2], 0) + max(box[3] - frame[3], 0)
    return cost + (1e4 + outside if outside > 0 else 0.0)


def _pair(box: Box, point: Any, other: Box, apart: Any) -> float:
    if _overlap(_grown(box, 1.5), other) > 0:
        return 2000.0
    leader, theirs = (*point, *_nearest(box, point)), (*apart, *_nearest(other, apart))
    return 120.0 * (_crosses(leader, other) or _crosses(theirs, box)) + 80.0 * _meet(leader, theirs)


def _nearest(box: Box, point: Any) -> tuple[float, float]:
    return (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))


def _grown(box: Box, by: float) -> Box:
    return (box[0] - by, box[1] - by, box[2] + by, box[3] + by)


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _crosses(segment: Segment, box: Box) -> bool:
    """Whether a segment passes through a box (Liang and Barsky's clipping)."""
    x0, y0, x1, y1 = segment
    enter, leave = 0.0, 1.0
    for p, q in ((x0 - x1, x0 - box[0]), (x1 - x0, box[2] - x0), (y0 - y1, y0 - box[1]), (y1 - y0, box[3] - y0)):
        if p == 0:
            if q < 0:
                return False
            continue
        t = q / p
        if p < 0:
            enter = max(enter, t)
        else:
            leave = min(leave, t)
    return enter < leave


def _meet(a: Segment, b: Segment) -> bool:
    def side(s: Segment, x: float, y: float) -> float:
        return (s[2] - s[0]) * (y - s[1]) - (s[3] - s[1]) * (x - s[0])

    return side(a, b[0], b[1]) * side(a, b[2], b[3]) < 0 and side(b, a[0], a[1]) * side(b, a[2], a[3]) < 0
