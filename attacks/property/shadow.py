"""Shares of a site's records, learnt from updates that the adversary makes himself out of records whose shares he knows.

Threat: a server with auxiliary records (Ganju et al. 2018, CCS; Melis et al. 2019, S&P). For each round in sight he draws mixes of his own
records, lets the public client algorithm make the update of each (``seen.simulate``), and regresses the mix on the update; then he reads
the sites' own updates. Kernel ridge regression: of two updates the kernel is the sum over tensors of their inner products, each tensor on a
scale of one, so that a bias of ten numbers counts as much as a matrix of a million. Penalty by leave-one-out error on the shadows.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.loss import key_to_use
from suites.contracts import Goal, Observation, Params, RequestError, RoundView, Secret, Skip, Target

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
MEAN = 100.0
FEW, MANY = 0.5, 60.0  # concentration of the mixes drawn: from sites of one kind of record to sites like the public


class ShadowShares:
    """The loop that attacks on shares have in common; a subclass says what is mixed.

    Parameters
    ----------
    shadows : updates simulated for each round (and each number of local steps among the sites)
    rounds : how many of the rounds in sight are read, from the first on
    """

    goal: ClassVar[Goal] = "property"
    together: ClassVar[bool] = False  # whether it reads what all sites sent together

    def __init__(self, shadows: int = 64, rounds: int = 2) -> None:
        if shadows < 8 or rounds < 1:
            raise RequestError(
                f"a property is learnt from shadows of at least 8 and read from rounds of at least 1, not {shadows} and {rounds}; give more"
            )
        self.shadows, self.rounds = shadows, rounds

    def kinds(self, seen: Observation) -> tuple[Tensor, int]:
        """The kind of every auxiliary record [m] and how many kinds there are; -1 for a record that is not to be used."""
        raise NotImplementedError

    def messages(self, view: RoundView) -> dict[int, Params]:
        return dict(view.updates)

    def reads(self, update: Params, classes: int) -> Params:
        """What of an update the regression is on: all of it."""
        return update

    def shares(self, seen: Observation, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Estimated shares [S, kinds] of every site in sight, in the order of sites, and notes."""
        kind, count = self.kinds(seen)
        if len(torch.unique(kind[kind >= 0])) < 2:
            raise Skip("the auxiliary records are all of one kind, so nothing can be learnt about a mix")
        views = [view for view in seen.rounds if view.broadcast is not None and self.messages(view)][: self.rounds]
        if not views:
            raise Skip("no round shows both a broadcast and an update")
        protocol = seen.known["protocol"].value
        local = protocol.local
        total: dict[int, Tensor] = {}
        number: dict[int, int] = {}
        sites = max(protocol.sites, 1)
        errors: list[float] = []
        for view in views:
            messages = self.messages(view)
            sizes = {site: int(view.weights.get(site) or max(seen.known["members"].value // sites, 2)) for site in messages}
            steps = {site: local.epochs * -(-size // local.batch) for site, size in sizes.items()}
            for several in sorted(set(steps.values())):
                own = [site for site in messages if steps[site] == several]
                size = int(torch.tensor([float(sizes[site]) for site in own]).median())
                target = Target(view.broadcast or {}, {}, size, local.optimiser, several, local.lr, None, 1, view.index, local.momentum)
                updates, mixes = self._shadows(seen, target, kind, count, key_to_use(seen), rng)
                classes = int(seen.known["classes"].value)
                read = [self.reads(update, classes) for update in updates]
                found, error = regress(read, mixes, [self.reads(messages[site], classes) for site in own])
                errors.append(error)
                for site, share in zip(own, found):
                    total[site] = total[site] + share if site in total else share
                    number[site] = number.get(site, 0) + 1
        own_kinds = kind[kind >= 0]
        public = torch.bincount(own_kinds, minlength=count).double() / len(own_kinds)
        every = [0] if self.together else range(sites)  # a site that was never seen has the public shares
        means = torch.stack([total[site] / number[site] if site in total else public for site in every]).clamp_min(0)
        return means / means.sum(1, keepdim=True).clamp_min(1e-12), {"shadow_error": sum(errors) / len(errors)}

    def _shadows(
        self, seen: Observation, target: Target, kind: Tensor, count: int, key: Secret | None, rng: torch.Generator
    ) -> tuple[list[Params], Tensor]:
        public = seen.auxiliary
        rows = [(kind == code).nonzero().squeeze(1) for code in range(count)]
        common = torch.tensor([float(len(own)) for own in rows], dtype=torch.float64)
        common = common / common.sum()
        updates, mixes = [], []
        for index in range(self.shadows):
            weight = FEW * (MANY / FEW) ** (index / max(self.shadows - 1, 1))
            drawn = torch._standard_gamma((weight * common).clamp_min(1e-3), generator=rng).clamp_min(1e-30)
            drawn = torch.where(common > 0, drawn, 0.0)
            codes = torch.multinomial(drawn / drawn.sum(), target.batch, replacement=True, generator=rng)
            place = (torch.rand(target.batch, generator=rng) * torch.tensor([len(own) for own in rows])[codes]).long()
            chosen = torch.stack([rows[int(code)][spot] for code, spot in zip(codes, place)])
            update = seen.simulate(target, public.x[chosen], public.y[chosen], key)
            updates.append({name: tensor.detach() for name, tensor in update.items()})
            mixes.append(torch.bincount(codes, minlength=count).double() / target.batch)
        return updates, torch.stack(mixes)


def regress(updates: list[Params], mixes: Tensor, asked: list[Params]) -> tuple[Tensor, float]:
    """Mixes [S, C] of the ``asked`` updates, from ``updates`` whose ``mixes`` [M, C] are known, and the leave-one-out error (RMS).

    An asked update that lies further out than any shadow does carries something that they have not (noise, say): its estimate is drawn
    towards the mean mix by the ratio of their energies.
    """
    names = [name for name in updates[0] if name in asked[0] and updates[0][name].is_floating_point()]
    count = len(updates)
    gram, own = torch.zeros(count + len(asked), count, dtype=torch.float64), torch.zeros(count + len(asked), dtype=torch.float64)
    for name in names:
        rows = torch.stack([update[name].flatten() for update in [*updates, *asked]]).double()
        rows = rows - rows[:count].mean(0)
        scale = rows[:count].square().sum(1).mean()
        if float(scale) > 0:
            gram += rows @ rows[:count].T / scale / len(names)
            own += rows.square().sum(1) / scale / len(names)
    gram += MEAN  # a constant feature: the mean is fitted too, or each left-out mix would be known from the others'
    centre = mixes.mean(0)
    best: tuple[float, Tensor] | None = None
    for penalty in PENALTIES:
        inverse = torch.linalg.inv(gram[:count] + penalty * torch.eye(count, dtype=torch.float64))
        weight = inverse @ (mixes - centre)
        error = float((weight / inverse.diagonal()[:, None]).square().mean().sqrt())
        if best is None or error < best[0]:
            best = error, gram[count:] @ weight
    assert best is not None
    trust = (own[:count].max() / own[count:].clamp_min(1e-300)).clamp_max(1.0)
    return centre + trust[:, None] * best[1], best[0]
