"""Masks: X25519 agreement, HKDF-SHA256 bound to the session, AES-256-CTR words added modulo 2^32.

A mask key is used for one vector in one session: the HKDF salt is the session's hash (protocol, round, context, hash of the broadcast,
every advertised key), the info names its purpose and its sorted pair of sites. So a counter from zero is safe, and sites that saw different
broadcasts (Pasquini et al. 2022) or cohorts hold masks that do not cancel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from baselines.fixed_point import Words
from suites.contracts import Params

_BLOCK = 32_768  # words: 128 KiB of sum and 128 KiB of stream stay in the second-level cache
_ZEROS = memoryview(bytes(4 * _BLOCK))


class Stream(Protocol):
    def update_into(self, data: memoryview, buf: bytearray) -> int: ...


Generator = Callable[[bytes], Stream]


def aes_ctr(key: bytes) -> Stream:
    """The mask stream of a 32-byte key that is used once."""
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def derive(secret: bytes, session: bytes, purpose: str, *sites: int) -> bytes:
    """32 bytes for one purpose between these sites in this session."""
    info = f"infl-bench secure aggregation v1|{purpose}|{','.join(map(str, sites))}".encode()
    return HKDF(SHA256(), 32, salt=session, info=info).derive(secret)


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The X25519 secret of two sites, the same from either end; raises ValueError on a public key of small order."""
    return private.exchange(X25519PublicKey.from_public_bytes(public))


def pair_key(private: X25519PrivateKey, public: bytes, session: bytes, a: int, b: int) -> bytes:
    """The mask key of sites ``a`` and ``b``."""
    return derive(agree(private, public), session, "pair mask", min(a, b), max(a, b))


def sign(site: int, other: int) -> int:
    """Of each pair the lower site adds the mask and the higher takes it off."""
    return 1 if site < other else -1


def add_masks(words: Words, masks: Sequence[tuple[bytes, int]], generator: Generator = aes_ctr) -> None:
    """Add each (key, sign)'s mask to ``words`` in place; block by block, so that no whole mask is ever in memory."""
    streams = [(generator(key), direction) for key, direction in masks]
    buffer = bytearray(4 * _BLOCK)
    stream = np.frombuffer(buffer, dtype="<u4")
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        drawn, zeros = stream[: len(block)], _ZEROS[: 4 * len(block)]
        for source, direction in streams:
            source.update_into(zeros, buffer)
            (np.add if direction > 0 else np.subtract)(block, drawn, out=block)


def fingerprint(params: Params) -> bytes:
    """SHA-256 of named tensors: names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().cpu().contiguous()
        whole.update(f"{len(name)}|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.digest()
