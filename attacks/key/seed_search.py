"""A key that is drawn from few bits is found by trying them: as many seeds a second as the public algorithm runs.

Threat: any server. Key generation is public, so it is run once on a source that counts what it consumes; a secret made of at most ``bits``
random bits is then searched. What each seed's key would have sent is compared with what was sent: the input vector that layers share
(``attacks.key.key_vector``), which depends on the key and on no record. Where a secret enters no such layer the search stands idle and
says so. Time to break is extrapolated from the seeds tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attacks.gradient_inversion.message import known_count
from attacks.key.key_vector import shared_inputs
from suites.contracts import Goal, Ground, Guess, KeySource, Observation, RequestError, Secret, Sees, Skip, Target

_HIT = 1e-4  # relative error of the shared vector below which a seed is the federation's


class CountingSource:
    """A key source that hands out a seed's bytes and then nothing but refusals to be short: ``used`` counts bytes asked for."""

    def __init__(self, seed: bytes = b"") -> None:
        self.seed, self.used = seed, 0

    def bytes(self, count: int) -> bytes:
        start, self.used = self.used, self.used + count
        return self.seed[start : self.used].ljust(count, b"\0")

    def _words(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        unit: Tensor = torch.from_numpy((self._words(int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)
        drawn: Tensor = low + (high - low) * unit
        return drawn

    def normal(self, *shape: int) -> Tensor:
        drawn: Tensor = torch.special.ndtri(self.uniform(*shape).clamp(1e-12, 1 - 1e-12))
        return drawn

    def signs(self, count: int) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8))[:count]
        return torch.from_numpy(2.0 * bits.astype(np.float64) - 1.0)

    def permutation(self, count: int) -> Tensor:
        return torch.from_numpy(np.argsort(self._words(count), kind="stable").astype(np.int64))

    def child(self, *coordinates: object) -> KeySource:
        return self  # a child draws on the same few bits


class SeedSearch:
    """The key itself, where it is drawn from at most ``bits`` bits.

    Parameters
    ----------
    budget : int
        Seeds tried, in order; the notes extrapolate the time for all.
    bits : int
        Randomness up to which trying is worth while.
    """

    goal: ClassVar[Goal] = "key"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "simulate", "own_keys", "released"})
    ground: ClassVar[Ground] = Ground("infl:published", frozenset({"integer_seed"}), keys=64)

    def __init__(self, budget: int = 65536, bits: int = 32) -> None:
        if budget < 1 or not 1 <= bits <= 64:
            raise RequestError(f"seed_search needs budget >= 1 and bits from 1 to 64 but got {budget} and {bits}")
        self.budget, self.bits = budget, bits
        self.found, self.tried, self.total, self.seconds_for_all = False, 0, 0, float("nan")

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        source = CountingSource()
        if seen.derive_key(source) is None:
            raise Skip("this defense has no key")
        if 8 * source.used > self.bits:
            raise Skip(f"the key is made of {8 * source.used} random bits, and more than {self.bits} cannot be tried")
        target = next((target for target in seen.targets if target.optimiser == "gradient"), None)
        wanted = None if target is None else _vector(target)
        if target is None or wanted is None:
            raise Skip("no gradient in sight has layers that share an input vector, so a guessed key cannot be told from a wrong one")
        total, started, tried = 256**source.used, time.perf_counter(), 0
        best: tuple[float, Secret | None] = (float("inf"), None)
        for key in self._keys(seen, source.used, min(self.budget, total)):
            tried += 1
            away = _away(seen, target, key, wanted)
            best = min(best, (away, key), key=lambda one: one[0])
            if away < _HIT:
                break
        found = best[0] < _HIT
        self.found, self.tried, self.total = found, tried, total
        notes = {"seeds": float(tried), "of": float(total), "found": float(found), "vector_error": best[0]}
        self.seconds_for_all = (time.perf_counter() - started) / tried * total  # a clock's reading is no part of a guess
        return Guess([best[1]], certified=torch.tensor([found]), notes=notes)

    def _keys(self, seen: Observation, length: int, count: int) -> Iterator[Secret]:
        for number in range(count):
            key = seen.derive_key(CountingSource(number.to_bytes(length, "little")))
            assert key is not None
            yield key


def _vector(target: Target) -> Tensor | None:
    found = [shared for shared in shared_inputs(target.update) if shared.certain]
    return found[0].vector if found else None


def _away(seen: Observation, target: Target, key: Secret, wanted: Tensor) -> float:
    """Relative distance of the vector that this key's layers would share; any record serves."""
    x = torch.ones(1, known_count(seen.known, "features"), dtype=next(iter(target.params.values())).dtype)
    sent = seen.simulate(target, x, torch.zeros(1, dtype=torch.int64), key)
    for name, weight in sent.items():
        bias = sent.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and weight.shape[1:] == wanted.shape and bias is not None and bool(bias.any()):
            vector = bias.double() @ weight.double() / bias.double().square().sum()
            return float((vector - wanted).norm() / wanted.norm())
    return float("inf")
