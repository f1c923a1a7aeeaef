"""Keyed random features keep what a search without a key reads: why they are no defense here (docs/hardened.md, "Other constructions")."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from suites.randomness import keys, stream
from tests.infl.hardened_limits import cohort
from tests.infl.keyed_features import LENGTHS, KeyedFeatures, costs, embedded, kernel, names

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("length", [1.0, 0.5])
def test_inner_products_are_the_public_kernel_whatever_the_key(length: float) -> None:
    x, count = torch.randn(30, 200, generator=stream("keyed features test")), 4096
    layer = KeyedFeatures(features=count, length=length)
    made = [layer.prepare(x, layer.secret(keys("keyed features test", key))).double() for key in range(2)]
    assert float((made[0] - made[1]).abs().mean()) > 0.5  # another key, other features
    for z in made:
        assert float((z @ z.T / count - kernel(x, length)).abs().max()) < 5 / count**0.5
    expected = float(torch.exp(-(x[0] - x[1]).square().sum() / (4 * 200 * length**2)))  # |x - y|^2 / 2 l^2, with l in units of sqrt(2 F)
    assert float(kernel(x, length)[0, 1]) == pytest.approx(expected, rel=1e-5)


def test_a_kernel_has_an_embedding_that_a_search_can_read() -> None:
    gram = kernel(torch.randn(20, 6, generator=stream("embedding")), 0.5)
    rows = embedded(gram)
    assert torch.allclose(rows @ rows.T, gram, atol=1e-10)


def test_where_accuracy_holds_all_are_named_and_where_few_are_the_model_is_lost() -> None:
    table = pd.read_csv(DOCS / "hardened_features.csv").set_index("length")
    assert tuple(table.index) == LENGTHS
    kept, hidden = table[table["cost"] > -0.02], table[table["share"] < 0.2]
    assert len(kept) >= 2
    assert len(hidden) >= 2
    assert (kept["share"] > 0.95).all()
    assert (hidden["cost_high"] < -0.1).all()
    between = table.drop([*kept.index, *hidden.index])
    assert (between["cost_high"] < -0.02).all()
    assert (between["low"] > 0.3).all()


@pytest.mark.slow
def test_single_records_behind_keyed_features_are_named_again() -> None:
    found = names(cohort("pbmc68k"), 0.7, seed=7)
    assert found["named"] >= 0.95 * found["of"]
    blind = names(cohort("pbmc68k"), 0.25, seed=7)
    assert blind["named"] <= 0.2 * blind["of"]  # the same search, where nothing of the kernel is left


@pytest.mark.slow
def test_what_short_lengths_cost_comes_out_again(tmp_path: Path) -> None:
    table = costs(tmp_path, seeds=2, lengths=(0.7, 0.25)).set_index("length")["cost"]
    assert table[0.7] > -0.06
    assert table[0.25] < -0.3
