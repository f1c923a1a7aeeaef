"""The report: one self-contained HTML page beside its figures and tables, written whole or not at all, the same bytes each time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from reports import drawing, page, schema, tables, words
from reports.compare import Run, comparison
from reports.page import Block, Section

FOLDER = "report"
_RANGE = re.compile(r"\[[^\[\]]*\d[^\[\]]*, [^\[\]]*\]")
TEMPLATES = Path(__file__).parent / "templates"


def render(results: pd.DataFrame, curves: pd.DataFrame, record: Mapping[str, Any], out: Path, *, other: Run | None = None) -> Path:
    """Write ``out/report/`` (index.html, figures/, tables/) and return the path of index.html.

    Parameters
    ----------
    results, curves : DataFrame
        Tables as in ``reports.schema``.
    record : mapping
        What the run says about itself (record.json); every key is optional.
    out : Path
        The run's folder. An earlier report in it is replaced only when the new one is whole.
    other : Run, optional
        A second run to set beside this one.

    Raises
    ------
    SchemaError
        Where a table is not what it should be.
    OSError
        Where the folder cannot be written; nothing half-written stays.
    """
    schema.validate(results)
    schema.validate_curves(curves)
    with words.among(*_named(results, other)):
        return _render(results, curves, record, Path(out), other)


def _named(results: pd.DataFrame, other: Run | None) -> tuple[set[str], set[str]]:
    tables_of = [results] if other is None else [results, other.results]
    return {name for table in tables_of for name in table["defense"]}, {name for table in tables_of for name in table["attack"]}


def _render(results: pd.DataFrame, curves: pd.DataFrame, record: Mapping[str, Any], out: Path, other: Run | None) -> Path:
    parts = page.sections(results, curves, record)
    if other is not None:
        parts.insert(1, comparison(Run("this run", results, curves, record), other))
    out.mkdir(parents=True, exist_ok=True)
    fresh, old = out / f".{FOLDER}-{os.getpid()}", out / f".{FOLDER}-old-{os.getpid()}"
    try:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (fresh / "figures", fresh / "tables"):
            folder.mkdir(parents=True)
        _write(fresh, parts, results, record)
        if (out / FOLDER).exists():
            os.replace(out / FOLDER, old)
        os.replace(fresh, out / FOLDER)
    finally:
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
    return out / FOLDER / "index.html"


def report(folder: Path, other: Path | None = None) -> Path:
    """Draw the report of a run's folder again from its tables, beside those of ``other`` if given; returns the path of index.html.

    Raises
    ------
    FileNotFoundError
        Where a folder holds no results, in one sentence.
    """
    run = load(folder)
    return render(run.results, run.curves, run.record, Path(folder), other=None if other is None else load(other))


def load(folder: Path) -> Run:
    """Tables and record of a run's folder; curves and record may be missing."""
    folder = Path(folder)
    if not (folder / "results.parquet").is_file():
        raise FileNotFoundError(f"{folder} holds no results.parquet, so there is nothing to report; give the folder of a finished run")
    curves, record = folder / "curves.parquet", folder / "record.json"
    return Run(
        folder.resolve().name,
        pd.read_parquet(folder / "results.parquet"),
        pd.read_parquet(curves) if curves.is_file() else schema.empty_curves(),
        json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {},
    )


def _write(folder: Path, parts: list[Section], results: pd.DataFrame, record: Mapping[str, Any]) -> None:
    drawing.save_ahead([picture for part in parts for picture in _pictures(part.blocks)], folder / "figures")
    shown = [Section(part.name, part.title, [_placed(block, folder) for block in part.blocks]) for part in parts]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["parts"] = ranged
    title = str(record.get("title") or record.get("suite") or "Privacy and utility of federated learning defenses")
    css = Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    text = environment.get_template("report.html.j2").render(title=title, subtitle=_subtitle(results), css=css, sections=shown)
    (folder / "index.html").write_text(text, encoding="utf-8")


def _pictures(blocks: Iterable[Block]) -> Iterator[drawing.Picture]:
    for block in blocks:
        if block.kind == "picture":
            yield block.value
        elif block.kind == "more":
            yield from _pictures(block.value[1])


def _placed(block: Block, folder: Path) -> Block:
    """A block whose picture or table is on disk, ready for the page."""
    if block.kind == "picture":
        svg = Markup(drawing.save(block.value, folder / "figures"))
        return Block("picture", {"name": block.value.name, "title": block.value.title, "reading": block.value.reading, "svg": svg})
    if block.kind in {"table", "file"}:
        tables.save(block.value, folder / "tables")
    if block.kind == "more":
        return Block("more", (block.value[0], [_placed(inner, folder) for inner in block.value[1]]))
    return block


def _subtitle(results: pd.DataFrame) -> str:
    if results.empty:
        return "No results."
    data, seeds = ", ".join(dict.fromkeys(results["data"])), results["seed"].nunique()
    attacks = results.loc[results["goal"].isin(schema.GOALS) & (results["role"] == "score"), "attack"].nunique()
    counted = ((results["defense"].nunique(), "defense"), (attacks, "attack"), (seeds, "seed"))
    return f"{data}: " + ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in counted)


def ranged(value: object) -> Markup:
    """A text with its intervals set back: ``0.81 [0.79, 0.83]``."""
    safe = str(escape(str(value)))
    return Markup(_RANGE.sub(r'<span class="range">\g<0></span>', safe))  # escaped in the line above
