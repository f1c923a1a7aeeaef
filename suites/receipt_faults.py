"""What refuses a receipt: each way in which what ran may part from what a differential-privacy claim rests on, in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from scipy import stats
from torch import nn

from suites import accounting
from suites.contracts import Claim, Clip, Defense, Federation, Params
from suites.federation import Trained
from suites.lanes import wire
from suites.randomness import stream
from suites.receipt_wire import summed
from suites.stack import Stack
from suites.witness import Moments, Site

EVERY_SITE = "every site in every round"  # a round that a site sits out is counted as if it did not
CHANCE = 1e-6  # at which a sound training is refused, each test of a receipt
_GRAIN = 2e-3  # of the noise: half a step of the coarsest grid on which whole numbers are noised
_ALIKE = 0.6  # correlation of two draws of 256 numbers: independent ones stay below .35
_SPIKES = (1e4, 1.5)  # times the bound: updates that clipping must not let through
_DIRECTIONS = 3  # at random, beside each tensor alone and all together


def planned(layer: Defense, federation: Federation, site: Site) -> tuple[float, int]:
    """(rate, steps) that this site ought to run."""
    if layer.bound is not None:
        return 1.0, federation.rounds
    rate, steps = accounting.sampling(site.units, federation.local.batch)
    return rate, federation.rounds * federation.local.epochs * steps


def deviation(moments: Moments) -> float:
    return math.sqrt(moments.square / moments.draws) if moments.draws else 0.0


def interval(moments: Moments, level: float) -> tuple[float, float]:
    """Of the deviation of normal numbers with mean zero."""
    if not moments.draws:
        return 0.0, 0.0
    high, low = float(stats.chi2.isf(level / 2, moments.draws)), float(stats.chi2.ppf(level / 2, moments.draws))
    return math.sqrt(moments.square / high), math.sqrt(moments.square / max(low, 1e-300))


def lacking(site: Site, wanted: float) -> str | None:
    """The tensor with the least noise among those whose noise is surely below ``wanted``."""
    level = 2 * CHANCE / max(1, len(site.noise))
    short = [name for name, own in site.noise.items() if interval(own, level)[1] < wanted]
    return min(short, key=lambda name: interval(site.noise[name], level)[1], default=None)


def of_words(layer: Defense, stack: Stack, claim: Claim) -> Iterator[str]:
    """Unit, neighbours and sampler are copied into the receipt, so each has to be the one that was clipped, accounted for and run.

    A message in the clear says who sent it, so that only what a site put in can be exchanged; a sum may also gain or lose a site. Of units
    drawn by Poisson sampling the accountants know the one that is there or not.
    """
    message = layer.bound is not None
    unit = "site" if message else layer.clip.unit if layer.clip is not None else None
    if unit is not None and claim.unit != unit:
        yield f"the claim is about one {claim.unit}, and what was clipped is one {unit}"
    relations = ("replace_one", *(("add_remove",) if summed(layer, claim) else ())) if message else ("add_remove",)
    if claim.relation not in relations:
        yield f"the claim's neighbours are '{claim.relation}', and what was accounted for is {' or '.join(relations)}"
    sampler = EVERY_SITE if message else "poisson"
    if claim.sampler != sampler:
        yield f"the claim's sampler is '{claim.sampler}', and what was accounted for is '{sampler}'"
    if not message and stack.clip is not None and stack.clip.sampling != "poisson":
        yield f"batches were drawn by '{stack.clip.sampling}', and what was accounted for is 'poisson'"


def of_settings(layer: Defense, stack: Stack, federation: Federation, trained: Trained, claim: Claim, units: int) -> Iterator[str]:
    if federation.selection != "last" or trained.validation or federation.flaws & {"test_set_choice", "pooled_client"}:
        yield "the round was chosen on records, and that choice was released without noise"
    if layer.bound is not None and not stack.equal_weights:
        yield "sites enter the mean with unequal weights, so that one site's influence is not what the noise is sized for"
    if layer.bound is None and layer.clip is None:
        yield "the layer that claims ε says neither what it clips nor to what bound, so its noise cannot be measured"
    if (claim.delta or 1.0) * units >= 1:
        yield f"δ = {claim.delta} is not below one in the {units} {claim.unit}s of a site"


def of_clipping(layer: Defense, sites: Sequence[Site], module: nn.Module) -> Iterator[str]:
    mixing = [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if mixing and layer.bound is None:
        yield f"'{mixing[0]}' is BatchNorm, whose statistics mix records, so that clipping one's gradient does not bound what it changes"
    names = sorted({name for site in sites for name in site.unclipped})
    if names:
        yield f"'{names[0]}' was sent changed and is no part of what is clipped"
    if layer.bound is None and layer.clip is not None:
        yield from _longer(layer.clip, sites)
    if any(site.parted for site in sites):
        yield "a person was drawn in part: some of the records without the others"
    if layer.bound is not None:
        yield from _spiked(layer, wire(module), layer.bound)


def _longer(clip: Clip, sites: Sequence[Site]) -> Iterator[str]:
    """What one unit gives must be within the norm, alone and in its batch, and a sum within its units' norms."""
    longest, single, astray = (max((getattr(site, name) for site in sites), default=0.0) for name in ("longest", "single", "astray"))
    if not longest <= clip.norm * (1 + 1e-3):
        yield f"a clipped sum was {longest / clip.norm:.3g} times as long as its units' bounds allow"
    if not single <= clip.norm * (1 + 1e-4):
        yield f"one {clip.unit}'s clipped gradient was {single / clip.norm:.3g} times as long as its bound"
    if not astray <= clip.norm:
        yield f"some {clip.unit}s gave their batch what they do not give alone: {astray / clip.norm:.3g} times a bound more or less"


