"""Simple methods beside the network: their numbers are those of the method alone, and the difference is a paired one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from suites.bench import Bench
from suites.room import Rows, gathered
from suites.tasks.classification import Classification
from suites.yardsticks import measures


def spec(defense: str = "centralized", **changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": "classification:dropout=0",
        "data": {"name": "synthetic", "params": {"records": 160, "features": 30, "classes": 3, "separation": 0.5}},
        "split": {"unit": "record", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "iid", "sites": 2},
        "federation": {"rounds": 1, "local": {"epochs": 1}},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def test_logistic_regression_says_what_scikit_learn_says() -> None:
    """Classes 0 and 3 of four never occur in training: their columns must stay in place."""
    x = torch.randn(90, 5, generator=torch.Generator().manual_seed(1))
    y = torch.where(x[:, 0] + 0.3 * x[:, 1] > 0, 2, 1)
    test = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    outputs = Classification().baselines(Rows(x, torch.arange(90)), y, 4)["logistic_regression"](test)
    assert outputs.shape == (40, 4)
    expected = LogisticRegression(max_iter=200).fit(x.numpy(), y.numpy()).predict_proba(test.numpy())
    np.testing.assert_allclose(torch.softmax(outputs, -1)[:, 1:3].numpy(), expected, atol=1e-6)
    assert set(outputs.argmax(-1).tolist()) <= {1, 2}


def test_a_sure_answer_counts() -> None:
    """Where a class has probability zero its logarithm is no number, and utility takes such rows for those of a diverged model."""
    x = torch.cat([torch.full((30, 400), -1.0), torch.full((30, 400), 1.0)])
    y = torch.cat([torch.zeros(30), torch.ones(30)]).long()
    task = Classification()
    outputs = task.baselines(Rows(x, torch.arange(60)), y, 2)["logistic_regression"](300 * x)
    assert bool(outputs.isfinite().all())
    assert task.utility(outputs, y, 2)["accuracy"] == 1.0


def test_the_difference_is_better_when_positive_whatever_the_direction() -> None:
    found = {
        m.metric: m for m in measures({"accuracy": 0.8, "mse": 0.2}, {"simple": {"accuracy": 0.7, "mse": 0.5}}, 10, frozenset({"mse"}))
    }
    assert set(found) == {"accuracy:simple", "accuracy:above_simple", "mse:simple", "mse:above_simple"}
    assert {m.role for m in found.values()} == {"control"}
    assert found["accuracy:above_simple"].value == pytest.approx(0.1)
    assert found["mse:above_simple"].value == pytest.approx(0.3)
    assert (found["mse:simple"].direction, found["mse:above_simple"].direction) == ("lower", "higher")


def test_a_metric_that_is_undefined_on_one_side_has_no_difference() -> None:
    nan = float("nan")
    assert [m.metric for m in measures({"auc": nan, "f1": 1.0}, {"simple": {"auc": 0.5, "f1": nan, "other": 1.0}}, 10)] == ["auc:simple"]


@pytest.mark.parametrize("defense", ["centralized", "fedavg"])
def test_yardsticks_see_all_training_records_and_stand_once_beside_each_open_network(defense: str) -> None:
    bench = Bench(spec(defense), None)
    prepared = bench.prepared
    found = {m.metric: m.value for m in bench.yardsticks({"accuracy": 1.0})}
    train = torch.cat(prepared.sites)
    expected = LogisticRegression(max_iter=200).fit(prepared.pool.x[train].numpy(), prepared.pool.y[train].numpy())
    right = expected.score(prepared.pool.x[prepared.test].numpy(), prepared.pool.y[prepared.test].numpy())
    assert found["accuracy:logistic_regression"] == pytest.approx(right)
    assert found["accuracy:above_logistic_regression"] == pytest.approx(1.0 - right)
    assert Bench(spec("local_only"), None).yardsticks({"accuracy": 1.0}) == []  # the report sets it beside those of the others


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_method_that_makes_no_row_of_each_record_is_told_so(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.room.BLOCK", 32 * 4 * 3)  # four records of three columns at a time
    with pytest.raises(ValueError, match="one row of each record"):
        gathered(lambda part: torch.zeros(rows, 2), Rows(torch.ones(10, 3), torch.arange(10)))
