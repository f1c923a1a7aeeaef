"""Secure aggregation with dropouts, one round of it (Bonawitz et al. 2017, the active variant; graph of Bell et al. 2020).

Stages: *advertise* signed keys and a commitment to a seed; *share* two secrets (the mask key and that seed, of a self mask) among the
neighbours; *mask* the words; *vote* on who survived; *unmask*: for each survivor the shares of its seed, for each site that vanished those
of its mask key, never both.
A ``Site`` holds secrets and answers once a stage; it refuses with ``Refusal`` what an honest server never asks. The server's part is
``baselines.transcript.total``: a function of the messages alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from baselines import shamir
from baselines.cohort_graph import Rules, neighbours
from baselines.fixed_point import FixedPoint, Words
from baselines.masking import Generator, add_masks, aes_ctr, agree, derive, pair_key, sign
from suites.contracts import KeySource

_ONCE = bytes(12)  # the nonce of a key that seals a single box


class Refusal(RuntimeError):
    """A site will not answer, because an answer would give more than the sum."""


class Aborted(RuntimeError):
    """Too few sites are left to open the sum; nothing is revealed and the round is void."""


@dataclass(frozen=True, slots=True)
class Advert:
    site: int
    mask_key: bytes
    share_key: bytes
    commitment: bytes  # to the seed of the self mask
    signature: bytes


@dataclass(frozen=True, slots=True)
class Sealed:
    sender: int
    recipient: int
    box: bytes


@dataclass(frozen=True, slots=True)
class Masked:
    site: int
    words: Words


@dataclass(frozen=True, slots=True)
class Vote:
    site: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Reveal:
    """The holder ``site``'s shares: of survivors' seeds and of vanished sites' mask keys."""

    site: int
    seeds: Mapping[int, int] = field(repr=False)
    keys: Mapping[int, int] = field(repr=False)


def terms(round_index: int, context: bytes, broadcast: bytes, *, rules: Rules, encoding: FixedPoint, length: int) -> bytes:
    """The hash of all that is agreed before any key: round, context, broadcast, rules, encoding, words in a vector."""
    public = f"infl-bench secure aggregation v2|{round_index}|{rules!r}|{encoding!r}|{length}|{len(context)}|".encode()
    return hashlib.sha256(public + context + broadcast).digest()


def cohort_hash(agreed: bytes, adverts: Sequence[Advert]) -> bytes:
    """The session's hash: the terms, every advertised key and every commitment."""
    ordered = sorted(adverts, key=lambda advert: advert.site)
    said = b"".join(a.site.to_bytes(8, "big") + a.mask_key + a.share_key + a.commitment for a in ordered)
    return hashlib.sha256(agreed + said).digest()


def committed(seed: bytes, agreed: bytes, site: int) -> bytes:
    """A commitment to a seed of full entropy: the hash of one more value expanded from it, which tells nothing of its mask."""
    return hashlib.sha256(derive(seed, agreed, "self mask commitment", site)).digest()


def _ballot(session: bytes, survivors: Sequence[int]) -> bytes:
    return b"survivors" + session + b"".join(site.to_bytes(8, "big") for site in survivors)


def signed_by(identity: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, message)
    except InvalidSignature:
        return False
    return True