def _spiked(layer: Defense, like: Params, bound: float) -> Iterator[str]:
    """Tensors above the bound, one, all and in random directions, under equal noise: what gets through is what is not clipped."""
    like = {name: tensor for name, tensor in like.items() if tensor.is_floating_point()}
    quiet = layer.encode({name: torch.zeros_like(tensor) for name, tensor in like.items()}, stream("receipt", "spike"))
    for name, direction in _directions(like):
        whole = float(torch.stack([tensor.double().square().sum() for tensor in direction.values()]).sum().sqrt())
        for times in _SPIKES:
            loud = {other: tensor * (times * bound / whole) for other, tensor in direction.items()}
            through = layer.encode(loud, stream("receipt", "spike"))
            length = float(torch.stack([(through[other] - quiet[other]).double().square().sum() for other in like]).sum().sqrt())
            if not length <= bound * 1.01:
                yield f"{name} is not clipped: an update above the bound went out {length / bound:.3g} times as long as it allows"
                return


def _directions(like: Params) -> Iterator[tuple[str, Params]]:
    for name in like:
        yield f"'{name}'", {other: torch.full_like(tensor, float(other == name)) for other, tensor in like.items()}
    yield "the whole of an update", {name: torch.full_like(tensor, tensor.numel() ** -0.5) for name, tensor in like.items()}
    rng = stream("receipt", "directions")
    for _ in range(_DIRECTIONS):
        yield "the whole of an update", {n: torch.randn(t.shape, generator=rng).to(t) * t.numel() ** -0.5 for n, t in like.items()}


def of_sampling(index: int, site: Site, layer: Defense, federation: Federation, claim: Claim) -> Iterator[str]:
    rate, steps = planned(layer, federation, site)
    seen = len(site.sizes)
    if seen > steps:
        yield f"site {index} took {seen} steps and the claim counts {steps}"
    if layer.bound is not None or not seen:
        return
    if rate == 1:
        if min(site.sizes) < site.units:
            yield f"site {index} is to use every {claim.unit} in each step and left some out"
        return
    expected, variance = rate * site.units, site.units * rate * (1 - rate)
    if stats.binomtest(sum(site.sizes), seen * site.units, rate).pvalue < CHANCE:
        drawn = sum(site.sizes) / seen
        yield f"site {index} drew {drawn:.4g} of {site.units} {claim.unit}s a step, where the claim's rate gives {expected:.4g}"
    even = sum((abs(size - expected) + 0.5) ** 2 for size in site.sizes) / variance  # half a unit more, since sizes are whole numbers
    wild = sum((size - expected) ** 2 for size in site.sizes) / variance
    # How often each unit was drawn: binomial too, with a kurtosis that few steps make felt.
    once = seen * rate * (1 - rate)
    scatter = float((site.times.double() - seen * rate).square().sum()) / once
    away = (scatter - site.units) / math.sqrt(site.units * max(2 + (1 - 6 * rate * (1 - rate)) / once, 0.1))
    if stats.chi2.cdf(even, seen) < CHANCE or away < -4.9:
        yield f"site {index} drew its batches too evenly for Poisson sampling (shuffled epochs, or batches of a fixed size)"
    if stats.chi2.sf(wild, seen) < 1e-3 * CHANCE or away > 9:
        yield f"site {index} drew some {claim.unit}s, or in some steps, more often than independent draws at one rate do"


def of_coordinates(sites: Sequence[Site]) -> Iterator[str]:
    """One coordinate that had next to no noise in any draw, where chance leaves none so of all coordinates and sites.

    From five draws on; with fewer, or where a coordinate went bare in some draws only, a receipt cannot tell it from chance.
    """
    for i, site in enumerate(sites):
        many = len(sites) * sum(own.draws for own in site.noise.values()) / len(site.sizes)
        for name, (at, most) in site.faint.items():
            if not len(at):
                continue
            least = max(float(most.min()), _GRAIN, site.grain)
            if many * math.erf(least / math.sqrt(2)) ** len(site.sizes) < CHANCE:
                yield (
                    f"coordinate {int(at[most.argmin()])} of '{name}' at site {i} never had more than {float(most.min()):.2g} of the noise "
                    f"of the others, in {len(site.sizes)} draws"
                )
                break


def of_noise(sites: Sequence[Site], norm: float, claim: Claim) -> Iterator[str]:
    wanted = (claim.noise_multiplier or 0.0) * norm
    short = [(deviation(site.noise[name]) / norm, name, i) for i, site in enumerate(sites) if (name := lacking(site, wanted)) is not None]
    if short:
        drawn, name, index = min(short)
        others = f" (and too little at {len(short) - 1} other sites)" if len(short) > 1 else ""
        yield f"the noise on '{name}' at site {index} has multiplier {drawn:.4g}, and the claim rests on {wanted / norm:.4g}{others}"
    rows = [row for site in sites for row in site.sample]
    if not rows:
        return
    kept = torch.stack(rows)
    if len(kept) > 1 and kept.shape[1] >= 64:
        alike = torch.corrcoef(kept).fill_diagonal_(0.0).nan_to_num(1.0)
        if float(alike.abs().max()) > _ALIKE:
            yield "two draws of noise resemble each other: a stream was used twice, and the difference of two messages is without noise"
    spread = float(kept.square().mean().sqrt())
    if spread > 0 and stats.kstest((kept / spread).flatten().numpy(), "norm").pvalue < CHANCE:
        yield "the noise is not normal, which the accountants take it to be"
