"""Loss, signal and metrics of the classification task against slow or foreign references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from torch.nn import functional as F

from suites.contracts import RequestError, Task
from suites.tasks.classification import Classification

task = Classification()


def test_it_meets_the_contract() -> None:
    def takes(task: Task) -> str:
        return task.name

    assert takes(task) == "classification"


def test_loss_with_labels_and_with_probabilities() -> None:
    outputs, y = torch.randn(2, 6, 4, dtype=torch.float64), torch.randint(0, 4, (2, 6))
    expected = F.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(2, 6)
    torch.testing.assert_close(task.loss(outputs, y), expected)
    torch.testing.assert_close(task.loss(outputs, F.one_hot(y, 4).double()), expected)
    soft = torch.full((2, 6, 4), 0.25, dtype=torch.float64)
    torch.testing.assert_close(task.loss(outputs, soft), -outputs.log_softmax(-1).mean(-1))


def test_signal_is_the_logit_of_the_true_class_and_stays_finite() -> None:
    outputs, y = torch.randn(50, 5, dtype=torch.float64), torch.randint(0, 5, (50,))
    p = outputs.softmax(-1).gather(1, y[:, None]).squeeze(1)
    torch.testing.assert_close(task.signal(outputs, y), torch.log(p / (1 - p)))
    torch.testing.assert_close(task.signal(outputs, F.one_hot(y, 5).double()), task.signal(outputs, y))
    sure = torch.tensor([[400.0, 0.0, 0.0]])  # p rounds to 1 in double precision
    assert task.signal(sure, torch.tensor([0])).item() == pytest.approx(400 - math.log(2))
    assert task.signal(sure, torch.tensor([1])).item() == pytest.approx(-400)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 40))
def test_metrics_equal_scikit_learn(seed: int, classes: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    y[:2] = 0, 1  # at least two classes are present; others may be absent
    outputs = torch.from_numpy(np.round(rng.normal(size=(n, classes)), 1))  # rounding makes ties
    ours = task.utility(outputs, torch.from_numpy(y), classes)
    guess, p = outputs.argmax(-1).numpy(), outputs.softmax(-1).numpy()
    assert ours["accuracy"] == pytest.approx(metrics.accuracy_score(y, guess))
    present = np.isin(guess, y)
    recall = [np.mean(guess[y == k] == k) for k in np.unique(y)]
    assert ours["balanced_accuracy"] == pytest.approx(np.mean(recall))
    if present.all():  # scikit-learn warns otherwise
        assert ours["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(y, guess))
    assert ours["f1_macro"] == pytest.approx(metrics.f1_score(y, guess, average="macro", zero_division=0))
    assert ours["f1_weighted"] == pytest.approx(metrics.f1_score(y, guess, average="weighted", zero_division=0))
    auc = [(metrics.roc_auc_score(y == k, p[:, k]), np.sum(y == k)) for k in np.unique(y)]
    assert ours["auc_weighted"] == pytest.approx(sum(a * w for a, w in auc) / sum(w for _, w in auc))


def test_a_model_that_diverged_scores_like_a_coin_and_not_as_an_error() -> None:
    y = torch.tensor([0, 1, 1, 0])
    ours = task.utility(torch.full((4, 2), float("nan")), y, 2)
    assert ours["accuracy"] == 0.5
    assert ours["auc_weighted"] == 0.5


def test_the_headline_comes_first_and_the_floor_is_the_majority() -> None:
    y_train, y_test = torch.tensor([0, 2, 2, 1, 2]), torch.tensor([2, 2, 0, 1])
    floor = task.floor(y_train, y_test, 4)
    assert next(iter(floor)) == "accuracy"
    assert floor["accuracy"] == 0.5
    assert floor["balanced_accuracy"] == pytest.approx(1 / 3)
    assert floor["auc_weighted"] == 0.5
    assert list(floor) == list(task.utility(torch.randn(4, 4), y_test, 4))


def test_one_class_only_in_the_test_part_has_no_auc() -> None:
    assert math.isnan(task.utility(torch.randn(3, 2), torch.tensor([1, 1, 1]), 2)["auc_weighted"])


def test_networks_by_parameter() -> None:
    assert Classification(network="mlp", hidden=5, blocks=2).net(7, 3)(torch.randn(4, 7)).shape == (4, 3)
    assert any(isinstance(m, torch.nn.BatchNorm1d) for m in Classification(norm="batch").net(7, 3).modules())
    for bad in ({"network": "gnn"}, {"norm": "group"}, {"hidden": 0}):
        with pytest.raises(RequestError):
            Classification(**bad)
