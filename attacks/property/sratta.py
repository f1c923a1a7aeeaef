"""Records out of sums, grouped by the site that they came from, without a candidate to try (Marchand et al. 2023, "SRATTA").

Threat: a server under secure aggregation, which reads only the sum of a round's updates but knows who took part. A round's sum of steps of
SGD at the first layer is [dW | db] = D^T [X | 1], with D [n, H] the slopes: its row space is that of the participants' records, each with a
one appended. Three steps, of which the first two are what changing participation adds:

1. *Group.* What the row spaces of all rounds of a site have in common, where no other site was in all of these, is its records' span.
2. *Split.* The sum's coordinates along these spans are each site's own update: secure aggregation is undone, at the first layer.
3. *Recover.* A ReLU that is off for a record leaves a zero in D (SRATTA's neurons that one record alone switches on are the plainest
   case). One site's updates of all rounds mix the same records: their zeros together undo the mixture, and the appended one tells each
   record's length and sign.

A candidate that one of the records recovered is, to one part in a hundred, is placed at its site; nothing is said of others.

Limits. A round needs fewer records than the first layer has units, all rounds together fewer than there are features, and sums without
noise: Adam, weight decay over several steps and differential privacy leave no low rank. A site that another one accompanies in all
of its rounds is not told, and rounds with it are not split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.cocktail_party import independent
from attacks.gradient_inversion.message import first_linear, known_count
from attacks.property.disaggregation import presence
from suites.contracts import Federation, Goal, Ground, Guess, Observation, RequestError, RoundView, Sees, Skip

GAP = 30.0  # of two singular values, from which the second is rounding
COMMON = 1e-4  # a direction's share outside a typical round's row space up to which it is in all of them
ZERO = 0.01  # of a record's largest slope: below, it counts as a unit that was off (masks are taken off rounded sums)
SAME = 0.01  # relative distance up to which a recovered record is a candidate
APART = 0.1  # of a direction's length: below, those before it make it up
EVEN, SURE = 0.6, 0.85  # of the usual number of zeros: every record has so many; no mixture of two has
NEWS = 0.05  # more zeros a row in all directions together: a mixture gave way to a record
_ICA, _SHARPER, _FINER = 400, 40, 6  # iterations
_ABOVE = 10  # times the typical zero's rounding: above, a row is none


class Sratta:
    """For every candidate the site of the recovered record that it is.

    Parameters
    ----------
    budget : int
        Searches a site, each begun near its independent components. Few do where zeros tell at all.
    """

    goal: ClassVar[Goal] = "property"
    property: ClassVar[str] = "site_of_origin"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "predict", "key", "broadcasts", "sums"})
    ground: ClassVar[Ground] = Ground(participation=0.6, one_step=True)

    def __init__(self, budget: int = 16) -> None:
        if budget < 2:
            raise RequestError("sratta needs a budget (searches) of at least 2")
        self.budget = budget

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        protocol: Federation = seen.known["protocol"].value
        if protocol.local.optimiser == "adam":
            raise Skip("rounds of Adam: its updates keep little but signs, which are no mixture of records; local steps of SGD are needed")
        if "layout" in seen.known:
            raise Skip("structured records have several first layers, and SRATTA reads one")
        views = [view for view in seen.rounds if view.broadcast is not None and view.combined is not None]
        if not any(view.participants for view in views):
            raise Skip("this view is not told who takes part in a round, so nothing recovered can be grouped")
        sums = [summed(view, known_count(seen.known, "features"), protocol) for view in views]
        took = presence(views, protocol.sites)
        spans = site_spans([row_space(one) for one in sums], took)
        if not spans:
            raise Skip("no site is told from all others by the rounds that it takes part in (federation: {participation: .6})")
        found = {site: recovered(parts, len(sums[0]), spans[site], self.budget, rng) for site, parts in split(sums, spans, took).items()}
        if not any(map(len, found.values())):
            raise Skip("sites' shares of the sums are told apart, but no unit is off for one record and on for others: no ReLU follows")
        asked, key = seen.candidates.x.double(), seen.key
        evidence = asked.new_zeros(len(asked), protocol.sites)
        for site, records in found.items():
            if len(records):
                readable = seen.restore(records.float(), key).double()
                near = torch.cdist(asked, readable) <= SAME * readable.norm(dim=1)
                evidence[near.any(1), site] = 1.0
        notes = {
            "rounds": float(len(views)),
            "sites_told": float(len(spans)),
            "directions_grouped": float(sum(map(len, spans.values()))),
            "recovered": float(sum(map(len, found.values()))),
            "matched": float(evidence.any(1).sum()),
        }
        return Guess(evidence, notes=notes)


def summed(view: RoundView, features: int, protocol: Federation) -> Tensor:
    """A round's [dW | db] of the first layer [H, F' + 1], without what one step's weight decay put in."""
    assert view.broadcast is not None
    assert view.combined is not None
    layer = first_linear(view.combined, features)
    if layer.bias is None:
        raise Skip("the first layer has no bias, whose gradient would say how long each record is")

    def both(params: Mapping[str, Tensor]) -> Tensor:
        assert layer.bias is not None
        return torch.cat([params[layer.weight], params[layer.bias][:, None]], 1).double()

    return both(view.combined) + protocol.local.lr * protocol.local.weight_decay * both(view.broadcast)


