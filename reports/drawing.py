"""Figures on disk and in a page: the same bytes every time, no network, and readable by a screen reader."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from reports.plots import style

_METADATA: Final = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
_OPTIONS: Final[Mapping[str, Any]] = {"png": {"facecolor": "white", "pil_kwargs": {"compress_level": 3}}}
_OPENING: Final = re.compile(r"<svg [^>]*?viewBox=\"(?P<box>[^\"]+)\"[^>]*>", re.S)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure on its way into the report; ``reading`` is one sentence, ``alt`` says what the picture shows in words and numbers."""

    name: str  # file name and anchor
    title: str
    figure: Figure
    reading: str
    alt: str
    aside: bool = False  # of an adversary who holds some of the key: folded away in the page


def save(picture: Picture, folder: Path) -> str:
    """Write ``picture`` as SVG, PDF and PNG (150 dots an inch, on white) and return it as SVG to be put into HTML."""
    for kind in _METADATA:
        if not (folder / f"{picture.name}.{kind}").exists():
            _save(picture, folder, kind)
    return inline((folder / f"{picture.name}.svg").read_text(encoding="utf-8"), picture)


def save_ahead(pictures: Sequence[Picture], folder: Path) -> None:
    """Write the pictures with a second process beside this one, since drawing each three times is half of a report's time.

    Whatever the second process could not write, ``save`` writes again; so it may fail, and does not exist outside Linux.
    """
    if sys.platform != "linux" or len(pictures) < 2:
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for picture in pictures:
                for kind in ("pdf", "png"):
                    _save(picture, folder, kind)
            code = 0
        finally:
            os._exit(code)
    for picture in pictures:
        _save(picture, folder, "svg")
    deadline = time.monotonic() + 120
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _save(picture: Picture, folder: Path, kind: str) -> None:
    """One file, under its name only when it is whole."""
    path = folder / f"{picture.name}.{kind}"
    unfinished = path.with_name(f".{path.name}")
    with style.look():
        picture.figure.savefig(unfinished, format=kind, metadata=_METADATA[kind], **_OPTIONS.get(kind, {"facecolor": "none"}))
    os.replace(unfinished, path)


def inline(svg: str, picture: Picture) -> str:
    """An SVG file as an element of an HTML page: ids of its own, title and description, and the page's colours for ink and paper."""
    opening = _OPENING.search(svg)
    if opening is None:
        raise ValueError(f"{picture.name} is no SVG that matplotlib wrote; draw it again")
    body = svg[opening.end() :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{picture.name}-\1"', body)
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{picture.name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{picture.name}-\1)", body)
    for colour, name in style.NEUTRALS.items():
        body = body.replace(colour, f"var(--{name})")
    body = body.replace(
        '<style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>', ""
    )  # it would reach every picture of the page
    width, height = (float(part) for part in opening["box"].split()[2:])
    head = (
        f'<svg viewBox="{opening["box"]}" width="{4 / 3 * width:.0f}" height="{4 / 3 * height:.0f}" role="img" '
        f'aria-labelledby="{picture.name}-alt-title {picture.name}-alt-text" style="stroke-linejoin: round; stroke-linecap: butt">'
        f'<title id="{picture.name}-alt-title">{escape(picture.title)}</title>'
        f'<desc id="{picture.name}-alt-text">{escape(picture.alt)}</desc>'
    )
    return head + body.strip()


def as_bytes(figure: Figure, kind: str) -> bytes:
    """What ``save`` would write, in memory."""
    held = io.BytesIO()
    with style.look():
        figure.savefig(held, format=kind, metadata=_METADATA[kind], **_OPTIONS.get(kind, {}))
    return held.getvalue()
