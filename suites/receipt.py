"""The receipt of a training under differential privacy: what ran beside what was claimed, refused where the two part or cannot be told.

The witness (``suites.witness``) noted the batches and the noise. Here they are judged: was every record (or person) drawn by Poisson
sampling at the rate of the claim, as often as the claim counts; is the noise in every tensor as large as claimed, normal, and new each
time, and in every round; is all that was sent clipped, and single units by themselves; did anything else leave in the clear; and do two
accountants that share no code give the claim's ε for it. Chance alone refuses a sound training about once in a million.

A receipt is not a proof. It sees numbers, not the generator that they came from, and says nothing of the machine they ran on. A coordinate
without noise is seen where it is so in every draw of a site, from five draws on; not where it has a tenth of its noise, or lacks it in some
draws only. What a channel hides is taken to be hidden: ``infl-bench check`` looks at its masks, not the receipt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from suites import receipt_accounts
from suites.contracts import Claim, Defense, Federation, Shape
from suites.federation import Trained
from suites.receipt_faults import (
    CHANCE,
    deviation,
    interval,
    lacking,
    of_clipping,
    of_coordinates,
    of_noise,
    of_sampling,
    of_settings,
    of_words,
    planned,
)
from suites.receipt_wire import of_wire, summed
from suites.stack import Stack
from suites.witness import Moments, Site, Witness


@dataclass(frozen=True, slots=True)
class SiteReceipt:
    """One site as it ran: its units, their mean number in a step and what the claim's rate gives, and the noise."""

    units: int
    steps: int
    drawn: float
    expected: float
    rate: float
    noise: float  # as a multiplier, with its interval; of the whole message, or of a tensor that lacks what is claimed
    low: float
    high: float
    draws: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """``reasons`` is empty where the receipt is accepted; ``epsilons`` has each accountant's ε for the noise claimed, or drawn if less."""

    unit: str
    relation: str
    sampler: str
    delta: float
    steps: int
    claimed: float
    epsilons: Mapping[str, float]
    noise_multiplier: float
    measured: float  # of what an adversary sees: by the least noisy site, tensor or round; its interval misses once in a million
    low: float
    high: float
    sites: tuple[SiteReceipt, ...]
    reasons: tuple[str, ...]
    caveats: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = field(default=())  # on ε: which accountant's it is, and where another's lies

    @property
    def accepted(self) -> bool:
        return not self.reasons

    def record(self) -> dict[str, Any]:
        """For JSON; infinities as None."""
        found = {**asdict(self), "accepted": self.accepted}
        return {name: _finite(value) for name, value in found.items()}


def receipt(
    witness: Witness, stack: Stack, federation: Federation, shape: Shape, claim: Claim, trained: Trained, shared_inputs: str = ""
) -> Receipt:
    """Judge one training under a claim of kind "dp"; ``shared_inputs`` is the task's word on records that hold others' data."""
    place = _claimant(stack, federation, shape, claim)
    layer = stack.layers[place]
    sites = witness.of(None if layer.bound is None else place)
    norm = layer.bound if layer.bound is not None else layer.clip.norm if layer.clip is not None else math.nan
    share = math.sqrt(claim.shares)
    chance = 2 * CHANCE / max(1, len(sites))
    found = [_site(site, norm / share, layer, federation, claim, chance) for site in sites]
    short = any(lacking(site, (claim.noise_multiplier or 0.0) * norm / share) is not None for site in sites)
    measured, low, high = _together(found, claim.shares)
    if layer.bound is not None and (worst := _worst_round(sites, norm, claim.shares))[2] < min(high, claim.noise_multiplier or 0.0):
        measured, low, high = worst  # else the run's: the least of many rounds is low by chance
    reasons = [
        *of_words(layer, stack, claim),
        *of_settings(layer, stack, federation, trained, claim, max((site.units for site in found), default=1)),
        *of_wire(witness, trained, layer, stack, claim),
        *(said for i, site in enumerate(found) for said in _counted(i, site, claim)),
        *of_clipping(layer, sites, trained.module),
        *(said for i, site in enumerate(sites) for said in of_sampling(i, site, layer, federation, claim)),
        *of_noise(sites, norm / share, claim),
        *of_coordinates(sites),
        *_of_sums(layer, stack, place, claim),
    ]
    if not sites or not any(site.draws for site in found):
        reasons.append("no noise was seen, so nothing stands behind ε")
    elif high < (claim.noise_multiplier or 0.0):
        whose = "the sum of the sites of its least noisy round" if layer.bound is not None and claim.shares > 1 else "the least noisy"
        yet = f"{measured:.4g} [{low:.4g}, {high:.4g}]"
        reasons.append(f"the noise of {whose} has multiplier {yet}, and the claim rests on {claim.noise_multiplier:.4g}")
    # A handful of draws measures a multiplier to a few percent, which would move ε by more: what the interval covers is taken as claimed.
    less = short or high < (claim.noise_multiplier or 0.0)
    taken = measured if less else claim.noise_multiplier or 0.0
    ran = [(site.rate, site.steps) for site in found]
    epsilons = receipt_accounts.epsilons(claim, ran, taken)
    reasons += [*receipt_accounts.of_grid(layer, claim, trained.module), *receipt_accounts.of_accounts(claim, epsilons)]
    return Receipt(
        claim.unit,
        claim.relation,
        claim.sampler,
        claim.delta or math.nan,
        max((site.steps for site in found), default=0),
        claim.epsilon or math.nan,
        epsilons,
        claim.noise_multiplier or 0.0,
        measured,
        low,
        high,
        tuple(found),
        tuple(dict.fromkeys(reasons)),
        (*_CAVEATS, *([shared_inputs] if shared_inputs and claim.unit != "site" else [])),
        tuple(receipt_accounts.notes(claim, ran, taken, epsilons)),
    )


