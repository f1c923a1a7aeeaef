"""Which interval of a membership AUC over three or five seeds holds 95 % where records scatter within a seed and seeds among each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats as distributions

from reports import stats

RECORDS, SHIFT, REPEATS, NORMAL = 60, 0.8, 1500, 1.959963984540054  # members, and as many non-members


class Runs(NamedTuple):
    """[repeats, seeds] each: what a table holds of every seed."""

    area: np.ndarray
    variance: np.ndarray  # DeLong's
    low: np.ndarray
    high: np.ndarray


def runs(seeds: int, spread: float) -> tuple[Runs, float]:
    """Members' scores are shifted by SHIFT + N(0, spread²) in each seed; over all seeds the area is Phi(SHIFT / sqrt(2 + spread²))."""
    rng = np.random.default_rng(seeds * 1000 + round(100 * spread))
    inside = rng.normal(size=(REPEATS, seeds, RECORDS)) + rng.normal(SHIFT, spread, (REPEATS, seeds, 1))
    outside = rng.normal(size=(REPEATS, seeds, RECORDS))
    ranks = lambda x: np.argsort(np.argsort(x, -1), -1) + 1.0  # noqa: E731
    joint = ranks(np.concatenate([inside, outside], -1))
    beaten = (joint[..., :RECORDS] - ranks(inside)) / RECORDS
    lost = 1 - (joint[..., RECORDS:] - ranks(outside)) / RECORDS
    area, variance = beaten.mean(-1), (beaten.var(-1, ddof=1) + lost.var(-1, ddof=1)) / RECORDS
    reach, centre = NORMAL * np.sqrt(variance) / (area * (1 - area)), np.log(area / (1 - area))
    one = stats.auc(np.concatenate([inside[0, 0], outside[0, 0]]), np.arange(2 * RECORDS) < RECORDS)
    made = Runs(area, variance, 1 / (1 + np.exp(reach - centre)), 1 / (1 + np.exp(-reach - centre)))
    assert np.allclose([made.area[0, 0], made.low[0, 0], made.high[0, 0]], one)  # the quick arithmetic is the table's
    return made, float(distributions.norm.cdf(SHIFT / np.sqrt(2 + spread**2)))


def covered(ends: tuple[np.ndarray, np.ndarray], true: float) -> float:
    return float(np.mean((ends[0] <= true) & (true <= ends[1])))


def reported(held: Runs) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([stats.over_seeds(*one) for one in zip(held.area, held.low, held.high, strict=True)]).T
    return low, high


def random_effects(held: Runs) -> tuple[np.ndarray, np.ndarray]:
    """DerSimonian and Laird (1986): weights 1 / (within + between), the between-seed variance by moments, a normal quantile."""
    weight = 1 / held.variance
    total = weight.sum(-1)
    centre = (weight * held.area).sum(-1) / total
    excess = (weight * (held.area - centre[:, None]) ** 2).sum(-1) - (held.area.shape[1] - 1)
    between = np.maximum(0, excess / (total - (weight**2).sum(-1) / total))
    weight = 1 / (held.variance + between[:, None])
    centre, reach = (weight * held.area).sum(-1) / weight.sum(-1), NORMAL / np.sqrt(weight.sum(-1))
    return centre - reach, centre + reach


def records_alone(held: Runs) -> tuple[np.ndarray, np.ndarray]:
    reach = NORMAL * np.sqrt(held.variance.sum(-1)) / held.area.shape[1]
    return held.area.mean(-1) - reach, held.area.mean(-1) + reach


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 0.6])
def test_the_interval_over_seeds_covers_both_levels_at_its_level(seeds: int, spread: float) -> None:
    held, true = runs(seeds, spread)
    assert covered(reported(held), true) >= 0.93


@pytest.mark.parametrize("seeds", [3, 5])
def test_what_uses_the_seeds_own_variances_does_not_cover_with_so_few_seeds(seeds: int) -> None:
    held, true = runs(seeds, 0.6)
    assert covered(random_effects(held), true) <= 0.90
    assert covered(records_alone(held), true) <= 0.60
    level, flat = runs(seeds, 0.0)  # where seeds do not differ both cover, so the arithmetic above is right
    assert covered(random_effects(level), flat) >= 0.93
    assert covered(records_alone(level), flat) >= 0.93


def test_the_interval_is_not_bought_with_width() -> None:
    """Where seeds differ it is Student's, to the tenth; where they do not, the records' part widens it by less than a fifth."""
    for spread, ratio in ((0.6, 1.1), (0.0, 1.2)):
        held, _ = runs(3, spread)
        low, high = reported(held)
        reach = distributions.t.ppf(0.975, 2) * held.area.std(-1, ddof=1) / np.sqrt(3)
        assert 1 <= float((high - low).mean() / (2 * reach).mean()) <= ratio
