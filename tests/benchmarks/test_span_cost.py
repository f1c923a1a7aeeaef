"""What span membership costs a record: one site of 512 records, 5,000 strangers, MLP 1000-64-64-14, five epochs of Adam in batches of 32.

Beside it, in the same run, the least that LiRA needs for the same records: sixteen references, each trained as the site trains, and asked.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from attacks.membership.span import SpanMembership
from suites.contracts import Records, RoundView
from tests.benchmarks.ratio import interleaved

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks"))
from observations import FakeObservation, auc, mlp, wire

from tests.attacks.membership.test_span import local, omics

MEMBERS, STRANGERS, FEATURES, CLASSES, REFERENCES = 512, 5000, 1000, 14, 16


def test_milliseconds_a_record(benchmark) -> None:
    """Worth a few forward passes over the records, and less than LiRA."""
    torch.set_num_threads(1)
    x, labels = omics(0, MEMBERS, FEATURES), np.random.default_rng(0).integers(0, CLASSES, MEMBERS + STRANGERS)
    y, candidates = torch.from_numpy(labels), torch.cat([x, omics(50, STRANGERS, FEATURES)])
    module = mlp([FEATURES, 64, 64, CLASSES], 0)
    update = local(module, x, y[:MEMBERS], 5, 32)
    public = Records(omics(60, 500, FEATURES), torch.arange(500) % CLASSES)
    view = RoundView(0, wire(module), {0: update}, None, {})
    seen = FakeObservation(module, FEATURES, CLASSES, rounds=[view], candidates=Records(candidates, y), auxiliary=public)

    def span() -> Tensor:
        found: Tensor = SpanMembership().run(seen, torch.Generator()).value
        return found

    def one_reference() -> Tensor:
        trained = local(module, candidates[::11], y[::11], 5, 32)
        with torch.no_grad():
            return functional_call(module, {name: t + trained.get(name, 0) for name, t in wire(module).items()}, (candidates,))

    def forward() -> Tensor:
        with torch.no_grad():
            return module(candidates)

    _, seconds, ratio = interleaved(one_reference, span, repeats=5)
    passes = interleaved(span, forward, repeats=5)[2]
    scores = span()
    told = auc(scores, torch.arange(len(scores)) < MEMBERS)
    benchmark.pedantic(span, rounds=3)
    benchmark.extra_info.update(
        milliseconds_per_record=1000 * seconds / len(scores), ratio_to_lira=REFERENCES * ratio, forward_passes=passes, auc=told
    )
    assert told >= 0.99
    assert REFERENCES * ratio >= 3
    assert passes <= 50
