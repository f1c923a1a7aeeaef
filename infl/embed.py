"""Put any variant of INFL into any torch model in one call, and take it out again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infl.additive import Additive, AdditiveLinear, add
from infl.graft import exchange, refuse_compiled
from infl.hardened import KEY_BYTES, Hardened
from infl.key import Key, secret_of
from infl.keyed import forget_encoder, key_layers
from infl.layers import KeyedLinear
from infl.mixed_input import MixedInput, mix_inputs, unmix
from infl.published import Published
from suites.contracts import Defense, RequestError, Secret
from suites.errors import did_you_mean

Variant = Literal["published", "additive", "hardened"]
VARIANTS: Mapping[str, type[Published | Additive | Hardened]] = {"published": Published, "additive": Additive, "hardened": Hardened}


def embed(
    model: nn.Module,
    key: Key | Secret | Tensor | None,
    variant: Variant = "published",
    *,
    persistent: bool = False,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> nn.Module:
    """A copy of ``model`` with a variant of INFL in it; base weights and their names stay what they were, also of a layer used twice.

    ``published``: every layer whose type is ``nn.Linear`` keyed, every one except the last defined followed by FiLM (``infl.keyed``).
    ``additive``: a bias drawn from each neuron's index, without any secret. Both leave other layers as they are, also those of a type
    derived from ``nn.Linear`` (torch's attention has one), and a weight that is read without a call of its layer has no key in it. Hooks
    and attributes of an exchanged layer rest until ``strip`` gives that layer back.

    ``hardened``: records, the first positional argument, are brought to one length and mixed on their way in, each by itself: the first
    axis of [B, ...] counts them, and all others are one record's. ``embed(model, key, "hardened")(x)`` is
    ``model(Hardened().prepare(x, secret_of(key, Hardened())))``, and does it, in double precision, at every call: a step takes two to
    three times a plain one's time at 1,000 features and 25 times at 9,105. To train, prepare all records once and train the plain model
    on them, as ``infl.deploy.KeyedSite`` does (``site.x``); embed the trained one where it is to take records as they are.

    Only ``forward`` mixes: another method of the model, or a part of it called by itself, works on what it is given, mixed or not.

    Compile what comes out, not what goes in; ``hardened`` mixes outside compiled code, so without ``fullgraph=True``. Neither of the
    two with a secret can be traced, scripted or exported (``torch.jit``, ``torch.export``, ``torch.fx``), since the key would be in the
    file; ``make_fx`` and whatever else reads a module's buffers is not stopped.

    Parameters
    ----------
    key : Key, Secret, Tensor or None
        A key (``infl.key``), from which each variant expands its own secret, as ``infl.deploy.KeyedSite`` does; or that secret itself, also
        as its one tensor: coordinates [M, 2], or 32 bytes (uint8) for ``hardened``. ``additive`` reads none. It becomes a non-persistent
        buffer: in no ``state_dict``, and the model cannot be pickled.
    variant : str
    persistent : bool
        The reference's fault, of ``published`` alone: the key enters ``state_dict`` and with it every message.
    generator : torch.Generator, optional
        Draws the start of the added parts; without it torch's global generator does.
    settings
        Those of the defense: ``strength``, ``points``, ``per_layer`` (one encoder for each layer instead of one for the model); ``hidden``;
        ``spread``. How many records ``hardened`` needs is not checked here, where no site is known: ``KeyedSite`` does.

    Raises
    ------
    RequestError
        If the model is keyed or compiled already or has no layer for it, or the key, the variant or a setting is none of the above; of
        ``published`` and ``additive`` where a linear layer computes its weight (weight_norm, pruning) or has none yet (lazy), of
        ``hardened`` where a recurrent layer or attention takes time first, or where the model has a forward that is not its class's.
    """
    refuse_compiled(model)
    if any(isinstance(layer, KeyedLinear | AdditiveLinear | MixedInput) for layer in model.modules()):
        raise RequestError("this model already has keyed layers, and a second key on top would hide the first: strip() it before embed()")
    defense = _defense(variant, settings)
    if persistent and not isinstance(defense, Published):
        raise RequestError(f"persistent=True reproduces a fault of infl:published, and infl:{variant} does not have it: leave it out")
    if isinstance(defense, Additive):
        return add(model, hidden=defense.hidden, generator=generator)
    if isinstance(defense, Hardened):
        return mix_inputs(model, defense, Secret(key=_tensor(key, defense, "key")))
    return key_layers(
        model,
        _tensor(key, defense, "coordinates"),
        strength=defense.strength,
        per_layer=defense.per_layer,
        persistent=persistent,
        generator=generator,
    )


def strip(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without its variant: plain layers with the base weights, no key, no modulators, no drawn bias, no mixing.

    Takes what ``torch.compile`` made of it, too, and returns it uncompiled. An additive model's bias can be kept instead:
    ``infl.additive.fold``.
    """
    model = copy.deepcopy(model._modules.get("_orig_mod") or model)  # what torch.compile was given
    exchange(model, {id(part): inside for part in model.modules() if (inside := part._modules.get("_orig_mod")) is not None})
    model = exchange(model, {id(layer): layer.plain() for layer in model.modules() if isinstance(layer, KeyedLinear | AdditiveLinear)})
    forget_encoder(model)
    unmix(model)
    return model


def _defense(variant: str, settings: Mapping[str, Any]) -> Published | Additive | Hardened:
    if variant not in VARIANTS:
        raise RequestError(f"INFL has no variant '{variant}'{did_you_mean(variant, list(VARIANTS))}; it has {', '.join(VARIANTS)}")
    known = [name for name in inspect.signature(VARIANTS[variant]).parameters if name != "minimum"]
    for name in settings:
        if name not in known:
            raise RequestError(f"infl:{variant} has no setting '{name}'{did_you_mean(name, known)}; it has {', '.join(known)}")
    return VARIANTS[variant](**settings)


def _tensor(key: Key | Secret | Tensor | None, defense: Defense, name: str) -> Tensor:
    """The one tensor of the defense's secret."""
    secret = secret_of(key, defense) if isinstance(key, Key) else key
    if isinstance(secret, Secret):
        secret = secret[name] if name in secret.names else None
    bytes_wanted = isinstance(defense, Hardened)
    if (
        not isinstance(secret, Tensor)
        or (bytes_wanted and (secret.dtype != torch.uint8 or secret.shape != (KEY_BYTES,)))
        or (not bytes_wanted and (secret.dim() < 2 or secret.shape[-1] != 2))
    ):
        wanted = f"{KEY_BYTES} bytes (uint8)" if bytes_wanted else "coordinates [M, 2]"
        raise RequestError(f"{type(defense).__name__} needs a Key, its own Secret or {wanted}, and this is none of them")
    return secret
