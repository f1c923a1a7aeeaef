"""What an audit of plain arrays gives back: the project's tidy table, a page that opens without a network, and itself in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reports.roc import CONVENTION, roc_points
from reports.schema import CURVES, RESULTS, SCHEMA_VERSION, TEXT, empty_curves, validate, validate_curves
from suites.scoring_measure import Measure, as_control

if TYPE_CHECKING:
    import pandas as pd

SUITE = "audit"
_LABELS = {"auc": "AUC", "tpr@1%": "TPR at 1 % FPR", "tpr@0.1%": "TPR at 0.1 % FPR", "epsilon_lower": "ε at least"}


@dataclass(frozen=True)
class Audit:
    """The outcome of an audit.

    ``table`` holds one metric a row and ``curves`` the ROC curves, both as in ``reports.schema``. ``print(audit)`` says it in words,
    ``audit.report(folder)`` writes the page.
    """

    table: pd.DataFrame
    curves: pd.DataFrame
    title: str
    notes: tuple[str, ...] = ()

    def value(self, metric: str, attack: str | None = None) -> float:
        """One number; ``attack`` may be left out where only one was run."""
        rows = self.table[(self.table["metric"] == metric) & ((self.table["attack"] == attack) | (attack is None))]
        if len(rows) != 1:
            known = ", ".join(sorted(set(self.table["attack"])))
            raise KeyError(f"{len(rows)} rows have metric {metric!r} and attack {attack!r}; the attacks are {known}")
        return float(rows["value"].iloc[0])

    def report(self, folder: str | Path) -> Path:
        """Write ``folder/report/index.html`` with its figures and tables; returns its path."""
        from reports.render import render

        record = {"title": self.title, "suite": SUITE, "command": "infl-bench audit SCORES, or suites.audit from Python"}
        return render(self.table, self.curves, record, Path(folder))

    def __str__(self) -> str:
        lines = [self.title]
        scored = self.table[self.table["status"] == "ok"]
        for attack in dict.fromkeys(self.table["attack"]):
            rows = {row["metric"]: row for row in scored[scored["attack"] == attack].to_dict("records")}
            lines.append(f"\n{attack}{' (control)' if rows and all(r['role'] != 'score' for r in rows.values()) else ''}")
            skipped = self.table[(self.table["attack"] == attack) & (self.table["status"] == "skipped")]
            lines += [f"  skipped: {reason}" for reason in skipped["reason"]]
            lines += [f"  {label:<17} {_said(rows, metric)}" for metric, label in _LABELS.items() if metric in rows]
            for metric, row in rows.items():
                if metric.startswith("epsilon_") and ":" in metric:
                    lines.append(f"    {row['reason'].split(':')[0]:<11} ε {_number(row['value'])}  {metric.split(':')[1]}")
            lines += [f"  claimed ε         {_number(rows['epsilon']['value'])}"] if "epsilon" in rows else []
            lines += [f"  ! {row['reason']}" for metric, row in rows.items() if metric.startswith("flag:")]
        return "\n".join([*lines, "", *self.notes, f"Convention: {CONVENTION}."])


@dataclass
class Rows:
    """Collects the rows and curves of one audit."""

    name: str  # of what was audited: the table's "defense"
    view: str
    seed: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        attack: str,
        measures: Sequence[Measure],
        *,
        scores: ArrayLike | None = None,
        member: NDArray[np.bool_] | None = None,
        control: bool = False,
        seconds: float = 0.0,
        references: int = 0,
    ) -> None:
        """One attack's measures; with ``scores`` and ``member`` also its ROC curve."""
        kept = as_control(measures) if control else measures
        extra = {"seconds": seconds, "n_references": float(references), "protocol": CONVENTION, "unit": "record"}
        self.rows += [{**self._cell(attack), **asdict(measure), "status": "ok", **extra} for measure in kept]
        if scores is not None and member is not None:
            curve = roc_points(scores, member)
            self.points += [{**self._cell(attack), "curve": "roc", "x": float(x), "y": float(y)} for x, y in zip(curve.fpr, curve.tpr)]

    def skip(self, attack: str, reason: str) -> None:
        blank = {"metric": "", "value": math.nan, "low": math.nan, "high": math.nan, "n": 0, "direction": "higher", "role": "score"}
        extra = {"seconds": 0.0, "n_references": 0.0, "protocol": CONVENTION, "unit": "record"}
        self.rows.append({**self._cell(attack), **blank, "status": "skipped", "reason": reason, **extra})

    def finish(self, title: str, notes: Sequence[str] = ()) -> Audit:
        import pandas as pd

        table = pd.DataFrame([{**row, "schema_version": SCHEMA_VERSION} for row in self.rows])
        missing = table["value"].isna() & (table["reason"] == "") & (table["status"] == "ok")
        table.loc[missing, "reason"] = "undefined"
        table = table[[*RESULTS, *(name for name in table.columns if name not in RESULTS)]]
        table = table.astype({name: kind for name, kind in RESULTS.items() if kind != TEXT})
        curves = pd.DataFrame(self.points)[list(CURVES)] if self.points else empty_curves()
        return Audit(validate(table), validate_curves(curves), title, tuple(notes))

    def _cell(self, attack: str) -> dict[str, Any]:
        named = {"suite": SUITE, "task": "audit", "data": "arrays", "defense": self.name, "attack": attack, "goal": "membership"}
        return {**named, "view": self.view, "key": "none", "seed": self.seed}


def _said(rows: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    row = rows[metric]
    if not math.isfinite(row["value"]):
        return str(row["reason"])
    ends = f" [{_number(row['low'])}, {_number(row['high'])}]" if math.isfinite(row["low"]) and math.isfinite(row["high"]) else ""
    realised = rows.get(metric.replace("tpr", "fpr")) if metric.startswith("tpr") else None
    threshold = rows.get(metric.replace("tpr", "threshold")) if metric.startswith("tpr") else None
    at = f" at FPR {_number(realised['value'])}" if realised is not None else ""
    at += f", threshold {threshold['value']:.4g}" if threshold is not None and math.isfinite(threshold["value"]) else ""
    return f"{_number(row['value'])}{ends}{at}"


def _number(value: float) -> str:
    return f"{value:.3f}"
