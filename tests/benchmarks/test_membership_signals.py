"""Round-wise membership signals on the shared workload: 1,200 records, 6 sites of 100 members, 20 rounds of 2 local epochs.

From activations and deltas only, against per-record gradients by vmap in the same run. The file is looked for as in ``test_audit``.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from attacks.membership.bias_difference import BiasDifference
from attacks.membership.fedmia import FedMIA
from attacks.membership.ghost import Products, RecordGradients
from attacks.membership.gradient_difference import GradientDifference
from attacks.membership.round_cosine import RoundCosine
from suites.contracts import Federation, Local, Params, Records
from suites.federation import Assignment, Pool, train
from suites.stack import Stack
from suites.tasks.classification import Classification
from tests.benchmarks.test_audit import workload

Value = TypeVar("Value")


def test_signals_of_every_record_site_and_round(benchmark) -> None:
    """At most 0.5 s CPU, a fifteenth of per-record gradients or less, and per-round cosine AUC at least .85."""
    torch.set_num_threads(1)
    data = np.load(workload(), allow_pickle=False)
    x, y = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long()
    member = torch.from_numpy(data["member"]).bool()
    members = member.nonzero().squeeze(1)[torch.randperm(600, generator=torch.Generator().manual_seed(3))]
    sites = tuple(members.split(100))
    task = Classification(network="mlp", dropout=0.0)
    federation = Federation(sites=6, rounds=20, local=Local(epochs=2, batch=100, lr=1e-3))
    trained = train(task, Stack(), federation, Pool(x, y, 14), [Assignment(sites, ("signals",), ("signals", "defense"))], chunk=1)[0]
    module = trained.module

    def outputs(params: Params, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,))

    def loss(found: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(found, y, reduction="none")

    def ghost() -> list[Products]:
        gradients = RecordGradients(outputs, loss, Records(x, y))
        return [gradients.products(r.broadcast, [m.payload for m in r.messages]) for r in trained.rounds]

    def one_round_by_record() -> Tensor:
        record = trained.rounds[-1]
        state = {name: record.broadcast[name] for name, _ in module.named_parameters()}

        def of_one(p: Params, one: Tensor, label: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(module, p, (one[None],)), label[None])

        slopes = vmap(grad(of_one), in_dims=(None, 0, 0), chunk_size=200)(state, x, y)
        flat = torch.cat([slopes[name].flatten(1) for name in state], 1)
        moved = torch.stack([torch.cat([m.payload[name].flatten() for name in state]) for m in record.messages])
        return _cosine(moved, -flat)

    seconds, found = _cpu(ghost)
    slow, exact = _cpu(one_round_by_record)
    assert torch.allclose(found[-1].cosine(), exact, atol=1e-4)
    aucs = {}
    for attack in (RoundCosine(), FedMIA(), GradientDifference(), BiasDifference()):
        signal = torch.stack([attack.signals(one) for one in found]).mean(0)  # [S, n]
        aucs[type(attack).__name__] = float(np.mean([_auc(signal[s][rows], signal[s][~member]) for s, rows in enumerate(sites)]))
    benchmark.pedantic(ghost, rounds=1)
    benchmark.extra_info.update(cpu_seconds=seconds, ratio=20 * slow / seconds, **aucs)
    assert seconds <= 0.5
    assert 20 * slow / seconds >= 15
    assert aucs["RoundCosine"] >= 0.85
    assert aucs["FedMIA"] >= 0.75
    assert min(aucs.values()) > 0.55


def _cpu(call: Callable[[], Value]) -> tuple[float, Value]:
    value, spent = call(), []
    for _ in range(3):
        start = time.process_time()
        value = call()
        spent.append(time.process_time() - start)
    return sorted(spent)[1], value


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None]).clamp_min(1e-30)


def _auc(members: Tensor, others: Tensor) -> float:
    pairs = members[:, None] - others[None]
    return float((pairs > 0).float().mean() + 0.5 * (pairs == 0).float().mean())
