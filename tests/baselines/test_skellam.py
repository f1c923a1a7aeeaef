"""Skellam noise over secure aggregation: exact sums, noise of the right law for whoever survives, and an ε found in several ways."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special, stats

from baselines.fixed_point import scale
from baselines.skellam import Skellam, rounded, skellam
from suites import loss_distribution
from suites.checks import check_defense
from suites.contracts import Federation, Params, RequestError, Shape
from suites.federation import Assignment, Pool, train
from suites.integer_noise import ORDERS, epsilon, influence, renyi
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification
from tests.baselines.masked_round import exchange

SITES = 5
FEDERATION, SHAPE = Federation(sites=SITES, rounds=20), Shape((60,) * SITES, 30, 4)
STEPS = 2**14  # grid steps in the clipping norm

# dp-accounting 0.6.0: RdpAccountant(ORDERS, ADD_OR_REMOVE_ONE) of GaussianDpEvent(z) composed T times, at δ. With thousands of grid steps
# in the norm the theorem's Skellam terms are far below 1 %, so that both have to say the same.
RDP = {
    (1.0, 1, 1e-05): 4.752728336819822,
    (2.0, 10, 1e-05): 8.087861628831664,
    (4.84, 20, 1e-05): 4.323212099973496,
    (5.0, 20, 1e-05): 4.161911642354481,
    (10.0, 50, 1e-06): 3.543049895416111,
    (0.7, 5, 1e-05): 20.107813929022488,
    (16.7, 20, 1e-05): 1.0914167102055337,
}


def update(index: int, length: float = 3.0) -> Params:
    flat = torch.randn(5000, generator=stream("skellam", index))
    flat *= length / flat.norm()
    return {"w": flat[:4900].view(70, 70), "b": flat[4900:]}


def flat(params: Params) -> NDArray[np.float64]:
    return np.concatenate([tensor.double().numpy().reshape(-1) for tensor in params.values()])


def planned(**settings: object) -> Skellam:
    return Skellam(**settings).plan(FEDERATION, SHAPE)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- the noise


def test_the_noise_is_skellam() -> None:
    drawn = skellam(9.0, 200_000, np.random.Generator(np.random.PCG64(1)))
    low, high = -9, 9
    counts = np.array([(drawn == k).sum() for k in range(low, high + 1)])
    wanted = stats.skellam.pmf(np.arange(low, high + 1), 4.5, 4.5)
    inside = counts.sum()
    assert stats.chisquare(counts, wanted / wanted.sum() * inside).pvalue > 1e-4
    normal = stats.norm.pdf(np.arange(low, high + 1), 0, 3)
    assert stats.chisquare(counts, normal / normal.sum() * inside).pvalue < 1e-4  # of the same deviation, and told apart


def test_rounding_keeps_the_mean_and_the_bound() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    values = rng.normal(size=400)
    values *= 40 / np.linalg.norm(values)
    most = influence(40, 400)[0]
    many = np.array([rounded(values, most, rng) for _ in range(4000)])
    assert np.abs(many.mean(0) - values).max() < 5 * 0.5 / math.sqrt(4000)
    assert np.sqrt(np.square(many.astype(float)).sum(1)).max() <= most
    assert most < 40 + 20  # far below the bound of rounding every coordinate away from zero, sqrt(400) more
    with pytest.raises(RequestError, match="longer than"):
        rounded(3 * values, most, rng)


def test_a_sum_is_exact_on_the_grid_and_as_noisy_as_claimed() -> None:
    defense = planned(noise_multiplier=2.0, clip=0.5)
    sent = [defense.encode(update(i), stream("skellam", "noise", i)) for i in range(SITES)]
    delivery = defense.sum.run(sent, [1.0] * SITES, exchange(SITES))
    grid = defense._grid
    whole = np.sum([flat(one) for one in sent], axis=0) * grid
    assert np.array_equal(whole, np.round(whole))
    assert np.array_equal(np.round(flat(delivery.combined) * SITES * grid), whole)  # nothing lost on the way
    clean = np.sum([flat(update(i)) * 0.5 / 3.0 for i in range(SITES)], axis=0)
    noise = whole / grid - clean
    shares = defense._shares
    assert shares == 3  # four sites in the smallest sum, one of them colluding
    everybody = 2.0 * 0.5 * math.sqrt(SITES / shares)
    assert noise.std() == pytest.approx(everybody, rel=0.05)
    assert stats.kstest(noise / everybody, "norm").pvalue > 1e-4


@pytest.mark.parametrize("lost", [None, {2: "mask"}])
def test_whoever_survives_less_the_colluders_makes_the_noise_that_is_claimed(lost: dict[int, str] | None) -> None:
    defense = planned(noise_multiplier=2.0)
    sent = [defense.encode(update(i, 0.0), stream("skellam", "noise", i)) for i in range(SITES)]
    delivery = defense.sum.run(sent, [1.0] * SITES, exchange(SITES, dropouts=lost))
    survivors = delivery.survivors
    total = flat(delivery.combined) * len(survivors)
    own = sum(flat(sent[i]) for i in survivors[:1])  # the colluder takes its own away
    left = np.std(total - own)
    assert left == pytest.approx(2.0 * math.sqrt((len(survivors) - 1) / 3), rel=0.05)
    assert left > 2.0 * 0.95


def test_clipping_bounds_a_site_whatever_it_sends() -> None:
    defense = planned(noise_multiplier=0)
    long = flat(defense.encode(update(0, 1e5), stream("n")))
    assert np.linalg.norm(long) <= influence(defense._grid, 2_000_000)[0] / defense._grid
    short = flat(defense.encode(update(0, 0.01), stream("n")))
    assert np.linalg.norm(short - flat(update(0, 0.01))) < 0.01  # rounding only


# ------------------------------------------------------------------------------------------------------- ε


@pytest.mark.parametrize("mechanism", RDP, ids=str)
def test_epsilon_is_within_one_percent_of_dp_accounting(mechanism: tuple[float, int, float]) -> None:
    noise, steps, delta = mechanism
    ours = epsilon(noise, steps, delta, float(STEPS), 600_000)
    assert RDP[mechanism] * (1 - 1e-9) <= ours <= RDP[mechanism] * 1.01


def test_dp_accounting_still_says_so() -> None:
    rdp, event = pytest.importorskip("dp_accounting.rdp"), pytest.importorskip("dp_accounting.dp_event")
    for (noise, steps, delta), wanted in RDP.items():
        accountant = rdp.RdpAccountant(list(ORDERS), pytest.importorskip("dp_accounting").NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(event.GaussianDpEvent(noise), steps)
        assert accountant.get_epsilon(delta) == pytest.approx(wanted, rel=1e-6)
        l2, l1 = influence(STEPS, 600_000)  # and its conversion, of the Skellam curve itself
        curve = [steps * renyi(order, (noise * STEPS) ** 2, l2, l1) for order in ORDERS]
        assert rdp.compute_epsilon(list(ORDERS), curve, delta)[0] == pytest.approx(
            epsilon(noise, steps, delta, float(STEPS), 600_000), rel=1e-2
        )


def pmf(variance: float, reach: int) -> NDArray[np.float64]:
    """Skellam's probabilities from the Bessel function, not from the sampler."""
    found: NDArray[np.float64] = special.ive(np.abs(np.arange(-reach, reach + 1)), variance)
    return found


