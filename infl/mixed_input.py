"""``infl:hardened`` inside a model: records are mixed on their way in, so that a model of one's own takes them as they are."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from infl.graft import Withheld, drop_hooks
from infl.hardened import Hardened, normalised
from infl.mixing import Mixing
from suites.contracts import RequestError, Secret


class MixedInput(Withheld):
    """What ``Hardened.prepare`` does to records [B, F], as a layer; of records [B, ...] all axes but the first are one record.

    The key is a non-persistent buffer: it follows the module to a device, and no ``state_dict`` holds it.
    """

    key: Tensor

    def __init__(self, defense: Hardened, secret: Secret) -> None:
        super().__init__()
        self._defense = defense
        self.register_buffer("key", secret["key"].clone(), persistent=False)
        self._drawn: tuple[bytes, int, Mixing] | None = None  # drawing costs more than a step of a small network

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise RequestError(f"infl:hardened mixes numbers and these records are {x.dtype}: give it measured values, not indices")
        flat = x.flatten(1) if x.dim() > 2 else x
        return self._mixing(flat.shape[-1])(normalised(flat)).to(x.dtype).view(x.shape)

    def _mixing(self, width: int) -> Mixing:
        held = bytes(self.key.tolist())
        if self._drawn is None or self._drawn[:2] != (held, width):
            self._drawn = (held, width, self._defense.mixing(Secret(key=self.key.cpu()), width))
        return self._drawn[2]


def mix_inputs(model: nn.Module, defense: Hardened, secret: Secret) -> nn.Module:
    """A copy of ``model`` whose first positional argument is mixed; names and values of its parameters are what they were."""
    model = copy.deepcopy(model)
    first = next((part for part in model.modules() if part._parameters and not isinstance(part, nn.ParameterList | nn.ParameterDict)), None)
    if first is None:
        raise RequestError("infl:hardened goes in front of a layer that is trained and this model has none: give the network itself")
    mixing = MixedInput(defense, secret).to(next(model.parameters()).device)
    first.key_mixing = mixing  # a child of the root would run as one more layer where the root is a Sequential
    model._key_mixing = (mixing,)  # type: ignore[assignment]  # in a tuple: known to the root, not registered twice
    model.register_forward_pre_hook(_mix, with_kwargs=True)
    return model


def unmix(model: nn.Module) -> None:
    """Take the mixing from a model, in place."""
    model.__dict__.pop("_key_mixing", None)
    drop_hooks(model, _mix)
    for part in model.modules():
        if isinstance(part._modules.get("key_mixing"), MixedInput):
            del part.key_mixing


def _mix(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not args or not isinstance(args[0], Tensor):
        raise RequestError("infl:hardened mixes a model's first positional argument and there is no tensor there: call model(x)")
    (mixing,) = model.__dict__["_key_mixing"]
    return (mixing(args[0]), *args[1:]), kwargs
