"""An active server: what it sends to the sites in place of the honest model, and the record in which they answer at that.

Only probes are answered so: the federation itself is not moved, so one training feeds active and passive attacks alike. Every site is sent
the same (a server that sends each site another model would get past secure aggregation's check of the broadcast no further than its own
rules allow). Nothing here notices the lie, and no defense is credited with noticing it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol, runtime_checkable

import torch

from suites.contracts import Observation, Params, Probe, ProbeRecord, Round, Target
from suites.observation import Evidence

Ask = Callable[[Sequence[Probe], Params], tuple[ProbeRecord, ...]]  # the sites' answers to probes at given parameters


@runtime_checkable
class Crafting(Protocol):
    """An attack that chooses what is sent."""

    active: ClassVar[bool]

    def craft(self, seen: Observation, target: Target, rng: torch.Generator) -> Params: ...


def answered(attack: Crafting, seen: Observation, evidence: Evidence, ask: Ask, rng: torch.Generator) -> Evidence:
    """The same record with each probe answered at what ``attack`` sends for it.

    Raises
    ------
    ValueError
        Where it sends other names, shapes or types than the model's, or values that are not finite: a fault of the attack, and no privacy.
    """
    honest = iter(seen.target_sums if "probe_sums" in getattr(attack, "needs", ()) else _whole(evidence))
    rounds: list[Round] = []
    for record in evidence.rounds:
        probes: list[ProbeRecord] = []
        for probe in record.probes:
            sent = attack.craft(seen, next(honest), rng)
            _refuse_strange(type(attack).__name__, sent, record.broadcast)
            probes.extend(ask([probe.probe], {name: sent[name].detach().clone() for name in record.broadcast}))
        rounds.append(replace(record, probes=tuple(probes)))
    return replace(evidence, rounds=rounds)


def _whole(evidence: Evidence) -> list[Target]:
    """Each probe's answers combined, for an attack that reads them one by one."""
    found = []
    for record in evidence.rounds:
        for held in record.probes:
            probe, sizes = held.probe, [len(own) for own in held.probe.records if own]
            given = (record.broadcast, held.combined, sum(sizes), probe.optimiser, probe.steps, probe.lr)
            found.append(Target(*given, None, len(sizes), record.index, probe.momentum, probe.minibatch))
    return found


def _refuse_strange(name: str, sent: Params, honest: Params) -> None:
    same = set(sent) == set(honest) and all(sent[n].shape == t.shape and sent[n].dtype == t.dtype for n, t in honest.items())
    if not same or not all(bool(tensor.isfinite().all()) for tensor in sent.values()):
        raise ValueError(
            f"{name}.craft must give finite tensors with the names, shapes and types of the honest model, or no site takes them"
        )
