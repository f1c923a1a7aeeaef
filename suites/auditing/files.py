"""Scores from a file (``infl-bench audit``): a CSV with columns score and member, or an npz with arrays of these names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suites.auditing.bound import Floats
from suites.auditing.result import Audit
from suites.errors import RequestError, did_you_mean

_TRUE, _FALSE = {"1", "1.0", "true", "yes", "in"}, {"0", "0.0", "false", "no", "out"}


def read_scores(path: Path, score: str = "score", member: str = "member") -> tuple[Floats, Floats]:
    """Scores of members and of non-members; raises ``RequestError`` with one sentence for whatever is wrong with the file."""
    if not path.is_file():
        raise RequestError(f"there is no file {path}; give a .csv with columns {score},{member} or an .npz with arrays of these names")
    columns = _npz(path) if path.suffix == ".npz" else _csv(path)
    for name in (score, member):
        if name not in columns:
            raise RequestError(f"{path.name} has no column '{name}'{did_you_mean(name, columns)}")
    values, inside = columns[score].reshape(-1), _truth(columns[member].reshape(-1), path, member)
    try:
        scores = values.astype(np.float64)
    except ValueError as error:
        raise RequestError(f"column '{score}' of {path.name} holds something that is not a number ({error})") from error
    if len(scores) != len(inside):
        raise RequestError(f"{path.name} has {len(scores)} scores but {len(inside)} memberships; give one of either a record")
    if inside.all() or not inside.any():
        raise RequestError(f"column '{member}' of {path.name} marks {'every' if inside.all() else 'no'} record; an audit needs both kinds")
    return scores[inside], scores[~inside]


def show(audit: Audit) -> None:
    """The audit as tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    rows = {row["metric"]: row for row in audit.table.to_dict("records")}
    console = Console()
    console.print(audit.title, style="bold")
    measured = Table("metric", "value", "95 % interval", "note")
    for metric in ("auc", "tpr@1%", "fpr@1%", "threshold@1%", "tpr@0.1%", "fpr@0.1%", "threshold@0.1%", "advantage"):
        row = rows[metric]
        measured.add_row(metric, _number(row["value"]), _interval(row), row["reason"])
    console.print(measured)
    stated = Table("ε", "kind", "method", "assumes")
    for metric, row in rows.items():
        if metric.startswith("epsilon_"):
            kind, _, assumes = row["reason"].partition(": ")
            stated.add_row(_number(row["value"]), kind, metric.partition(":")[2] or "several, at one level", assumes)
    console.print(stated)
    for row in rows.values():
        if row["role"] == "flag":
            console.print(f"! {row['reason']}", style="bold red")
    for note in audit.notes:
        console.print(note)


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(
            f"{path.name} cannot be read as an npz of plain arrays ({type(error).__name__}); save it with numpy.savez"
        ) from error


def _csv(path: Path) -> dict[str, NDArray[Any]]:
    import pandas as pd

    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise RequestError(f"{path.name} cannot be read as a CSV ({str(error).splitlines()[0]}); give columns score,member") from error
    return {str(name): table[name].to_numpy() for name in table.columns}


def _truth(values: NDArray[Any], path: Path, member: str) -> NDArray[np.bool_]:
    words = [str(value).strip().lower() for value in values.tolist()]
    strange = next((word for word in words if word not in _TRUE | _FALSE), None)
    if strange is not None:
        raise RequestError(f"column '{member}' of {path.name} holds '{strange}'; it must be 1 or 0 (true or false) for each record")
    return np.array([word in _TRUE for word in words])


def _number(value: float) -> str:
    return f"{value:.4g}" if np.isfinite(value) else "–"


def _interval(row: dict[Any, Any]) -> str:
    return f"[{_number(row['low'])}, {_number(row['high'])}]" if np.isfinite(row["low"]) else ""
