"""TabLeak: categories told from public records, worth something in the search, and confidence that goes with being right."""

import numpy as np
import pytest
import torch
from observations import FakeObservation, mlp, probe, r2
from torch import Tensor

from attacks.gradient_inversion import tableak
from attacks.gradient_inversion.categories import Categories
from attacks.gradient_inversion.tableak import TabLeak, TabLeakOfSum, aligned
from suites.contracts import Records, RequestError, Skip

NUMBERS, GROUPS, LONE, K = 20, (4, 3, 5, 2, 3, 4), 6, 5
F = NUMBERS + sum(GROUPS) + LONE


def raw(count: int, seed: int) -> np.ndarray:
    """Numbers, one-hot groups, then columns of two values on their own."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((count, NUMBERS))]
    for width in GROUPS:
        parts.append(np.eye(width)[rng.choice(width, count, p=np.arange(1, width + 1) / (width * (width + 1) / 2))])
    parts.append((rng.random((count, LONE)) < 0.3).astype(float))
    return np.concatenate(parts, 1)


AUXILIARY = raw(300, 1)


def standardised(values: np.ndarray) -> Tensor:
    return torch.from_numpy(((values - AUXILIARY.mean(0)) / AUXILIARY.std(0)).astype(np.float32))


PUBLIC = standardised(AUXILIARY)
COLUMNS = Categories.found(PUBLIC)


def lab(batch: int, seed: int = 0, other: int | None = None):
    module = mlp([F, 48, 48, K], seed)
    x = standardised(raw(batch, 100 + seed))
    y = torch.from_numpy(np.random.default_rng(30 + seed).integers(0, K, batch))
    shown = x if other is None else standardised(raw(batch, other))
    return FakeObservation(module, F, K, targets=[probe(module, shown, y)], auxiliary=Records(PUBLIC, torch.arange(300) % K)), x


def run(seen: FakeObservation, seed: int = 5, **options: int):
    return TabLeak(**options).run(seen, torch.Generator().manual_seed(seed))


def right(guess: Tensor, truth: Tensor) -> Tensor:
    """Whether each group's category is the true one, [G, B]."""
    apart = (COLUMNS.shares_of(COLUMNS.hardened(guess.double())) - COLUMNS.shares_of(truth.double())).abs()
    return torch.stack([apart[:, members].max(1).values < 0.5 for members in COLUMNS.groups.bool()])


def test_groups_and_lone_columns_are_found_and_numbers_are_left_alone() -> None:
    assert COLUMNS.groups.sum(1).int().tolist() == [*GROUPS, *[1] * LONE]
    assert COLUMNS.lone.tolist() == [False] * len(GROUPS) + [True] * LONE
    assert not bool(COLUMNS.marked[:NUMBERS].any())
    x = standardised(raw(50, 7)).double()
    assert torch.allclose(COLUMNS.hardened(x), x, atol=1e-5)


def test_a_category_that_nobody_in_public_has_does_not_break_its_group() -> None:
    public = PUBLIC.clone()
    public[:, NUMBERS + 1] = 0.3  # never moves
    kept = public[PUBLIC[:, NUMBERS + 1] < 0]  # those who have another category of the first group
    found = Categories.found(kept)
    assert found.groups[0].nonzero().flatten().tolist() == [NUMBERS, NUMBERS + 2, NUMBERS + 3]


def test_accidents_are_no_categories() -> None:
    """A gene that one cell in a sample expresses has two values; counts have more; complements that are no encoding do not occur."""
    rng = np.random.default_rng(3)
    counts = torch.from_numpy(rng.poisson(0.4, (200, 30)).astype(np.float32))
    rare = torch.zeros(200, 5)
    rare[torch.arange(5) * 7, torch.arange(5)] = 1.7
    assert len(Categories.found(torch.cat([rare, counts], 1)).groups) == 0
    assert len(Categories.found(PUBLIC[:8]).groups) == 0  # too few to tell


