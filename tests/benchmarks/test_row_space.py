"""What the row space and the batching of starts are worth: MLP with two hidden layers of 64, eight records, double precision.

Objective and slope of the same loss, timed in turns. ``Problem.loss`` is what L-BFGS calls in ``attacks.gradient_inversion.row_space``.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.gradient_inversion.gap import Gap
from attacks.gradient_inversion.row_problem import Problem
from attacks.gradient_inversion.row_space import RowSpace
from suites.contracts import Params, Records
from tests.benchmarks.ratio import interleaved

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))
from observations import FakeObservation, message, mlp, normal, probe

BATCH, CLASSES, CALLS = 8, 14, 20


def problem(features: int) -> tuple[Problem, FakeObservation, Tensor]:
    torch.set_num_threads(1)
    module = mlp([features, 64, 64, CLASSES], 0)
    x, y = normal(BATCH, features, seed=10), torch.arange(BATCH) % CLASSES
    public = Records(normal(50, features, seed=99), torch.arange(50) % CLASSES)
    seen = FakeObservation(module, features, CLASSES, targets=[probe(module, x, y)], auxiliary=public)
    return Problem(seen, seen.targets[0], None), seen, x


def with_slope(loss: Tensor, point: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), point)[0]


class FullSpace:
    """The same loss over records [B, F] themselves, by the public client."""

    def __init__(self, found: Problem, seen: FakeObservation) -> None:
        self.module, self.labels = seen.module.double(), found.labels
        self.params = {name: tensor.double() for name, tensor in seen.targets[0].params.items()}
        self.received: Params = {name: tensor.double() for name, tensor in seen.targets[0].update.items()}

    def loss(self, x: Tensor) -> Tensor:
        sent = message(self.module, self.params, x, self.labels)
        return torch.stack([(sent[name] - there).square().sum() / there.square().sum() for name, there in self.received.items()]).sum()


def test_an_objective_of_twenty_thousand_features(benchmark) -> None:
    """At least 20 times cheaper than in full space, and the same number at the same records."""
    found, seen, truth = problem(20_000)
    full = FullSpace(found, seen)
    rough = truth.double() + 0.1 * normal(*truth.shape, seed=4).double()
    inside = (rough @ found.rows.T).flatten()[None].requires_grad_()
    same = (inside.detach().view(BATCH, -1) @ found.rows).requires_grad_()
    assert abs(float(found.loss(inside).detach()) / float(full.loss(same).detach()) - 1) < 1e-6

    def row_space() -> None:
        for _ in range(CALLS):  # one call is a millisecond or so, less than a busy machine's hiccup
            with_slope(found.loss(inside), inside)

    slow, fast, ratio = interleaved(lambda: with_slope(full.loss(same), same), row_space, repeats=15)
    fast, ratio = fast / CALLS, ratio * CALLS
    assert found.gap is not None
    wide = Gap(["0.weight", "2.weight", "4.weight"], full.params, full.params["0.weight"], full.received)
    # What of it the space alone is worth:
    closed = interleaved(lambda: with_slope(wide(same[None], found.soft[None]), same), row_space, repeats=15)[2] * CALLS
    benchmark.pedantic(row_space, rounds=1)
    benchmark.extra_info.update(
        full_space=slow, row_space=fast, ratio=ratio, ratio_with_the_same_closed_form=closed
    )  # what of it the space alone is worth
    assert ratio >= 20


@pytest.mark.parametrize("space", ["row space", "public client"])
def test_sixteen_starts_at_once(benchmark, space: str) -> None:
    """Sixteen starts in one batch against one after the other: in the same row space, and as public tools search (full space, autograd)."""
    found, seen, _ = problem(1000)
    full = FullSpace(found, seen)
    starts = normal(16, BATCH * len(found.rows), seed=5).double().requires_grad_()
    alone = [start.detach()[None].requires_grad_() for start in starts]
    wide = [(start.detach().view(BATCH, -1) @ found.rows).requires_grad_() for start in starts]
    together = with_slope(found.loss(starts), starts)
    one_by_one = torch.cat([with_slope(found.loss(start), start) for start in alone])
    assert torch.allclose(together, one_by_one, rtol=1e-9, atol=1e-12)

    def sequential() -> list[Tensor]:
        if space == "row space":
            return [with_slope(found.loss(start), start) for start in alone]
        return [with_slope(full.loss(start), start) for start in wide]

    slow, fast, ratio = interleaved(sequential, lambda: with_slope(found.loss(starts), starts), repeats=9)
    benchmark.pedantic(lambda: with_slope(found.loss(starts), starts), rounds=1)
    benchmark.extra_info.update(sequential=slow, batched=fast, ratio=ratio)
    assert ratio >= (5 if space == "row space" else 8)


@pytest.mark.parametrize(("batch", "bar"), [(1, 0.8), (4, 1.2), (8, 1.2)])
def test_sixteen_targets_at_once(benchmark, monkeypatch, batch: int, bar: float) -> None:
    """The whole attack on sixteen gradients together, against one after the other; one record is read off, with no search to be shared."""
    torch.set_num_threads(1)
    module = mlp([200, 64, 64, 10], 0)
    targets = [probe(module, normal(batch, 200, seed=10 + i), (torch.arange(batch) * 3 + i) % 10) for i in range(16)]
    public = Records(normal(200, 200, seed=99), torch.arange(200) % 10)
    seen = FakeObservation(module, 200, 10, targets=targets, auxiliary=public)

    def together() -> list[bool]:
        guess = RowSpace(limit=16).run(seen, torch.Generator().manual_seed(5))
        assert guess.certified is not None
        return list(guess.certified.tolist())

    def loop() -> list[bool]:
        with monkeypatch.context() as patched:
            patched.setattr(Problem, "alike", lambda one, other: False)
            return together()

    assert together() == loop() == [True] * 16
    slow, fast, ratio = interleaved(loop, together, repeats=5)
    benchmark.pedantic(together, rounds=1)
    benchmark.extra_info.update(loop=slow, together=fast, ratio=ratio)
    print(f"batch {batch}: loop {slow:.3f} s, together {fast:.3f} s, {ratio:.2f} times")
    assert ratio >= bar