@pytest.mark.parametrize(("variance", "shift", "coordinates"), [(4.0, 1, 1), (25.0, 3, 1), (25.0, 1, 9), (400.0, 10, 1), (400.0, 2, 25)])
def test_the_bound_holds_against_exact_divergences_and_is_close(variance: float, shift: int, coordinates: int) -> None:
    reach = int(12 * math.sqrt(variance)) + 4 * shift + 40
    p = pmf(variance, reach)
    moved, still = p[: len(p) - shift], p[shift:]
    kept = (moved > 1e-290) & (still > 1e-290)
    p_moved, p_still = np.log(moved[kept]), np.log(still[kept])
    for order in (2, 3, 5, 8):
        exact = coordinates * float(special.logsumexp(order * p_moved + (1 - order) * p_still)) / (order - 1)
        bound = renyi(order, variance, shift * math.sqrt(coordinates), shift * coordinates)
        assert exact <= bound * (1 + 1e-9)
        assert bound <= exact * (2.0 if variance < 25 else 1.25)  # the coarser the noise, the more is given away


@pytest.mark.parametrize(("noise", "steps", "norm", "coordinates"), [(1.0, 1, 8, 1), (2.0, 10, 8, 1), (5.0, 20, 16, 1), (2.0, 10, 8, 16)])
def test_epsilon_covers_the_exact_privacy_loss_of_integers(noise: float, steps: int, norm: int, coordinates: int) -> None:
    """An accountant of its own: exact probabilities, composed numerically. Rényi orders give away about a tenth of ε and no more."""
    shift = norm // math.isqrt(coordinates)
    variance = (noise * norm) ** 2
    p = pmf(variance, int(14 * math.sqrt(variance)) + shift + 40)
    moved, still = p[: len(p) - shift], p[shift:]
    kept = (moved > 1e-280) & (still > 1e-280)
    exact = loss_distribution.composed(np.log(moved[kept] / still[kept]), moved[kept], steps * coordinates, 1e-5)

    def unrounded(order: int) -> float:
        spent = steps * renyi(order, variance, norm, min(math.sqrt(coordinates) * norm, norm**2))
        return spent + math.log1p(-1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1)

    ours = min(unrounded(order) for order in ORDERS)
    assert exact <= ours <= exact * 1.15
    assert epsilon(noise, steps, 1e-5, float(norm), coordinates) >= ours


