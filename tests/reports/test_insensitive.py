"""A metric in which training makes no difference is flagged; one in which it does is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from reports import schema
from reports.flags import flag_results
from reports.insensitive import insensitive


def table(gains: list[float], fedavg: list[float], alone: list[float], direction: str = "higher") -> pd.DataFrame:
    def row(defense: str, seed: int, metric: str, value: float, role: str) -> dict[str, object]:
        base = {"suite": "s", "task": "t", "data": "d", "attack": "", "goal": "utility", "view": "", "key": "", "n": 9, "status": "ok"}
        end = {"low": np.nan, "high": np.nan, "direction": direction, "reason": "", "seconds": 0.0, "schema_version": 1}
        return {**base, **end, "defense": defense, "seed": seed, "metric": metric, "value": value, "role": role}

    rows = []
    for seed, (gain, a, b) in enumerate(zip(gains, fedavg, alone)):
        rows += [row("fedavg", seed, "ari:above_untrained_network", gain, "control"), row("fedavg", seed, "ari", a, "utility")]
        rows += [row("local_only", seed, "ari", b, "utility")]
    return pd.DataFrame(rows)[list(schema.RESULTS)]


CLEAR = [0.20, 0.21, 0.19]


def test_training_that_gains_nothing_is_flagged() -> None:
    found = list(insensitive(table([0.02, -0.03, 0.01], [0.2] * 3, [0.1, 0.11, 0.1])))
    assert [flag for _, flag, _ in found] == ["insensitive:ari"]
    assert "untrained" in found[0][2]
    assert found[0][0]["defense"] == "fedavg"


def test_federating_that_gains_nothing_is_flagged() -> None:
    (found,) = insensitive(table(CLEAR, [0.30, 0.31, 0.30], [0.31, 0.30, 0.30]))
    assert "sites alone" in found[2]


def test_a_clear_gain_is_not_flagged() -> None:
    assert list(insensitive(table(CLEAR, [0.30, 0.31, 0.30], [0.20, 0.21, 0.20]))) == []


def test_where_less_is_better_the_sign_turns() -> None:
    assert list(insensitive(table(CLEAR, [0.20, 0.21, 0.20], [0.30, 0.31, 0.30], "lower"))) == []
    assert len(list(insensitive(table(CLEAR, [0.30, 0.31, 0.30], [0.20, 0.21, 0.20], "lower")))) == 1


@pytest.mark.parametrize(("gain", "flags"), [(0.1, 0), (-0.1, 1)])
def test_one_seed_tells_only_a_loss(gain: float, flags: int) -> None:
    assert len(list(insensitive(table([gain], [0.3], [0.2])))) == flags


def test_the_flag_is_a_row_of_the_table() -> None:
    found = flag_results(table([-0.1], [0.3], [0.2]))
    assert found["metric"].tolist() == ["flag:insensitive:ari"]
    assert found["role"].tolist() == ["flag"]
