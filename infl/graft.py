"""Exchange layers inside a copy of any torch model, so that every forward pass goes through them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from suites.contracts import RequestError


class Withheld(nn.Module):
    """A part that holds a secret: copied with its model, but never pickled, so that ``torch.save(model)`` cannot write a key."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Withheld:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        state = self.__getstate__()  # type: ignore[no-untyped-call]  # without what was compiled of this one
        twin.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyed model is never pickled: save its state_dict, and embed() the key again where it is needed")


def refuse_recording() -> None:
    """Called by what holds a secret: a trace or an export would write it, as a constant, into a file that anybody opens."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if tracing or torch.compiler.is_exporting():
        raise RequestError(
            "a trace or an export of a keyed model would have the key in it: strip() the model first, or share its state_dict"
        )


def refuse_compiled(model: nn.Module) -> None:
    """What was compiled runs as it was compiled, whatever is put into it later."""
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule) or "_orig_mod" in part._modules or part._compiled_call_impl is not None:
            raise RequestError(
                "a part of this model was compiled or scripted and would run on as it was: give the plain model, and compile after embed()"
            )


class Based(Protocol):
    """A layer that was put around a linear one."""

    weight: Tensor
    bias: nn.Parameter | None
    training: bool


def refuse_without_weight(model: nn.Module) -> None:
    """Linear layers whose weight is not (yet) a parameter of theirs, which ``linears`` would pass by or freeze."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and ("weight" not in layer._parameters or is_parametrized(layer)):
            raise RequestError(
                "a layer here computes its weight (weight_norm, spectral_norm, pruning), and INFL's layers hold one of their own: make it "
                "a plain nn.Linear before embed(), as torch.nn.utils.parametrize.remove_parametrizations does"
            )
        if isinstance(layer, nn.LazyLinear):
            raise RequestError("a lazy linear layer has no weight yet that could be kept: call the model once before embed()")


def linears(model: nn.Module) -> list[nn.Linear]:
    """Exactly nn.Linear: torch's attention reads its own subclass's weight without calling it, and would pass a new layer by."""
    return [layer for layer in model.modules() if type(layer) is nn.Linear]


def of_base(layer: Based, base: nn.Linear) -> nn.Linear:
    """The very layer that another was put around, with whatever else its owner had hung on it, and the weights as they are now."""
    base.weight = layer.weight  # a move to another device may have made it a new one
    base.register_parameter("bias", layer.bias)
    return base.train(layer.training)


def exchange(model: nn.Module, layers: Mapping[int, nn.Module]) -> nn.Module:
    """Put ``layers[id(old)]`` wherever ``old`` stands, in place; a layer used twice stays one layer. Returns the root."""
    if id(model) in layers:
        return layers[id(model)]
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:  # not named_children(), which leaves out a layer used twice
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    _fused(parent, keep=isinstance(layers[id(child)], nn.Linear))
    return model


def drop_hooks(model: nn.Module, *functions: Callable[..., Any]) -> None:
    """Take these functions from the hooks of a model's root."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for handle in [handle for handle, hook in hooks.items() if hook in functions]:
            del hooks[handle]
            model._forward_hooks_always_called.pop(handle, None)
            model._forward_pre_hooks_with_kwargs.pop(handle, None)


def _fused(layer: nn.TransformerEncoderLayer, *, keep: bool) -> None:
    """Torch's fused path reads the weights of a layer without calling it: closed while a layer in it is no plain one."""
    if keep:
        layer.activation_relu_or_gelu = layer.__dict__.pop("_activation_when_plain", layer.activation_relu_or_gelu)
    else:
        layer.__dict__.setdefault("_activation_when_plain", layer.activation_relu_or_gelu)
        layer.activation_relu_or_gelu = 0
