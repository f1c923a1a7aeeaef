"""``--fail-if``: comparisons over the summarised table, read and never run."""

import math
from typing import Any

import pandas as pd
import pytest

from reports import schema
from suites import condition
from suites.errors import RequestError


def row(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {name: "" for name, kind in schema.RESULTS.items() if kind == schema.TEXT}
    base |= {
        "suite": "s",
        "defense": "fedavg",
        "attack": "lira",
        "goal": "membership",
        "view": "server",
        "key": "none",
        "metric": "leakage",
    }
    base |= {"value": 0.3, "low": 0.1, "high": 0.5, "n": 10, "seed": 0, "seconds": 1.0, "schema_version": 1}
    return {**base, "direction": "higher", "role": "score", "status": "ok", **changes}


TABLE = pd.DataFrame(
    [
        row(),
        row(defense="infl:published", value=0.9, low=0.8, high=1.0),
        row(defense="infl:published", attack="oracle", role="control", value=5.0, low=5.0, high=5.0),
        row(defense="infl:published", attack="peeks", value=7.0, low=7.0, high=7.0, reason="upper bound: read the truth"),
        row(defense="infl:published", attack="dead", metric="", value=math.nan, low=math.nan, high=math.nan, status="failed", reason="x"),
        row(attack="", goal="utility", view="", key="", metric="accuracy", value=0.7, low=0.6, high=0.8, role="utility"),
        row(metric="tpr@0.1%", value=0.01, low=0.0, high=0.02),
    ]
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("leakage > 0.2", 2),
        ("leakage.value >= 0.9", 1),
        ("leakage.low > 0.2", 1),
        ("leakage.low>0.8", 0),
        ("leakage.high < 5e-1", 0),
        ("leakage.high <= +.5", 1),
        ("leakage > 4", 0),  # controls and upper bounds do not count
        ("leakage[defense=fedavg].low > 0.2", 0),
        ("leakage[defense=infl:published, attack=lira].low > 0.2", 1),
        ("leakage.low > 0.2 and accuracy < 0.5", 0),
        ("leakage.low > 0.2 and accuracy < 0.75", 2),
        ("leakage.low > 2 or accuracy < 0.75", 1),
        ("accuracy < 0.5 and leakage > 0 or accuracy > 0.5", 1),
        ("tpr@0.1% > 0", 1),
        ("tpr@0.1%.high > 0.05", 0),
        ("leakage.n == 10", 2),
        ("leakage != 0.3", 1),
    ],
)
def test_conditions(text: str, count: int) -> None:
    assert len(condition.holds(condition.parse(text), TABLE)) == count


def test_a_kept_condition_is_told_in_words() -> None:
    (line,) = condition.holds(condition.parse("leakage.low > 0.2"), TABLE)
    assert line == "leakage.low = 0.8 > 0.2: infl:published / lira / server / none"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot read"),
        ("leakage", "cannot read"),
        ("leakage >", "cannot read"),
        ("leakage > high", "cannot read"),
        ("0.2 < leakage", "cannot read"),
        ("leakage > 0.2 and", "cannot read"),
        ("__import__('os').system('true') > 0", "cannot read"),
        ("leakage.lo > 0.2", "no field 'lo'; did you mean 'low'"),
        ("leakage[defence=fedavg] > 0", "narrow by 'defence=fedavg'; did you mean 'defense'"),
        ("leakage[fedavg] > 0", "narrow by 'fedavg'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        condition.parse(text)
    assert words in str(caught.value)


def test_what_the_table_lacks_is_one_sentence() -> None:
    with pytest.raises(RequestError, match="did you mean 'leakage'"):
        condition.holds(condition.parse("leakge > 0.2"), TABLE)
    with pytest.raises(RequestError, match="did you mean 'fedavg'"):
        condition.holds(condition.parse("leakage[defense=fedavgg] > 0.2"), TABLE)
