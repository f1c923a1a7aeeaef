"""The networks: agreement with the published one, purity, stacking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from suites.errors import RequestError
from suites.tasks.networks import MLP, Dropout, ResidualMLP


def find_golden() -> Path:
    for folder in (Path(__file__).parents[2] / "golden", Path(__file__).resolve().parents[4] / "shared" / "golden"):
        if (folder / "infl_published.npz").exists():
            return folder / "infl_published.npz"
    pytest.skip("no golden tensors: tests/golden/infl_published.npz is absent")


def test_the_published_network_without_its_key_is_this_one_with_batch_norm() -> None:
    golden = np.load(find_golden())
    net = ResidualMLP(37, 5, hidden=12, head=6, norm="batch").double().eval()
    names = {"embedding": "embedding", "fc1": "fc1", "fc2": "fc2"}
    for i in (1, 2):
        names |= {f"blocks.{i - 1}.linear{j}": f"rb{i}_linear{j}" for j in (1, 2)}
        names |= {f"blocks.{i - 1}.norm1": f"rb{i}_bn1", f"blocks.{i - 1}.norm2": f"resblock{i}_bn"}
    state = {key: torch.from_numpy(golden[f"state/{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}"]) for key in net.state_dict()}
    net.load_state_dict(state)
    out = net(torch.from_numpy(golden["x"]))
    torch.testing.assert_close(out, torch.from_numpy(golden["logits_without_key"]), rtol=1e-10, atol=1e-12)


def test_dropout_is_the_mask_it_is_given_and_leaves_no_trace_in_the_state() -> None:
    layer = Dropout(0.5, 3)
    assert not layer.state_dict()
    h = torch.randn(4, 3)
    assert torch.equal(layer.train()(h), h)
    mask = torch.tensor([[2.0, 0.0, 2.0]]).expand(4, 3)
    assert torch.equal(functional_call(layer, {"mask": mask}, (h,)), h * mask)
    with pytest.raises(RequestError, match="dropout must lie in"):
        Dropout(1.0, 3)


@pytest.mark.parametrize("build", [lambda: ResidualMLP(7, 3, hidden=8, head=4), lambda: MLP(7, 3, (8, 6), dropout=0.1)])
def test_networks_stack_under_vmap_with_masks(build) -> None:
    torch.manual_seed(0)
    nets = [build() for _ in range(3)]
    x = torch.randn(3, 5, 7)
    params, _ = stack_module_state(nets)
    masks = {
        f"{name}.mask": torch.randint(0, 2, (3, 5, m.width)).float() * 2 for name, m in nets[0].named_modules() if isinstance(m, Dropout)
    }
    out = vmap(lambda p, b, x: functional_call(nets[0], (p, b), (x,)))(params, masks, x)
    assert masks
    for i, net in enumerate(nets):
        alone = functional_call(net, {name: mask[i] for name, mask in masks.items()}, (x[i],))
        torch.testing.assert_close(out[i], alone, rtol=1e-5, atol=1e-6)


def test_every_parameterised_module_is_called_once() -> None:
    net = ResidualMLP(7, 3)
    calls: dict[str, int] = {}
    for name, module in net.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_hook(lambda m, a, o, name=name: calls.update({name: calls.get(name, 0) + 1}))
    net(torch.randn(2, 7))
    assert set(calls.values()) == {1}
    assert {type(net.get_submodule(name)) for name in calls} == {nn.Linear, nn.LayerNorm}
    assert sum(p.numel() for p in net.parameters() if p.ndim == 2) == 7 * 64 + 4 * 64 * 64 + 64 * 32 + 32 * 3


def test_a_typo_in_the_norm_is_one_sentence() -> None:
    with pytest.raises(RequestError, match="norm=layer, batch or none"):
        ResidualMLP(4, 2, norm="bacth")  # type: ignore[arg-type]
