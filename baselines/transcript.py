"""All that the server of one secure aggregation session saw, and the sum that follows from it; a transcript replays from a file.

It holds what the protocol itself reveals (the shares that open survivors' self masks and vanished sites' mask keys) and no other secret.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from safetensors import safe_open
from safetensors.numpy import save_file

from baselines import shamir
from baselines.bonawitz import Aborted, Advert, Masked, Reveal, Sealed, Vote, cohort_hash, committed
from baselines.cohort_graph import Rules, neighbours
from baselines.fixed_point import Words
from baselines.masking import Generator, add_masks, aes_ctr, derive, pair_key, sign


@dataclass(frozen=True, slots=True)
class Transcript:
    """The messages of each stage, in the order in which the server took them."""

    rules: Rules
    agreed: bytes
    adverts: tuple[Advert, ...]
    sealed: tuple[Sealed, ...]
    masked: tuple[Masked, ...]
    votes: tuple[Vote, ...]
    reveals: tuple[Reveal, ...]

    @property
    def survivors(self) -> tuple[int, ...]:
        return tuple(message.site for message in self.masked)


def _open(owner: int, shares: Mapping[int, int], threshold: int) -> bytes:
    if len(shares) < threshold:
        raise Aborted(
            f"the round is void: {len(shares)} shares of site {owner}'s secret are left and {threshold} are needed; "
            "allow more dropouts (a lower threshold) or wait for the sites"
        )
    try:
        return shamir.join(dict(sorted(shares.items())[:threshold]))
    except ValueError:
        raise Aborted(f"the round is void: the shares of site {owner}'s secret open none, so at least one is false") from None


def total(transcript: Transcript, generator: Generator = aes_ctr) -> Words:
    """The survivors' summed words: masked words, minus their self masks, minus the masks they shared with vanished sites."""
    rules, session = transcript.rules, cohort_hash(transcript.agreed, transcript.adverts)
    adverts = {advert.site: advert for advert in transcript.adverts}
    graph = neighbours(list(adverts), rules.degree, session)
    survivors, sharers = set(transcript.survivors), {sealed.sender for sealed in transcript.sealed}
    seeds: dict[int, dict[int, int]] = {site: {} for site in survivors}
    keys: dict[int, dict[int, int]] = {site: {} for site in sharers - survivors}
    for reveal in transcript.reveals:
        for given, kept in ((reveal.seeds, seeds), (reveal.keys, keys)):
            for owner in given.keys() & kept.keys():
                kept[owner][reveal.site + 1] = given[owner]
    masks = []
    for site in sorted(survivors):
        seed = _open(site, seeds[site], rules.threshold)
        if committed(seed, transcript.agreed, site) != adverts[site].commitment:
            raise Aborted(
                f"the round is void: the shares of site {site}'s seed do not open the seed that it committed to, so at least one is false"
            )
        masks.append((derive(seed, session, "self mask", site), -1))
    for site in sorted(keys):
        secret = X25519PrivateKey.from_private_bytes(_open(site, keys[site], rules.threshold))
        if secret.public_key().public_bytes_raw() != adverts[site].mask_key:
            raise Aborted(
                f"the round is void: the shares of site {site}'s key do not open the key that it advertised, so at least one is false"
            )
        masks += [
            (pair_key(secret, adverts[other].mask_key, session, site, other), -sign(other, site))
            for other in graph[site]
            if other in survivors
        ]
    words = transcript.masked[0].words.copy()
    for message in transcript.masked[1:]:
        words += message.words
    add_masks(words, masks, generator)
    return words


def save(transcript: Transcript, path: Path) -> None:
    """One safetensors file: the masked words as tensors, the rest as JSON in its header."""
    record = {
        "rules": asdict(transcript.rules),
        "agreed": transcript.agreed.hex(),
        "adverts": [[a.site, a.mask_key.hex(), a.share_key.hex(), a.commitment.hex(), a.signature.hex()] for a in transcript.adverts],
        "sealed": [[s.sender, s.recipient, s.box.hex()] for s in transcript.sealed],
        "masked": [m.site for m in transcript.masked],
        "votes": [[v.site, v.signature.hex()] for v in transcript.votes],
        "reveals": [
            [r.site, [[k, str(v)] for k, v in r.seeds.items()], [[k, str(v)] for k, v in r.keys.items()]] for r in transcript.reveals
        ],
    }
    save_file({f"masked.{m.site}": m.words.view(np.int32) for m in transcript.masked}, path, {"transcript": json.dumps(record)})


def load(path: Path) -> Transcript:
    with safe_open(path, "numpy") as file:
        record = json.loads(file.metadata()["transcript"])
        masked = tuple(Masked(site, file.get_tensor(f"masked.{site}").view(np.uint32)) for site in record["masked"])
    return Transcript(
        Rules(**record["rules"]),
        bytes.fromhex(record["agreed"]),
        tuple(Advert(a, *(bytes.fromhex(x) for x in rest)) for a, *rest in record["adverts"]),
        tuple(Sealed(s, r, bytes.fromhex(box)) for s, r, box in record["sealed"]),
        masked,
        tuple(Vote(v, bytes.fromhex(signature)) for v, signature in record["votes"]),
        tuple(Reveal(r, {k: int(v) for k, v in seeds}, {k: int(v) for k, v in keys}) for r, seeds, keys in record["reveals"]),
    )