def row_space(update: Tensor) -> Tensor:
    """Orthonormal rows [r, F' + 1]; raises ``Skip`` where no gap in the spectrum says how many."""
    _, values, right = torch.linalg.svd(update, full_matrices=False)
    falls = values[:-1] / values[1:].clamp_min(1e-12 * float(values[0]) + 1e-300)
    rank = int(falls.argmax()) + 1
    if not float(falls[rank - 1]) >= GAP:
        raise Skip("a round's sum has full rank: its steps saw more records than the first layer has units, or noise or decay was added")
    found: Tensor = right[:rank]
    return found


def site_spans(spaces: Sequence[Tensor], took: Tensor) -> dict[int, Tensor]:
    """Orthonormal rows [n, F' + 1] of what all rounds of a site have in common, for each site that is alone in all of its rounds."""
    _, values, right = torch.linalg.svd(torch.cat(list(spaces)), full_matrices=False)
    basis = right[values > 1e-3]  # all rounds' together: whatever the number of features, the rest is small
    projectors = torch.stack([(each := space @ basis.T).T @ each for space in spaces])
    found = {}
    for site in range(took.shape[1]):
        own = took[:, site] > 0
        if not bool(own.any()) or int((took[own].sum(0) == own.sum()).sum()) > 1:
            continue
        shares, vectors = torch.linalg.eigh(projectors[own].mean(0))
        common = shares > 1 - COMMON
        if bool(common.any()):
            found[site] = vectors[:, common].T @ basis
    return found


def split(sums: Sequence[Tensor], spans: Mapping[int, Tensor], took: Tensor) -> dict[int, Tensor]:
    """Each site's own updates of all rounds whose participants are all told apart, in its span's coordinates [rounds x H, n]."""
    parts: dict[int, list[Tensor]] = {}
    for update, row in zip(sums, took):
        there = row.nonzero().flatten().tolist()
        if not all(site in spans for site in there):
            continue
        shares = update @ torch.linalg.pinv(torch.cat([spans[site] for site in there]))
        for site, part in zip(there, shares.split([len(spans[site]) for site in there], 1)):
            parts.setdefault(site, []).append(part / part.norm().clamp_min(1e-300))  # later rounds' gradients are smaller
    return {site: torch.cat(each) for site, each in sorted(parts.items())}


