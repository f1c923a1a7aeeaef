"""``--fail-if``: a small language of comparisons over the summarised table, so that a pipeline can hold a model to its privacy.

``leakage.low > 0.2`` holds if it holds for any cell; ``leakage[defense=infl:published, view=server].low > 0.2 or accuracy < 0.8`` narrows
and combines (``and`` binds tighter than ``or``). Fields: value (if none is named), low, high, n. Read here alone, never run as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from suites.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

FIELDS = ("value", "low", "high", "n")
COLUMNS = ("task", "data", "defense", "attack", "goal", "view", "key", "role")
ROLES = ("score", "utility", "cost", "claim")  # controls and upper bounds say nothing about a defense
_TERM = re.compile(
    r"\s*(?P<metric>[A-Za-z_][\w@%:./-]*)\s*(?:\[(?P<where>[^\]]*)\])?\s*(?:\.(?P<field>\w+))?\s*"
    r"(?P<sign><=|>=|==|!=|<|>)\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    metric: str
    field: str
    where: Mapping[str, str]
    sign: str
    number: float


Condition = tuple[tuple[Comparison, ...], ...]  # any of all of


def parse(text: str) -> Condition:
    """Read a condition; one sentence says where it cannot be read."""
    alternatives = [re.split(r"\s+and\s+", part) for part in re.split(r"\s+or\s+", text.strip())]
    return tuple(tuple(_comparison(term, text) for term in terms) for terms in alternatives)


def holds(condition: Condition, results: pd.DataFrame) -> list[str]:
    """The cells for which the condition holds, in words; empty if it does for none."""
    from reports.schema import upper_bound
    from reports.stats import summarise

    table = summarise(results[(results["status"] == "ok") & results["role"].isin(ROLES) & ~upper_bound(results)])
    for terms in condition:
        found = [_matches(term, table) for term in terms]
        if all(found):
            return [line for lines in found for line in lines]
    return []


def _comparison(term: str, text: str) -> Comparison:
    match = _TERM.fullmatch(term)
    if match is None:
        raise RequestError(
            f"--fail-if cannot read '{term.strip()}' in '{text}'; write comparisons such as leakage.low > 0.2, joined by and / or"
        )
    metric, field = match["metric"], match["field"]
    head, dot, tail = metric.rpartition(".")
    if field is None and dot and (tail in FIELDS or tail.isalpha()):
        metric, field = head, tail
    if field is not None and field not in FIELDS:
        raise RequestError(f"--fail-if knows no field '{field}'{did_you_mean(field, FIELDS)}")
    where: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in (match["where"] or "").split(","))):
        column, equals, value = pair.partition("=")
        if not equals or column.strip() not in COLUMNS:
            raise RequestError(f"--fail-if cannot narrow by '{pair}'{did_you_mean(column.strip(), COLUMNS)}")
        where[column.strip()] = value.strip()
    return Comparison(metric, field or "value", where, match["sign"], float(match["number"]))


def _matches(term: Comparison, table: pd.DataFrame) -> list[str]:
    if term.metric not in set(table["metric"]):
        raise RequestError(
            f"--fail-if asks for the metric '{term.metric}', which the table lacks{did_you_mean(term.metric, table['metric'])}"
        )
    rows = table[table["metric"] == term.metric]
    for column, value in term.where.items():
        if value not in set(rows[column]):
            raise RequestError(f"--fail-if asks for {column}={value}, which no row of {term.metric} has{did_you_mean(value, rows[column])}")
        rows = rows[rows[column] == value]
    lines = []
    for row in rows.to_dict("records"):
        if _SIGNS[term.sign](float(row[term.field]), term.number):
            where = " / ".join(str(row[name]) for name in ("defense", "attack", "view", "key") if row[name])
            lines.append(f"{term.metric}.{term.field} = {float(row[term.field]):.4g} {term.sign} {term.number:g}: {where}")
    return lines
