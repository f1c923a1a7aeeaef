"""Whom a batch consists of, read off a message's rows: exact below the layer's width, told apart above it, hidden by a secret map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from visible import hits, look

from attacks.key.candidates_in_span import CandidatesInSpan, CandidatesInSpanOfSum
from infl.hardened import Hardened
from suites.contracts import Records, Threat
from suites.observation import Guarded, Seen
from suites.randomness import stream
from suites.tasks.classification import Classification

WIDTH, CLASSES, HIDDEN, CANDIDATES = 300, 4, 32, 200


def sight(batch: int, messages: int = 3, *, hardened: bool = False, sites: int = 1):  # type: ignore[no-untyped-def]
    """Records of shared factors and much of their own; distinct batches of the first of 200 candidates, 60 public ones."""
    generator = stream("in span", "records")
    x = torch.randn(260, 6, generator=generator) @ torch.randn(6, WIDTH, generator=generator) + 1.5 * torch.randn(
        260, WIDTH, generator=generator
    )
    records = Records(x, torch.randint(0, CLASSES, (260,), generator=generator))
    drawn = [list(range(k * batch, (k + 1) * batch)) for k in range(messages)]
    task = Classification(dropout=0.0, hidden=HIDDEN, network="mlp")
    layers = [Hardened(minimum=1)] if hardened else []
    return look(layers, records, drawn, torch.arange(CANDIDATES), torch.arange(CANDIDATES, 260), classes=CLASSES, task=task, sites=sites)


@pytest.mark.parametrize("batch", [1, 8, 31])
def test_a_batch_smaller_than_the_layer_is_named_and_certified(batch: int) -> None:
    guess = (view := sight(batch)).guess(CandidatesInSpan(), 0)
    assert hits(guess.value, view.truth) == (3 * batch, 3 * batch)
    assert bool(guess.certified.all()) or batch == 31  # the least of 31 directions are near a single-precision message's rounding
    assert bool(guess.certified.any())


def test_a_batch_twice_the_layer_is_named_and_one_of_four_times_for_the_most_part() -> None:
    guess = (view := sight(2 * HIDDEN)).guess(CandidatesInSpan(), 0)
    found, count = hits(guess.value, view.truth)
    assert found > 0.95 * count  # a draw: 64 of 200
    assert not bool(guess.certified.any())
    guess = (view := sight(4 * HIDDEN, 1)).guess(CandidatesInSpan(), 0)
    right = torch.cdist(guess.value[0].double(), view.truth[0].double()).min(1).values < 1e-3
    assert 0.75 < float(right.double().mean()) < 1  # a draw: .64
    assert roc_auc_score(right, guess.confidence) > 0.7  # and it knows which


@pytest.mark.parametrize("batch", [1, 31, 2 * HIDDEN])
def test_behind_a_secret_map_it_draws(batch: int) -> None:
    guess = (view := sight(batch, hardened=True)).guess(CandidatesInSpan(), 0)
    found, count = hits(guess.value, view.truth)
    chance = batch / CANDIDATES
    assert abs(found - chance * count) < 4 * (count * chance * (1 - chance)) ** 0.5 + 1
    assert not bool(guess.certified.any())


def test_whoever_holds_the_key_undoes_the_map() -> None:
    view = sight(31, hardened=True)
    seen = Guarded(Seen(view.scene, view.evidence, Threat(key="leaked")), frozenset(CandidatesInSpan.needs))
    assert hits(CandidatesInSpan().run(seen, torch.Generator()).value, view.truth) == (93, 93)


def test_a_sum_is_one_larger_batch() -> None:
    guess = (view := sight(8, sites=3)).guess(CandidatesInSpanOfSum(), 0)
    assert [len(one) for one in guess.value] == [24]
    assert hits(guess.value, view.truth) == (24, 24)


def test_more_records_than_candidates_are_answered_by_some_twice() -> None:
    view = sight(64)
    scene = view.scene
    few = scene.candidates.x[:40]
    seen = Seen(replace(scene, candidates=Records(few, scene.candidates.y[:40])), view.evidence, Threat())
    guess = CandidatesInSpan().run(seen, torch.Generator())
    assert [one.shape for one in guess.value] == [(64, WIDTH)] * 3
