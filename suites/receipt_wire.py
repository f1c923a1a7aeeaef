"""What crossed the wire beside what ε covers: tensors of the model by their own names, and nothing else that anybody can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from suites.contracts import Claim, Defense
from suites.federation import Trained
from suites.stack import Stack
from suites.witness import Crossed, Witness, crossing

_PLAIN = {"update": "a site's message", "gradient": "a site's answer to a probe", "sum": "a sum of messages"}  # readable, and noised
_OPAQUE = ("masked", "ciphertext")  # of whole numbers, under the name of their kind
_TOLD = ("count", "statistic")  # readable, and noised by nobody


def summed(layer: Defense, claim: Claim) -> bool:
    """Whether the claim is about a sum of messages, which single ones in the clear would take apart."""
    return layer.needs_channel or layer.channel is not None or claim.shares > 1


def of_wire(witness: Witness, trained: Trained, layer: Defense, stack: Stack, claim: Claim) -> Iterator[str]:
    """Of every round that the witness saw, and of every round and probe that was kept."""
    crossed = set(witness.crossed)
    for record in trained.rounds:
        crossed |= crossing(record.messages, record.combined)
        for probe in record.probes:
            crossed |= crossing(probe.messages, probe.combined)
    yield from _foreign(crossed, trained.module)
    kinds = {one.kind for one in crossed}
    told = sorted(kinds & set(_TOLD))
    if told:
        yield f"a {told[0]} crossed the wire in the clear, which ε does not cover"
    if (layer.bound is not None or claim.unit == "site") and any(one.counted for one in crossed):
        yield "a site's number of records crossed the wire in the clear, and the site is the unit"
    if summed(layer, claim) and (stack.channel is None or kinds & {"update", "gradient"}):
        yield "the claim is about a sum, and single messages crossed the wire"


def _foreign(crossed: Iterable[Crossed], module: nn.Module) -> Iterator[str]:
    """A name, a shape or a type that is not the model's: nothing clips or noises it, whatever else of a message is."""
    own = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()}
    for one in sorted(crossed, key=lambda each: (each.kind, each.name)):
        if one.kind in _PLAIN and one.name not in own:
            yield f"'{one.name}' crossed the wire in {_PLAIN[one.kind]} and is no tensor of the model, so ε does not cover it"
        elif one.kind in _PLAIN and own[one.name] != (one.shape, one.dtype):
            yield f"'{one.name}' crossed the wire in {_PLAIN[one.kind]} as {one.dtype} {list(one.shape)}, which is not what the model has"
        elif one.kind in _OPAQUE and (one.name != one.kind or not one.dtype.startswith(("torch.int", "torch.uint"))):
            yield f"'{one.name}' of {one.dtype} crossed the wire beside what was {one.kind}: whole numbers of that name alone are hidden"
        elif one.kind not in (*_PLAIN, *_OPAQUE, *_TOLD):
            yield f"a message of the unknown kind '{one.kind}' crossed the wire, which ε does not cover"
