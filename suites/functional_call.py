"""A module called with other tensors in place of its own: ``torch.func.functional_call``, which looks for tied weights once a module."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from suites.contracts import Params

_TIED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def outputs_of(module: nn.Module, tensors: Params, x: Tensor) -> Tensor:
    """Outputs of ``module`` at ``x`` with ``tensors`` in place of its own of these names; tied weights follow the one that is given.

    Torch walks all modules at every call to find the tied ones, a fifth of a small net's forward pass. Which tensors are tied is taken to
    stay as it was at a module's first call.
    """
    if module not in _TIED:
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        _TIED[module] = len({id(tensor) for _, tensor in named}) < len(named)
    outputs: Tensor = torch.func.functional_call(module, tensors, (x,), tie_weights=_TIED[module])
    return outputs
