"""A network that learnt to undo messages by sending its own (Wu, Chen, Guo and Weinberger 2023, UAI, "Learning to invert").

The client algorithm is public: the adversary lets it send records of its own at the target's checkpoint, thousands of times, and trains a
network from message to records. Nothing is known of how messages hide records; what clipping, compression or small noise leave
is learnt, and with it when to fall back to a likely record. For batches the loss is that of the best assignment of records.

Width does not enter the training: the network reads and writes coordinates. It reads those of the first layer's leading right-singular
vectors (the records' own space) on the auxiliary records' principal components, with their strengths, and random projections of the
other tensors; it writes each record as a sum of these vectors and components; the loss follows from their inner products. What was done to
the message after the client is put on the training messages too (``wear``); an unknown key is one of many that the adversary draws.

It is behind the exact attacks where those are exact, and ahead of every other one in batches that are worn (pbmc68k, R2): four records of
which signs are sent .47 (independent components .24), four under noise of .1 an entry .22 (-.02), eight under Adam .23 (closed form -.03).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.gradient_inversion.cosine import alike
from attacks.gradient_inversion.likeness import Likeness
from attacks.gradient_inversion.message import first_linear, in_lanes, known_count, unlabelled
from attacks.gradient_inversion.wear import Wear
from suites.contracts import Goal, Guess, Observation, Params, Records, RequestError, Secret, Sees, Skip, Target

_PROJECTED, _HIDDEN = 16, 128  # coordinates of each tensor but the first; units
_LARGEST = 32  # records behind a message
_KEYS = 8  # of the adversary's own drawing
_AT_ONCE = 2**23  # numbers in the messages that are simulated together
_EPOCHS, _BATCH, _RATE, _DECAY = 40, 64, 3e-3, 1e-3
_HELD_OUT = 8  # one in so many auxiliary records, and of the simulated messages, says how good the inverter is

Lesson = tuple[Tensor, Tensor, Tensor, Tensor]  # code, inner products of vectors, of vectors and records, records' squares


class LearnedInverter:
    """Records by a network trained on simulated messages.

    ``Guess.confidence`` [targets] is the inverter's R2 on simulated messages that it was not trained on.

    Parameters
    ----------
    budget : int
        Messages that are simulated for each checkpoint, at least 128.
    limit : int
        Only the first ``limit`` targets are attacked and guessed; the notes say so.
    """

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "key"})

    def __init__(self, budget: int = 2048, limit: int = 16) -> None:
        if min(budget, limit) < 1:
            raise RequestError("learned_inverter needs a budget (simulated messages) and a limit (messages) of at least 1")
        self.budget, self.limit = max(budget, 2 * _BATCH), limit

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        if unlabelled(seen.known):
            raise Skip("structured records have several first layers or predict numbers, and this inverter reads one layer of a classifier")
        if len(seen.auxiliary) < 2:
            raise Skip("an inverter is trained on the adversary's own records, and there are none")
        everything = self.messages(seen)
        targets = list(everything[: self.limit])
        if max(target.batch for target in targets) > _LARGEST:
            raise Skip(f"more than {_LARGEST} records behind a message: of such crowds an inverter says no more than their mean")
        values: dict[int, Tensor] = {}
        trust: dict[int, float] = {}
        for group in alike(targets):
            inverter, fit = self._train(seen, targets[group[0]], rng)
            for index in group:
                values[index] = inverter.records(targets[index].update).to(seen.auxiliary.x)
                trust[index] = fit
        order = range(len(targets))
        notes = {"targets": float(len(targets)), "of": float(len(everything)), "simulated": float(self.budget)}
        return Guess([values[i] for i in order], confidence=torch.tensor([trust[i] for i in order]), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is inverted."""
        return seen.targets

    def _train(self, seen: Observation, target: Target, rng: torch.Generator) -> tuple[Inverter, float]:
        """An inverter for messages like ``target``, and its R2 on held-out simulated ones."""
        public, classes, features = seen.auxiliary, known_count(seen.known, "classes"), known_count(seen.known, "features")
        held = torch.randperm(len(public), generator=rng).to(public.y.device) % _HELD_OUT == 0
        held &= torch.tensor(len(public) >= 2 * _HELD_OUT)  # of so few none can be spared
        likeness = Likeness(Records(public.x[~held], public.y[~held]))
        inverter = Inverter(seen, target, likeness, features, rng)
        keys = [seen.key] if seen.key is not None else [seen.draw_key(index) for index in range(_KEYS)]
        keys = keys[:1] if keys[0] is None else keys
        size = sum(tensor.numel() for tensor in target.update.values())
        at_once = max(1, min(_BATCH, _AT_ONCE // max(size, 1)))
        read: list[Lesson] = []
        judge: list[Lesson] = []
        wear, done = None, 0
        own = public.x[held], public.y[held]
        while done < self.budget:
            count = min(at_once, self.budget - done)
            unseen = done < self.budget // _HELD_OUT and bool(held.any())
            x, y = likeness.draw(count * target.batch, rng)
            if unseen:  # messages of records that no training message knows
                rows = torch.randint(len(own[0]), (count * target.batch,), generator=rng).to(y.device)
                x, y = own[0][rows], own[1][rows]
            x = x.view(count, target.batch, features)
            soft = torch.nn.functional.one_hot(y.view(count, -1), classes).to(x)
            sent = _sent(seen, target, x, soft, keys[(done // at_once) % len(keys)])
            wear = Wear.of(_real(target.update), sent, target.batch, features) if wear is None else wear
            (judge if unseen else read).append(inverter.lesson(wear.put_on(sent, rng), x))
            done += count
        return inverter, inverter.learn(_joined(read), _joined(judge or read), rng)


class LearnedInverterOfSum(LearnedInverter):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "auxiliary", "simulate", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


@dataclass(slots=True)
class _Read:
    code: Tensor  # what the network reads [N, D]
    vectors: Tensor  # of which it writes sums [N, B + q, F], each as long as a typical record or component


class Inverter:
    """From a message's coordinates to those of its records; see the module's docstring."""

    def __init__(self, seen: Observation, target: Target, likeness: Likeness, features: int, rng: torch.Generator) -> None:
        self.seen, self.batch, self.features, self.rng = seen, target.batch, features, rng
        self.layer = first_linear(_real(target.update), features)
        self.middle, self.axes, self.components = likeness.middle, likeness.axes, likeness.components
        self.length = likeness.x.norm(dim=1).median()
        self.names = [name for name in _real(target.update) if name != self.layer.weight]
        self.sketch = {name: _projection(target.update[name].numel(), rng).to(self.middle) for name in self.names}
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.shift, self.scale = torch.zeros(()), torch.ones(())

    def read(self, messages: Params) -> _Read:
        """Messages with a leading axis."""
        weight = messages[self.layer.weight]  # [N, H, F']
        batch = min(self.batch, *weight.shape[1:])
        energy, left = torch.linalg.eigh(weight.double() @ weight.double().mT)
        left = left[..., -batch:].flip(-1).to(weight)  # [N, H, b]
        values = energy[..., -batch:].flip(-1).clamp_min(0).sqrt().to(weight)
        right = (left.mT @ weight) / values.clamp_min(1e-20)[..., None]  # [N, b, F']
        slope = messages[self.layer.bias] if self.layer.bias is not None else weight.new_ones(weight.shape[:2])
        share = (left * slope[..., None]).sum(1)  # [N, b]: of the bias' gradient along each direction
        turn = torch.where(share < 0, -1.0, 1.0)
        right = self.seen.restore((right * turn[..., None]).flatten(0, 1), self.seen.key).view(len(weight), batch, self.features)
        length = (values / share.abs().clamp_min(1e-20) / self.length).clamp(1e-3, 1e3).log()  # exact for one clean record
        whole = torch.stack([m.flatten(1).square().sum(1) for m in messages.values()]).sum(0).sqrt().clamp_min(1e-20)
        coded = [(right @ self.axes.T).flatten(1), length, (values / whole[:, None]), share.abs() / whole[:, None], whole.log()[:, None]]
        for name in self.names:
            flat = messages[name].flatten(1)
            coded.append((flat @ self.sketch[name]) / flat.norm(dim=1, keepdim=True).clamp_min(1e-20))
        shown = torch.nn.functional.pad(right * self.length, (0, 0, 0, self.batch - batch))
        return _Read(torch.cat(coded, 1), torch.cat([shown, self.components.expand(len(shown), -1, -1)], 1))

    def lesson(self, messages: Params, x: Tensor) -> Lesson:
        """Code [N, D], inner products of the vectors [N, V, V] and of vectors and records [N, V, B], records' squares [N, B]."""
        read, records = self.read(messages), x - self.middle
        vectors = read.vectors
        return read.code, vectors @ vectors.mT, vectors @ records.mT, records.square().sum(-1)

    def learn(self, lessons: Lesson, judge: Lesson, rng: torch.Generator) -> float:
        """Train on ``lessons`` until ``judge`` is answered no better; the R2 of its answers."""
        code, gram = lessons[0], lessons[1]
        self.shift, self.scale = code.mean(0), code.std(0).clamp_min(1e-6)
        widths = [code.shape[1], _HIDDEN, _HIDDEN, self.batch * gram.shape[1]]
        self.layers = [
            ((torch.randn(a, b, generator=rng) * (gain / a) ** 0.5).to(code).requires_grad_(), code.new_zeros(b).requires_grad_())
            for a, b, gain in zip(widths, widths[1:], (2.0, 2.0, 0.01))
        ]
        free = [tensor for layer in self.layers for tensor in layer]
        optimiser = torch.optim.AdamW(free, lr=_RATE, weight_decay=_DECAY)
        steps = _EPOCHS * -(-len(code) // _BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=steps)
        best, kept = float("inf"), self.layers
        for _ in range(_EPOCHS):
            for chosen in torch.split(torch.randperm(len(code), generator=rng).to(code.device), _BATCH):
                optimiser.zero_grad()
                self._errors(lessons[0][chosen], lessons[1][chosen], lessons[2][chosen], lessons[3][chosen]).mean().backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                left = float(self._errors(*judge).sum())
            if left < best:
                best, kept = left, [(weight.detach().clone(), bias.detach().clone()) for weight, bias in self.layers]
        self.layers = kept
        return 1 - best / float(judge[3].sum() / self.length**2)

    def records(self, message: Params) -> Tensor:
        """The records [B, F] that a message is taken for."""
        with torch.no_grad():
            read = self.read({name: tensor[None].to(self.middle) for name, tensor in _real(message).items()})
            return self._write(read.code)[0] @ read.vectors[0] + self.middle

    def _write(self, code: Tensor) -> Tensor:
        """Coefficients [N, B, V] of the vectors."""
        value = ((code - self.shift) / self.scale).clamp(-8, 8)
        for depth, (weight, bias) in enumerate(self.layers):
            value = value @ weight + bias
            value = value if depth == len(self.layers) - 1 else torch.nn.functional.silu(value)
        written: Tensor = value.view(len(code), self.batch, -1)
        return written

    def _errors(self, code: Tensor, gram: Tensor, inner: Tensor, square: Tensor) -> Tensor:
        """Each message's squared error [N] under the best assignment of written to true records, in units of a typical record's square."""
        written = self._write(code)  # [N, B, V]
        own = (written @ gram * written).sum(-1)  # [N, B]
        apart = own[:, :, None] - 2 * written @ inner + square[:, None, :]  # [N, B written, B true]
        if self.batch == 1:
            alone: Tensor = apart[:, 0, 0] / self.length**2
            return alone
        costs = apart.detach().nan_to_num(1e30).cpu().numpy()
        order = torch.stack([torch.as_tensor(linear_sum_assignment(cost)[1]) for cost in costs]).to(apart.device)
        matched: Tensor = apart.gather(2, order[:, :, None])[..., 0].sum(1) / self.length**2
        return matched


def _sent(seen: Observation, target: Target, x: Tensor, soft: Tensor, key: Secret | None) -> Params:
    """Messages with a leading axis of records [N, B, F] with labels [N, B, K]."""
    like = replace(target, params={name: t.to(x) if t.is_floating_point() else t for name, t in target.params.items()})
    names = _real(target.update)

    def one(records: Tensor, labels: Tensor) -> Params:
        message = seen.simulate(like, records, labels, key)
        return {name: message[name].detach() if name in message else torch.zeros_like(names[name]) for name in names}

    return in_lanes(one, x, soft)


def _joined(parts: Sequence[Lesson]) -> Lesson:
    code, gram, inner, square = (torch.cat(part) for part in zip(*parts))
    return code, gram, inner, square


def _real(message: Params) -> Params:
    return {name: tensor for name, tensor in message.items() if tensor.is_floating_point()}


def _projection(size: int, rng: torch.Generator) -> Tensor:
    """A random projection [size, p], or the identity where that is smaller."""
    return torch.eye(size) if size <= _PROJECTED else torch.randn(size, _PROJECTED, generator=rng) / _PROJECTED**0.5
