"""A network that does no better than its untrained start, or worse than a simple method, is told; one that does better is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports import schema
from reports.beside import beside
from reports.flags import flag_results


def table(defense: str, control: str, gains: list[float], metric: str = "ari", task: str = "t") -> pd.DataFrame:
    base = {"suite": "s", "task": task, "data": "d", "attack": "", "goal": "utility", "view": "", "key": "", "n": 9, "status": "ok"}
    end = {"low": np.nan, "high": np.nan, "direction": "higher", "reason": "", "seconds": 0.0, "schema_version": 1, "defense": defense}
    rows = []
    for seed, gain in enumerate(gains):
        rows.append({**base, **end, "seed": seed, "metric": "ari", "value": 0.4, "role": "utility"})
        rows.append({**base, **end, "seed": seed, "metric": f"{metric}:above_{control}", "value": gain, "role": "control"})
    return pd.DataFrame(rows)[list(schema.RESULTS)]


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([-0.03, -0.031, -0.029], ["is behind beside pca, by -0.030 [-0.032, -0.028]"]),
        ([-0.05, 0.02, -0.01], ["is behind on average, not beyond what seeds differ by,"]),
        ([0.05, -0.02, 0.01], []),
        ([0.0, 0.0, 0.0], []),
        ([-0.01], ["by -0.010 (one seed)"]),
    ],
)
def test_a_simple_method_that_is_ahead_is_told(gains: list[float], said: list[str]) -> None:
    found = list(beside(table("centralized", "pca", gains)))
    assert [flag for _, flag, _ in found] == ["simple_is_as_good:ari:pca"] * len(said)
    for (_, _, sentence), words in zip(found, said):
        assert words in sentence


@pytest.mark.parametrize(("gains", "flags"), [([0.01, -0.02, 0.02], 1), ([0.1, 0.11, 0.09], 0), ([-0.2, -0.21, -0.2], 1)])
def test_a_defense_that_gains_nothing_over_its_start_is_told(gains: list[float], flags: int) -> None:
    found = list(beside(table("dp_sgd:epsilon=8", "untrained_network", gains)))
    assert [flag for _, flag, _ in found] == ["untrained_is_as_good:ari"] * flags
    assert all(row["defense"] == "dp_sgd:epsilon=8" for row, _, _ in found)
    assert list(beside(table("fedavg", "untrained_network", gains))) == []  # there it is the metric that is judged


def test_other_metrics_than_the_headline_are_left_to_the_table() -> None:
    assert list(beside(table("centralized", "pca", [-0.3, -0.3, -0.31], metric="nmi"))) == []


def test_the_parts_of_a_suite_are_told_apart_and_the_flags_are_rows() -> None:
    both = pd.concat([table("centralized", "pca", [-0.3, -0.3, -0.31]), table("centralized", "pca", [0.3, 0.3, 0.31], task="u")])
    found = flag_results(both)
    assert found["metric"].tolist() == ["flag:simple_is_as_good:ari:pca"]
    assert found["task"].tolist() == ["t"]