class Site:
    """One site's part in one session; every secret stays inside.

    Parameters
    ----------
    index : int
        The site's number.
    rules : Rules
    agreed : bytes
        ``terms(...)`` as this site sees them, with the hash of the broadcast that *it* received.
    length : int
        Words in a vector.
    source : KeySource
        Its private stream; 32 bytes are drawn and bound to the terms, so neither a repeated stream nor a repeated round repeats a mask.
    """

    generator: Generator = staticmethod(aes_ctr)

    def __init__(self, index: int, rules: Rules, agreed: bytes, length: int, source: KeySource) -> None:
        self.index, self.rules, self.agreed, self.length = index, rules, agreed, length
        root = source.bytes(32)
        self._identity = Ed25519PrivateKey.from_private_bytes(derive(root, agreed, "identity"))
        self._mask_secret = X25519PrivateKey.from_private_bytes(derive(root, agreed, "mask key"))
        self._share_secret = X25519PrivateKey.from_private_bytes(derive(root, agreed, "share key"))
        self._seed = derive(root, agreed, "self mask seed")
        self._random = derive(root, agreed, "coefficients")
        self._stage = "advertise"
        self._survivors: tuple[int, ...] = ()
        self._boxes: dict[int, bytes] = {}
        self.directory: Mapping[int, bytes] = {}  # every site's identity, learnt outside the protocol and not from the server

    def __repr__(self) -> str:
        return f"Site({self.index}, <secrets withheld>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Site is never pickled: its secrets last one round")

    @property
    def identity(self) -> bytes:
        return self._identity.public_key().public_bytes_raw()

    def _enter(self, stage: str, following: str) -> None:
        if self._stage != stage:
            raise Refusal(
                f"site {self.index} was asked for stage {stage!r} out of turn; "
                "every stage is answered once, else two answers could be set against each other"
            )
        self._stage = following

    def advertise(self) -> Advert:
        self._enter("advertise", "share")
        mask, share = (secret.public_key().public_bytes_raw() for secret in (self._mask_secret, self._share_secret))
        commitment = committed(self._seed, self.agreed, self.index)
        return Advert(self.index, mask, share, commitment, self._identity.sign(self.agreed + mask + share + commitment))

    def share(self, adverts: Sequence[Advert]) -> list[Sealed]:
        """Check the neighbours' signatures and seal for each its share of both secrets."""
        self._enter("share", "mask")
        self._peers = {advert.site: advert for advert in adverts}
        if len(self._peers) != len(adverts) or self.index not in self._peers or len(adverts) < self.rules.least:
            raise Refusal(
                f"site {self.index} was shown {len(adverts)} keys; "
                f"it takes part only with at least {self.rules.least} different sites and itself among them"
            )
        self._session = cohort_hash(self.agreed, adverts)
        self._neighbours = neighbours(list(self._peers), self.rules.degree, self._session)[self.index]
        for other in self._neighbours:
            peer = self._peers[other]
            if not signed_by(self.directory[other], peer.signature, self.agreed + peer.mask_key + peer.share_key + peer.commitment):
                raise Refusal(
                    f"site {self.index} refuses the keys of site {other}: they are not signed by it for this broadcast, round and context"
                )
        self._sealing = {other: agree(self._share_secret, self._peers[other].share_key) for other in self._neighbours}
        holders = [site + 1 for site in (self.index, *self._neighbours)]
        count = 48 * (self.rules.threshold - 1)
        drawn = self._expand(2 * count)
        keys = shamir.split(self._mask_secret.private_bytes_raw(), holders, self.rules.threshold, drawn[:count])
        seeds = shamir.split(self._seed, holders, self.rules.threshold, drawn[count:])
        width = shamir.SHARE_BYTES
        plain = {holder - 1: keys[holder].to_bytes(width, "little") + seeds[holder].to_bytes(width, "little") for holder in holders}
        self._boxes[self.index] = plain.pop(self.index)
        return [
            Sealed(self.index, other, AESGCM(self._box_key(self.index, other)).encrypt(_ONCE, text, self._session))
            for other, text in plain.items()
        ]

    def mask(self, words: Words, boxes: Sequence[Sealed]) -> Masked:
        """Open the neighbours' boxes, then mask ``words`` in place: the self mask, and one for each neighbour whose box came."""
        self._enter("mask", "vote")
        for sealed in boxes:
            if sealed.recipient != self.index or sealed.sender not in self._neighbours or sealed.sender in self._boxes:
                raise Refusal(f"site {self.index} was handed a box that is not for it, not from a neighbour, or twice")
            try:
                self._boxes[sealed.sender] = AESGCM(self._box_key(sealed.sender, self.index)).decrypt(_ONCE, sealed.box, self._session)
            except InvalidTag:
                raise Refusal(
                    f"site {self.index} cannot open site {sealed.sender}'s shares: the two saw different broadcasts, cohorts or rounds"
                ) from None
        if len(self._boxes) < self.rules.threshold:
            raise Refusal(
                f"site {self.index} holds the shares of {len(self._boxes)} sites, fewer than the threshold {self.rules.threshold}, "
                "so its mask could not be opened"
            )
        if len(words) != self.length:
            raise ValueError(f"site {self.index} has {len(words)} words and the session {self.length}")
        own = (derive(self._seed, self._session, "self mask", self.index), 1)
        add_masks(words, [own, *self._pair_masks()], self.generator)
        return Masked(self.index, words)

    def vote(self, survivors: Sequence[int]) -> Vote:
        """Sign the list of sites whose masked words the server says it has."""
        self._enter("vote", "unmask")
        ordered = tuple(sorted(set(survivors)))
        if self.index not in ordered or len(ordered) < self.rules.least or not set(ordered) <= set(self._peers):
            raise Refusal(
                f"site {self.index} will not open a sum of {len(ordered)} sites; "
                f"it needs itself in it and at least {self.rules.least}, since smaller sums hide less"
            )
        self._survivors = ordered
        return Vote(self.index, self._identity.sign(_ballot(self._session, ordered)))

    def unmask(self, survivors: Sequence[int], vanished: Sequence[int], votes: Sequence[Vote]) -> Reveal:
        """Give the shares of survivors' seeds and of vanished sites' mask keys."""
        self._enter("unmask", "done")
        self._check_unmasking(survivors, vanished, votes)
        width = shamir.SHARE_BYTES
        return Reveal(
            self.index,
            {site: int.from_bytes(box[width:], "little") for site, box in self._boxes.items() if site in survivors},
            {site: int.from_bytes(box[:width], "little") for site, box in self._boxes.items() if site in vanished},
        )

    def _check_unmasking(self, survivors: Sequence[int], vanished: Sequence[int], votes: Sequence[Vote]) -> None:
        both = sorted(set(survivors) & set(vanished))
        if both:
            raise Refusal(f"site {self.index} was asked for both shares of site {both[0]}; together they would open its update")
        if tuple(sorted(survivors)) != self._survivors:
            raise Refusal(f"site {self.index} voted on another list of survivors than the one it is asked to open")
        ballot = _ballot(self._session, self._survivors)
        agreeing = {self.index}
        for vote in votes:
            if len(agreeing) < self.rules.threshold and vote.site in self._neighbours and vote.site in self._survivors:
                agreeing |= {vote.site} if signed_by(self.directory[vote.site], vote.signature, ballot) else set()
        if len(agreeing) < self.rules.threshold:
            raise Refusal(
                f"site {self.index} saw {len(agreeing)} matching votes and needs {self.rules.threshold}; "
                "the others may have been shown another list of survivors"
            )

    def _pair_masks(self) -> list[tuple[bytes, int]]:
        others = [site for site in self._boxes if site != self.index]
        return [
            (pair_key(self._mask_secret, self._peers[other].mask_key, self._session, self.index, other), sign(self.index, other))
            for other in others
        ]

    def _box_key(self, sender: int, recipient: int) -> bytes:
        other = recipient if sender == self.index else sender
        return derive(self._sealing[other], self._session, "shares", sender, recipient)

    def _expand(self, count: int) -> bytes:
        stream = bytearray(count)
        aes_ctr(self._random).update_into(memoryview(bytes(count)), stream)
        return bytes(stream)
