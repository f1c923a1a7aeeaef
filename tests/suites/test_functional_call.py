"""A module called with other tensors: the same as torch's own call, tied weights included."""

import pytest
import torch
from torch import Tensor, nn

from suites import functional_call
from suites.functional_call import outputs_of
from suites.modules import call


class Tied(nn.Module):
    """Two layers that share a weight, and a table that two buffers share."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 4), nn.Linear(4, 4)
        self.up.weight = self.down.weight
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("also", self.table)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.tanh(self.down(x))) * self.table + self.also


@pytest.mark.parametrize("names", [("down.weight",), ("up.weight", "up.bias"), ("table",), ("also", "down.bias")])
def test_tied_tensors_follow_the_one_that_is_given(names: tuple[str, ...]) -> None:
    module, draw = Tied(), torch.Generator().manual_seed(0)
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    given = {name: torch.randn(own[name].shape, generator=draw) for name in names}
    x = torch.randn(3, 4, generator=draw)
    for _ in range(2):  # also where it is known already
        found = outputs_of(module, given, x)
        assert torch.equal(found, torch.func.functional_call(module, given, (x,)))
        assert not torch.allclose(found, module(x))


def test_what_is_tied_is_looked_for_once_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plain = torch.func.functional_call

    def noted(*args: object, **named: object) -> Tensor:
        asked.append(named["tie_weights"])
        return plain(*args, **named)  # type: ignore[arg-type, no-any-return]

    monkeypatch.setattr(functional_call.torch.func, "functional_call", noted)
    lone, x = nn.Linear(4, 2), torch.ones(1, 4)
    for module in (lone, Tied(), lone):
        outputs_of(module, {}, x)
    assert asked == [False, True, False]


def test_a_call_is_in_evaluation_mode_and_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.9))
    params, x = dict(module.named_parameters()), torch.ones(5, 4)
    assert torch.equal(call(module, params, x), module[0](x))
    assert all(part.training for part in module.modules())
    module.eval()
    assert torch.equal(call(module, params, x), module[0](x))
    assert not any(part.training for part in module.modules())
