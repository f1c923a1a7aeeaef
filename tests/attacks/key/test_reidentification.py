"""Records behind hidden inputs are named again, without key or plaintext: bars on a real cohort, and both ends of the scale."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from secret_layers import Rotated, Stretched
from torch.nn.functional import cosine_similarity, normalize
from visible import Sight, hits, look

from attacks.key.gram_search import GramSearch, GramSearchOfSum
from attacks.key.known_plaintext import KnownPlaintext
from attacks.key.matching import extend, regress, search
from attacks.key.norms import Norms, match_lengths
from attacks.key.principal_components import PrincipalComponents, aligned
from infl.hardened import Hardened
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.contracts import Defense, Records, RequestError, Skip
from suites.preprocess import Preprocessor
from suites.randomness import stream
from suites.tasks.classification import Classification

RECORDS, AMONG = 60, 350


@cache
def cells() -> tuple[Records, torch.Tensor, torch.Tensor]:
    """pbmc68k in public units, the rows that are asked about, and the adversary's own."""
    cohort = load(DataSpec(name="pbmc68k"))
    order = torch.randperm(len(cohort.x), generator=stream("reidentification", "cells"))
    own, asked = order[:230], order[230:]
    x = Preprocessor.fit(cohort.x[own.numpy()]).transform(cohort.x)
    return Records(x, torch.from_numpy(cohort.y)), asked, own


def sight(
    layers: Sequence[Defense], seed: int, *, null: bool = False, batch: int = 1, sites: int = 1, count: int = RECORDS, network: Any = "mlp"
) -> Sight:
    """``count`` records in messages of ``batch``; under ``null`` the candidates are others than those that were sent."""
    records, asked, own = cells()
    order = asked[torch.randperm(len(asked), generator=stream("reidentification", "asked", seed))]
    candidates, others = order[:AMONG], order[AMONG:]
    pool = others if null else candidates
    chosen = pool[torch.randperm(len(pool), generator=stream("reidentification", "sent", seed))[:count]].tolist()
    messages = [chosen[i : i + batch] for i in range(0, len(chosen), batch)]
    return look(
        layers,
        records,
        messages,
        candidates,
        own,
        classes=int(records.y.max()) + 1,
        start=seed,
        sites=sites,
        task=Classification(dropout=0.0, network=network),
    )


SECRETS = pytest.mark.parametrize("layer", [Rotated, Stretched, lambda: Hardened(minimum=1)], ids=["rotation", "spectrum", "hardened"])


@pytest.mark.parametrize("seed", [0, 1])
def test_norms_name_rotated_records(seed: int) -> None:
    found, count = sight([Rotated()], seed).named(Norms(), seed)
    assert count == RECORDS
    assert found >= 0.95 * count


@SECRETS
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_inner_products_name_records_under_any_linear_secret(layer: Any, seed: int) -> None:
    seen = sight([layer()], seed)
    guess = seen.guess(GramSearch(), seed)
    found, count = hits(guess.value, seen.truth)
    assert (count, found >= 0.95 * count) == (RECORDS, True)
    assert guess.certified.double().mean() > 0.9  # and the search knows it


def test_norms_are_what_a_spectrum_and_one_length_take_away() -> None:
    for layer in (Stretched(), Hardened(minimum=1)):
        found, count = sight([layer], 0).named(Norms(), 0)
        assert found <= 0.25 * count


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_where_no_candidate_was_sent_nothing_is_certified_and_the_named_are_a_coin_flip(seed: int) -> None:
    """The candidates named are no more like the records than others of their class."""
    seen = sight([Stretched()], seed, null=True, count=24)
    guess = seen.guess(GramSearch(budget=1), seed)
    assert hits(guess.value, seen.truth)[0] == 0
    assert not guess.certified.any()
    records, asked, _ = cells()
    real = torch.cat(seen.truth).double()
    said = cosine_similarity(torch.cat(list(guess.value)).double(), real).mean()
    label = {tuple(row[:8].tolist()): int(y) for row, y in zip(records.x, records.y)}
    chance = []
    for draw in range(100):
        generator = stream("reidentification", "chance", draw)
        same = [(records.y[asked] == label[tuple(row[:8].float().tolist())]).nonzero().squeeze(1) for row in real]
        picked = torch.stack([records.x[asked[rows[torch.randint(len(rows), (1,), generator=generator)[0]]]] for rows in same]).double()
        chance.append(float(cosine_similarity(picked, real).mean()))
    assert float(said) < max(chance) + 0.05


@SECRETS
def test_three_known_records_name_the_others_and_each_more_is_used(layer: Any) -> None:
    seen = sight([layer()], 0)
    for known in (3, 20):
        guess = seen.guess(KnownPlaintext(), 0, known_pairs=known)
        found, count = hits(guess.value, seen.truth[known:])
        assert (len(guess.value), count, guess.notes["known"]) == (RECORDS - known, RECORDS - known, known)  # nobody is asked what is known
        assert found >= 0.95 * count
        assert guess.certified.shape == (count,)
    with pytest.raises(Skip, match="known_pairs"):
        seen.guess(KnownPlaintext(), 0)
    with pytest.raises(RequestError, match="budget"):
        KnownPlaintext(budget=0)


