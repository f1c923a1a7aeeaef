"""Homomorphic sums: exact, opaque to the server, and refused in a sentence where TenSEAL is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from baselines import homomorphic
from baselines.homomorphic import CIPHERTEXT_BYTES, EncryptedSum, Homomorphic, Sites, add
from baselines.secure_aggregation import SecureAggregation
from suites.checks_defense import check_defense
from suites.contracts import Exchange, Federation, Params, RequestError, Shape
from suites.randomness import keys, stream
from suites.stack import Stack

needs_tenseal = pytest.mark.skipif(find_spec("tenseal") is None, reason="the extra 'he' is not installed")


def updates(sites: int, count: int) -> list[Params]:
    return [
        {"w": torch.randn(count, generator=stream("he", s)), "b": torch.randn(3, 2, generator=stream("he", s, "b"))} for s in range(sites)
    ]


def exchange(sites: int) -> Exchange:
    return Exchange(0, b"he", {"w": torch.zeros(1)}, tuple(keys("he", s) for s in range(sites)))


def test_without_the_extra_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homomorphic, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"infl-bench\[he\]"):
        Homomorphic()
    with pytest.raises(RequestError, match="bound=0"):
        Homomorphic(bound=0.0)


@needs_tenseal
@pytest.mark.parametrize(("sites", "count"), [(2, 10), (5, 4096), (5, 9000)])
def test_the_sum_of_secure_aggregation_to_the_last_bit(sites: int, count: int) -> None:
    moved, weights = updates(sites, count), [float(10 + 7 * s) for s in range(sites)]
    sealed = EncryptedSum(64.0).run(moved, weights, exchange(sites))
    masked = SecureAggregation(bound=64.0).sum.run(moved, weights, exchange(sites))
    for name, mean in masked.combined.items():
        assert torch.equal(sealed.combined[name], mean)
    exact = sum(w * u["w"].double() for u, w in zip(moved, weights)) / sum(weights)
    assert torch.allclose(sealed.combined["w"].double(), exact, atol=1e-6)


@needs_tenseal
def test_the_server_adds_but_cannot_open() -> None:
    import tenseal

    sites = Sites.new()
    words = torch.arange(100).numpy().astype("uint32")
    boxes = [sites.encrypt(words), sites.encrypt(words)]
    assert boxes[0] != boxes[1]  # fresh randomness each time
    assert abs(len(boxes[0][0]) / CIPHERTEXT_BYTES - 1) < 0.15
    server = tenseal.context_from(sites.public())
    assert not server.has_secret_key()
    with pytest.raises(ValueError, match="secret"):
        tenseal.ckks_vector_from(server, boxes[0][0]).decrypt()
    assert (sites.decrypt(add(sites.public(), boxes))[:100] == 2 * words).all()
    assert not (Sites.new().decrypt(boxes[0])[:100] == words).all()


@needs_tenseal
def test_the_contract_and_the_limits() -> None:
    assert [result for result in check_defense("homomorphic") if result.verdict == "fail"] == []
    with pytest.raises(RequestError, match="last layer"):
        Stack([Homomorphic(), SecureAggregation()])
    with pytest.raises(RequestError, match="vanishes"):
        EncryptedSum(64.0).run(updates(2, 4), [1.0, 1.0], Exchange(0, b"", {}, (), {0: "mask"}))
    claim = Homomorphic().claim(Federation(), Shape((4, 4), 3, 2))
    assert claim.kind == "none"
