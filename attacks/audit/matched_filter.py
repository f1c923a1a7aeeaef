"""Reading a canary's share in a site's updates: the inner product with its gradient, in units of the noise that is known to be there.

For a mechanism that adds Gaussian noise this is the most powerful test (Neyman and Pearson): each round's update is white noise of a known
size plus, for an included canary, something along its negative gradient. Rounds are added as z-scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attacks.gradient_inversion.message import first_linear, known_count
from attacks.membership.ghost import RecordGradients
from attacks.membership.loss import key_to_use
from attacks.membership.span import principal
from suites.contracts import Claim, Federation, Observation, Params, Skip

SITE = 0  # where the referee puts canaries

RIDGE = 0.05  # keeps the noise of a reading small where canaries are nearly dependent


def filtered(seen: Observation) -> Tensor:
    """Sum [n] over the rounds of each canary's inner product, over the noise's deviation in a direction of length one."""
    total, rounds = torch.zeros(()), 0
    for broadcast, update in visible(seen):
        total = total + in_first_layer(seen, broadcast, update) / deviation(seen, update)
        rounds += 1
    if rounds == 0:
        raise Skip("no round shows both a broadcast and the update that canaries went into")
    return total / math.sqrt(rounds)


def visible(seen: Observation) -> Iterator[tuple[Params, Params]]:
    """(broadcast, update) of each round: the canary site's own update, else the combined one."""
    for view in seen.rounds:
        update = view.updates.get(SITE) if view.updates else view.combined
        if view.broadcast is not None and update is not None:
            yield view.broadcast, update


def deviation(seen: Observation, update: Params) -> float:
    """Standard deviation of the noise in one coordinate of an update, up to a factor that all rounds share.

    Known where the site takes plain SGD steps under a claim; else (Adam rescales the noise; nothing is claimed) the size that most
    coordinates have, by their median.
    """
    claim: Claim | None = seen.known["claim"].value if "claim" in seen.known else None
    protocol = seen.known["protocol"].value if "protocol" in seen.known else None
    clip = seen.known["clip"].value if "clip" in seen.known else None
    if isinstance(protocol, Federation) and claim is not None and claim.noise_multiplier and claim.steps and clip is not None:
        local = protocol.local
        if local.optimiser == "sgd" and local.momentum == 0:
            steps = claim.steps / protocol.rounds
            return float(local.lr * claim.noise_multiplier * clip.norm * math.sqrt(steps) / local.batch)
    flat = torch.cat([tensor.reshape(-1).abs() for tensor in update.values() if tensor.is_floating_point()])
    return max(float(flat.median()) / 0.6745, 1e-12)


def in_first_layer(seen: Observation, broadcast: Params, update: Params) -> Tensor:
    """What [n] of each canary's unit gradient d x^T lies in the first layer's update, read where others are silent."""
    x, key = seen.candidates.x, key_to_use(seen)
    delta = update[first_linear(update, known_count(seen.known, "features")).weight]
    gradients = RecordGradients.of_candidates(seen, key)
    slopes = gradients.first_slopes(broadcast, delta.shape[1])
    public = principal(seen.auxiliary.x, min(len(seen.auxiliary) // 2, x.shape[1] // 8))
    read: Tensor = ((silent(x, public) @ seen.restore(delta, key).T) * slopes).sum(1) / slopes.norm(dim=1).clamp_min(1e-30)
    return read


def silent(x: Tensor, others: Tensor) -> Tensor:
    """Unit directions [n, F], each (nearly) orthogonal to every other row of ``x`` [n, F] and to ``others`` [k, F]: a dual basis.

    ``others`` are the directions of most public energy, where a site's other records move the update.
    """
    rows = torch.cat([x, others]).double()
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    dual = torch.linalg.solve(unit @ unit.T + RIDGE * torch.eye(len(unit), dtype=torch.float64), unit)[: len(x)]
    directions: Tensor = (dual / dual.norm(dim=1, keepdim=True).clamp_min(1e-30)).to(x.dtype)
    return directions
