"""What secure aggregation costs at 602,478 parameters; run with ``pytest tests/benchmarks/test_secure_aggregation.py --benchmark-only``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from baselines.bonawitz import Site
from baselines.fixed_point import FixedPoint, Layout
from baselines.masking import add_masks, fingerprint
from baselines.secure_aggregation import STAGES, MaskedSum
from baselines.transcript import total
from suites.contracts import Exchange, Params
from suites.randomness import keys, stream

PARAMETERS = 602_478


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def update(seed: int) -> Params:
    rng = stream("benchmark update", seed)
    return {"first": 0.01 * torch.randn(9105, 64, generator=rng), "rest": 0.01 * torch.randn(PARAMETERS - 9105 * 64, generator=rng)}


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this thread: what the work costs, whoever else is on the machine."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def test_quantising_and_masking_cost_little_more_than_the_cipher(benchmark: Any) -> None:
    """Five sites: at most 2.5 times the AES-CTR bytes that four pair masks and one self mask need."""
    sent, zeros = update(0), bytes(4 * (PARAMETERS + 1))
    fixed, layout = FixedPoint.agreed([241.0] * 5, 64.0), Layout.of(sent)
    secrets = [bytes([number]) * 32 for number in range(5)]

    def cipher_alone() -> None:
        for secret in secrets:
            Cipher(algorithms.AES256(secret), modes.CTR(bytes(16))).encryptor().update(zeros)

    def quantise_and_mask() -> None:
        words = fixed.encode(sent, 241.0, layout, 0)
        add_masks(words, [(secret, 1 if number % 2 else -1) for number, secret in enumerate(secrets)])

    pairs = [(seconds(quantise_and_mask), seconds(cipher_alone)) for _ in range(60)]
    benchmark.extra_info["ratio to the cipher alone"] = ratio = min(ours for ours, _ in pairs) / min(raw for _, raw in pairs)
    benchmark.extra_info["median of the ratios"] = statistics.median(ours / raw for ours, raw in pairs)
    benchmark.extra_info["cipher alone, ms"] = 1e3 * min(raw for _, raw in pairs)
    benchmark.pedantic(quantise_and_mask, rounds=10)
    assert ratio <= 2.5


def stopwatch(real: Callable[..., object], spent: np.ndarray) -> Callable[..., object]:
    def timed(self: Site, *arguments: Any) -> object:
        start = time.thread_time()
        answer = real(self, *arguments)
        spent[self.index] += time.thread_time() - start
        return answer

    return timed


@pytest.mark.parametrize(("sites", "a_client", "a_round"), [(5, None, None), (50, 0.040, 3.0), (100, None, None)])
def test_a_client_and_a_round(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, sites: int, a_client: float | None, a_round: float | None
) -> None:
    """All that a client does in a round, encoding and hashing the broadcast included; and the round of all clients and the server."""
    spent = np.zeros(sites)
    for stage in STAGES:
        monkeypatch.setattr(Site, stage, stopwatch(getattr(Site, stage), spent))
    sent, broadcast = [update(seed % 5) for seed in range(sites)], update(7)
    fixed, layout = FixedPoint.agreed([241.0] * sites, 64.0), Layout.of(sent[0])
    alone = statistics.median(seconds(lambda: (fixed.encode(sent[0], 241.0, layout, 0), fingerprint(broadcast))) for _ in range(10))
    sources = tuple(keys("benchmark", site) for site in range(sites))
    lost = {1: "mask", 3: "unmask"} if sites > 5 else {1: "mask"}
    clients, rounds, transcripts = [], [], []
    for index in range(3):
        spent[:] = 0
        exchange = Exchange(index, b"benchmark", broadcast, sources, lost)
        start = time.thread_time()
        transcripts.append(MaskedSum(64.0).session(sent, [241.0] * sites, exchange)[1])
        rounds.append(time.thread_time() - start)
        clients.append(float(np.median(spent)) + alone)
    benchmark.extra_info["a client, ms"] = 1e3 * min(clients)
    benchmark.extra_info["a round, ms"] = 1e3 * min(rounds)
    benchmark.extra_info["server's sum, ms"] = 1e3 * min(seconds(lambda: total(seen)) for seen in transcripts)  # noqa: B023
    benchmark.pedantic(lambda: MaskedSum(64.0).run(sent, [241.0] * sites, Exchange(9, b"benchmark", broadcast, sources)), rounds=1)
    assert a_client is None or min(clients) <= a_client
    assert a_round is None or min(rounds) <= a_round
