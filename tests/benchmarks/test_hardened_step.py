"""The bar of ``infl:hardened``: records are mixed once before training, so a step costs what FedAvg's costs at equal width."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import pytest
import torch

from infl.hardened import Hardened
from suites.contracts import Federation, Local
from suites.federation import Assignment, Pool, train
from suites.stack import Stack
from suites.tasks.classification import Classification

SITES, EACH, CLASSES, ROUNDS = 5, 241, 14, 20


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("features", [1000, 9105])
def test_a_step_on_mixed_records_against_fedavg(benchmark, features: int) -> None:
    """A round of one epoch, from one round's end to the next: at most 1.05 x FedAvg's. What mixing costs once is told beside it."""
    draw = torch.Generator().manual_seed(7)
    pool = Pool(torch.randn(SITES * EACH, features, generator=draw), torch.randint(0, CLASSES, (SITES * EACH,), generator=draw), CLASSES)
    assignment = Assignment(tuple(torch.arange(SITES * EACH).split(EACH)), ("step",), ("step", "secret"))
    task, federation = Classification(dropout=0.0), Federation(rounds=1 + ROUNDS, local=Local(epochs=1, batch=100, lr=5e-4))

    def trained(*layers: Hardened) -> tuple[float, float]:
        """CPU seconds until the first round has ended, and the median of those of each round after it."""
        ends: list[float] = []

        def ended(_: int) -> bool:
            ends.append(time.process_time())
            return False

        start = time.process_time()
        kept = train(task, Stack(layers), federation, pool, [assignment], chunk=1, keep=ended)[0]
        assert next(value for name, value in kept.finals[0].items() if name.endswith("weight")).shape[-1] == features  # nothing is padded
        assert len(ends) == 1 + ROUNDS
        return ends[0] - start, statistics.median(after - before for before, after in pairwise(ends))

    ours = Hardened()
    trained(ours)
    turns = [(trained(), trained(ours)) for _ in range(7)]
    plain, hardened = (statistics.median(turn[which][1] for turn in turns) for which in (0, 1))
    ratio = statistics.median(mixed / bare for (_, bare), (_, mixed) in turns)
    mixing = statistics.median(mixed - bare for (bare, _), (mixed, _) in turns)
    benchmark.pedantic(lambda: trained(ours), rounds=1)
    benchmark.extra_info.update(ratio=ratio, fedavg_round_s=plain, hardened_round_s=hardened, mixing_once_s=mixing)
    assert ratio <= 1.05
