"""``infl:hardened`` inside a model: records are mixed on their way in, so that a model of one's own takes them as they are."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from infl.graft import Withheld, refuse_recording
from infl.hardened import Hardened, normalised
from suites.contracts import RequestError, Secret

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class MixedInput(Withheld):
    """What ``Hardened.prepare`` does to records [B, F], as a layer; of records [B, ...] all axes but the first are one record.

    The key is a non-persistent buffer: it follows the module to a device, and no ``state_dict`` holds it.
    """

    key: Tensor

    def __init__(self, defense: Hardened, secret: Secret) -> None:
        super().__init__()
        self._defense = defense
        self.register_buffer("key", secret["key"].clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        refuse_recording()
        # Compiled code would hold the key's bytes among its conditions; so it stops here, and goes on behind.
        if torch.compiler.is_compiling():
            outside: Tensor = torch.compiler.disable(self._mixed)(x)  # type: ignore[no-untyped-call]
            return outside
        return self._mixed(x)

    def _mixed(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise RequestError(f"infl:hardened mixes numbers and these records are {x.dtype}: give it measured values, not indices")
        flat = x.flatten(1) if x.dim() > 2 else x
        mixing = self._defense.mixing(Secret(key=self.key.cpu()), flat.shape[-1])
        return mixing(normalised(flat)).to(x.dtype).view(x.shape)


def mix_inputs(model: nn.Module, defense: Hardened, secret: Secret) -> nn.Module:
    """A copy of ``model`` whose first positional argument is mixed; names and values of its parameters are what they were."""
    if "forward" in vars(model) or isinstance(model, torch.fx.GraphModule):
        raise RequestError("infl:hardened is put around the forward of a model's class and this model has its own: embed() it untraced")
    for part in model.modules():
        if isinstance(part, nn.RNNBase | nn.MultiheadAttention) and not part.batch_first:
            raise RequestError(
                "infl:hardened mixes each record by itself and takes the first axis for theirs, and to this model's "
                f"{type(part).__name__} that axis is time: build it with batch_first=True"
            )
    model = copy.deepcopy(model)
    first = next(
        (part for part in model.modules() if not isinstance(part, _CONTAINERS) and (part._parameters or is_parametrized(part))), None
    )
    if first is None:
        raise RequestError("infl:hardened goes in front of a layer that is trained and this model has none: give the network itself")
    mixing = MixedInput(defense, secret).to(next(model.parameters()).device)
    first.key_mixing = mixing  # a child of the root would run as one more layer where the root is a Sequential
    model._key_mixing = (mixing,)  # type: ignore[assignment]  # in a tuple: known to the root, not registered twice
    model.__class__ = _mixed_kind(type(model))  # type: ignore[arg-type]
    return model


def unmix(model: nn.Module) -> None:
    """Take the mixing from a model, in place."""
    for part in [*model.modules()]:
        part.__dict__.pop("_key_mixing", None)
        part.__class__ = vars(type(part)).get("_key_kind", type(part))
        if isinstance(part._modules.get("key_mixing"), MixedInput):
            del part.key_mixing


@functools.cache  # kept for good: compiled code tells models by their type, and must not take a later one for one that is gone
def _mixed_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """``kind`` but for its forward, which mixes first.

    A hook would do so only where the model is called: ``model.forward(x)`` passes hooks by, and compiled code of a plain model of the
    same type, which is not told apart by its hooks, would run in the place of this one.
    """

    @functools.wraps(kind.forward)
    def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        held = model.__dict__.get("_key_mixing")
        if held is None:
            raise RequestError("this part was cut from a model with infl:hardened and its mixing is not in it: strip() the model first")
        if not args or not isinstance(args[0], Tensor):
            raise RequestError("infl:hardened mixes a model's first positional argument and there is no tensor there: call model(x)")
        return kind.forward(model, held[0](args[0]), *args[1:], **kwargs)

    own = {"forward": forward, "_key_kind": kind, "__module__": __name__, "__qualname__": kind.__qualname__}
    return types.new_class(kind.__name__, (kind, Withheld), exec_body=lambda space: space.update(own))
