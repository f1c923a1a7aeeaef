"""One message in the row space of its first layer's update: start, objective and finish of a search there.

dW = D^T X for any number of plain gradient steps, so X = A R with R [r, F] the right singular vectors of dW: the unknowns are A [B, r]
instead of X [B, F] and an evaluation costs the same for a thousand features as for twenty thousand. L-BFGS from several starts
minimises the sum over tensors of the relative squared distance of simulated and received message. Records that land near a solution are
finished in closed form: a ReLU unit that is off for record b puts an exact zero into D, and the direction that most zeros agree on is a
singular vector (Dimitrov et al. 2024, "SPEAR", use the same zeros, by sampling). Only observable losses choose between starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacks.gradient_inversion.closed_form import invert
from attacks.gradient_inversion.dense import Chain
from attacks.gradient_inversion.gap import Gap
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.lbfgs import minimise, minimise_each
from attacks.gradient_inversion.message import (
    as_gradient,
    blocks,
    first_linear,
    known_count,
    least_squares,
    to_compare_by,
    unlabelled,
    width,
)
from attacks.gradient_inversion.noted import Noted
from attacks.gradient_inversion.regression import with_targets
from suites.contracts import Observation, Params, Secret, Skip, Target

SOLVED = 1e-10  # loss of a gradient in single precision that was hit exactly
PARTS = (0.25, 0.25, 0.25, 0.25)  # of the budget, between which the worse half of the starts begins anew from the best one
SAME = 1e-3  # of what counts as solved: losses as near as this are taken for equal
UNEXPLAINED = 0.25  # mean relative squared distance a tensor from which a search counts as failed
# After a first part of so many evaluations or more, that of the best start from which it is given up. Measured under DP at epsilon 8 and
# without a key: .97 to 1.00 after the first part and after the last one, .88 of nothing but noise; where it is explained, .42 or less.
HOPELESS, FAIR_TRIAL = 0.75, 50
Simulate = Callable[[Tensor, Tensor], Params]  # A [L, B, r] and first weights [L, H, r] (or orders) -> messages with a lane axis
Begun = tuple[Tensor, Tensor]  # points [L, B r] and losses [L] after a first part


def explains(loss: float, target: Target) -> bool:
    """Whether a search's loss is that of a message more or less hit."""
    return loss < UNEXPLAINED * sum(tensor.is_floating_point() for tensor in target.update.values())


