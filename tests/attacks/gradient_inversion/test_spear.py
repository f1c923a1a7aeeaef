"""Whole batches from the zeros of switched-off units: exact in single precision, and a reason wherever there are no such zeros."""

import pytest
import torch
from observations import FakeObservation, message, mlp, normal, probe, r2, wire
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.gradient_inversion.spear import Spear, SpearOfSum, directions
from suites.contracts import Records, RequestError, Skip, Target

K = 14


def lab(batch: int, count: int = 1, features: int = 1000, module: nn.Module | None = None, **step):
    module = mlp([features, 64, 64, K], 0) if module is None else module
    xs = [normal(batch, features, seed=10 + i) for i in range(count)]
    ys = [(torch.arange(batch) * (i + 1)) % 5 for i in range(count)]  # labels repeat
    targets = [probe(module, x, y, **step) for x, y in zip(xs, ys)]
    return FakeObservation(module, features, K, targets=targets, auxiliary=Records(normal(50, features, seed=99), torch.arange(50) % K)), xs


def run(seen: FakeObservation, **options: int):
    return Spear(**options).run(seen, torch.Generator().manual_seed(5))


def errors(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    order = linear_sum_assignment(torch.cdist(truth, guess).numpy())[1]
    return (guess[order] - truth).norm(dim=1) / truth.norm(dim=1)


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_batches_come_back_exactly_in_single_precision_and_are_certified(batch: int) -> None:
    seen, truth = lab(batch, 3)
    guess = run(seen)
    assert max(float(errors(g, t).max()) for g, t in zip(guess.value, truth)) < 1e-5
    assert guess.certified.tolist() == [True] * 3
    assert guess.notes["solved"] == 3


@pytest.mark.slow
def test_ten_records_too() -> None:
    seen, truth = lab(10, 4)
    guess = run(seen)
    assert max(float(errors(g, t).max()) for g, t in zip(guess.value, truth)) < 1e-5
    assert guess.certified.all()


def test_one_step_of_sgd_is_a_gradient_up_to_the_rounding_of_its_parameters() -> None:
    module = mlp([300, 64, 64, K], 0)
    x, y, lr = normal(4, 300, seed=10), torch.arange(4), 0.5
    before = wire(module)
    step = message(module, before, x, y, "sgd", 1, lr)
    update = {name: ((before[name] + step[name]) - before[name]).detach() for name in before}  # as a server gets it: rounded
    target = Target(before, update, 4, "sgd", 1, lr, 0, 1, 0)
    seen = FakeObservation(module, 300, K, targets=[target], auxiliary=Records(normal(50, 300, seed=99), torch.arange(50) % K))
    assert float(errors(run(seen).value[0], x).max()) < 1e-3


def test_zeros_survive_steps_of_sgd_on_all_records() -> None:
    """Five steps of eight records, which the row space takes half a minute of search for."""
    seen, truth = lab(8, 2, optimiser="sgd", steps=5, lr=0.2)
    guess = run(seen)
    assert max(float(errors(g, t).max()) for g, t in zip(guess.value, truth)) < 1e-4
    assert guess.certified.tolist() == [True, True]


def test_records_that_are_nearly_right_point_at_their_zeros() -> None:
    """Twelve directions by draws among the rows that rough guesses leave small; draws among all rows find few of them."""
    generator = torch.Generator().manual_seed(2)
    slopes = torch.randn(64, 12, generator=generator).double() * (torch.rand(64, 12, generator=generator) < 0.5)
    mixed = torch.linalg.qr(slopes)[0]
    wanted = torch.nn.functional.normalize(torch.linalg.lstsq(mixed, slopes).solution, dim=0)
    rough = wanted + 0.02 * torch.randn(12, 12, generator=generator).double()
    found, _ = directions(mixed, 1e-6, 4096, generator, rough)
    assert len(found) == 12
    assert torch.allclose((found @ wanted).abs().max(0).values, torch.ones(12).double(), atol=1e-9)
    assert len(directions(mixed, 1e-6, 4096, generator)[0]) < 12


def test_directions_are_those_that_were_planted_and_mixtures_of_two_are_not_taken() -> None:
    """Units that are off for two records are zero in every mixture of both, and one more row makes such a mixture a kernel."""
    generator = torch.Generator().manual_seed(1)
    for trial in range(10):
        slopes = torch.randn(40, 4, generator=generator).double() * (torch.rand(40, 4, generator=generator) < 0.5)
        mixed = torch.linalg.qr(slopes)[0]
        wanted = torch.nn.functional.normalize(torch.linalg.lstsq(mixed, slopes).solution.T, dim=1)
        found, used = directions(mixed, 1e-6, 20_000, generator)
        likeness = (found @ wanted.T).abs()
        assert len(found) == 4, trial
        assert used > 0
        assert torch.allclose(likeness.max(0).values, torch.ones(4).double(), atol=1e-9), trial


def test_a_message_of_other_records_yields_nothing_of_these() -> None:
    seen, _ = lab(4)
    assert r2([run(seen).value[0]], [normal(4, 1000, seed=800)]) < 0


def test_what_it_cannot_use_has_a_reason() -> None:
    def reason(seen: FakeObservation, words: str, **options: int) -> None:
        with pytest.raises(Skip, match=words):
            run(seen, **options)

    tanh = nn.Sequential(nn.Linear(60, 32), nn.Tanh(), nn.Linear(32, K))
    reason(lab(3, features=60, module=tanh)[0], "no ReLU follows", budget=4096)
    reason(lab(64)[0], "no fewer than units")
    reason(lab(4, noise=lambda t: t + 1e-2 * t.std() * torch.randn(t.shape, generator=torch.Generator().manual_seed(3)))[0], "noise")
    reason(lab(2, optimiser="adam", steps=1, lr=1e-3)[0], "Adam divides by their size")
    bare = nn.Sequential(nn.Linear(60, 32, bias=False), nn.ReLU(), nn.Linear(32, K))
    reason(lab(3, features=60, module=bare)[0], "no bias")
    with pytest.raises(RequestError, match="at least 1"):
        Spear(budget=0)


def test_one_message_too_large_does_not_silence_the_others() -> None:
    small, truth = lab(2)
    large, _ = lab(64)
    both = FakeObservation(small.module, 1000, K, targets=[*large.targets, *small.targets], auxiliary=small.auxiliary)
    guess = run(both)
    assert (guess.certified.tolist(), guess.notes["solved"]) == ([False, True], 1)
    assert guess.value[0].shape == (64, 1000)
    assert float(errors(guess.value[1], truth[0]).max()) < 1e-5


def test_sums_are_one_batch() -> None:
    seen, truth = lab(6, contributors=3)
    guess = SpearOfSum().run(seen, torch.Generator().manual_seed(5))
    assert float(errors(guess.value[0], truth[0]).max()) < 1e-5
    assert "probes" not in SpearOfSum.needs
