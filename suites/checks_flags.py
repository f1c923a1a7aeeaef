"""Flags on a recorded federation that means nothing: empty messages, clean gradients under a claim, a victim with another key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from suites.contracts import Claim, Defense, Message, Params, ProbeRecord, Target, Task
from suites.observation import Evidence
from suites.scoring_measure import NAN, Measure
from suites.simulation import simulate
from suites.stack import Stack

QUIET = 0.5  # share of the claimed noise below which a message counts as clean
OTHER = 1e-2  # relative distance from which a message is not what the sites' own key makes of these records


class Inputs(Protocol):
    """The pool as the sites feed it, by rows: a tensor, or what prepares the rows that it is asked for."""

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


def flag_messages(
    evidence: Evidence, stack: Stack, task: Task, module: nn.Module, inputs: Inputs, y: Tensor, claim: Claim | None = None
) -> list[Measure]:
    """Flags on what crossed the wire: messages that are zero, gradients without their noise under a claim, or under another key.

    Parameters
    ----------
    module : the sites' module (with its secret)
    inputs, y : the whole pool as the sites feed it (prepared), and its labels
    """
    flags = []
    empty = [record for _, record in _probed(evidence) if any(_size(m.payload) == 0 for m in _clear(record)) or _size(record.combined) == 0]
    if empty:
        flags.append(_flag("zero_gradient", len(empty), "a probed message is zero: nothing was sent, so nothing could leak"))
    if claim is not None and claim.kind == "dp":
        shares = [share for one in noise_shares(evidence, stack, task, module, inputs, y, claim) if math.isfinite(share := one)]
        if shares and min(shares) < QUIET:
            said = f"a message holds {min(shares):.2f} of the noise that the claim ε = {claim.epsilon:.3g} rests on: gradients are clean"
            flags.append(_flag("clean_under_claim", sum(share < QUIET for share in shares), said))
    strange = [away for away in _strangeness(evidence, stack, task, module, inputs, y) if away > OTHER]
    if strange:
        said = f"a message lies {max(strange):.2g} from what the federation's own key makes of its records: the victim had another key"
        flags.append(_flag("victim_under_wrong_key", len(strange), said))
    return flags


def _strangeness(evidence: Evidence, stack: Stack, task: Task, module: nn.Module, inputs: Inputs, y: Tensor) -> Iterator[float]:
    """For each probed gradient in the clear under a key: its relative distance from that key's own; nothing where chance enters it too."""
    keyed = any(type(layer).secret is not Defense.secret for layer in stack.layers)
    changed = any(type(layer).encode is not Defense.encode or type(layer).noise is not Defense.noise for layer in stack.layers)
    dropping = any(getattr(part, "p", 0) for part in module.modules())
    if not keyed or changed or dropping or stack.clip is not None or stack.channel is not None:
        return
    for broadcast, record in _probed(evidence):
        probe = record.probe
        for message in _clear(record) if probe.optimiser == "gradient" else ():
            rows = torch.tensor(probe.records[message.site])
            target = Target(broadcast, {}, len(rows), "gradient", 1, 0.0, message.site, 1, probe.round)
            own = simulate(module, task.loss, target, inputs[rows], y[rows], None)
            yield _distance(message.payload, own) / max(_size(own), 1e-30)


def noise_shares(
    evidence: Evidence, stack: Stack, task: Task, module: nn.Module, inputs: Inputs, y: Tensor, claim: Claim
) -> Iterator[float]:
    """For each probed gradient: its distance from the clean clipped one over what the claimed noise makes it.

    Noise on a site's message is sized by the layer's ``bound``; on its sums of gradients, by ``clip``. Where neither is said, both are, or
    another layer changes messages, the distance is not that noise alone: 0 for a message as good as clean, and nothing for any other.
    """
    bounds = [layer.bound for layer in stack.layers if layer.bound is not None]
    changing = sum((type(layer).encode, type(layer).encode_kept) != (Defense.encode, Defense.encode_kept) for layer in stack.layers)
    sized = len(bounds) + (stack.clip is not None) == 1 and changing <= len(bounds)
    bounds = [min(bounds)] if bounds else []
    sigma = (claim.noise_multiplier or 0.0) / math.sqrt(claim.shares)
    for broadcast, record in _probed(evidence):
        probe = record.probe
        if probe.optimiser != "gradient":
            continue
        clean = {}
        for site, rows in enumerate(probe.records):
            if rows:
                index = torch.tensor(rows)
                target = Target(broadcast, {}, len(rows), "gradient", 1, 0.0, site, 1, probe.round)
                clean[site] = _within(simulate(module, task.loss, target, inputs[index], y[index], stack.clip), *bounds)
        sent = {m.site: m.payload for m in _clear(record)} if stack.channel is None else {}
        for site, message in sent.items():
            size = _noise(stack, sigma, len(probe.records[site]), clean[site], *bounds) if sized else None
            yield from _share(_distance(message, clean[site]), size, _size(clean[site]))
        if not sent and record.combined:
            mean = {name: torch.stack([one[name] for one in clean.values()]).mean(0) for name in next(iter(clean.values()))}
            sizes = [_noise(stack, sigma, len(probe.records[site]), clean[site], *bounds) for site in clean] if sized else []
            whole = math.sqrt(sum(size**2 for size in sizes)) / len(clean) if sized else None
            yield from _share(_distance(record.combined, mean), whole, _size(mean))


def _share(away: float, noise: float | None, message: float) -> Iterator[float]:
    """How much of its ``noise`` a message holds; of noise of unknown size only that there is none."""
    if noise is not None:
        yield away / noise
    elif away < 1e-3 * QUIET * message:
        yield 0.0


def _noise(stack: Stack, sigma: float, batch: int, clean: Params, bound: float = math.nan) -> float:
    """L2 norm that the claimed noise has over a whole message."""
    each = stack.clip.norm / batch if stack.clip is not None else bound
    return max(sigma * each * math.sqrt(sum(tensor.numel() for tensor in clean.values())), 1e-30)


def _within(message: Params, bound: float = math.inf) -> Params:
    """A message clipped as a whole."""
    share = min(1.0, bound / max(_size(message), 1e-30))
    return {name: tensor * share for name, tensor in message.items()}


def _probed(evidence: Evidence) -> Iterator[tuple[Params, ProbeRecord]]:
    return ((record.broadcast, probe) for record in evidence.rounds for probe in record.probes)


def _clear(record: ProbeRecord) -> list[Message]:
    return [message for message in record.messages if message.kind in ("update", "gradient")]


def _distance(a: Params, b: Params) -> float:
    return math.sqrt(sum(float((a[name].double() - value.double()).square().sum()) for name, value in b.items() if name in a))


def _size(params: Params) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in params.values()))


def _flag(name: str, count: int, reason: str) -> Measure:
    return Measure(f"flag:{name}", 1.0, NAN, NAN, count, "lower", "flag", reason)
