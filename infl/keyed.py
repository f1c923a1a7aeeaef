"""The published keyed layers in any torch model: every linear layer keyed, one encoder for the model or one for each layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from infl.encoder import Encoder
from infl.graft import drop_hooks, exchange, linears, refuse_without_weight
from infl.layers import KeyedLinear
from suites.contracts import RequestError


def key_layers(
    model: nn.Module,
    coordinates: Tensor,
    *,
    strength: float = 20.0,
    per_layer: bool = False,
    persistent: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """A copy of ``model`` in which every ``nn.Linear`` is keyed and every one except the last defined is followed by FiLM.

    Base weights are kept (also where two layers share them), and the parameters' names stay what they were; new ones are
    ``<layer>.key_to_mod``, ``<layer>.film`` and ``<first layer>.key_encoder``.

    Parameters
    ----------
    coordinates : Tensor
        The key, [M, 2]; it becomes a non-persistent buffer, which may carry a gradient.
    strength : float
        S; at 0 the key does nothing.
    per_layer : bool
        One encoder for each layer (the multi-omics code) instead of one for the model.
    persistent : bool
        The reference's fault: the key enters ``state_dict`` and with it every message.
    generator : torch.Generator, optional
        Draws the start of the added parts; without it torch's global generator does.

    Raises
    ------
    RequestError
        If there is no ``nn.Linear`` to key, or the model is keyed already.
    """
    if any(isinstance(layer, KeyedLinear) for layer in model.modules()):
        raise RequestError("this model already has keyed layers, and a second key on top would hide the first: strip() it before embed()")
    refuse_without_weight(model)
    model = copy.deepcopy(model)
    found = linears(model)
    if not found:
        raise RequestError("INFL keys nn.Linear layers and this model has none: add a linear layer, or use another defense")
    example = found[0].weight
    coordinates = coordinates.to(example)

    def encoder() -> Encoder:
        return Encoder(coordinates, persistent=persistent).to(example)

    shared = encoder()
    keyed = {
        id(base): KeyedLinear(base, encoder() if per_layer else shared, strength, film=base is not found[-1], own_encoder=per_layer).to(
            example
        )
        for base in found
    }
    model = exchange(model, keyed)
    if not per_layer:
        keyed[id(found[0])].key_encoder = shared  # a child of the root would run as one more layer where the root is a Sequential
        model._key_encoder = (shared,)  # type: ignore[assignment]  # in a tuple: known to the root, not registered twice
        model.register_forward_pre_hook(_remember)
        model.register_forward_hook(_forget, always_call=True)
    for part in model.modules():
        if isinstance(part, Encoder):
            part.initialise(generator)
        elif isinstance(part, KeyedLinear):
            part.initialise_key_parts(generator)
    return model


def forget_encoder(model: nn.Module) -> None:
    """Take the shared encoder and its hooks from a model and from each part that was a keyed model of its own."""
    for part in model.modules():
        part.__dict__.pop("_key_encoder", None)
        drop_hooks(part, _remember, _forget)


def encoders(model: nn.Module) -> list[Encoder]:
    return [part for part in model.modules() if isinstance(part, Encoder)]


def _remember(model: nn.Module, _args: object) -> None:
    (encoder,) = model.__dict__["_key_encoder"]
    encoder.remember()


def _forget(model: nn.Module, _args: object, _output: object) -> None:
    (encoder,) = model.__dict__["_key_encoder"]
    encoder.forget()