@pytest.mark.parametrize("target", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("sites", [3, 5, 40])
def test_the_plan_meets_its_target_and_fits_the_words(target: float, sites: int) -> None:
    federation, shape = replace(FEDERATION, sites=sites), Shape((60,) * sites, 30, 4)
    defense = Skellam(epsilon=target).plan(federation, shape)
    claim = defense.claim(federation, shape)
    assert claim.epsilon is not None
    assert 0.99 * target <= claim.epsilon <= target
    assert (claim.kind, claim.unit, claim.relation, claim.steps, claim.delta) == ("dp", "site", "add_remove", 20, 1e-5)
    public = defense.sum.rules(sites)
    assert claim.shares == public.least - public.colluders
    assert scale(sites, defense.sum.bound) >= defense._grid  # every grid step is a whole number of words
    assert defense.sum.bound * defense._grid <= 2**24  # and of single precision
    assert defense.plan(federation, shape).claim(federation, shape) == claim


def test_the_contract_s_checks_hold() -> None:
    assert all(result.verdict == "pass" for result in check_defense("skellam:epsilon=20"))


def test_it_trains_and_more_parameters_than_claimed_for_are_refused() -> None:
    pool = Pool(torch.randn(300, 30, generator=stream("skellam", "x")), torch.arange(300) % 4, 4)
    given = Assignment(tuple(torch.arange(300).chunk(SITES)), ("s",), ("t",))
    federation = replace(FEDERATION, rounds=2)
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.0)
    stack = Stack([Skellam(epsilon=100)]).plan(federation, SHAPE)
    trained = train(task, stack, federation, pool, [given])[0]
    assert {message.kind for message in trained.rounds[0].messages} == {"masked"}
    with pytest.raises(RequestError, match="skellam:parameters="):
        train(task, Stack([Skellam(epsilon=100, parameters=10)]).plan(federation, SHAPE), federation, pool, [given])
