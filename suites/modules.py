"""The module that a site trains: built inside a defense's layers, started from a stream, called with the parameters on the wire."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from suites.contracts import Params, RequestError, Secret, Task
from suites.functional_call import outputs_of
from suites.stack import Stack


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw a module's start from a stream, with torch's default distributions.

    A module with a method ``initialise(generator)`` looks after its own parameters and those of its children.
    """
    own = getattr(module, "initialise", None)
    if callable(own):
        own(generator)
        return
    if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                nn.init.uniform_(tensor, -bound, bound, generator=generator)
    elif hasattr(module, "reset_parameters") and not isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
        raise RequestError(
            f"{type(module).__name__} has parameters but no initialise(generator) method, so its start could not be repeated: add one"
        )
    for child in module.children():
        initialise(child, generator)


def build(task: Task, stack: Stack, features: int, classes: int, secret: Secret | None, generator: torch.Generator) -> nn.Module:
    """The module that a site trains: the task's net inside the stack's layers, initialised from the stream."""
    with torch.random.fork_rng(devices=[]):  # constructors draw from the global generator; leave it as it was
        module = stack.model(task.net(features, classes), secret)
    initialise(module, generator)
    return module


def call(module: nn.Module, params: Params, x: Tensor) -> Tensor:
    """Outputs of ``module`` with wire parameters ``params`` in evaluation mode; the module's own parameters are not touched."""
    was_training = module.training
    if was_training:
        module.eval()
    masks = {name: torch.ones(1, device=x.device) for name, _ in module.named_buffers() if name.rpartition(".")[2] == "mask"}
    try:
        return outputs_of(module, {**params, **masks}, x)
    finally:
        if was_training:
            module.train()
