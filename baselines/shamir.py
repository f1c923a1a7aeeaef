"""Shamir's secret sharing (1979) of 32-byte secrets over the prime field of 2^256 + 297, the first prime above 2^256.

Any ``threshold`` shares give the secret, fewer say nothing about it. A holder is known by a positive number, its abscissa.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: bytes, holders: Sequence[int], threshold: int, randomness: bytes) -> dict[int, int]:
    """Shares by holder. ``randomness`` gives 48 bytes a coefficient: reduced modulo the prime, their bias is below 2^-127."""
    if len(randomness) != 48 * (threshold - 1) or not 1 <= threshold <= len(holders) or min(holders) < 1:
        raise ValueError(
            "a split needs 1 <= threshold <= holders, positive abscissae and 48 random bytes for each coefficient but the secret"
        )
    drawn = [int.from_bytes(randomness[i : i + 48], "little") % PRIME for i in range(0, len(randomness), 48)]
    shares = {}
    for holder in holders:
        value = 0
        for coefficient in drawn:
            value = (value + coefficient) * holder
        shares[holder] = (value + int.from_bytes(secret, "little")) % PRIME
    return shares


def join(shares: Mapping[int, int]) -> bytes:
    """The secret of at least ``threshold`` shares by holder; of fewer, or of false ones, other bytes (or ValueError)."""
    total = 0
    for holder, share in shares.items():
        over, under = 1, 1
        for other in shares:
            if other != holder:
                over = over * other % PRIME
                under = under * (other - holder) % PRIME
        total = (total + share * over * pow(under, -1, PRIME)) % PRIME
    if total >= 2**256:
        raise ValueError("these shares do not belong to one 32-byte secret")
    return total.to_bytes(32, "little")
