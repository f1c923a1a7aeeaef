"""Homomorphic encryption: sites encrypt under one key of theirs, the server adds ciphertexts, the sites decrypt the sum.

CKKS (Cheon et al. 2017) by TenSEAL, the optional extra ``he``. Updates are encrypted as integers (``baselines.fixed_point``) and the
decrypted sum is rounded to integers, so that CKKS' own error, far below one half, does not reach the mean: it equals the one of secure
aggregation to the last bit. TenSEAL has no threshold decryption: one secret key for all sites, so any site that sides with the server
opens every update. Costs are the point of this baseline: a ciphertext holds 4,096 coordinates in 262,144 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.fixed_point import FixedPoint, Layout, Words, signed
from suites.contracts import Card, Claim, Defense, Delivery, Exchange, Federation, Message, Params, RequestError, Shape

DEGREE = 8192  # with moduli of 160 bits in all: 128 bits of security and more (homomorphicencryption.org tables, 218 bits allowed)
MODULI, SCALE = (60, 40, 60), 2.0**40
SLOTS = DEGREE // 2
CIPHERTEXT_BYTES = 2 * DEGREE * (len(MODULI) - 1) * 8  # two polynomials over the moduli that are left for data


@dataclass(frozen=True, slots=True)
class Sites:
    """What the sites share and the server never has: the context with the secret key."""

    context: Any

    @classmethod
    def new(cls) -> Sites:
        tenseal = _tenseal()
        context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, DEGREE, coeff_mod_bit_sizes=list(MODULI))
        context.global_scale = SCALE
        return cls(context)

    def public(self) -> bytes:
        """What the server gets: parameters and the public key."""
        return bytes(self.context.serialize(save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False))

    def encrypt(self, words: Words) -> list[bytes]:
        values = signed(words)
        blocks = [values[start : start + SLOTS] for start in range(0, len(values), SLOTS)]
        return [bytes(_tenseal().ckks_vector(self.context, block.tolist()).serialize()) for block in blocks]

    def decrypt(self, boxes: Sequence[bytes]) -> Words:
        blocks: list[NDArray[np.float64]] = [np.asarray(_tenseal().ckks_vector_from(self.context, box).decrypt()) for box in boxes]
        with np.errstate(invalid="ignore"):  # under another key the numbers are huge
            words: Words = np.rint(np.concatenate(blocks)).astype(np.int64).astype(np.uint32)
        return words


def add(public: bytes, sealed: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The server's part, from public parameters and ciphertexts alone: their sums, block by block."""
    tenseal = _tenseal()
    context = tenseal.context_from(public)
    sums = []
    for blocks in zip(*sealed, strict=True):
        first, *others = (tenseal.ckks_vector_from(context, block) for block in blocks)
        for other in others:
            first += other
        sums.append(bytes(first.serialize()))
    return sums


@dataclass(frozen=True, slots=True)
class EncryptedSum:
    """The channel. A fresh key pair each round; every site has to stay for the round."""

    bound: float

    def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
        if exchange.dropouts:
            raise RequestError("homomorphic has no recovery from a site that vanishes within a round; leave dropouts to secure_aggregation")
        fixed, layout, sites = FixedPoint.agreed(weights, self.bound), Layout.of(updates[0]), Sites.new()
        sealed = [sites.encrypt(fixed.encode(u, w, layout, i)) for i, (u, w) in enumerate(zip(updates, weights, strict=True))]
        total = sites.decrypt(add(sites.public(), sealed))
        device = next(iter(updates[0].values())).device
        messages = tuple(Message(i, "ciphertext", {"ciphertext": _placeholder(len(boxes))}) for i, boxes in enumerate(sealed))
        return Delivery(messages, fixed.mean(total, layout, device), tuple(range(len(updates))))

    def part(self, update: Params, weights: Sequence[float], site: int) -> Params:
        """What a site knows of the sum: its own update, as rounded there."""
        return FixedPoint.agreed(weights, self.bound).rounded(update, weights[site], site)


def _placeholder(boxes: int) -> torch.Tensor:
    """As many bytes as the ciphertexts have; their content says nothing without a key, and would let no two records of a run agree."""
    return torch.zeros(boxes * CIPHERTEXT_BYTES, dtype=torch.uint8)


class Homomorphic(Defense):
    """The server adds what it cannot read.

    Parameters
    ----------
    bound : float
        The largest coordinate an update may have; a smaller bound rounds finer.
    """

    card = Card(
        server="Ciphertexts of the updates, and the decrypted weighted sum that the sites hand back so that training can go on.",
        site="Each broadcast model, its own data, and the secret key: with another site's ciphertext, that site's update.",
        outsider="The released model, trained exactly as without the defense up to rounding.",
        does_not_protect="Anything once one site sides with the server, since all sites hold the one secret key; whatever can be read from "
        "the sum or the model; sites that vanish within a round.",
    )

    def __init__(self, *, bound: float = 64.0) -> None:
        if not 0 < bound < 2**20:
            raise RequestError(
                f"homomorphic got bound={bound:g}, but it is the largest coordinate of an update; give one above 0, below 2^20"
            )
        if find_spec("tenseal") is None:
            raise RequestError("homomorphic needs TenSEAL, which is not installed; run `pip install 'infl-bench[he]'`")
        self.channel = EncryptedSum(float(bound))

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        return Claim(
            kind="none",
            unit="site",
            server_sees="the exact sum over all sites",
            sentence=f"The server learns the weighted sum of {len(shape.site_sizes)} sites and no single update, as long as no site gives "
            "it the one secret key; what the sum itself tells is not hidden.",
        )


def _tenseal() -> Any:
    try:
        return import_module("tenseal")
    except ImportError as error:
        raise RequestError(f"homomorphic needs TenSEAL, which cannot be loaded ({error}); run `pip install 'infl-bench[he]'`") from None