def test_small_batches_are_taken_apart_first() -> None:
    seen = sight([Hardened(minimum=1)], 0, batch=4, count=40)
    guess = seen.guess(GramSearch(), 0)
    found, count = hits(guess.value, seen.truth)
    assert found >= 0.95 * count
    assert guess.notes["taken_apart"] > 0.9


def test_a_sum_over_sites_is_one_larger_batch() -> None:
    seen = sight([Hardened(minimum=1)], 0, batch=1, sites=4, count=40)
    found, count = hits(seen.guess(GramSearchOfSum(), 0).value, seen.truth)
    assert found >= 0.95 * count


@pytest.mark.slow
def test_the_residual_network_is_no_shelter() -> None:
    seen = sight([Hardened(minimum=1)], 0, batch=4, network="residual")
    found, count = hits(seen.guess(GramSearch(), 0).value, seen.truth)
    assert found >= 0.95 * count


def test_principal_axes_give_class_means_and_no_single_record() -> None:
    plain, rotated = sight([], 0), sight([Rotated()], 0)
    exact = plain.guess(PrincipalComponents(), 0)
    assert exact.notes["unmixed"] == 1.0
    assert float(cosine_similarity(torch.cat(list(exact.value)), torch.cat(plain.truth)).mean()) > 0.999
    guess = rotated.guess(PrincipalComponents(), 0)
    alike = float(cosine_similarity(torch.cat(list(guess.value)), torch.cat(rotated.truth)).mean())
    assert guess.notes["unmixed"] == 0.0
    assert 0.15 < alike < 0.8
    assert hits(guess.value, rotated.truth)[0] == 0


def test_marginals_settle_signs_where_they_are_skewed() -> None:
    generator = stream("reidentification", "skewed")
    scores = -torch.rand(2000, 3, generator=generator).double().log() * torch.tensor([5.0, 3.0, 2.0]).double()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator).double())[0]
    rest = 0.1 * torch.randn(2000, 12, generator=generator).double()
    x = torch.cat([scores, torch.zeros(2000, 9).double()], 1) + rest
    found = aligned(x[:1000] @ turn, x[1000:], 3)
    assert float(cosine_similarity(found - x.mean(0), x[:1000] - x.mean(0)).mean()) > 0.95


# ----------------------------------------------------------------------------------------------------------- the pieces, by known answers


def problem(count: int = 40, among: int = 120, width: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = stream("reidentification", "problem")
    x = torch.randn(among, width, generator=generator).double() @ torch.diag(torch.linspace(2, 0.1, width).double())
    truth = torch.randperm(among, generator=generator)[:count]
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0]
    return x[truth] @ turn, x, truth


def test_search_names_all_and_says_so_at_any_common_scale() -> None:
    z, x, truth = problem()
    placed, margins = search(7.5 * z, x, torch.ones(40, 120, dtype=torch.bool), torch.Generator())
    assert torch.equal(placed, truth)
    assert bool((margins > 10).all())


def test_regression_predicts_a_rotated_record_from_the_pairs_that_span_it() -> None:
    """With more pairs than dimensions the right candidate's error vanishes, and no other's does."""
    generator = stream("reidentification", "span")
    x = torch.randn(60, 8, generator=generator).double()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator).double())[0]
    z = x[:20] @ turn
    held = torch.arange(20)
    held[15:] = -1
    found = regress(z @ z.T, x @ x.T, held)
    assert torch.equal(found.error[15:].argmin(1), torch.arange(15, 20))
    own = found.error[15:][torch.arange(5), torch.arange(15, 20)]
    assert float(own.max()) < 1e-3 * float(found.error[15:].median())


def test_seeded_matching_keeps_known_pairs_and_finds_the_rest() -> None:
    z, x, truth = problem()
    z, x = normalize(z, dim=1), normalize(x, dim=1)
    held = torch.full((40,), -1)
    held[:4] = truth[:4]
    fixed = held >= 0
    placed, _ = extend(z @ z.T, x @ x.T, torch.ones(40, 120, dtype=torch.bool), held, fixed)
    assert torch.equal(placed, truth)


def test_lengths_are_matched_at_scale_one_or_by_ratio() -> None:
    among = torch.linspace(1, 5, 50).double()
    allowed = torch.ones(10, 50, dtype=torch.bool)
    for factor in (1.0, 3.0):
        placed, gap = match_lengths(factor * among[20:30], among, allowed)
        if factor == 1.0:
            assert torch.equal(placed, torch.arange(20, 30))
            assert float(gap.max()) < 1e-9
    whole, _ = match_lengths(3.0 * among, among, torch.ones(50, 50, dtype=torch.bool))
    assert torch.equal(whole, torch.arange(50))
