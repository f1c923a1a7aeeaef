"""ε against a second accountant, and noise against the ε it was fitted to."""

from __future__ import annotations

import math

import pytest

from suites import accounting
from suites.contracts import RequestError

# (rate, noise multiplier, steps, δ) -> ε of dp-accounting 0.6.0: PLDAccountant(ADD_OR_REMOVE_ONE) composed with
# PoissonSampledDpEvent(rate, GaussianDpEvent(noise)) (rate 1: GaussianDpEvent) steps times, default discretisation.
PLD = {
    (100 / 241, 0.5, 60, 1e-5): 80.59219897052176,
    (100 / 241, 1.0, 60, 1e-5): 23.61543950727402,
    (100 / 241, 2.0, 60, 1e-5): 8.548828352536502,
    (100 / 241, 20.0, 60, 1e-5): 0.5755595165337126,
    (1.0, 2.0, 100, 1e-5): 33.10373233731123,
    (1.0, 10.0, 50, 1e-6): 3.307600722885674,
    (100 / 140, 1.2, 100, 1e-5): 45.76004721940383,
    (0.1, 1.0, 1000, 1e-5): 25.204555197953106,
    (0.01, 0.8, 5000, 1e-6): 7.707678319917358,
    (100 / 101, 4.0, 250, 1e-5): 23.686518176026723,
    (0.3, 0.6, 40, 1e-5): 33.42963382435412,
    (100 / 241, 6.0, 6000, 1e-5): 36.715970090592464,
}


@pytest.mark.parametrize("mechanism", PLD, ids=str)
def test_epsilon_is_within_one_percent_of_a_second_accountant_and_not_below_it(mechanism: tuple[float, float, int, float]) -> None:
    got = accounting.epsilon(*mechanism)
    assert PLD[mechanism] * 0.9999 <= got <= PLD[mechanism] * 1.01


def test_the_second_accountant_still_says_so() -> None:
    event = pytest.importorskip("dp_accounting.dp_event")
    pld = pytest.importorskip("dp_accounting.pld")
    relation = pytest.importorskip("dp_accounting").NeighboringRelation.ADD_OR_REMOVE_ONE
    for (rate, noise, steps, delta), wanted in PLD.items():
        gaussian = event.GaussianDpEvent(noise)
        accountant = pld.PLDAccountant(relation)
        accountant.compose(event.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian, steps)
        assert accountant.get_epsilon(delta) == pytest.approx(wanted, rel=1e-4)
        assert accounting.epsilon(rate, noise, steps, delta) == pytest.approx(accountant.get_epsilon(delta), rel=1e-2)


def test_the_quicker_grid_changes_nothing() -> None:
    from opacus.accountants import PRVAccountant

    stock = PRVAccountant()
    stock.history = [(2.0, 0.4, 60)]
    assert accounting.epsilon(0.4, 2.0, 60, 1e-5) == pytest.approx(stock.get_epsilon(1e-5, eps_error=0.016), rel=1e-3)


@pytest.mark.parametrize("target", [0.5, 8.0, 32.0, 100.0, 250.0])
@pytest.mark.parametrize("sites", [((0.4, 120),), ((1.0, 50),), ((0.3, 200), (0.9, 100), (0.5, 100), (1.0, 50))])
def test_calibrated_noise_meets_its_target_at_the_worst_site(target: float, sites: tuple[tuple[float, int], ...]) -> None:
    noise = accounting.noise_multiplier(sites, target, 1e-5)
    reached = [accounting.epsilon(rate, noise, steps, 1e-5) for rate, steps in sites]
    assert 0.99 * target <= max(reached) <= target


@pytest.mark.filterwarnings("ignore:Optimal order")
def test_calibration_agrees_with_opacus() -> None:
    from opacus.accountants.utils import get_noise_multiplier

    theirs = get_noise_multiplier(
        target_epsilon=8.0, target_delta=1e-5, sample_rate=0.4, steps=60, accountant="prv", epsilon_tolerance=0.05
    )
    assert accounting.noise_multiplier(((0.4, 60),), 8.0, 1e-5) == pytest.approx(theirs, rel=0.01)


def test_the_worst_site_need_not_have_the_highest_rate() -> None:
    often, whole = (0.3, 100), (1.0, 10)  # with little noise, sampling amplifies little, and the many steps weigh more
    noise = accounting.noise_multiplier((often, whole), 100.0, 1e-5)
    assert accounting.epsilon(whole[0], noise, whole[1], 1e-5) < accounting.epsilon(often[0], noise, often[1], 1e-5) <= 100.0
    assert accounting.noise_multiplier((whole,), 100.0, 1e-5) < noise


def test_ends_of_the_scale() -> None:
    assert accounting.epsilon(0.4, 0.0, 10, 1e-5) == math.inf
    assert accounting.epsilon(0.4, 1.0, 0, 1e-5) == 0.0
    assert accounting.epsilon(0.4, 0.05, 100, 1e-5) > 1000  # no overflow, no promise


def test_epsilon_falls_with_noise_and_grows_with_steps() -> None:
    values = [accounting.epsilon(0.4, noise, 60, 1e-5) for noise in (0.3, 0.6, 1.2, 2.4, 4.8)]
    assert values == sorted(values, reverse=True)
    values = [accounting.epsilon(0.4, 1.0, steps, 1e-5) for steps in (1, 10, 100, 1000)]
    assert values == sorted(values)


@pytest.mark.parametrize("target", [0.0, 1e-3, 1e9, math.nan])
def test_a_target_out_of_reach_is_one_sentence(target: float) -> None:
    with pytest.raises(RequestError, match="was asked for"):
        accounting.noise_multiplier(((0.4, 60),), target, 1e-5)


@pytest.mark.parametrize(("records", "expected"), [(241, (100 / 241, 3)), (100, (1.0, 1)), (70, (1.0, 1)), (101, (100 / 101, 2))])
def test_sampling(records: int, expected: tuple[float, int]) -> None:
    assert accounting.sampling(records, 100) == expected
