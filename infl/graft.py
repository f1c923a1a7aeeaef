"""Exchange layers inside a copy of any torch model, so that every forward pass goes through them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

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

    in_features: int
    out_features: int
    weight: Tensor
    bias: nn.Parameter | None
    training: bool


def copied(model: nn.Module) -> nn.Module:
    """A copy whose linear layers can be exchanged; a lone one is put into a ``Sequential``, from which ``bare`` takes it."""
    if not isinstance(model, nn.Linear):
        return copy.deepcopy(model)
    wrapped = nn.Sequential(copy.deepcopy(model))
    wrapped._lone = True  # type: ignore[assignment]
    return wrapped


def bare(model: nn.Module) -> nn.Module:
    """What was given to ``copied``."""
    return model.get_submodule("0") if model.__dict__.get("_lone") else model


def linears(model: nn.Module) -> list[nn.Linear]:
    """Exactly nn.Linear: torch's attention reads its own subclass's weight without calling it, and would pass a new layer by."""
    return [layer for layer in model.modules() if type(layer) is nn.Linear]


def of_base(layer: Based) -> nn.Linear:
    """The plain layer whose weight and bias a layer was built on; they are shared, not copied."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.weight = layer.weight
    plain.register_parameter("bias", layer.bias)
    return plain.train(layer.training)


def exchange(model: nn.Module, layers: Mapping[int, nn.Module]) -> None:
    """Put ``layers[id(old)]`` wherever ``old`` stands, in place; a layer used twice stays one layer."""
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:  # not named_children(), which leaves out a layer used twice
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
                if isinstance(parent, nn.TransformerEncoderLayer):
                    _fused(parent, keep=isinstance(layers[id(child)], nn.Linear))


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
