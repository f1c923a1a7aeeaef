"""Secure aggregation with one fault each, as found in shipped tools; an audit that lets one of them pass is worth nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from baselines.bonawitz import Site, Vote, terms
from baselines.cohort_graph import Rules
from baselines.fixed_point import FixedPoint, Layout, Words
from baselines.masking import Generator, Stream, aes_ctr
from baselines.secure_aggregation import MaskedSum
from suites.contracts import Exchange, Message

GOLDEN = 0x9E3779B9


def mix(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Murmur3's finaliser: a bijection of 32 bits that looks random."""
    mixed = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))


class SmallSeed:
    """A stream that keeps 32 bits of its 256-bit key, however good it looks."""

    def __init__(self, key: bytes | int) -> None:
        self.place = int.from_bytes(key[:4], "little") if isinstance(key, bytes) else key

    def update_into(self, data: memoryview, buf: bytearray) -> int:
        counter = (np.arange(len(data) // 4, dtype=np.uint64) * GOLDEN + self.place).astype(np.uint32)
        self.place = (self.place + GOLDEN * (len(data) // 4)) % 2**32
        buf[: len(data)] = mix(counter).astype("<u4").tobytes()
        return len(data)


class OneWord:
    """A stream that repeats one good random word: every coordinate carries the same mask."""

    def __init__(self, key: bytes) -> None:
        self.word = bytearray(4)
        aes_ctr(key).update_into(memoryview(bytes(4)), self.word)

    def update_into(self, data: memoryview, buf: bytearray) -> int:
        buf[: len(data)] = self.word * (len(data) // 4)
        return len(data)


def small_seed(key: bytes) -> Stream:
    return SmallSeed(key)


def one_word(key: bytes) -> Stream:
    return OneWord(key)


class WeakSite(Site):
    generator: Generator = staticmethod(small_seed)


class ScalarSite(Site):
    generator: Generator = staticmethod(one_word)


class ObligingSite(Site):
    """Gives whatever shares it is asked for."""

    def _check_unmasking(self, survivors: Sequence[int], vanished: Sequence[int], votes: Sequence[Vote]) -> None:
        pass


class WeakGenerator(MaskedSum):
    site: ClassVar[type[Site]] = WeakSite


class ScalarMask(MaskedSum):
    site: ClassVar[type[Site]] = ScalarSite


class BothShares(MaskedSum):
    site: ClassVar[type[Site]] = ObligingSite


class AnyBroadcast(MaskedSum):
    """Binds the masks to the round and the cohort but not to the broadcast."""

    def agreed(self, exchange: Exchange, public: Rules, fixed: FixedPoint, layout: Layout) -> bytes:
        return terms(exchange.round, exchange.context, b"", rules=public, encoding=fixed, length=layout.length)


class CountsInClear(MaskedSum):
    """Sends the record count beside the masked words, as the weight of the mean."""

    def message(self, site: int, words: Words, weight: float) -> Message:
        return Message(site, "masked", {"masked": torch.from_numpy(words.view(np.int32))}, records=int(weight))