def test_relaxed_categories_stay_on_the_simplex_and_certainty_is_that_of_the_entropy() -> None:
    free = torch.randn(3, F, generator=torch.Generator().manual_seed(1)).double()
    shares = COLUMNS.shares(free)
    totals = shares @ COLUMNS.groups.T
    assert torch.allclose(totals[:, ~COLUMNS.lone], torch.ones(3, len(GROUPS)).double())
    assert bool((totals[:, COLUMNS.lone] < 1).all())
    assert torch.equal(COLUMNS.relaxed(free)[:, :NUMBERS], free[:, :NUMBERS])
    assert torch.allclose(COLUMNS.shares_of(COLUMNS.relaxed(free)), shares, atol=1e-9)
    first = shares[0, NUMBERS : NUMBERS + 4]
    wanted = 1 + float((first * first.log()).sum()) / np.log(4)
    assert torch.allclose(COLUMNS.certainty(shares)[0, NUMBERS : NUMBERS + 4], torch.tensor(wanted).double())
    even = COLUMNS.shares(torch.zeros(1, F).double())
    assert float(COLUMNS.certainty(even).abs().max()) < 1e-9
    assert torch.allclose(
        COLUMNS.certainty(COLUMNS.shares_of(PUBLIC[:3].double()))[:, NUMBERS:], torch.ones(3, F - NUMBERS).double(), atol=1e-3
    )


def test_records_are_put_in_the_order_of_others() -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(aligned(x[[3, 1, 5, 0, 2, 4]] + 0.01, x), x + 0.01)


def test_one_record_is_exact_and_certified() -> None:
    seen, truth = lab(1)
    guess = run(seen, budget=150)
    assert guess.certified.tolist() == [True]
    assert r2(guess.value, [truth]) > 1 - 1e-6
    assert float(guess.confidence.min()) > 0.99


@pytest.fixture(scope="module")
def twelves() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Guess, confidence and truth of batches of twelve at three networks, in one order."""
    found = []
    for seed in range(3):
        seen, x = lab(12, seed)
        guess = run(seen, budget=250)
        order = aligned(guess.value[0], x)
        rows = [int((guess.value[0] - row).abs().sum(1).argmin()) for row in order]
        found.append((order, guess.confidence[rows], x))
    return found


@pytest.mark.slow
def test_the_relaxation_is_worth_something(twelves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tableak.Categories, "found", classmethod(lambda cls, public, whole=Categories.found: whole(public[:0])))
    plain = [(aligned(run(seen, budget=250).value[0], x), x) for seen, x in (lab(12, seed) for seed in range(3))]
    fits = [r2([guess for guess, x in pairs], [x for _, x in pairs]) for pairs in (plain, [(guess, x) for guess, _, x in twelves])]
    print("R2 without and with the relaxation", fits)
    assert fits[1] > fits[0] + 0.05


def test_confidence_goes_with_being_right(twelves) -> None:
    """Over networks and batches: the surer a third of numbers the nearer, the surer a third of groups the more often right."""
    error, sure, hit, certain = [], [], [], []
    for guess, trust, x in twelves:
        error.append((guess - x)[:, :NUMBERS].square().flatten())
        sure.append(trust[:, :NUMBERS].flatten())
        hit.append(right(guess, x).float().flatten())
        certain.append(torch.stack([trust[:, members][:, 0] for members in COLUMNS.groups.bool()]).flatten())
    for value, trust, higher in ((torch.cat(error), torch.cat(sure), False), (torch.cat(hit), torch.cat(certain), True)):
        assert 0 <= float(trust.min()) <= float(trust.max()) <= 1
        parts = [float(part.mean()) for part in value[trust.argsort(stable=True)].chunk(3)]
        print("right" if higher else "squared error", [round(part, 3) for part in parts])
        assert parts == sorted(parts, reverse=not higher)
        assert parts[0] < parts[2] - 0.05 if higher else parts[0] > 1.5 * parts[2]


def test_nothing_comes_out_of_an_update_of_other_records() -> None:
    seen, truth = lab(2, other=900)
    assert r2([aligned(run(seen).value[0], truth)], [truth]) < 0


def test_same_seed_same_bytes() -> None:
    seen, _ = lab(3)
    one, two, three = run(seen, budget=30), run(seen, budget=30), run(seen, seed=6, budget=30)
    assert torch.equal(one.value[0], two.value[0])
    assert torch.equal(one.confidence, two.confidence)
    assert not torch.equal(one.value[0], three.value[0])


def test_what_it_cannot_use_is_refused() -> None:
    with pytest.raises(RequestError, match="tableak needs"):
        TabLeak(restarts=0)
    module = mlp([F, 16, K])
    seen = FakeObservation(
        module,
        F,
        K,
        targets=[probe(module, PUBLIC[:1], torch.tensor([0]), optimiser="adam", lr=1e-3)],
        auxiliary=Records(PUBLIC, torch.arange(300) % K),
    )
    with pytest.raises(Skip, match="cosine_inversion"):
        run(seen)
    assert "probes" not in TabLeakOfSum.needs
