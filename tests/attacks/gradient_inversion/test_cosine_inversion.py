"""Cosine inversion finds the record by the observable loss alone, and from a start of its own."""

import pytest
import torch
from observations import FakeObservation, cosine, mlp, normal, probe, r2
from torch import nn

from attacks.gradient_inversion.cosine import CosineInversion, CosineInversionOfSum, batch

F, K = 40, 5


def lab(targets: int = 3, size: int = 1, seed: int = 1, other: int | None = None):
    module = mlp([F, 32, 16, K])
    x, y = normal(targets * size, F, seed=seed), torch.arange(targets * size) % K
    shown = x if other is None else normal(targets * size, F, seed=other)
    cut = [slice(i * size, (i + 1) * size) for i in range(targets)]
    seen = FakeObservation(module, F, K, targets=[probe(module, shown[c], y[c]) for c in cut])
    return seen, [x[c] for c in cut]


def run(seen: FakeObservation, seed: int = 3, **options: object):
    return CosineInversion(**options).run(seen, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_one_record_is_found() -> None:
    seen, truth = lab()
    guess = run(seen, budget=300, restarts=2)
    assert min(float(cosine(v, t)[0]) for v, t in zip(guess.value, truth)) > 0.98
    assert r2(guess.value, truth) > 0.9


def test_more_budget_gives_a_lower_loss() -> None:
    seen, _ = lab()
    short, long = run(seen, budget=10), run(seen, budget=200)
    assert bool((long.confidence > short.confidence).all())


def test_the_start_does_not_know_the_truth() -> None:
    """Traps 1: an attacker seeded like the data would start at the answer."""
    seen, truth = lab(targets=4)
    start = run(seen, budget=0, limit=4, restarts=1)
    assert max(abs(float(cosine(v, t)[0])) for v, t in zip(start.value, truth)) < 0.5
    assert abs(float(cosine(torch.cat(start.value).flatten(), torch.cat(truth).flatten()))) < 0.2


def test_same_seed_same_bytes_and_another_seed_other_bytes() -> None:
    seen, _ = lab()
    one, two, three = run(seen, budget=20), run(seen, budget=20), run(seen, seed=4, budget=20)
    assert all(torch.equal(a, b) for a, b in zip(one.value, two.value))
    assert not any(torch.equal(a, b) for a, b in zip(one.value, three.value))


def test_nothing_comes_out_of_an_update_of_other_records() -> None:
    seen, truth = lab(targets=6, other=8)
    guess = run(seen, budget=100, limit=6)
    similar = torch.stack([cosine(v, t)[0] for v, t in zip(guess.value, truth)])
    assert float(similar.mean()) - 3.1 / (6 * F) ** 0.5 <= 0
    assert r2(guess.value, truth) < 0


def test_only_the_first_targets_are_guessed_and_the_notes_say_so() -> None:
    seen, _ = lab(targets=3)
    guess = run(seen, budget=2, limit=2)
    assert len(guess.value) == 2
    assert (guess.notes["targets"], guess.notes["of"]) == (2.0, 3.0)


def test_a_sum_is_inverted_too() -> None:
    seen, truth = lab(targets=1, size=3)
    guess = CosineInversionOfSum(budget=200).run(seen, torch.Generator().manual_seed(3))
    assert CosineInversionOfSum.needs >= {"probe_sums"}
    assert "probes" not in CosineInversionOfSum.needs
    assert guess.value[0].shape == (3, F)
    assert float(cosine(guess.value[0][:, None], truth[0][None]).max(0).values.mean()) > 0.6


def test_a_model_that_cannot_be_batched_runs_lane_by_lane() -> None:
    def stubborn(x: torch.Tensor, logits: torch.Tensor, received: dict[str, torch.Tensor]) -> torch.Tensor:
        return x.sum() * float(received["a"].sum().item())  # .item() has no batching rule

    x = torch.ones(3, 2, requires_grad=True)
    out = batch(stubborn)(x, x, {"a": torch.arange(3.0)})
    assert out.tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_updates_of_several_steps_are_simulated(optimiser: str) -> None:
    module: nn.Module = mlp([F, 16, K])
    x, y = normal(1, F, seed=1), torch.tensor([2])
    seen = FakeObservation(module, F, K, targets=[probe(module, x, y, optimiser=optimiser, steps=3, lr=1e-3)])
    guess = run(seen, budget=150)
    assert float(cosine(guess.value[0], x)[0]) > 0.7


def test_a_start_that_leaves_the_numbers_does_not_win() -> None:
    seen, _truth = lab(targets=1)
    clean = seen.simulate

    def breaks(target, x, y, key=None):  # the simulated client fails wherever the first coordinate is positive
        return {name: t + torch.where(x[0, 0] > 0, torch.nan, 0.0) for name, t in clean(target, x, y, key).items()}

    seen.simulate = breaks  # type: ignore[method-assign]
    guess = run(seen, budget=30, restarts=8)
    assert bool(guess.confidence.isfinite().all())
    assert float(guess.confidence.max()) <= 0  # minus a cosine distance
    assert bool(guess.value[0].isfinite().all())
