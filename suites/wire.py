"""What crosses the wire: sites' updates are encoded, sent and combined, and noted as messages where a round is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from suites.contracts import Delivery, Exchange, Message, Own, Params
from suites.lanes import Lane
from suites.randomness import digest, keys, stream
from suites.stack import Stack
from suites.witness import Witness, crossing

if TYPE_CHECKING:
    from suites.federation import Assignment


@dataclass(slots=True)
class Wire:
    """Between the sites of R federations and their servers, under one stack.

    ``lanes`` are each federation's sites; ``equal_weights``: a mean over sites, whatever their records; ``colluder``: the site whose part
    of a sum that hides it is noted; ``kept``: what a site keeps from round to round, by federation and site.
    """

    stack: Stack
    assignments: Sequence[Assignment]
    lanes: Sequence[Sequence[Lane]]
    equal_weights: bool
    witness: Witness | None = None
    colluder: int = 0
    kept: dict[tuple[int, int], Params] = field(default_factory=dict)

    def collect(
        self,
        index: int,
        participants: Sequence[Sequence[int]],
        updates: Params,
        models: Params,
        lost: Sequence[dict[int, str]],
        *,
        record: bool,
    ) -> tuple[Params, list[tuple[Message, ...]], list[Own | None]]:
        """What the server combines [R, ...], and each federation's messages and colluder's part where they are recorded.

        ``participants`` [R][C]; ``updates`` [lanes, ...], federation by federation; ``models`` [R, ...] are what the sites started from;
        ``lost`` [R]: who (by position) vanishes, and at which stage of the channel.
        """
        weights = [
            [1.0 if self.equal_weights else float(len(self.assignments[r].sites[s])) for s in sites] for r, sites in enumerate(participants)
        ]
        each = len(participants[0])
        if not self.stack.encodes and self.stack.channel is None and all(len(sites) == each for sites in participants):
            share = torch.tensor(weights, device=next(iter(models.values())).device)
            share = (share / share.sum(1, keepdim=True)).unsqueeze(1)  # [R, 1, C]

            def mean(name: str, rows: Tensor) -> Tensor:
                if not rows.is_floating_point():
                    return rows.view(len(participants), each, *rows.shape[1:])[:, 0]
                return torch.bmm(share.to(rows.dtype), rows.reshape(len(participants), each, -1)).view(models[name].shape)

            # One formula whether a round is recorded or not: what is kept must not move a number.
            sums = {name: mean(name, rows) for name, rows in updates.items()}
            sent = [self._plain(r, sites, _rows(updates, r * each, each)) for r, sites in enumerate(participants)] if record else []
            return sums, sent, [None for _ in participants]
        deliveries, at = [], 0
        for r, sites in enumerate(participants):
            own_rows = _rows(updates, at, len(sites))
            model = {name: tensor[r] for name, tensor in models.items()}
            deliveries.append(self.deliver(r, index, sites, own_rows, weights[r], model, b"round", lost[r], record=record))
            at += len(sites)
        combined = {name: torch.stack([delivery.combined[name] for delivery in deliveries]) for name in deliveries[0].combined}
        sent = [delivery.messages for delivery in deliveries] if record else []
        return combined, sent, [delivery.own for delivery in deliveries]

    def deliver(
        self,
        r: int,
        index: int,
        participants: Sequence[int],
        updates: Sequence[Params],
        weights: Sequence[float],
        model: Params,
        kind: bytes,
        lost: Mapping[int, str] = MappingProxyType({}),
        *,
        record: bool = True,
    ) -> Delivery:
        """Encode, send and combine one federation's updates of its ``model``; ``lost`` ones vanish on the way."""
        if self.stack.encodes:
            updates = [self._encoded(r, index, site, update, kind) for site, update in zip(participants, updates)]
        if self.stack.channel is not None:
            source = keys(*self.assignments[r].defense_coordinates, "channel")
            context = digest(*self.assignments[r].defense_coordinates, kind.hex())
            streams = tuple(source.child(kind.hex(), index, site) for site in participants)
            exchange = Exchange(index, context, model, streams, lost)
            sent = self.stack.channel.run(updates, weights, exchange)  # which numbers its sites from 0
            messages = tuple(replace(m, site=participants[m.site]) for m in sent.messages)
            self._witnessed(r, messages, sent.combined)
            own = self._own(participants, updates, weights, sent.survivors) if record else None
            return Delivery(messages, sent.combined, tuple(participants[site] for site in sent.survivors), own)
        total = sum(weights)
        combined = {
            name: torch.stack([u[name] * (w / total) for u, w in zip(updates, weights)]).sum(0) if value.is_floating_point() else value
            for name, value in updates[0].items()
        }
        plain = self._plain(r, participants, updates)
        self._witnessed(r, plain, combined)
        return Delivery(plain, combined, tuple(participants))

    def _witnessed(self, r: int, messages: Sequence[Message], combined: Params) -> None:
        """Recorded or not: what crosses the wire in a round that nobody keeps has crossed it."""
        if self.witness is not None and r == 0:
            self.witness.crossed |= crossing(messages, combined)

    def _own(
        self, participants: Sequence[int], updates: Sequence[Params], weights: Sequence[float], survivors: Sequence[int]
    ) -> Own | None:
        """The colluding site's part of a sum that hides it; None where it took no part."""
        at = participants.index(self.colluder) if self.colluder in participants else -1
        if at not in survivors:
            return None
        part = getattr(self.stack.channel, "part", None)
        update = updates[at] if part is None else part(updates[at], weights, at)
        return Own(update, weights[at], sum(weights[site] for site in survivors))

    def _plain(self, r: int, participants: Sequence[int], updates: Sequence[Params]) -> tuple[Message, ...]:
        """Updates in the clear, with the sites' record counts where the mean is weighted by them."""
        counts = [None if self.equal_weights else len(self.assignments[r].sites[site]) for site in participants]
        return tuple(Message(site, "update", update, count) for site, update, count in zip(participants, updates, counts))

    def _encoded(self, r: int, index: int, site: int, update: Params, kind: bytes) -> Params:
        """A site's update as it is sent; a probe moves neither what the site keeps nor its noise."""
        if kind == b"round":
            noise = self.lanes[r][site].noise
            saw = self.witness.encoding(noise, index) if self.witness is not None and r == 0 else None
            sent, self.kept[r, site] = self.stack.encode_kept(update, self.kept.get((r, site), {}), noise, saw)
            return sent
        own = stream(*self.assignments[r].defense_coordinates, "encode", kind.hex(), site)
        return self.stack.encode_kept(update, self.kept.get((r, site), {}), own)[0]


def _rows(stack: Params, first: int, count: int) -> list[Params]:
    return [{name: rows[first + i] for name, rows in stack.items()} for i in range(count)]
