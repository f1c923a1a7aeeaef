"""Independent components: records with tails are told apart in batches of any size, normal ones are not, and nothing comes of nothing."""

import pytest
import torch
from observations import FakeObservation, cosine, mlp, normal, probe, r2
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.gradient_inversion.cocktail_party import CocktailParty, CocktailPartyOfSum
from suites.contracts import Records, RequestError, Skip

F, K = 1000, 10


def lab(batch: int, *, tails: bool = True, module: nn.Module | None = None, **step):
    module = mlp([F, 64, 64, K], 0) if module is None else module
    shape = (lambda x: x**3 / 15**0.5) if tails else (lambda x: x)
    x, y = shape(normal(batch, F, seed=10)), torch.arange(batch) % K
    public = Records(shape(normal(50, F, seed=99)), torch.arange(50) % K)
    return FakeObservation(module, F, K, targets=[probe(module, x, y, **step)], auxiliary=public), x


def run(seen: FakeObservation, seed: int = 5, **options: int):
    return CocktailParty(**options).run(seen, torch.Generator().manual_seed(seed))


def matched(guess: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return guess[linear_sum_assignment(torch.cdist(truth, guess).numpy())[1]]


def test_one_record_is_exact_and_certified() -> None:
    seen, truth = lab(1)
    guess = run(seen)
    assert guess.certified.tolist() == [True]
    assert float((guess.value[0] - truth).norm() / truth.norm()) < 1e-4


@pytest.mark.parametrize(("batch", "least"), [(4, 0.9), (16, 0.8), (40, 0.7)])
def test_records_with_tails_are_told_apart_by_sign_and_all(batch: int, least: float) -> None:
    seen, truth = lab(batch)
    guess = run(seen)
    found = matched(guess.value[0], truth)
    assert float(cosine(found, truth).mean()) > least
    assert r2([found], [truth]) > least**2 - 0.1


def test_no_relu_is_needed() -> None:
    first, _, last = mlp([F, 32, K], 0)
    seen, truth = lab(8, module=nn.Sequential(first, nn.Tanh(), last))
    assert float(cosine(matched(run(seen).value[0], truth), truth).mean()) > 0.75


@pytest.mark.parametrize("batch", [8, pytest.param(40, marks=pytest.mark.slow)])
def test_normal_records_stay_mixed_and_their_lack_of_tails_says_so(batch: int) -> None:
    plain, truth = lab(batch, tails=False)
    tailed, _ = lab(batch)
    guess = run(plain)
    assert float(cosine(matched(guess.value[0], truth), truth).mean()) < 0.7
    assert guess.notes["tails"] < 1 < run(tailed).notes["tails"]


def test_a_message_of_other_records_yields_nothing_of_these() -> None:
    seen, _ = lab(4)
    other = normal(4, F, seed=800) ** 3 / 15**0.5
    assert r2([matched(run(seen).value[0], other)], [other]) < 0


def test_same_seed_same_bytes() -> None:
    seen, _ = lab(8)
    assert torch.equal(run(seen).value[0], run(seen).value[0])


def test_what_it_cannot_use_has_a_reason() -> None:
    with pytest.raises(Skip, match="Adam"):
        run(lab(2, optimiser="adam", steps=1, lr=1e-3)[0])
    with pytest.raises(Skip, match="more voices than microphones"):
        run(lab(65)[0])
    with pytest.raises(Skip, match="no bias"):
        run(lab(3, module=nn.Sequential(nn.Linear(F, 32, bias=False), nn.ReLU(), nn.Linear(32, K)))[0])
    with pytest.raises(RequestError, match="at least 1"):
        CocktailParty(budget=0)


def test_sums_are_one_larger_party() -> None:
    seen, truth = lab(10, contributors=5)
    guess = CocktailPartyOfSum().run(seen, torch.Generator().manual_seed(5))
    assert float(cosine(matched(guess.value[0], truth), truth).mean()) > 0.85
    assert "probes" not in CocktailPartyOfSum.needs
