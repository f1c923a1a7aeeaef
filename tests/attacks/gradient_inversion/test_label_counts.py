"""Label counts come out whole, sum to the batch and are exact at a fresh model."""

import numpy as np
import pytest
import torch
from observations import mlp, normal, probe, wire
from torch.func import functional_call

from attacks.gradient_inversion.labels import label_counts, label_list, whole

F, K = 200, 14


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_counts_are_exact_in_twenty_of_twenty(size: int) -> None:
    """MLP 1000-64-64-14, standard normal records; the adversary draws 512 of its own."""
    module = mlp([1000, 64, 64, K], seed=size)
    outputs = functional_call(module, wire(module), (normal(512, 1000, seed=50),)).detach()
    for trial in range(20):
        y = torch.from_numpy(np.random.default_rng(trial).integers(0, K, size))
        counts = label_counts(probe(module, normal(size, 1000, seed=100 + trial), y), K, outputs)
        assert counts is not None
        assert counts.tolist() == torch.bincount(y, minlength=K).tolist()


def test_a_step_and_a_gradient_say_the_same() -> None:
    module = mlp([F, 32, K])
    x, y = normal(6, F, seed=1), torch.tensor([0, 0, 3, 5, 13, 13])
    for optimiser, lr in (("gradient", 0.0), ("sgd", 0.1)):
        found = label_list(probe(module, x, y, optimiser=optimiser, lr=lr), K)
        assert found is not None
        assert found.tolist() == y.tolist()


def test_one_label_survives_adam() -> None:
    module = mlp([F, 32, K])
    found = label_list(probe(module, normal(1, F, seed=1), torch.tensor([9]), optimiser="adam", lr=1e-3), K)
    assert found is not None
    assert found.tolist() == [9]


def test_rounding_keeps_the_sum_and_the_sign() -> None:
    for seed in range(50):
        share = normal(K, seed=seed) * 3
        counts = whole(share, 8)
        assert int(counts.sum()) == 8
        assert int(counts.min()) >= 0
    assert whole(torch.tensor([1.6, 1.6, 0.8]), 4).tolist() == [2, 1, 1] or whole(torch.tensor([1.6, 1.6, 0.8]), 4).tolist() == [1, 2, 1]


def test_no_output_bias_no_counts() -> None:
    target = probe(mlp([F, 32, K]), normal(2, F, seed=1), torch.tensor([0, 1]))
    object.__setattr__(target, "update", {"0.weight": target.update["0.weight"]})
    assert label_counts(target, K) is None
