"""How many units read the records of a network of one's own: its first layer's gradient has that many rows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def units_reading(net: nn.Module, x: Tensor) -> int:
    """Units of all layers that are fed the records ``x`` [n, F], wherever they are defined; 0 where that cannot be told.

    Two layers that read the same records show as many rows of their span as one of both widths would, so widths add up.

    Found in one forward pass, in which nothing passes a layer with a weight matrix: whatever such a layer is fed that still depends on
    ``x`` was not read by another one before. Where no such layer is called, or the pass fails, all layers count, which is never too
    few. The units of a recurrent layer are the rows of its inputs' weights: one for each gate.
    """
    try:
        width = _in_a_pass(net, x)
    except Exception:  # a stranger's forward may fail in any way: what it would have shown is then not known
        width = None
    if width is None:
        found = [_units(layer) for layer in net.modules() if _reads(layer)]
        width = 0 if None in found else sum(units for units in found if units is not None)
    return width


def _in_a_pass(net: nn.Module, x: Tensor) -> int | None:
    """0 where a layer that reads is of an unknown kind, None where none is seen to read."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    read: dict[int, int] = {}
    called: set[int] = set()

    def watch(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        called.update(id(part) for part in layer.modules())
        if any(isinstance(fed, Tensor) and fed.requires_grad for fed in tree_leaves((args, kwargs))):
            read[id(layer)] = _units(layer) or 0
        return tree_map(lambda part: part.detach() if isinstance(part, Tensor) else part, output)

    for layer in net.modules():
        if _reads(layer):
            layer.register_forward_hook(watch, with_kwargs=True)
    example = next((weight for weight in net.parameters() if weight.is_floating_point()), x)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        net(x[:2].detach().to(example, copy=True).requires_grad_())
    # A weight may be read without a call of its layer, as in linear(x, layer.weight): then only its shape tells.
    for layer in net.modules():
        if id(layer) not in called and isinstance(layer, nn.Linear) and layer.in_features == x.shape[-1]:
            read[id(layer)] = layer.out_features
    if not read:
        return None
    return 0 if 0 in read.values() else sum(read.values())


def _reads(layer: nn.Module) -> bool:
    """Whether a layer mixes its inputs: it has a weight matrix, which a norm has not."""
    known = isinstance(layer, nn.Linear | nn.RNNBase | nn.MultiheadAttention | _Convolution)
    return known or (
        not isinstance(layer, nn.LayerNorm) and any(weight is not None and weight.dim() > 1 for weight in layer._parameters.values())
    )


def _units(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _Convolution):
        return layer.out_channels
    if isinstance(layer, nn.RNNBase):
        return sum(len(weight) for name, weight in layer.named_parameters() if name.startswith("weight_ih_l0"))
    if isinstance(layer, nn.MultiheadAttention):
        return 3 * int(layer.embed_dim)
    return None
