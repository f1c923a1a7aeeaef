"""The ReRo row: its number, where it does not apply, and that a message without its noise is flagged."""

import math

import pytest
from scipy import stats

from suites.contracts import Claim, Clip, Probe
from suites.scoring_measure import Measure
from suites.scoring_rero import rero_measures

CLAIM = Claim("dp", epsilon=8.0, delta=1e-5, noise_multiplier=1.25)
ONE = Probe("0", 0, ((4,), (9,)))


def reidentified(share: float, n: int = 40) -> list[Measure]:
    return [Measure("reidentified", share, max(share - 0.1, 0.0), min(share + 0.1, 1.0), n, "higher", "score")]


@pytest.mark.parametrize(("probe", "steps"), [(ONE, 1), (Probe("0", 0, ((4,),), "sgd", 9, 0.1), 9)])
def test_the_number_is_that_of_a_gaussian_mechanism(probe: Probe, steps: int) -> None:
    (row,) = rero_measures(CLAIM, Clip(1.0), [probe], 500, reidentified(0.0))
    assert (row.metric, row.role) == ("rero", "claim")
    assert row.value == pytest.approx(stats.norm.cdf(stats.norm.ppf(1 / 500) + math.sqrt(steps) / 1.25), abs=1e-12)


def test_more_than_it_allows_is_flagged() -> None:
    flagged = rero_measures(CLAIM, Clip(1.0), [ONE], 500, reidentified(0.9))
    assert [row.metric for row in flagged] == ["rero", "flag:rero_exceeded"]
    assert "but the claimed noise allows" in flagged[1].reason


@pytest.mark.parametrize(
    ("claim", "clip", "probes"),
    [
        (None, Clip(1.0), [ONE]),
        (Claim("none", noise_multiplier=0.0), Clip(1.0), [ONE]),
        (CLAIM, None, [ONE]),
        (CLAIM, Clip(1.0), [Probe("0", 0, ((4, 5),))]),
        (CLAIM, Clip(1.0), []),
    ],
    ids=["no claim", "no noise", "no clipping", "several records", "no probe"],
)
def test_it_says_nothing_where_it_does_not_apply(claim: Claim | None, clip: Clip | None, probes: list[Probe]) -> None:
    assert rero_measures(claim, clip, probes, 500, reidentified(0.9)) == []