_CAVEATS = (
    "sizes of sites and the list of classes and features are taken as public",
    "the referee's own probes and the choice of settings over runs are not counted",
    "what a layer does to a message after its noise is taken to be a function of the noised update alone",
    "noise comes from a statistical generator; a deployment has to draw it from a cryptographic one",
)


def _claimant(stack: Stack, federation: Federation, shape: Shape, claim: Claim) -> int:
    return next(i for i, layer in enumerate(stack.layers) if layer.claim(federation, shape) == claim)


def _site(site: Site, norm: float, layer: Defense, federation: Federation, claim: Claim, chance: float) -> SiteReceipt:
    short = lacking(site, (claim.noise_multiplier or 0.0) * norm)
    total = Moments(sum(own.draws for own in site.noise.values()), sum(own.square for own in site.noise.values()))
    shown = total if short is None else site.noise[short]
    low, high = interval(shown, chance)
    rate, steps = planned(layer, federation, site)[0], len(site.sizes)
    units = site.units if layer.bound is None else 1
    drawn = sum(site.sizes) / steps if steps else math.nan
    return SiteReceipt(units, steps, drawn, rate * units, rate, deviation(shown) / norm, low / norm, high / norm, total.draws)


def _counted(index: int, site: SiteReceipt, claim: Claim) -> Iterator[str]:
    """The claim's steps are those of its worst site; a site of a smaller rate may take more."""
    if claim.steps is None or claim.sampling_rate is None:
        yield "the claim does not say how many steps at which rate it counts"
    elif site.rate >= claim.sampling_rate * (1 - 1e-9) and site.steps > claim.steps:
        ran = f"{site.steps} steps at rate {site.rate:.4g}"
        yield f"site {index} took {ran}, and the claim counts {claim.steps} at {claim.sampling_rate:.4g}"


def _together(sites: Sequence[SiteReceipt], shares: int) -> tuple[float, float, float]:
    """Noise on what an adversary sees over a run: the least noisy site's, or of so many least noisy ones together."""
    least = sorted(sites, key=lambda site: site.noise)[:shares]
    if len(least) < shares:
        return 0.0, 0.0, 0.0
    sums = [math.sqrt(sum(value**2 for value in column) / shares) for column in zip(*((s.noise, s.low, s.high) for s in least))]
    return sums[0], sums[1], sums[2]


def _worst_round(sites: Sequence[Site], norm: float, shares: int) -> tuple[float, float, float]:
    """Noise on what an adversary sees of the least noisy round: of a message, or of so many least noisy ones that were sent in it."""
    rounds = sorted({index for site in sites for index in site.rounds})
    worst = (math.inf, math.inf, math.inf)
    for index in rounds:
        sent = sorted((site.rounds[index] for site in sites if index in site.rounds), key=deviation)
        chosen = sent[:shares]
        ways = len(rounds) * math.comb(len(sent), len(chosen))  # of choosing what is least noisy
        whole = Moments(sum(own.draws for own in chosen), sum(own.square for own in chosen))
        low, high = interval(whole, 2 * CHANCE / ways)
        root = math.sqrt(len(chosen)) / norm
        worst = min(worst, (deviation(whole) * root, low * root, high * root))
    return worst if rounds else (0.0, 0.0, 0.0)


def _of_sums(layer: Defense, stack: Stack, place: int, claim: Claim) -> Iterator[str]:
    """A sum of noised messages is not noised any more where a later layer changed each of them."""
    later = stack.layers[place + 1 :]
    changing = [each for each in later if (type(each).encode, type(each).encode_kept) != (Defense.encode, Defense.encode_kept)]
    if claim.shares > 1 and summed(layer, claim) and changing:
        yield f"the claim is about a sum of messages, and {type(changing[0]).__name__} changed each of them after its noise was added"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(own) for own in value]
    return value
