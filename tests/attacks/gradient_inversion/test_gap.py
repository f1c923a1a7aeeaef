"""Distances and their slopes by hand are those of gradients that are formed and differentiated by torch."""

import pytest
import torch
from observations import message, mlp, normal
from torch import Tensor

from attacks.gradient_inversion.gap import Gap
from suites.lanes import wire

NAMES = ("0.weight", "2.weight", "4.weight")
LANES, BATCH, FEATURES, CLASSES = 3, 4, 20, 5


def scene() -> tuple[torch.nn.Module, dict, Tensor, Tensor]:
    module = mlp([FEATURES, 16, 12, CLASSES]).double()
    x, soft = normal(LANES, BATCH, FEATURES, seed=1).double(), normal(LANES, BATCH, CLASSES, seed=2).double().softmax(-1)
    return module, wire(module), x, soft


def formed(module: torch.nn.Module, params: dict, x: Tensor, soft: Tensor, received: dict, unit: float | None) -> Tensor:
    sent = message(module, params, x, soft)
    return sum((sent[name] - there).square().sum() / (unit or there.square().sum()) for name, there in received.items())


@pytest.mark.parametrize("unit", [None, 0.7])
def test_one_message_for_all_lanes(unit: float | None) -> None:
    module, params, x, soft = scene()
    received = {name: value.detach() for name, value in message(module, params, normal(BATCH, FEATURES, seed=5).double(), soft[0]).items()}
    x.requires_grad_()
    soft.requires_grad_()
    ours = Gap(NAMES, params, params["0.weight"], received, unit)(x, soft)
    theirs = torch.stack([formed(module, params, one, labels, received, unit) for one, labels in zip(x, soft)])
    assert torch.allclose(ours, theirs, rtol=1e-10)
    weight = torch.arange(1.0, LANES + 1).double()
    for mine, other in zip(torch.autograd.grad((ours * weight).sum(), (x, soft)), torch.autograd.grad((theirs * weight).sum(), (x, soft))):
        assert float(other.abs().max()) > 0
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-12)


def test_a_message_and_a_first_weight_for_each_lane_and_labels_shared() -> None:
    module, params, x, soft = scene()
    shared = soft[:1].clone().requires_grad_()
    each = [message(module, params, normal(BATCH, FEATURES, seed=6 + lane).double(), soft[0]) for lane in range(LANES)]
    received = {name: torch.stack([one[name].detach() for one in each]) for name in each[0]}
    first = params["0.weight"].expand(LANES, -1, -1)
    ours = Gap(NAMES, params, first, received)(x, shared)
    theirs = torch.stack([formed(module, params, one, shared[0], own, None) for one, own in zip(x, each)])
    assert torch.allclose(ours, theirs, rtol=1e-10)
    mine, other = (torch.autograd.grad(found.sum(), shared)[0] for found in (ours, theirs))
    assert mine.shape == shared.shape
    assert torch.allclose(mine, other, rtol=1e-8)


def test_one_message_for_several_lanes_that_follow_each_other() -> None:
    module, params, x, soft = scene()
    x, soft = (torch.cat([part, part.flip(0)]).requires_grad_() for part in (x, soft))  # six lanes, three messages
    each = [message(module, params, normal(BATCH, FEATURES, seed=6 + lane).double(), soft[0].detach()) for lane in range(3)]
    received = {name: torch.stack([one[name].detach() for one in each]) for name in each[0]}
    first = params["0.weight"] * torch.tensor([1.0, 1.1, 0.9]).double()[:, None, None]
    several = Gap(NAMES, params, first, received)(x, soft)
    alone = Gap(NAMES, params, first.repeat_interleave(2, 0), {name: value.repeat_interleave(2, 0) for name, value in received.items()})(
        x, soft
    )
    assert torch.allclose(several, alone, rtol=1e-12)
    for mine, other in zip(torch.autograd.grad(several.sum(), (x, soft)), torch.autograd.grad(alone.sum(), (x, soft))):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-14)


def test_nothing_is_left_at_the_records_themselves() -> None:
    module, params, x, soft = scene()
    received = message(module, params, x[0], soft[0])
    assert abs(float(Gap(NAMES, params, params["0.weight"], received)(x[:1], soft[:1]))) < 1e-12  # what is left of one minus two plus one
