"""Per-record clipping behind a key: the encoder's vector is shared by the batch, so its gradients come from J J^T."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from infl.embed import embed
from infl.encoder import Encoder
from suites.clipping import ClippedSum
from suites.per_record import Batch
from suites.tasks.classification import Classification
from tests.suites.test_clipping import assert_close, by_loop, loss

FEATURES, CLASSES = 11, 4


def keyed(*, per_layer: bool, strength: float = 5.0) -> nn.Module:
    rng = torch.Generator().manual_seed(5)
    net = Classification(hidden=8, head=6, blocks=2, dropout=0.2).net(FEATURES, CLASSES)
    coordinates = 2 * torch.rand(10, 2, generator=rng) - 1
    return embed(net, coordinates, strength=strength, per_layer=per_layer, generator=rng).double()


def batch(module: nn.Module, lanes: int, records: int = 7, norm: float = 1.0) -> Batch:
    rng = torch.Generator().manual_seed(9)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    params = {name: torch.stack([t + 0.3 * normal(*t.shape) for _ in range(lanes)]) for name, t in module.state_dict().items()}
    private = {}
    for name, buffer in module.named_buffers():
        if name.endswith("coordinates"):
            private[name] = torch.stack([buffer + 0.1 * normal(*buffer.shape) for _ in range(lanes)])
        elif name.endswith("mask"):
            private[name] = 1.25 * (normal(lanes, records, 8) > -0.8)
    weight = torch.ones(lanes, records, dtype=torch.float64)
    weight[:, -1] = 0.0
    y = torch.randint(CLASSES, (lanes, records), generator=rng)
    return Batch(params, private, normal(lanes, records, FEATURES), y, weight, norm)


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("norm", [0.1, 1e6])
def test_keyed_layers_equal_a_loop_over_records(per_layer: bool, lanes: int, norm: float) -> None:
    module = keyed(per_layer=per_layer)
    b = batch(module, lanes, norm=norm)
    summed = ClippedSum(module, loss)
    sums, norms = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    wanted = by_loop(module, b)
    assert_close((sums, norms), wanted, 1e-9)
    assert any(float(tensor.abs().max()) > 1e-6 for name, tensor in wanted[0].items() if "key_encoder" in name)


def test_without_the_key_its_parts_get_no_gradient() -> None:
    module = keyed(per_layer=False)
    for part in module.modules():
        if isinstance(part, Encoder):
            part.enabled = False
    b = batch(module, 1)
    summed = ClippedSum(module, loss)
    sums, norms = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert summed.ghost
    assert_close((sums, norms), by_loop(module, b), 1e-9)
    assert not any(tensor.any() for name, tensor in sums.items() if "key" in name or "film" in name)


def test_a_batch_shared_module_that_reads_records_is_found_out() -> None:
    class Summary(nn.Module):
        batch_shared = True

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).mean(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.summary, self.head = Summary(), nn.Linear(FEATURES, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x) * self.summary(x)

    module = Net().double()
    b = batch(module, 1)
    b.y.clamp_(max=2)
    summed = ClippedSum(module, loss)
    got = summed(b.params, b.private, b.x, b.y, b.weight, b.norm)
    assert not summed.ghost
    assert_close(got, by_loop(module, b), 1e-9)
