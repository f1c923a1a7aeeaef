"""Imprint: an active server makes the first layer sort the records of a batch into bins, and reads each bin's record off neighbouring rows.

Every unit of the first layer measures a public direction, its threshold a quantile of that measurement over auxiliary records. A unit is
on for the records above its threshold, all with the same slope, so two neighbours' gradients differ by the records of the bin between
them: dW_i - dW_(i+1) = sum g_k x_k and db_i - db_(i+1) = sum g_k. One record in a bin is their ratio, exactly, whatever the size of the
batch and however many sites are summed: secure aggregation hides who sent it, not what it says (Fowl et al. 2022, "Robbing the Fed";
Boenisch et al. 2023, "When the curious abandon honesty"; Zhao et al. 2023, "LOKI").

With one direction a record is read where it is alone: (1 - 1/bins)^(records - 1) of them. Here up to four directions share the units, so
that each record lies in four bins. Whoever is alone in one is taken out of the other three, which may leave another alone (*peeling*, as in
invertible Bloom tables, Goodrich and Mitzenmacher 2011): all of them up to about 0.6 records for each unit. From 1.3 on, one direction
whose bins hold one record each on average, and the rest below the lowest threshold.

A ratio is taken for a record only if the model's own slope at that record, for some label, is the one observed, if it lies in the bin that
it was read from, and if it left a trace in every direction: a mixture of two fails that, but for chance. Clipping scales a record's two
sums alike and does not protect it; noise of a formal claim does.

Limits: see ``carrier``; one gradient or one step of SGD behind a message; a classifier's loss. Sites of different batch sizes weigh records
differently in a sum, and such records are not recognised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.carrier import GAIN, SMALL, Carrier
from attacks.gradient_inversion.message import as_gradient, certified, known_count, unlabelled
from suites.contracts import Goal, Ground, Guess, Observation, Params, Sees, Skip, Target

PLANS = ((0.55, 4, 1.0), (0.75, 4, 0.8), (0.95, 4, 0.6), (1.3, 4, 0.4))  # records a unit at most: directions, and share of records binned
MARGIN = 2.0  # deviations beyond the auxiliary records within which everybody lies
SURE = 1e-3  # relative distance of a slope from the model's own at which a ratio passes for a record
EMPTY = 1e-5  # share of the largest bin's slope below which a bin holds nobody
Judge = Callable[
    [Tensor, Tensor], tuple[Tensor, Tensor]
]  # ratios [n, F'] and their slopes [n] -> are they records [n], and their labels [n]


@dataclass(slots=True)
class Line:
    """One direction's bins, lowest first: what is left of each bin's sums."""

    direction: Tensor  # [F']
    thresholds: Tensor  # [n]
    sums: Tensor  # [n, F']
    slopes: Tensor  # [n]

    def place(self, records: Tensor) -> Tensor:
        """The bins [m] where records [m, F'] lie, -1 below all."""
        return torch.searchsorted(self.thresholds, records @ self.direction, right=True) - 1

    def take(self, record: Tensor, slope: Tensor) -> None:
        """Take a record out of the bin where it lies."""
        at = int(self.place(record[None]))
        if at >= 0:
            self.sums[at] -= slope * record
            self.slopes[at] -= slope


class Imprint:
    """Records of any batch from bins that the server's own parameters make of the first layer."""

    goal: ClassVar[Goal] = "reconstruction"
    active: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "key"})
    ground: ClassVar[Ground] = Ground(batch=4)

    def craft(self, seen: Observation, target: Target, rng: torch.Generator) -> Params:
        if unlabelled(seen.known):
            raise Skip("the loss reads no label here, and this attack tells records from mixtures by the slopes of labels")
        if not _one_step(target):
            return target.params  # several steps move the thresholds: nothing to gain
        features = known_count(seen.known, "features")
        carrier = Carrier.found(target.params, features, known_count(seen.known, "classes"))
        count, share = _plan(self.behind(target) / carrier.units)
        count = min(count, max(carrier.units // 2, 1))
        width = target.params[carrier.first].shape[1]
        drawn = torch.randn(count, width, generator=rng, dtype=torch.float64)
        public = seen.auxiliary.x.double()
        if not len(public) or public.shape[1] != width:  # a key changed the width: normal ones of the same length
            length = float(public.norm(dim=1).median()) if len(public) else width**0.5
            public = torch.randn(1024, width, generator=rng, dtype=torch.float64) * length / width**0.5
        directions, thresholds = [], []
        for line, units in zip(drawn, torch.arange(carrier.units).tensor_split(count)):
            measured = public @ line
            size = measured.std()
            cuts = torch.quantile(measured / size, 1 - share + share * torch.arange(len(units), dtype=torch.float64) / len(units))
            if share == 1:
                cuts[0] -= MARGIN  # nobody lies below
            directions.append((line / size).expand(len(units), -1))
            thresholds.append(cuts)
        return carrier.params(target.params, torch.cat(directions), torch.cat(thresholds))

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        features, classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        values, shares, proven = [], [], []
        for target in self.messages(seen):
            if not _one_step(target):
                values.append(torch.zeros(target.batch, features))
                shares.append(0.0)
                proven.append(False)
                continue
            carrier = Carrier.found(target.params, features, classes)
            records, labels, rest = peeled(_lines(target, carrier), target.batch, _judge(seen, target, carrier))
            filled = torch.cat([records, rest, rest, records.new_zeros(target.batch, records.shape[1])])[: target.batch]
            value = seen.restore(filled.float(), seen.key)
            values.append(value)
            shares.append(len(records) / target.batch)
            proven.append(len(records) == target.batch and certified(seen, target, value, labels, seen.key))
        return Guess(values, torch.tensor(shares), torch.tensor(proven), {"read_alone": sum(shares) / max(len(shares), 1)})

    def behind(self, target: Target) -> int:
        """How many records stand behind each message that is read, ``target`` being all sites' together."""
        return -(-target.batch // target.contributors)

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.targets


class ImprintOfSum(Imprint):
    """The same from the sum of all sites' answers, which is all that secure aggregation shows: more records share the bins."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "key"})

    def behind(self, target: Target) -> int:
        return target.batch

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def _one_step(target: Target) -> bool:
    return target.optimiser != "adam" and target.steps == 1


def _plan(load: float) -> tuple[int, float]:
    """How many directions, and what share of the records to sort, at ``load`` records for each unit."""
    return next(((count, share) for most, count, share in PLANS if load <= most), (1, min(1.0, 1 / load)))


def _lines(target: Target, carrier: Carrier) -> list[Line]:
    """The bins that the sent rows made, from the gradient that came back; equal rows are one direction's."""
    gradient = as_gradient(target)
    rows, cuts = carrier.read(target.params)
    weight = carrier.cleaned(gradient[carrier.first].double())
    slope = carrier.cleaned(gradient[carrier.first.removesuffix("weight") + "bias"].double())
    new = torch.cat([torch.ones(1, dtype=torch.bool), (rows[1:] != rows[:-1]).any(1)])
    starts = [*new.nonzero().flatten().tolist(), len(rows)]
    lines = []
    for first, end in pairwise(starts):
        above = torch.cat([weight[first + 1 : end], torch.zeros_like(weight[:1])])
        beyond = torch.cat([slope[first + 1 : end], torch.zeros_like(slope[:1])])
        lines.append(Line(rows[first], cuts[first:end], weight[first:end] - above, slope[first:end] - beyond))
    return lines


def _judge(seen: Observation, target: Target, carrier: Carrier) -> Judge:
    """Whether ratios are records: by the sent model's slope at each, for every label; under clipping by a record's own message too."""
    clip, slopes = seen.known.get("clip"), carrier.slopes()
    clipped = clip is not None and clip.value is not None
    one = replace(target, batch=1, optimiser="gradient", steps=1, lr=0.0)
    bias = carrier.first.removesuffix("weight") + "bias"
    rows, cuts = carrier.read(target.params)

    def alone(x: Tensor, label: int) -> float:
        """The slope that this record by itself, so labelled, shows in rows that are on."""
        soft = torch.nn.functional.one_hot(torch.tensor([label]), carrier.classes).to(x)
        back = seen.simulate(one, x[None], soft, seen.key, prepared=True)[bias].detach().double()
        return float(carrier.cleaned(back)[int((rows @ x.double() - cuts).argmax())])

    def judge(ratios: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        outputs = slopes * GAIN * SMALL * (ratios @ rows.T - cuts).relu().sum(1, keepdim=True)  # [n, K]
        expected = GAIN / target.batch * ((outputs.softmax(1) @ slopes)[:, None] - slopes)
        part = observed[:, None] / expected  # of the slope that a record with this label would show
        best = (part - 1).abs().min(1)
        if not clipped:
            return best.values < SURE, best.indices
        good, labels = torch.zeros(len(ratios), dtype=torch.bool), best.indices
        for i, each in enumerate(part):  # clipping keeps the sign and lessens the slope, by how much only the whole message tells
            for label in ((each > 0) & (each < 1 + SURE)).nonzero().flatten().tolist():
                if not good[i] and abs(float(observed[i]) * target.batch / alone(ratios[i].float(), label) - 1) < SURE:
                    good[i], labels[i] = True, label
        return good, labels

    return judge


def peeled(lines: Sequence[Line], batch: int, judge: Judge) -> tuple[Tensor, Tensor, Tensor]:
    """Records read alone [n, F'], their labels [n], and the mean records of the first direction's bins that stayed mixed [m, F']."""
    found: list[Tensor] = []
    labels: list[Tensor] = []
    least = EMPTY * max(float(line.slopes.abs().max()) for line in lines)
    while len(found) < batch:
        held = [(line, at) for line in lines for at in (line.slopes.abs() > least).nonzero().flatten().tolist()]
        if not held:
            break
        slopes = torch.stack([line.slopes[at] for line, at in held])
        ratios = torch.stack([line.sums[at] for line, at in held]) / slopes[:, None]
        good, named = judge(ratios, slopes)
        for line in lines:  # a record leaves a trace in every direction, and lies in the bin that it was read from
            at = line.place(ratios)
            own = torch.tensor([one is not line or place == int(at[i]) for i, (one, place) in enumerate(held)])
            good &= own & ((at < 0) | (line.slopes[at.clamp_min(0)].abs() > least))
        before = len(found)
        for (line, at), ratio, slope, label in (
            (held[i], ratios[i], slopes[i].clone(), named[i]) for i in good.nonzero().flatten().tolist()
        ):
            if line.slopes[at] != slope or len(found) == batch:
                continue  # taken out already, from another of its bins
            found.append(ratio)
            labels.append(label)
            for each in lines:
                each.take(ratio, slope)
        if len(found) == before:
            break
    mixed = lines[0].slopes.abs() > least
    rest = lines[0].sums[mixed] / lines[0].slopes[mixed][:, None]
    typical = torch.stack(found).norm(dim=1).median() if found else rest.new_zeros(())
    rest = rest[rest.norm(dim=1) <= typical]
    records = torch.stack(found) if found else lines[0].sums.new_zeros(0, lines[0].sums.shape[1])
    return records, torch.stack(labels) if labels else torch.zeros(0, dtype=torch.int64), rest
