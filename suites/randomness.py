"""Every random number, derived from named coordinates; secrets from a cryptographic stream.

Two kinds of randomness, kept apart:

- ``stream(*coordinates)``: a ``torch.Generator`` for everything that is not secret. Torch keeps only 32 bits of a CPU seed, so two of
  some 77,000 streams would already collide with even odds. The whole Mersenne state (624 words) is therefore filled from a 256-bit hash.
- ``keys(*coordinates)``: a ``KeyStream`` (HKDF-SHA256, then AES-256-CTR) for keys and masks. In a benchmark it can be derived again
  from ``record.json``: reproducible, not secret, and no attack is given the coordinates. A deployment uses ``KeyStream.fresh()``.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

_STATE_WORDS = 624  # MT19937
_FIRST_WORD = 0x80000000  # so that no state is all zero
_LEGACY_HEADER = 8 + 4 + 4 + 8  # seed, left, seeded, next: the head of torch's CPU generator state


def digest(*coordinates: object) -> bytes:
    """SHA-256 of the coordinates; ints, strings, floats and None keep their type, so ``1`` and ``"1"`` differ."""
    return hashlib.sha256(json.dumps([*coordinates], separators=(",", ":"), allow_nan=False).encode()).digest()


def stream(*coordinates: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose whole state follows from the coordinates; equal coordinates give equal draws, and only those do."""
    seed = digest("infl-bench stream", *coordinates)
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(seed[:8], "little") >> 1)
    if generator.device.type != "cpu":
        return generator  # Philox keeps all 64 bits
    words = np.random.SeedSequence(int.from_bytes(seed, "little")).generate_state(_STATE_WORDS)
    words[0] = _FIRST_WORD  # numpy's MT19937 does just this, and takes twice as long
    state = generator.get_state().numpy().copy()
    state[_LEGACY_HEADER : _LEGACY_HEADER + 8 * _STATE_WORDS] = words.astype("<u8").view(np.uint8)
    generator.set_state(torch.from_numpy(state))
    return generator


class KeyStream:
    """A deterministic cryptographic stream: HKDF-SHA256 turns the seed into an AES-256-CTR key.

    Parameters
    ----------
    seed : bytes
        At least 16 bytes of entropy (a benchmark: the hash of its coordinates; a deployment: the operating system's).
    """

    __slots__ = ("_encryptor", "_seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) < 16:
            raise ValueError("a key stream needs at least 16 bytes of seed, since shorter ones can be searched; use KeyStream.fresh()")
        self._seed = seed
        material = HKDF(SHA256(), 48, salt=None, info=b"infl-bench key stream v1").derive(seed)
        self._encryptor = Cipher(algorithms.AES(material[:32]), modes.CTR(material[32:])).encryptor()

    @classmethod
    def fresh(cls) -> KeyStream:
        return cls(secrets.token_bytes(32))

    def __repr__(self) -> str:
        return "KeyStream(<withheld>)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a KeyStream is never pickled: derive it again where it is needed")

    def child(self, *coordinates: object) -> KeyStream:
        """An independent stream; does not move this one."""
        return KeyStream(HKDF(SHA256(), 32, salt=None, info=b"infl-bench child v1" + digest(*coordinates)).derive(self._seed))

    def bytes(self, count: int) -> bytes:
        return self._encryptor.update(b"\0" * count)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        words = np.frombuffer(self.bytes(8 * math.prod(shape)), dtype="<u8") >> 11  # 53 bits: exact doubles
        unit = torch.from_numpy(words.astype(np.float64) * 2.0**-53).reshape(shape)
        return low + (high - low) * unit

    def normal(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        half = (count + 1) // 2
        radius = torch.sqrt(-2.0 * torch.log1p(-self.uniform(half)))
        angle = 2 * math.pi * self.uniform(half)
        return torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])[:count].reshape(shape)

    def signs(self, count: int) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8))[:count]
        return torch.from_numpy(2.0 * bits.astype(np.float64) - 1.0)

    def permutation(self, count: int) -> Tensor:
        # Sorting 64-bit words: a tie, and with it a bias, has probability below count^2 / 2^65.
        return torch.from_numpy(np.argsort(np.frombuffer(self.bytes(8 * count), dtype="<u8"), kind="stable").astype(np.int64))


def keys(*coordinates: object) -> KeyStream:
    """The benchmark's key stream at these coordinates."""
    return KeyStream(digest("infl-bench keys", *coordinates))
