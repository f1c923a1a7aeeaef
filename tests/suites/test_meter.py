"""What is measured: FLOP against hand counts, bytes, memory, time."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from suites import meter
from suites.clipping import ClippedSum


def test_flop_of_a_matrix_product() -> None:
    left, right = torch.ones(30, 40), torch.ones(40, 50)
    assert meter.flop(lambda: left @ right) == 2 * 30 * 40 * 50


def test_flop_of_a_training_step() -> None:
    net = torch.nn.Linear(40, 10)
    x = torch.ones(20, 40)
    # forward and weight gradient; the input needs none
    assert meter.flop(lambda: net(x).sum().backward()) == 2 * (2 * 20 * 40 * 10)


def test_clipping_is_counted_on_its_fast_path() -> None:
    """Torch's own counter hooks modules so that ``autograd.grad`` of an inner tensor fails, and the slow path ran and was counted."""
    draw = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(40, 10), torch.nn.ReLU(), torch.nn.Linear(10, 3))
    params = {name: tensor.detach()[None] for name, tensor in net.named_parameters()}
    x, y = torch.randn(1, 20, 40, generator=draw), torch.randint(0, 3, (1, 20), generator=draw)
    clipped = ClippedSum(net, lambda outputs, y: torch.nn.functional.cross_entropy(outputs, y, reduction="none"))
    clipped(params, {}, x, y, torch.ones(1, 20), 1.0)  # compares both paths, once

    counted = meter.flop(lambda: clipped(params, {}, x, y, torch.ones(1, 20), 1.0))
    assert clipped.ghost
    # two layers forward, the second's input derivative, and one product a layer for the clipped sums
    assert counted == 2 * 20 * (2 * (40 * 10 + 10 * 3) + 10 * 3)


@pytest.mark.parametrize("inference", [False, True])
def test_torchs_own_counter_says_the_same(inference: bool) -> None:
    """On layers that it can follow: linear, normalised, convolutional, attentive; forward and back, and where nothing is differentiated."""
    draw = torch.Generator().manual_seed(0)
    x, image = torch.randn(6, 8, 16, generator=draw), torch.randn(2, 3, 9, 9, generator=draw)
    encoder = torch.nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    convolved = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.GroupNorm(1, 5), torch.nn.GELU(), torch.nn.Flatten())

    def work() -> None:
        with torch.inference_mode(inference):
            out = encoder(x).sum() + convolved(image).sum() + torch.einsum("bij,bkj->bik", x, x).sum()
        if not inference:
            out.backward()

    with FlopCounterMode(display=False) as theirs:
        work()
    counted = meter.flop(work)
    assert counted == theirs.get_total_flops()
    assert counted > 2 * 6 * 8 * (2 * 16 * 24)


def test_a_net_that_branches_is_counted_outside_its_branches() -> None:
    x = torch.ones(6, 5)
    work = torch.nn.Linear(5, 5, bias=False)
    assert meter.flop(lambda: torch.cond(work(x).sum() > 0, torch.sin, torch.cos, (x,))) == 2 * 6 * 5 * 5


def test_wire_bytes() -> None:
    assert meter.wire_bytes({"w": torch.ones(3, 5), "b": torch.ones(5, dtype=torch.float64), "n": torch.ones((), dtype=torch.int64)}) == 108


def test_peak_memory_sees_what_is_already_freed() -> None:
    with meter.measure() as small:
        pass
    with meter.measure() as large:
        held = torch.ones(100 * 2**18)  # 100 MiB
        del held
    assert large.peak_bytes - small.peak_bytes > 90 * 2**20
    with meter.measure() as after:
        pass
    assert large.peak_bytes - after.peak_bytes > 50 * 2**20  # the peak is the block's, not the process's


def test_waiting_is_not_work() -> None:
    with meter.measure() as reading:
        time.sleep(0.2)
    assert reading.seconds >= 0.2
    assert reading.busy < 0.1


def test_measured_even_if_the_block_fails() -> None:
    with pytest.raises(ValueError, match="x"), meter.measure() as reading:
        raise ValueError("x")
    assert reading.peak_bytes > 0


def test_peak_rate_is_no_less_than_what_a_product_reaches() -> None:
    torch.set_num_threads(1)
    a = torch.ones(512, 512)
    rate = meter.peak_flop_rate(size=512, repeats=5)
    with meter.measure() as reading:
        for _ in range(5):
            a @ a
    assert 0 < 5 * 2 * 512**3 / reading.busy < 3 * rate