class Problem:
    """One target in its row space, in double precision: start, objective and finish."""

    def __init__(self, seen: Observation, target: Target, key: Secret | None) -> None:
        self.features, self.classes = known_count(seen.known, "features"), known_count(seen.known, "classes")
        public, self.structured = seen.auxiliary.x, unlabelled(seen.known)
        labels: Tensor | None = torch.zeros(target.batch, dtype=torch.int64)
        if self.structured:
            self.features, public = width(self._columns(seen, target)), public[:, self._columns(seen, target)]
        else:
            outputs = seen.predict(target.params, public, key).detach() if len(public) else None
            labels = label_list(target, self.classes, outputs)
        if labels is None:
            raise Skip("the message holds no output bias, so the labels cannot be counted")
        self.labels = labels
        if target.optimiser == "adam":
            raise Skip("Adam's updates keep little but signs and leave the span of the records; use cosine_inversion")
        one_step = target.optimiser == "sgd" and target.steps == 1
        self.target = replace(target, optimiser="gradient", update=as_gradient(target)) if one_step else target
        self.solved = max(SOLVED, 2 * _rounding(target.params, target))
        self.norm = float(public.norm(dim=1).median()) if len(public) else float(self.features) ** 0.5
        guess, _, self.case = invert(target, self.features, self.norm, public)
        self.guess = guess.double()
        self.params = {name: t.double() if t.is_floating_point() else t for name, t in self.target.params.items()}
        self.received = {name: t.double() for name, t in self.target.update.items() if t.is_floating_point()}
        layer = first_linear(self.received, self.features)
        self.first, self.bias = layer.weight, layer.bias
        full = self.received[self.first]
        _, values, right = torch.linalg.svd(full, full_matrices=False)
        rank = min(target.batch, len(values), max(int((values > 1e-6 * values[0]).sum()), 1))
        energy = values.square()
        self.noisy = bool(energy[target.batch :].sum() > self.solved * energy.sum())  # more directions than records make
        self.rows = right[:rank]  # [r, F']
        self.received[self.first] = full @ self.rows.T
        self.weight = self.params[self.first] @ self.rows.T  # [H, r]
        self.soft = torch.nn.functional.one_hot(self.labels, self.classes).double()
        self.gap: Gap | None = None  # where the network is a chain of dense layers
        self.noted: Noted | None = None  # where its calls are all it is made of
        self.reduced = False  # whether the public client takes records and first weight in the row space
        self.simulate = self._client(seen, key)

    @staticmethod
    def _columns(seen: Observation, target: Target) -> slice:
        """What the one first layer of structured records reads."""
        if len(blocks(seen.known)) > 1:
            raise Skip("two first layers read these records, a block each, and this search has one row space; use closed_form")
        if seen.known["layout"].value.target and target.steps > 1:
            raise Skip("what a network was to predict is read off one gradient, and this message mixes several")
        return blocks(seen.known)[0]

    def _client(self, seen: Observation, key: Secret | None) -> Simulate:
        """The cheapest simulated client that agrees with the public one: closed form, else vmap in the row space, else in full space."""
        soft = torch.nn.functional.one_hot(self.labels, self.classes).double()
        received = replace(self.target, params=self.params, update={name: t.double() for name, t in self.target.update.items()})

        def full(x: Tensor, weight: Tensor) -> Params:
            records = with_targets(seen, received, seen.restore(x @ self.rows, key), key)
            message = seen.simulate(received, records, soft, key)
            return {**message, self.first: message[self.first] @ self.rows.T}

        def reduced(x: Tensor, weight: Tensor) -> Params:
            return seen.simulate(replace(self.target, params={**self.params, self.first: weight}), x, soft, key)

        plain = self.target.optimiser == "gradient" and not self.structured
        chain = Chain.found(self.params, self.features, self.classes) if plain else None

        def closed(x: Tensor, weight: Tensor) -> Params:
            assert chain is not None
            return chain.gradients(self.params, weight, x, soft.expand(len(x), -1, -1))

        if self.structured:
            start = seen.restore(self.guess, key)  # the public model, with each key, is built outside vmap
            seen.predict(self.target.params, with_targets(seen, received, start, key).float(), key)  # in the precision of a key's buffers
        trial = to_compare_by(1, len(self.labels), len(self.rows)).to(self.rows.device)
        exact = torch.func.vmap(full)(trial, self.weight[None])
        for candidate in () if self.structured else (closed if chain is not None else None, torch.func.vmap(reduced)):
            try:
                if candidate is not None and _close(candidate(trial, self.weight[None]), exact):
                    if chain is not None and candidate is closed:
                        self.gap = Gap(chain.weights, self.params, self.weight, self.received)
                    self.reduced = candidate is not closed
                    self.noted = self._notes(seen, key, trial, exact) if candidate is not closed and plain else None
                    return candidate
            except (RuntimeError, KeyError):  # a client that pads or turns its records refuses the reduced ones
                continue
        return torch.func.vmap(full)

    def client(self, seen: Observation, key: Secret | None, soft: Tensor) -> Simulate:
        """What records [B, r] with labels ``soft`` [B, K] would have sent if their steps had taken the mini-batches [steps, B]."""
        full = replace(self.target, params=self.params)
        inside = replace(self.target, params={**self.params, self.first: self.weight})

        def client(x: Tensor, order: Tensor) -> Params:
            if self.reduced:
                return seen.simulate(inside, x, soft, key, order=order)
            message = seen.simulate(full, seen.restore(x @ self.rows, key), soft, key, order=order)
            return {**message, self.first: message[self.first] @ self.rows.T}

        return client

    def _notes(self, seen: Observation, key: Secret | None, trial: Tensor, exact: Params) -> Noted | None:
        """Distances without gradients, where they are the same as those of the gradients."""
        noted = Noted(seen, {**self.params, self.first: self.weight}, self.received, self.soft, key)
        try:
            ours, theirs = noted.distances(trial), self.apart(exact)
        except (RuntimeError, KeyError):
            return None
        return noted if torch.allclose(ours, theirs, rtol=1e-8) else None

    def loss(self, flat: Tensor) -> Tensor:
        """Sum over tensors of relative squared distances [L] at ``flat`` [L, B r]."""
        x = flat.view(-1, len(self.labels), len(self.rows))
        if self.gap is not None:
            return self.gap(x, self.soft[None])
        if self.noted is not None:
            return self.noted.distances(x)
        return self.apart(self.simulate(x, self.weight.expand(len(x), -1, -1)))

    def apart(self, message: Params) -> Tensor:
        return self._each_apart(message).sum(0)

    def _each_apart(self, message: Params) -> Tensor:
        """Relative squared distance of each tensor [T, L]."""
        parts = []
        for name, received in self.received.items():
            if name in message:
                gap = (message[name] - received).flatten(1).square().sum(1)
                parts.append(gap / received.square().sum().clamp_min(1e-300))
        return torch.stack(parts)

    def starts(self, restarts: int, rng: torch.Generator) -> Tensor:
        """Where a search begins [L, B r]: the closed form, then drawn records."""
        batch, rank = len(self.labels), len(self.rows)
        draw = torch.randn(restarts, batch, rank, generator=rng).double().to(self.rows.device)
        flat = draw.mul(self.norm / rank**0.5).flatten(1)
        flat[0] = (self.guess.to(self.rows) @ self.rows.T).flatten()
        return flat

    def solve(self, budget: int, restarts: int, rng: torch.Generator, begun: Begun | None = None) -> tuple[Tensor, float]:
        """The best A [B, r] and its loss; ``begun`` is what the first part found, where that is known: points [L, B r], losses [L]."""
        batch, rank = len(self.labels), len(self.rows)
        flat, loss = begun if begun is not None else searched([self], self.starts(restarts, rng)[None], int(PARTS[0] * budget))[0]
        if self.hopeless((flat, loss), int(PARTS[0] * budget)):
            return flat[loss.argmin()].view(batch, rank), float(loss.min())
        for part in (*PARTS[1:], 0.0):
            # The first of those as good: of several at the last bits of the same records, rounding would choose, and with it their order.
            best = int((loss <= loss.min() + SAME * self.solved).to(torch.int8).argmax())
            if loss[best] < self.solved:
                break
            fresh = _moved(flat[best].view(batch, rank), restarts, rng).flatten(1)
            worse = (loss > loss.median()) & (torch.arange(restarts, device=flat.device) != best)
            flat = torch.where(worse[:, None], fresh, flat)
            if part:
                flat, loss = searched([self], flat[None], int(part * budget))[0]
        if loss[best] < self.solved / 10:
            return flat[best].view(batch, rank), float(loss[best])
        last, left = minimise(self.loss, flat[best : best + 1], max(budget // 20, 1))
        return last[0].view(batch, rank), float(left[0])

    def hopeless(self, begun: Begun, evaluations: int) -> bool:
        """Whether a search is given up that has come so far with a first part of so many evaluations.

        No tensor counts for more than its own length: one that is far off says nothing of how well the others are met.
        """
        flat, losses = begun
        most = HOPELESS * len(self.received)
        if evaluations < FAIR_TRIAL or float(losses.min()) <= most:
            return False
        sent = self.simulate(flat.view(-1, len(self.labels), len(self.rows)), self.weight.expand(len(flat), -1, -1))
        return float(self._each_apart(sent).clamp(max=1).sum(0).min()) > most

    def quiet(self) -> tuple[int, ...]:
        """How many units to take for switched off at each record; none where zeros cannot settle a direction."""
        units, rank = len(self.received[self.first]), len(self.rows)
        if self.bias is None or len(self.labels) != rank:
            return ()
        return tuple(sorted({count for count in (units // 4, units // 3, 2 * units // 5) if count > rank}))

    def alike(self, other: Problem) -> bool:
        """Whether the two may be searched together: closed forms at one checkpoint, with as many unknowns."""
        mine, theirs = ({n: t for n, t in one.params.items() if n != one.first} for one in (self, other))
        return (
            self.gap is not None
            and other.gap is not None
            and self.weight.shape == other.weight.shape
            and self.soft.shape == other.soft.shape
            and self.quiet() == other.quiet()
            and mine.keys() == theirs.keys()
            and all(mine[name].shape == theirs[name].shape and torch.equal(mine[name], theirs[name]) for name in mine)
        )


def searched(problems: Sequence[Problem], starts: Tensor, budget: int) -> list[Begun]:
    """One part of the search of problems that are ``alike``, from ``starts`` [P, L, B r]: of each the points [L, B r] and losses [L].

    A problem ends at the evaluation at which it would end alone.
    """
    one = problems[0]
    lanes, shape = starts.shape[1], (*starts.shape[:2], *(len(one.labels), len(one.rows)))
    solved = torch.tensor([problem.solved for problem in problems], dtype=starts.dtype, device=starts.device)

    def family(left: Tensor) -> Callable[[Tensor], Tensor]:
        if len(problems) == 1:
            return one.loss
        some = [problems[index] for index in left.tolist()]
        assert one.gap is not None
        received = {name: torch.stack([problem.received[name] for problem in some]) for name in one.received}
        gap = Gap(one.gap.names, one.params, torch.stack([problem.weight for problem in some]), received)
        soft = torch.stack([problem.soft for problem in some]).repeat_interleave(lanes, 0)
        return lambda flat: gap(flat.view(-1, *shape[2:]), soft)

    def enough(losses: Tensor, left: Tensor) -> Tensor:
        return (losses < solved[left.to(solved.device), None]).any(1)

    flat, loss = minimise_each(family, starts, max(budget, 1), enough)
    everything = family(torch.arange(len(problems)))
    if one.quiet():
        assert one.bias is not None
        weight, bias = (torch.stack([problem.received[name] for problem in problems])[:, None] for name in (one.first, one.bias))
        for quiet in one.quiet():
            finished = finish(flat.view(shape), weight, bias, quiet).flatten(2)
            polished = everything(finished.flatten(0, 1)).nan_to_num(torch.inf).view(loss.shape)
            flat = torch.where((polished < loss)[..., None], finished, flat)
            loss = torch.minimum(polished, loss)
    return list(zip(flat, loss))


def finish(inside: Tensor, weight: Tensor, bias: Tensor, quiet: int, rounds: int = 8) -> Tensor:
    """Records [.., B, r] made exact by the zeros that inactive ReLU units leave in D, where they are near a solution.

    ``weight`` [.., H, r] and ``bias`` [.., H] are the first layer's received gradient.
    """
    inverse = torch.linalg.pinv(inside)  # [.., r, B]: D^T = dW inverse
    for _ in range(rounds):
        rows = (weight @ inverse).abs().topk(quiet, dim=-2, largest=False).indices.mT  # [.., B, quiet]: units most likely off
        picked = torch.take_along_dim(weight[..., None, :, :], rows[..., None], dim=-2)
        inverse = torch.linalg.eigh(picked.mT @ picked).eigenvectors[..., 0].mT
    scale = least_squares(weight @ inverse, bias[..., None])
    exact: Tensor = torch.linalg.pinv(inverse * scale.mT)
    return exact


def _moved(best: Tensor, lanes: int, rng: torch.Generator) -> Tensor:
    """New starts [L, B, r] from the best records [B, r] so far: all of them shaken, or one drawn anew, or two in each other's place.

    A trap is mostly a batch with one record wrong, or two under each other's labels, which no small step undoes.
    """
    batch, rank = best.shape
    size, fresh = best.square().mean().sqrt(), best.expand(lanes, -1, -1).clone()
    jump = torch.logspace(-2.5, -0.5, lanes, dtype=best.dtype, device=best.device)
    for lane in range(lanes):
        if lane % 3 == 0 or batch == 1:
            fresh[lane] += jump[lane] * size * torch.randn(best.shape, generator=rng).to(best)
        elif lane % 3 == 1:
            fresh[lane, int(torch.randint(batch, (1,), generator=rng))] = size * torch.randn(rank, generator=rng).to(best)
        else:
            one, two = torch.randperm(batch, generator=rng)[:2].tolist()
            fresh[lane, [one, two]] = best[[two, one]]
    return fresh


def _rounding(params: Params, target: Target) -> float:
    """The loss that is left of a step hit exactly: it is the difference of two single-precision models, each with its rounding.

    Each of the two is off by a uniform half of its spacing, relative to the entry about 2^-24 to 2^-23: variance 2^-47 / 12 at most, each.
    A gradient is rounded once, which counts where it is sent in half precision; so does that type's least step.
    """
    if target.optimiser == "gradient":
        return sum(_rounded(sent) for sent in target.update.values() if sent.is_floating_point())
    left = 0.0
    for name, moved in target.update.items():
        if moved.is_floating_point() and name in params:
            eps = torch.finfo(moved.dtype).eps
            left += float(params[name].double().square().sum()) * eps**2 / 6 / max(float(moved.double().square().sum()), 1e-300)
    return left


def _rounded(sent: Tensor) -> float:
    """The relative squared distance to what was rounded to ``sent``: its entries' spacings squared over 12, at most."""
    kind, values = torch.finfo(sent.dtype), sent.double()
    spacing = (kind.eps * values.abs()).clamp_min(kind.eps * kind.tiny)
    return float(spacing.square().sum() / 12 / values.square().sum().clamp_min(1e-300))


def _close(ours: Params, exact: Params) -> bool:
    return set(ours) == set(exact) and all(
        ours[name].shape == exact[name].shape and (ours[name] - exact[name]).norm() <= 1e-6 * exact[name].norm() + 1e-12 for name in exact
    )
