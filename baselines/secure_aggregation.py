"""Secure aggregation as a defense: the server reads the sum of the sites' weighted updates, never one of them.

Threat: a server that reads, and lies about who vanished or what it broadcast, with up to ``colluders`` sites on its side. It is not
differential privacy: the exact sum is given. Bonawitz et al. 2017 (masks, dropouts, consistency), Bell et al. 2020 (sparse graph).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from baselines.bonawitz import Aborted, Site, terms
from baselines.cohort_graph import Rules, rules
from baselines.fixed_point import FixedPoint, Layout, Words
from baselines.lying_server import ask_for_both_shares
from baselines.masking import add_masks, fingerprint
from baselines.transcript import Transcript, total
from suites.contracts import Card, Claim, Defense, Delivery, Exchange, Federation, Message, Params, RequestError, Shape

STAGES = ("advertise", "share", "mask", "vote", "unmask")  # a dropout names the stage at which the site vanishes


@dataclass(frozen=True, slots=True)
class MaskedSum:
    """The channel. Arguments as for ``SecureAggregation``."""

    bound: float
    colluders: int | None = None
    dropouts: int | None = None
    threshold: int | None = None
    site: ClassVar[type[Site]] = Site
    stages: ClassVar[tuple[str, ...]] = STAGES

    def rules(self, sites: int) -> Rules:
        return rules(sites, colluders=self.colluders, dropouts=self.dropouts, threshold=self.threshold)

    def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
        """One round; raises Aborted where fewer sites survive than the threshold needs."""
        return self.session(updates, weights, exchange)[0]

    def part(self, update: Params, weights: Sequence[float], site: int) -> Params:
        """What a site knows of the sum: its own update, as rounded there."""
        return FixedPoint.agreed(weights, self.bound).rounded(update, weights[site], site)

    def session(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> tuple[Delivery, Transcript]:
        """The same, with all that the server saw."""
        if not len(updates) == len(weights) == len(exchange.keys):
            raise RequestError(
                f"secure aggregation got {len(updates)} updates, {len(weights)} weights and {len(exchange.keys)} key streams; "
                "each site needs one of each"
            )
        device = next(iter(updates[0].values())).device
        fixed, layout = FixedPoint.agreed(weights, self.bound), Layout.of(updates[0])
        agreed = self.agreed(exchange, self.rules(len(updates)), fixed, layout)
        sites = self._sites([agreed] * len(updates), layout, exchange)
        transcript = converse(sites, lambda index: fixed.encode(updates[index], weights[index], layout, index), exchange.dropouts)
        messages = tuple(self.message(m.site, m.words, weights[m.site]) for m in transcript.masked)
        return Delivery(messages, fixed.mean(total(transcript, self.site.generator), layout, device), transcript.survivors), transcript

    def stream(self, key: bytes, words: int) -> Tensor:
        """The words that a mask of this key adds, for ``infl-bench check``."""
        drawn = np.zeros(words, dtype=np.uint32)
        add_masks(drawn, [(key, 1)], self.site.generator)
        return torch.from_numpy(drawn.view(np.int32))

    @property
    def lies(self) -> Mapping[str, Callable[[Sequence[Params], Sequence[float], Exchange], object]]:
        """What a server may try that does not only read; the sites refuse each."""
        return {"a demand for both shares of a site": self._both_shares, "another broadcast for one site": self._two_broadcasts}

    def _both_shares(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> None:
        fixed, layout = FixedPoint.agreed(weights, self.bound), Layout.of(updates[0])
        agreed = self.agreed(exchange, self.rules(len(updates)), fixed, layout)
        ask_for_both_shares(
            self._sites([agreed] * len(updates), layout, exchange), lambda i: fixed.encode(updates[i], weights[i], layout, i)
        )

    def _two_broadcasts(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> None:
        fixed, layout, public = FixedPoint.agreed(weights, self.bound), Layout.of(updates[0]), self.rules(len(updates))
        other = replace(exchange, broadcast={name: tensor + 1 for name, tensor in exchange.broadcast.items()})
        agreed = [self.agreed(one, public, fixed, layout) for one in (other, *[exchange] * (len(updates) - 1))]
        converse(self._sites(agreed, layout, exchange), lambda i: fixed.encode(updates[i], weights[i], layout, i), {})

    def _sites(self, agreed: Sequence[bytes], layout: Layout, exchange: Exchange) -> list[Site]:
        """The sites of one session, each with the terms that it agrees to."""
        public = self.rules(len(agreed))
        return [self.site(index, public, terms, layout.length, exchange.keys[index]) for index, terms in enumerate(agreed)]

    def agreed(self, exchange: Exchange, public: Rules, fixed: FixedPoint, layout: Layout) -> bytes:
        """What a site that received this broadcast agrees to."""
        return terms(exchange.round, exchange.context, fingerprint(exchange.broadcast), rules=public, encoding=fixed, length=layout.length)

    def message(self, site: int, words: Words, weight: float) -> Message:
        """What the transcript of the federation keeps: masked words and no count (the weight is masked with them)."""
        return Message(site, "masked", {"masked": torch.from_numpy(words.view(np.int32))})


def converse(sites: Sequence[Site], words: Callable[[int], Words], dropouts: Mapping[int, str]) -> Transcript:
    """Carry one session between honest sites through a server that relays; ``words(i)`` encodes site i's update when it is needed."""
    for who, stage in dropouts.items():
        if stage not in STAGES or not 0 <= who < len(sites):
            raise RequestError(
                f"a dropout at site {who}, stage {stage!r} is unknown; sites are 0 to {len(sites) - 1} and stages {', '.join(STAGES)}"
            )
    last = {site.index: STAGES.index(dropouts[site.index]) if site.index in dropouts else len(STAGES) for site in sites}

    def present(stage: str, among: Sequence[Site]) -> list[Site]:
        here = [site for site in among if last[site.index] > STAGES.index(stage)]
        if len(here) < public.least:
            raise Aborted(
                f"the round is void: {len(here)} of {public.sites} sites reached stage {stage!r} and {public.least} are needed; "
                "allow more dropouts (a lower threshold) or wait for the sites"
            )
        return here

    public = sites[0].rules
    directory = {site.index: site.identity for site in sites}
    for site in sites:
        site.directory = directory
    here = present("advertise", sites)
    adverts = tuple(site.advertise() for site in here)
    here = present("share", here)
    sealed = tuple(box for site in here for box in site.share(adverts))
    here = present("mask", here)
    masked = tuple(site.mask(words(site.index), [box for box in sealed if box.recipient == site.index]) for site in here)
    survivors = [site.index for site in here]
    here = present("vote", here)
    votes = tuple(site.vote(survivors) for site in here)
    here = present("unmask", here)
    vanished = sorted({box.sender for box in sealed} - set(survivors))
    reveals = tuple(site.unmask(survivors, vanished, votes) for site in here)
    return Transcript(public, sites[0].agreed, adverts, sealed, masked, votes, reveals)


