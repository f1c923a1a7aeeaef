"""Local training of many lanes at once. A lane is one (federation, site): its own parameters, records, batches and noise.

``chunk`` lanes share each tensor operation through a leading axis (``suites.stacked``, or ``torch.func.vmap`` over ``functional_call`` for
networks that cannot take it); a chunk of one runs the module itself, at the cost of a bare torch loop. Ragged lanes are padded with
records of zero weight; a lane that has done its steps is copied out, so that another lane's longer training cannot move it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from suites.clipping import ClippedSum
from suites.contracts import Defense, Local, Params
from suites.functional_call import outputs_of
from suites.stacked import Stacked, stacked
from suites.tasks.networks import Dropout
from suites.witness import Witness

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [B, K], labels [B] -> per-record loss [B]
Watch = Callable[[int, int, Params], None]


@dataclass(slots=True)
class Lane:
    """One site of one federation: its module (which holds the secret), its prepared pool, its records and its streams."""

    module: nn.Module
    x: Tensor  # [N, F'] prepared pool, on the device
    y: Tensor  # [N]
    records: Tensor  # [n] indices into the pool, on the CPU
    batches: torch.Generator
    dropout: torch.Generator
    noise: torch.Generator
    person: Tensor | None = None  # [N] who gave each record of the pool, where whole persons are drawn and clipped

    @property
    def units(self) -> int:
        """How many there are to draw: persons, or records."""
        return len(self.records) if self.person is None else len(torch.unique(self.person[self.records]))


@dataclass(slots=True)
class Scratch:
    """Memory that trainers used one after the other share: a step's records, all lanes in a row."""

    batch: tuple[Tensor, ...] | None = None