def recovered(parts: Tensor, units: int, span: Tensor, budget: int, rng: torch.Generator) -> Tensor:
    """Records [n, F'] out of one site's updates [rounds x units, n] in coordinates of its ``span`` [n, F' + 1].

    All of them or none: a record is what is orthogonal to the directions of all others.
    """
    basis, turn = torch.linalg.qr(parts)
    found = zero_directions(basis, len(parts) // units, budget, rng)
    if len(found) < parts.shape[1]:
        return span.new_zeros(0, span.shape[1] - 1)
    whole = torch.linalg.solve(found.T, turn) @ span  # [X | 1], each up to a factor
    length = whole[:, -1:]
    told = length.abs()[:, 0] > 1e-6 * whole.norm(dim=1)
    records: Tensor = (whole / length)[told, :-1]
    return records


def zero_directions(basis: Tensor, times: int, budget: int, rng: torch.Generator) -> Tensor:
    """The sparsest unit vectors q [B, B] for which orthonormal ``basis`` [m, B] times q has zeros, or none; each unit comes ``times`` over.

    Least squares whose weights go to the rows that are nearly zero, begun near independent components: half the entries being zero, slopes
    have tails. B - 1 units can be zero by choice, and a tenth of all beyond that is no accident. A mixture of two records has the zeros
    that they share: it depends on the two, and where one is not found it stands out by having few.
    """
    rows, count = basis.shape
    if count == 1:
        return basis.new_ones(1, 1)
    enough = times * (count - 1) + max(3, round(0.1 * rows))
    begun = independent(basis.T * rows**0.5, _ICA, rng).to(basis)
    begun, beyond = begun / begun.norm(dim=1, keepdim=True), torch.eye(count).to(basis)
    every, zeros = basis.new_zeros(0, count), torch.zeros(0, dtype=torch.int64, device=basis.device)
    sparse = -1.0
    for attempt in range(budget):
        noise = torch.randn(4 * count, count, generator=rng, dtype=torch.float64).to(basis) / count**0.5
        q = begun if attempt == 0 else torch.cat([begun.repeat(2, 1) + noise[: 2 * count], noise[2 * count :] @ beyond])
        for softness in torch.logspace(-1, -2.5, _SHARPER).tolist():
            size = (q @ basis.T).abs()
            weight = 1 / (size.square() + (softness * size.max(1, keepdim=True).values).square())
            q = torch.linalg.eigh(torch.einsum("qm,mb,mc->qbc", weight, basis, basis))[1][:, :, 0]
        size = (q @ basis.T).abs()
        off = (size <= ZERO * size.max(1, keepdim=True).values).sum(1)
        every, zeros = torch.cat([every, q[off >= enough]]), torch.cat([zeros, off[off >= enough]])
        chosen = _independent(every, zeros)
        share, before = zeros[chosen].double() / rows, sparse
        sparse = float(share.sum())
        usual = float(share.median()) if chosen else 0.0
        if len(chosen) == count and float(share.min()) >= EVEN * usual and sparse < before + NEWS:  # one search more found nothing sparser
            return _exact(every[chosen], basis)
        known = torch.linalg.qr(every[[at for at, one in zip(chosen, share.tolist()) if one >= SURE * usual]].T)[0]
        beyond = torch.eye(count).to(basis) - 0.9 * known @ known.T  # what is missing is not much like what is found
    return basis.new_zeros(0, count)


def _exact(found: Tensor, basis: Tensor) -> Tensor:
    """The same directions [B, B] from the rows alone that they leave zero, which averages rounding out; small slopes stand above that."""
    size = (found @ basis.T).abs()
    zero = size <= ZERO * size.max(1, keepdim=True).values
    for _ in range(_FINER):
        found = torch.linalg.eigh(torch.einsum("qm,mb,mc->qbc", zero.to(basis), basis, basis))[1][:, :, 0]
        size = (found @ basis.T).abs()
        typical = torch.where(zero, size, torch.nan).nanmedian(1, keepdim=True).values
        zero = size <= (_ABOVE * typical).clamp_min(1e-14)
    return found


def _independent(every: Tensor, zeros: Tensor) -> list[int]:
    """Which directions, the sparsest first, those before them do not make up."""
    chosen: list[int] = []
    spanned = every.new_zeros(every.shape[1], 0)
    for index in zeros.argsort(descending=True, stable=True).tolist():
        rest = every[index] - spanned @ (spanned.T @ every[index])
        if rest.norm() > APART:
            chosen.append(index)
            spanned = torch.cat([spanned, (rest / rest.norm())[:, None]], 1)
    return chosen
