"""What a DP-SGD step costs beside a plain one, and beside Opacus: 9,105 inputs, batch 100, the residual LayerNorm net of 602k parameters.

CPU time on one thread, taken in turns in one run, so that only the ratios count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from baselines.dp_sgd import DPSGD
from infl.embed import embed
from suites.clipping import ClippedSum
from suites.tasks.classification import Classification

FEATURES, CLASSES, BATCH, RATE = 9105, 14, 100, 5e-4
Step = Callable[[], object]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _net() -> nn.Module:
    return Classification(dropout=0.0).net(FEATURES, CLASSES)


def _keyed() -> nn.Module:
    return embed(_net(), 2 * torch.rand(128, 2, generator=torch.Generator().manual_seed(1)) - 1)


def _batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, FEATURES, generator=draw), torch.randint(CLASSES, (BATCH,), generator=draw)


def _adam(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(net.parameters(), lr=RATE, fused=True)


def plain(net: nn.Module) -> Step:
    loss, (x, y) = Classification().loss, _batch()
    optimiser = _adam(net)

    def step() -> None:
        optimiser.zero_grad()
        loss(net(x), y).mean().backward()
        optimiser.step()

    return step


def ours(noise_multiplier: float, net: nn.Module) -> Step:
    x, y = _batch()
    optimiser, defense, rng = _adam(net), DPSGD(noise_multiplier=noise_multiplier), torch.Generator().manual_seed(0)
    clipped = ClippedSum(net, Classification().loss)
    parameters = dict(net.named_parameters())
    secrets = {name: buffer.unsqueeze(0) for name, buffer in net.named_buffers() if name.endswith("coordinates")}
    weight = torch.ones(1, BATCH)

    def step() -> None:
        params = {name: parameter.detach().unsqueeze(0) for name, parameter in parameters.items()}
        sums, _ = clipped(params, secrets, x.unsqueeze(0), y.unsqueeze(0), weight, 1.0)
        noisy = defense.noise({name: tensor[0] for name, tensor in sums.items()}, rng)
        for name, parameter in parameters.items():
            parameter.grad = noisy[name] / BATCH
        optimiser.step()

    step()
    assert clipped.ghost
    return step


def opacus_hooks() -> Step:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    net, (x, y) = GradSampleModule(_net()), _batch()
    optimiser = DPOptimizer(_adam(net), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=BATCH)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()

    return step


def opacus_ghost() -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    net, (x, y) = GradSampleModuleFastGradientClipping(_net(), max_grad_norm=1.0, use_ghost_clipping=True), _batch()
    optimiser = DPOptimizerFastGradientClipping(_adam(net), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=BATCH)
    criterion = DPLossFastGradientClipping(net, optimiser, nn.CrossEntropyLoss())

    def step() -> None:
        optimiser.zero_grad()
        criterion(net(x), y).backward()
        optimiser.step()

    return step


def _milliseconds(step: Step, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        step()
    return 1e3 * (time.process_time() - start) / times


def _medians(steps: dict[str, tuple[Step, int]], turns: int) -> dict[str, float]:
    """Median milliseconds of each step, taken in turns; a step of which one call is timed comes up in every fifth turn only."""
    for step, _ in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns):
        for name, (step, times) in steps.items():
            if times > 1 or turn % 5 == 0:
                taken[name].append(_milliseconds(step, times))
    return {name: statistics.median(values) for name, values in taken.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_step_against_plain_and_opacus(benchmark) -> None:
    """At most 2.5 x a plain step with LayerNorm and noise, at most 1.5 x without the noise; Opacus measured in the same turns."""
    net = _net()
    steps = {
        "plain": (plain(_net()), 5),
        "noise": (ours(1.0, net), 5),
        "clip": (ours(0.0, _net()), 5),
        "opacus_ghost": (opacus_ghost(), 2),
        "opacus_hooks": (opacus_hooks(), 1),
    }
    taken = _medians(steps, turns=15)
    ratio = {name: value / taken["plain"] for name, value in taken.items()}
    benchmark.extra_info.update(plain_ms=taken["plain"], **{f"{name}_ratio": value for name, value in ratio.items()})
    benchmark.pedantic(steps["noise"][0], rounds=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(602_000, rel=0.01)
    assert ratio["noise"] <= 2.5
    assert ratio["clip"] <= 1.5
    assert ratio["noise"] < ratio["opacus_ghost"] < ratio["opacus_hooks"]


def test_keyed_step_against_plain(benchmark) -> None:
    """The same network with every layer keyed (INFL as published): at most 2 x its own plain step, noise included."""
    steps = {"plain": (plain(_keyed()), 5), "noise": (ours(1.0, _keyed()), 5), "clip": (ours(0.0, _keyed()), 5)}
    taken = _medians(steps, turns=15)
    ratio = {name: value / taken["plain"] for name, value in taken.items()}
    benchmark.extra_info.update(plain_ms=taken["plain"], **{f"{name}_ratio": value for name, value in ratio.items()})
    benchmark.pedantic(steps["noise"][0], rounds=3)
    assert ratio["noise"] <= 2.0
