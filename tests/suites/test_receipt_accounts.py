"""A receipt's accountants: two of the same mechanism within one percent, whatever the noise, and no claim that lies below them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from baselines.dp_sgd import DPSGD
from baselines.skellam import Skellam
from reports.receipts import refusals
from suites import integer_noise, loss_distribution, receipt_accounts
from suites.contracts import Claim
from tests.suites.test_receipt import FEDERATION, of
from tests.suites.test_receipt_words import QUICK, saying


def test_a_claim_a_little_too_low_is_refused() -> None:
    for share, accepted in ((0.983, False), (0.995, True)):
        honest = of(DPSGD(epsilon=8), federation=QUICK)
        found = of(saying(DPSGD, epsilon=honest.claimed * share)(epsilon=8), federation=QUICK)
        assert any("is claimed, and Opacus PRV gives" in reason for reason in found.reasons) is not accepted, found.reasons


def test_a_claim_above_the_accountants_is_said_to_be() -> None:
    found = of(saying(DPSGD, epsilon=9.0)(epsilon=8), federation=QUICK)
    assert any("ε = 9 is claimed, 1" in note and "above the 7.9" in note for note in found.notes), found.notes
    assert of(DPSGD(epsilon=8), federation=QUICK).notes == ()


@pytest.mark.parametrize("variance", [100.0, 1000.0, 20_000.0])
def test_the_law_of_skellam_noise(variance: float) -> None:
    k = np.arange(-200.0, 201.0)
    assert np.allclose(loss_distribution._skellam_log(k, variance), np.log(special.ive(np.abs(k), variance)), atol=2e-7, rtol=0)


def test_a_divergence_by_its_whole_sum() -> None:
    """Against every term of it by Bessel functions, order by order; the best lies near 7, far from where these leave the doubles."""
    deviation, shift = 30.0, 20.0
    k = np.arange(-900.0, 901.0)
    here, moved = (np.log(special.ive(np.abs(at), deviation**2)) for at in (k, k - shift))
    assert np.isfinite(here).all()
    bounds = []
    for order in range(2, 20):
        divergence = special.logsumexp(order * moved + (1 - order) * here) / (order - 1)
        bounds.append(divergence + np.log1p(-1 / order) - (np.log(1e-5) + np.log(order)) / (order - 1))
    assert loss_distribution.skellam(deviation, shift, 1, 1e-5) == pytest.approx(min(bounds), rel=1e-5)
    assert loss_distribution.skellam(deviation, 0.0, 1, 1e-5) < 0.004  # what no divergence at 1,024 orders leaves


@pytest.mark.parametrize(
    ("noise", "steps", "grid", "coordinates"),
    [(0.5, 4, 16384.0, 2_000_000), (4.84, 20, 16384.0, 2_000_000), (2.0, 6, 256.0, 2000), (2.0, 10, 256.0, 2_000_000)],
)
def test_the_theorem_and_the_sum_give_one_epsilon(noise: float, steps: int, grid: float, coordinates: int) -> None:
    """On fine grids and on the coarsest that is planned, and where rounding is most of what a site may change."""
    bound = integer_noise.epsilon(noise, steps, 1e-5, grid, coordinates)
    summed = loss_distribution.skellam(noise * grid, integer_noise.influence(grid, coordinates)[0], steps, 1e-5)
    assert summed * 0.9999999 <= bound <= summed * 1.0001


def test_skellam_noise_is_accounted_for_as_such_and_the_receipt_says_what_is_claimed() -> None:
    found = of(Skellam(epsilon=20))
    assert found.reasons == ()
    assert found.epsilons.keys() >= {"Skellam's Rényi bound", "Rényi divergence, summed"}
    assert all(value == pytest.approx(found.claimed, rel=0.01) for value in found.epsilons.values())
    (note,) = found.notes
    assert "ε = 20 is claimed by the Rényi bound for Skellam noise" in note
    assert "would have ε = 18.0" in note
    told = {"receipts": [{"defense": "skellam", "seed": seed, **found.record()} for seed in (0, 1)]}
    assert sum(note in said for said in refusals(told)) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"grid": 0.0, "epsilon": 18.1}, "of whole steps of a grid, and was accounted for as Gaussian"),
        ({"grid": 16384.0 / 3}, "does not lie on the grid of 5461 steps"),
        ({"coordinates": 100}, "the claim counts 100 rounded coordinates"),
        ({"epsilon": 19.6}, "ε = 19.6 is claimed, and Skellam's Rényi bound gives"),
    ],
)
def test_other_words_about_whole_numbers_are_refused(words: dict[str, float], said: str) -> None:
    found = of(saying(Skellam, **words)(epsilon=20), federation=replace(QUICK, rounds=FEDERATION.rounds))
    assert any(said in reason for reason in found.reasons), found.reasons


def test_gradients_are_not_said_to_be_whole_numbers() -> None:
    found = of(saying(DPSGD, grid=100.0, coordinates=10**6)(epsilon=8), federation=QUICK)
    assert any("its noise was added to gradients" in reason for reason in found.reasons), found.reasons


def test_accountants_that_part_are_refused() -> None:
    claim = Claim("dp", epsilon=8.0, delta=1e-5)
    assert list(receipt_accounts.of_accounts(claim, {"a": 7.99, "b": 7.93})) == []
    (said,) = receipt_accounts.of_accounts(claim, {"a": 7.99, "b": 7.89})
    assert "the accountants do not agree: a 7.99, b 7.89" in said


def test_accountants_that_count_nothing_give_no_note_about_how_far_above_them_a_claim_is() -> None:
    claim = Claim(kind="dp", epsilon=8.0, delta=1e-5, unit="record", relation="add_remove", sampler="poisson", steps=10)
    assert list(receipt_accounts.notes(claim, [], 1.0, {"one": 0.0, "other": 0.0})) == []
    (note,) = receipt_accounts.notes(claim, [(1.0, 5)], 1.0, {"one": 4.0, "other": 3.9})
    assert "100.0% above the 4" in note
    assert "it counts 10 steps and 5 ran" in note
