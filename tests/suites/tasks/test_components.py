"""Principal components, the same whichever matrix they are found by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from suites.room import Rows
from suites.tasks.components import components


def table(records: int, columns: int) -> torch.Tensor:
    """Columns of unlike spread, so that the first components are told apart."""
    x = torch.randn(records, columns, generator=torch.Generator().manual_seed(0))
    return x * torch.linspace(3.0, 0.5, columns) + 2.0


@pytest.mark.parametrize(("small", "records", "columns"), [(1 << 21, 50, 8), (0, 50, 8), (0, 12, 40), (0, 20, 20)])
def test_components_are_those_of_scikit_learn(small: int, records: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.tasks.components._SMALL", small)
    monkeypatch.setattr("suites.tasks.components._LEAST", 1)
    monkeypatch.setattr("suites.room.BLOCK", 32 * 3 * records)  # three columns, or a few rows, at a time
    x = table(2 * records, columns)
    train, asked = x[::2], x[1::2]
    expected = PCA(3, svd_solver="full").fit(train.numpy()).transform(asked.numpy())
    found = components(Rows(x, torch.arange(0, 2 * records, 2)), 3)(asked)
    np.testing.assert_allclose(found.abs().numpy(), np.abs(expected), atol=1e-4)
    weight = torch.linspace(0.2, 2.0, columns)
    expected = PCA(3, svd_solver="full").fit((train * weight).numpy()).transform((asked * weight).numpy())
    found = components(Rows(x, torch.arange(0, 2 * records, 2)), 3, weight)(asked)
    np.testing.assert_allclose(found.abs().numpy(), np.abs(expected), atol=1e-4)


@pytest.mark.parametrize("small", [1 << 21, 0])
def test_missing_components_are_zero(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.tasks.components._SMALL", small)
    x = table(50, 2)
    assert components(Rows(x, torch.arange(50)), 3)(x)[:, 2].abs().max() == 0
    alike = torch.ones(4, 30)
    assert components(Rows(alike, torch.arange(4)), 3)(alike).abs().max() < 1e-5


@pytest.mark.parametrize("small", [1 << 21, 0])
def test_a_component_has_one_sign(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.tasks.components._SMALL", small)
    method = components(Rows(table(20, 30), torch.arange(20)), 12)
    axes = method(torch.eye(30)) - method(torch.zeros(30, 30))
    torch.testing.assert_close(axes.T @ axes, torch.eye(12), atol=1e-4, rtol=0)
    assert bool((axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all())


def test_missing_values_are_refused_where_tables_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.tasks.components._SMALL", 0)
    x = table(20, 30)
    x[3, 4] = float("nan")
    with pytest.raises(ValueError, match="missing"):
        components(Rows(x, torch.arange(20)), 3)