class SecureAggregation(Defense):
    """Pairwise-masked sums (X25519, HKDF, AES-256-CTR, fixed point modulo 2^32) that survive dropouts.

    Parameters
    ----------
    bound : float
        The largest coordinate an update may have; a smaller bound rounds finer.
    colluders, dropouts, threshold : int, optional
        See ``baselines.cohort_graph.rules``: a tenth and an eighth of the sites, the least threshold that stops a liar. ``dropouts``
        says how many may vanish; how many do is the federation's ``vanishing``.
    """

    card = Card(
        server="The sum of the surviving sites' weighted updates and of their weights, who took part and who vanished, and the power of "
        "two above the largest weight. No single update and no record count, while no more sites than the stated colluders side with it.",
        site="Each broadcast model, its own data, and so the others' sum (the step of the model minus its own part); "
        "with two sites that is the other's update.",
        outsider="The released model, trained exactly as without the defense up to rounding.",
        does_not_protect="Whatever can be read from the sum or the model: membership, reconstruction from a sum of few sites, differences "
        "between rounds with different cohorts. It is not differential privacy, it does not stop a site from sending a false update, "
        "and a server that also hands out the sites' identities can play all the other sites itself.",
    )

    def __init__(
        self, bound: float = 64.0, colluders: int | None = None, dropouts: int | None = None, threshold: int | None = None
    ) -> None:
        if not 0 < bound < 2**20:
            raise RequestError(
                f"secure_aggregation:bound={bound:g} cannot serve: it is the largest coordinate of an update, above 0 and below 2^20"
            )
        self.sum = MaskedSum(bound, colluders, dropouts, threshold)
        self.channel = self.sum

    def plan(self, federation: Federation, shape: Shape) -> Self:
        if not federation.vanishing:
            return self
        public = self.sum.rules(max(1, round(federation.participation * len(shape.site_sizes))))
        if federation.vanishing > public.dropouts:
            raise RequestError(
                f"{federation.vanishing} sites vanish in every round, and secure_aggregation among {public.sites} sites with a threshold "
                f"of {public.threshold} shares goes on without {public.dropouts}; lower its threshold, have more sites, or let fewer vanish"
            )
        return self

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        """No formal privacy of records is promised; the sentence says what is hidden."""
        public = self.sum.rules(max(1, round(federation.participation * len(shape.site_sizes))))
        part = " that take part in a round" if public.sites < len(shape.site_sizes) else ""
        lying = "also if it lies" if public.active else "if it does not lie"
        return Claim(
            kind="none",
            unit="site",
            server_sees="the exact sum over the surviving sites",
            sentence=f"The server learns the weighted sum of at least {public.least} of {public.sites} sites{part} and no single site's "
            f"update or record count, {lying}, with up to {public.colluders} colluding sites; what the sum itself tells is not hidden.",
        )