def wire(module: nn.Module) -> Params:
    """Copies of what a module puts on the wire: parameters and persistent buffers, never secrets."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def private(module: nn.Module) -> Params:
    """Non-persistent buffers: secrets and dropout masks. They never cross the wire."""
    kept = module.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in module.named_buffers() if name not in kept}


def _dropouts(module: nn.Module) -> list[tuple[str, Dropout]]:
    return [(f"{name}.mask" if name else "mask", part) for name, part in module.named_modules() if isinstance(part, Dropout)]


def expected_batch(local: Local, units: int) -> int:
    """A site with fewer records (or persons) than a batch caps its batch."""
    return min(local.batch, units)


def schedule(lane: Lane, local: Local, *, poisson: bool) -> list[Tensor]:
    """The record indices of each step of one round; of a drawn person all records."""
    owner = None if lane.person is None else torch.unique(lane.person[lane.records], return_inverse=True)[1]
    n = lane.units
    batch = expected_batch(local, n)
    steps: list[Tensor] = []
    for _ in range(local.epochs):
        if poisson:
            for _ in range(-(-n // batch)):
                drawn = torch.rand(n, generator=lane.batches) < batch / n
                steps.append(lane.records[drawn if owner is None else drawn[owner]])
        else:
            parts = torch.split(torch.randperm(n, generator=lane.batches), batch)
            steps.extend(lane.records[part if owner is None else torch.isin(owner, part)] for part in parts)
    return steps


def _padded(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """[L, B] indices and their weights (0 marks padding); weights are None where nothing is padded."""
    sizes = [len(batch) for batch in batches]
    width = max(1, *sizes)
    if min(sizes) == width:
        return torch.stack(list(batches)), None
    index = torch.zeros(len(batches), width, dtype=torch.int64)
    weight = torch.zeros(len(batches), width)
    for row, batch in enumerate(batches):
        index[row, : len(batch)] = batch
        weight[row, : len(batch)] = 1.0
    return index, weight


class Trainer:
    """Trains a fixed set of lanes from given parameters; made once, used every round.

    Parameters
    ----------
    lanes : equal modules up to their private buffers.
    defense : its ``clip`` and ``noise`` act at every step; None for a plain step.
    witness : is shown each clipped step before and after its noise
    scratch : of the trainers that are never used at once
    """

    def __init__(
        self, lanes: Sequence[Lane], loss: Loss, defense: Defense, witness: Witness | None = None, scratch: Scratch | None = None
    ) -> None:
        self.lanes = list(lanes)
        self.scratch = Scratch() if scratch is None else scratch
        self.witness = witness
        self._live = [True] * len(self.lanes)  # lanes whose present step is their own
        self.loss = loss
        self.defense = defense
        self.stacked = len(lanes) > 1
        self.module = lanes[0].module.train()
        self.device = lanes[0].x.device
        self.trained = [name for name, _ in self.module.named_parameters()]
        self.secrets: Params = {}
        if self.stacked:
            mask_names = {name for name, _ in _dropouts(self.module)}
            parts = [private(lane.module) for lane in lanes]
            self.secrets = {name: torch.stack([part[name] for part in parts]) for name in parts[0] if name not in mask_names}
        for _, part in _dropouts(self.module):
            part.mask = part.mask.new_ones(1)  # of the size of a batch where another trainer of this module left it
        # Clipping watches the module's own calls of ``linear``, so it keeps the plain layers.
        fast = self.stacked and defense.clip is None
        self.native: Stacked | None = stacked(self.module, self.secrets, lanes[0].x) if fast else None
        self.masks = [pair for pair in _dropouts(self.native.module if self.native is not None else self.module) if pair[1].p > 0]
        self.clipped = ClippedSum(self.module, loss) if defense.clip is not None else None
        self.blends = defense.blend(1, torch.Generator()) is not None
        self._pools_shared = all(lane.x is lanes[0].x for lane in lanes)

    def run(self, start: Params, local: Local, watch: Watch | None = None) -> Params:
        """The lanes' states [L, ...] after one round of local training, from ``start`` [L, ...] (not modified).

        ``watch`` is called after each step with the number of steps done, of all, and the state.
        """
        poisson = self.defense.clip is not None and self.defense.clip.sampling == "poisson"
        plans = [schedule(lane, local, poisson=poisson) for lane in self.lanes]
        return self.follow(start, local, plans, [expected_batch(local, lane.units) for lane in self.lanes], watch)

    def follow(
        self, start: Params, local: Local, plans: Sequence[Sequence[Tensor]], expected: Sequence[int], watch: Watch | None = None
    ) -> Params:
        """As ``run``, along given steps (``plans[lane][step]`` are pool indices)."""
        state, optimiser = self._begin(start, local)
        last = max(len(plan) for plan in plans)
        early = {i: len(plan) for i, plan in enumerate(plans) if len(plan) < last}
        done: dict[int, Params] = {}
        for step in range(last):
            # A lane that has no step left repeats its last batch; it was copied out before this moved it.
            batches = [plan[min(step, len(plan) - 1)] for plan in plans]
            self._live = [step < len(plan) for plan in plans]
            self._gradient(state, batches, expected)
            optimiser.step()
            if watch is not None:
                watch(step + 1, last, state)
            done |= {i: {name: tensor[i].detach().clone() for name, tensor in state.items()} for i, n in early.items() if n == step + 1}
        if not self.stacked:
            return {name: tensor.detach().clone()[None] for name, tensor in state.items()}
        after = {name: tensor.detach() for name, tensor in state.items()}
        for i, params in done.items():
            for name, tensor in params.items():
                after[name][i] = tensor
        return after

    def gradient(self, start: Params, batches: Sequence[Tensor]) -> Params:
        """Each lane's message [L, ...] for one batch: the gradient of the mean loss, after the defense's clipping and noise."""
        state, _ = self._begin(start, Local(optimiser="sgd", lr=0.0))
        self._gradient(state, batches, [len(batch) for batch in batches])
        gradients = {name: grad if (grad := state[name].grad) is not None else torch.zeros_like(state[name]) for name in self.trained}
        return {name: (g if self.stacked else g[None]).detach().clone() for name, g in gradients.items()}

    def _begin(self, start: Params, local: Local) -> tuple[Params, torch.optim.Optimizer]:
        state: Params
        if self.stacked:
            state = {name: start[name].clone().requires_grad_() for name in self.trained}
            if self.native is not None:
                self.native.hold({**state, **self.secrets})
        else:
            with torch.no_grad():
                state = dict(self.module.state_dict(keep_vars=True))
                for name, tensor in state.items():
                    tensor.copy_(start[name][0])
                    tensor.grad = None
        leaves = [state[name] for name in self.trained]
        if local.optimiser == "adam":
            return state, torch.optim.Adam(leaves, lr=local.lr, weight_decay=local.weight_decay, fused=True)
        return state, torch.optim.SGD(leaves, lr=local.lr, weight_decay=local.weight_decay, momentum=local.momentum)

    def _gather(self, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        index, weight = _padded(batches)
        index = index.to(self.device)
        if self._pools_shared:
            # index_select copies whole rows: several times faster on a CPU than indexing with a matrix; and always into the same
            # memory, since pages fresh from the system cost as much as the copy.
            pools = (self.lanes[0].x, self.lanes[0].y)
            rows = index.flatten()
            if self.scratch.batch is None or len(self.scratch.batch[0]) != len(rows):
                self.scratch.batch = None  # before the next is made
                self.scratch.batch = tuple(t.new_empty(len(rows), *t.shape[1:]) for t in pools)
            for t, out in zip(pools, self.scratch.batch):
                torch.index_select(t, 0, rows, out=out)
            x, y = (out.view(*index.shape, *out.shape[1:]) for out in self.scratch.batch)
        else:
            x = torch.stack([lane.x.index_select(0, row) for lane, row in zip(self.lanes, index)])
            y = torch.stack([lane.y.index_select(0, row) for lane, row in zip(self.lanes, index)])
        return x, y, None if weight is None else weight.to(self.device)

    def _draw_masks(self, batches: Sequence[Tensor]) -> Params:
        if not self.masks:
            return {}
        rows = max(1, *(len(batch) for batch in batches))
        widths = [mask.width for _, mask in self.masks]
        drawn = torch.stack([torch.rand(rows, sum(widths), generator=lane.dropout) for lane in self.lanes]).to(self.device)
        parts = torch.split(drawn, widths, dim=-1)
        return {name: (part >= mask.p) / (1.0 - mask.p) for (name, mask), part in zip(self.masks, parts)}

    def _gradient(self, state: Params, batches: Sequence[Tensor], expected: Sequence[int]) -> None:
        """Put this step's gradient of every lane into ``state[name].grad``."""
        x, y, weight = self._gather(batches)
        masks = self._draw_masks(batches)
        if self.clipped is not None:
            self._clipped_gradient(state, x, y, weight, masks, batches, expected)
            return
        blended: tuple[Tensor, Tensor] | None = None
        if self.blends:
            x, *pair = self._blended(x, y, batches)
            blended = (pair[0], pair[1])
        for name in self.trained:
            state[name].grad = None
        if not self.stacked:
            for name, module in self.masks:
                module.mask = masks[name][0]
            losses = self._losses(self.module(x[0]), y, blended)
            total = losses.mean() if weight is None else (losses * weight[0]).sum() / weight[0].sum().clamp_min(1.0)
        else:
            if self.native is not None:
                for name, module in self.masks:
                    module.mask = masks[name]
                outputs = self.native(x)
            else:
                outputs = torch.func.vmap(self._forward)({**state, **self.secrets, **masks}, x)
            losses = self._losses(outputs.flatten(0, 1), y, blended).view(x.shape[:2])
            means = losses.mean(1) if weight is None else (losses * weight).sum(1) / weight.sum(1).clamp_min(1.0)
            total = means.sum()
        total.backward()  # type: ignore[no-untyped-call]

    def _blended(self, x: Tensor, y: Tensor, batches: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Blended records [L, B, F], their partners' labels [L, B] and their own shares [L, B]; padding stays as it is."""
        x, other, share = x.clone(), y.clone(), torch.ones(y.shape, device=x.device, dtype=x.dtype)
        for i, (lane, batch) in enumerate(zip(self.lanes, batches)):
            drawn = self.defense.blend(len(batch), lane.noise)
            assert drawn is not None
            n, partner, own = len(batch), drawn[0].to(x.device), drawn[1].to(x)
            other[i, :n], share[i, :n] = y[i, partner], own
            x[i, :n] = own[:, None] * x[i, :n] + (1 - own)[:, None] * x[i, partner]
        return x, other, share

    def _losses(self, outputs: Tensor, y: Tensor, blended: tuple[Tensor, Tensor] | None) -> Tensor:
        """Per-record losses [L B] of outputs [L B, K]; of blended records the losses of both labels, by their shares."""
        if blended is None:
            return self.loss(outputs, y.flatten(0, 1))
        other, share = (part.flatten(0, 1) for part in blended)
        return share * self.loss(outputs, y.flatten(0, 1)) + (1 - share) * self.loss(outputs, other)

    def _forward(self, tensors: Params, x: Tensor) -> Tensor:
        return outputs_of(self.module, tensors, x)

    def _clipped_gradient(
        self,
        state: Params,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        masks: Params,
        batches: Sequence[Tensor],
        expected: Sequence[int],
    ) -> None:
        assert self.clipped is not None
        assert self.defense.clip is not None
        params = {name: state[name].detach() if self.stacked else state[name].detach()[None] for name in self.trained}
        secrets = self.secrets if self.stacked else {n: b[None] for n, b in private(self.module).items() if n not in masks}
        if weight is None:
            weight = torch.ones(x.shape[:2], device=self.device)
        norm, person = self.defense.clip.norm, self.lanes[0].person
        group = None if person is None else person[_padded(batches)[0]].to(self.device)
        sums, _ = self.clipped(params, {**secrets, **masks}, x, y, weight, norm, group)
        noisy: list[Params] = []
        for i, lane in enumerate(self.lanes):
            own = {n: g[i] for n, g in sums.items()}
            noisy.append(self.defense.noise(own, lane.noise))
            if self.witness is not None and self._live[i]:
                self.witness.stepped(lane.noise, batches[i], own, noisy[i])
                step = [{n: t[i : i + 1] for n, t in part.items()} for part in (params, secrets, masks)]
                self._alone(lane, batches[i], own, step, x[i : i + 1], y[i : i + 1], None if group is None else group[i : i + 1])
        sizes = torch.tensor(expected, dtype=x.dtype, device=self.device)
        for name in self.trained:
            rows = torch.stack([lane_sum[name] for lane_sum in noisy]) if self.stacked else noisy[0][name][None]
            rows = rows / sizes.view(-1, *[1] * (rows.dim() - 1))
            state[name].grad = rows if self.stacked else rows[0]

    def _alone(self, lane: Lane, batch: Tensor, sums: Params, step: Sequence[Params], x: Tensor, y: Tensor, group: Tensor | None) -> None:
        """Show the witness a few units of a lane's step by themselves, and what they gave its clipped ``sums``.

        ``step`` has the parameters, the secrets and the dropout masks, ``x`` to ``group`` the records, all [1, ...] and padded.
        """
        assert self.witness is not None
        assert self.clipped is not None
        assert self.defense.clip is not None
        clipped, norm = copy.copy(self.clipped), self.defense.clip.norm  # a copy: what suits one record must not move the batch's path
        params, secrets, masks = step

        def of(rows: Tensor, weight: Tensor) -> Params:
            own = {name: mask[:, rows] for name, mask in masks.items()}
            persons = None if group is None else group[:, rows]
            total, _ = clipped(params, {**secrets, **own}, x[:, rows], y[:, rows], weight, norm, persons)
            return {name: tensor[0] for name, tensor in total.items()}

        asked = [rows.to(x.device) for rows in self.witness.asked(lane.noise, batch)]
        if not asked:
            return
        started = time.perf_counter()
        others = (torch.arange(x.shape[1], device=x.device) < len(batch)).to(x.dtype)
        others[torch.cat(asked)] = 0
        rest = of(torch.arange(x.shape[1], device=x.device), others[None])
        given = {name: tensor - rest.pop(name) for name, tensor in sums.items()}
        self.witness.alone(lane.noise, given, (of(rows, x.new_ones(1, len(rows))) for rows in asked))
        self.witness.seconds += time.perf_counter() - started
