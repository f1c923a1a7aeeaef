"""Metrics of embeddings against known answers and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from suites.tasks.clusters import STARTS, agreement, clusterings, coherence, foscttm, mixing, nearest

GRID = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), -1).reshape(-1, 2)


def test_separate_groups_are_found_and_agree() -> None:
    truth = np.repeat([0, 1, 2], 30)
    z = torch.randn(90, 4, generator=torch.Generator().manual_seed(0)) + 30.0 * torch.tensor(truth)[:, None]
    found = clusterings(z, 3)
    assert len(found) == STARTS
    assert agreement(found[:1], truth) == {"ari": 1.0, "nmi": pytest.approx(1.0)}
    other = np.arange(90) % 3
    assert agreement([truth, other], truth)["ari"] == pytest.approx((1 + adjusted_rand_score(truth, other)) / 2)


@pytest.mark.parametrize("z", [torch.ones(30, 4), torch.full((30, 4), float("nan"))])
def test_an_embedding_that_says_nothing_is_one_cluster(z: torch.Tensor) -> None:
    assert set(clusterings(z, 3)[0].tolist()) == {0}
    assert agreement(clusterings(z, 3), np.repeat([0, 1, 2], 10))["ari"] == 0.0


def test_nearest_leaves_out_the_point_itself_also_among_doubles() -> None:
    place = np.array([[0.0, 0], [0, 0], [0, 0], [5, 0], [5, 1]])
    found = nearest(place, 2)
    assert found.shape == (5, 2)
    assert not (found == np.arange(5)[:, None]).any()
    assert set(found[0].tolist()) == {1, 2}
    assert found[3, 0] == 4
    assert nearest(place[:1]).shape == (1, 0)


def test_coherence_is_one_for_halves_and_nought_at_random() -> None:
    halves = (GRID[:, 0] >= 10).astype(np.int64)
    assert coherence(halves, GRID) > 0.85  # cells on the border have neighbours beyond it
    drawn = np.random.default_rng(0).integers(0, 2, len(GRID))
    assert abs(coherence(drawn, GRID)) < 0.1
    assert coherence(np.zeros(400, dtype=np.int64), GRID) == 0.0


def test_foscttm_by_counting() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 25, 3))
    gap = np.linalg.norm(a[:, None] - b[None], axis=2)
    n = len(gap)
    expected = np.mean([((gap[i] < gap[i, i]).sum() + (gap[:, i] < gap[i, i]).sum()) / (2 * (n - 1)) for i in range(n)])
    assert foscttm(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)
    assert foscttm(torch.tensor(a), torch.tensor(a)) == 0.0
    assert foscttm(torch.ones(9, 2), torch.ones(9, 2)) == pytest.approx(0.5)  # all alike: chance


def test_mixing_is_one_for_mixed_batches_and_nought_for_separate_ones() -> None:
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    batch = np.arange(400) % 2
    assert mixing(z, batch) > 0.9
    assert mixing(z + 100.0 * torch.tensor(batch)[:, None], batch) == pytest.approx(0.0, abs=1e-12)
    assert mixing(z, np.zeros(400, dtype=np.int64)) == 1.0
    assert np.isnan(mixing(torch.ones(400, 3), batch)), "among identical points the order of ties would be measured"


def test_embeddings_that_are_all_but_equal_are_judged_all_but_alike() -> None:
    """Overlapping groups have many local optima; the mean over starts hardly moves with the sixth digit."""
    truth = np.arange(600) % 6
    z = torch.randn(600, 6, generator=torch.Generator().manual_seed(0)) + 1.2 * torch.eye(6)[torch.tensor(truth)]
    noise = 1e-6 * torch.randn(600, 6, generator=torch.Generator().manual_seed(1))
    a, b = (agreement(clusterings(x, 6), truth)["ari"] for x in (z, z + noise))
    assert abs(a - b) < 0.02


@pytest.mark.parametrize("rounded", [False, True])
def test_matches_of_many_are_counted_in_parts(rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(60, 3, generator=draw)
    b = a + 0.4 * torch.randn(60, 3, generator=draw)
    a, b = (a.round(), b.round()) if rounded else (a, b)  # with ties
    whole = foscttm(a, b)
    monkeypatch.setattr("suites.tasks.layout._BLOCK", 7 * 60)
    assert foscttm(a, b) == pytest.approx(whole, abs=1e-12)
    assert 0.01 < whole < 0.4
