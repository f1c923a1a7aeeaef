"""Bars of the engine, each a ratio within one run on one thread: a bare loop, matrix products alone, a stack against alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infl.published import Published
from suites.contracts import Federation, Local
from suites.federation import Assignment, Pool, train
from suites.stack import Stack
from suites.tasks.classification import Classification
from tests.benchmarks.ratio import interleaved


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _pool(records: int, features: int, classes: int) -> Pool:
    draw = torch.Generator().manual_seed(7)
    return Pool(torch.randn(records, features, generator=draw), torch.randint(0, classes, (records,), generator=draw), classes)


def _assignment(pool: Pool, sites: int, each: int, index: int = 0) -> Assignment:
    order = torch.randperm(len(pool.x), generator=torch.Generator().manual_seed(index))
    return Assignment(tuple(order[i * each : (i + 1) * each] for i in range(sites)), ("benchmark", index), ("benchmark", "defense", index))


def bare_fedavg(net: nn.Module, pool: Pool, sites: list[torch.Tensor], rounds: int, local: Local) -> dict[str, torch.Tensor]:
    """FedAvg as one would write it in a notebook: one module, a loop over sites, a fused Adam, a weighted mean."""
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weight = torch.tensor([len(site) for site in sites], dtype=torch.float32)
    for _ in range(rounds):
        results = []
        for site in sites:
            net.load_state_dict(state)
            optimiser = torch.optim.Adam(net.parameters(), lr=local.lr, fused=True)
            for _ in range(local.epochs):
                for batch in torch.split(site[torch.randperm(len(site))], local.batch):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(net(pool.x[batch]), pool.y[batch]).backward()
                    optimiser.step()
            results.append({name: tensor.detach().clone() for name, tensor in net.state_dict().items()})
        state = {name: sum(r[name] * w for r, w in zip(results, weight / weight.sum())) for name in state}
    return state


def test_fedavg_with_recording_against_a_bare_loop(benchmark):
    """5 sites x 241 records x 9,105 features, 602k parameters, 20 rounds, every message recorded: at most 1.2 x a bare loop."""
    pool = _pool(5 * 241, 9105, 14)
    local = Local(epochs=1, batch=100, lr=5e-4)
    task = Classification(dropout=0.0)
    assignment = _assignment(pool, 5, 241)

    def ours():
        return train(task, Stack(), Federation(rounds=20, local=local), pool, [assignment], chunk=1)

    def bare():
        return bare_fedavg(task.net(9105, 14), pool, list(assignment.sites), 20, local)

    engine, loop, ratio = interleaved(ours, bare, repeats=5)
    recorded = benchmark.pedantic(ours, rounds=1)[0]
    benchmark.extra_info.update(engine_s=engine, bare_s=loop, ratio=ratio)
    assert len(recorded.rounds) == 20
    assert sum(t.numel() for t in recorded.finals[0].values()) == pytest.approx(602_000, rel=0.01)
    assert ratio <= 1.2


def test_sixteen_references_against_their_matrix_products(benchmark):
    """16 MLPs 1000-64-64-14, each on a random half of 1,200 records, batch 100, 20 epochs: at most 1.6 x the matrix products alone."""
    pool = _pool(1200, 1000, 14)
    task = Classification(network="mlp", dropout=0.0)
    local = Local(epochs=20, batch=100, lr=1e-3)
    assignments = [_assignment(pool, 1, 600, index) for index in range(16)]

    def ours():
        return train(task, Stack(), Federation(rounds=1, local=local), pool, assignments, keep=lambda _: False, chunk=16)

    x = torch.randn(16, 100, 1000)
    widths = [(1000, 64), (64, 64), (64, 14)]
    weights = [torch.randn(16, o, i) for i, o in widths]
    inputs = [torch.randn(16, 100, i) for i, _ in widths]
    deltas = [torch.randn(16, 100, o) for _, o in widths]
    inputs[0] = x

    def products():
        for _ in range(20 * 6):
            for layer, (a, w, d) in enumerate(zip(inputs, weights, deltas)):
                torch.bmm(a, w.mT)
                torch.bmm(d.mT, a)
                if layer:
                    torch.bmm(d, w)

    engine, bare, ratio = interleaved(ours, products, repeats=5)
    benchmark.extra_info.update(engine_s=engine, products_s=bare, ratio=ratio)
    benchmark.pedantic(ours, rounds=1)
    assert ratio <= 1.6


def test_infl_references_in_a_stack_against_alone(benchmark):
    """8 INFL references at 765 inputs: at least 2 x faster each in a stack than alone."""
    pool = _pool(700, 765, 10)
    task = Classification(dropout=0.0)
    local = Local(epochs=4, batch=100, lr=1e-3)
    assignments = [_assignment(pool, 5, 70, index) for index in range(8)]
    federation = Federation(rounds=5, local=local)

    def run(chunk: int):
        return train(task, Stack([Published()]), federation, pool, assignments, keep=lambda _: False, chunk=chunk)

    alone, stacked, ratio = interleaved(lambda: run(1), lambda: run(40), repeats=5)
    benchmark.extra_info.update(alone_s=alone, stacked_s=stacked, ratio=ratio)
    benchmark.pedantic(lambda: run(40), rounds=1)
    assert ratio >= 2.0
