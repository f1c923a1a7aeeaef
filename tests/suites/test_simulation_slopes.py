"""The simulated message is differentiated right in the records, in one lane and in many: what every batched search stands on."""

import pytest
import torch
from torch import Tensor

from suites.contracts import Clip, Target
from suites.lanes import wire
from suites.modules import initialise
from suites.randomness import stream
from suites.simulation import simulate
from suites.tasks.classification import Classification


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("clip", [None, Clip(0.5)])
@pytest.mark.parametrize("steps", [0, 2])
def test_slopes_agree_with_differences_under_vmap(norm: str, clip: Clip | None, steps: int) -> None:
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.0, norm=norm)  # type: ignore[arg-type]
    module = task.net(5, 3).double()
    initialise(module, stream("test_simulation_slopes"))
    params = wire(module)
    target = Target(params, {}, 2, "sgd" if steps else "gradient", max(steps, 1), 0.1, 0, 1, 0)
    y = torch.tensor([0, 2])

    def size(x: Tensor) -> Tensor:
        return torch.stack([t.square().sum() for t in simulate(module, task.loss, target, x, y, clip).values()]).sum()

    x = torch.randn(3, 2, 5, generator=stream("records"), dtype=torch.float64)
    free = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(torch.func.vmap(size)(free).sum(), free)
    for lane, record, feature in ((0, 0, 0), (1, 1, 3), (2, 0, 4)):
        step = torch.zeros_like(x[lane])
        step[record, feature] = 1e-6
        difference = (size(x[lane] + step) - size(x[lane] - step)) / 2e-6
        assert float(slope[lane, record, feature]) == pytest.approx(float(difference), rel=1e-5, abs=1e-8)
