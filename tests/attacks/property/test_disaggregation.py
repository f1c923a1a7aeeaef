"""Sites from sums: least squares on who took part against known answers, federations under masks, and where there is nothing to solve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.property.disaggregation import Disaggregation, placed, presence
from baselines.secure_aggregation import SecureAggregation
from suites import api
from suites.contracts import Defense, Federation, Local, Records, RoundView, Shape, Skip, Threat
from suites.federation import Assignment, Pool, train
from suites.observation import Evidence, Guarded, Scene, Seen
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

SITES, EACH, FEATURES, CLASSES = 5, 24, 120, 4
HOME = torch.arange(SITES).repeat_interleave(EACH)
X = torch.randn(SITES * EACH + 200, FEATURES, generator=stream("disaggregation", "x"))
Y = (X @ torch.randn(FEATURES, CLASSES, generator=stream("disaggregation", "y"))).argmax(1)
TASK = Classification(hidden=32, blocks=1, head=16, dropout=0.1)


def took_part(rounds: Sequence[Sequence[int]]) -> Tensor:
    return presence([RoundView(t, None, {}, None, {}, tuple(sites)) for t, sites in enumerate(rounds)], SITES)


def test_traces_that_follow_a_sites_presence_are_placed_there() -> None:
    took = took_part([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3)])
    truth = torch.arange(4).repeat_interleave(50)
    noise = torch.randn(6, 200, generator=stream("disaggregation", "noise")).double()
    scale = torch.tensor([1.0, 3.0, 10.0, 0.1, 5.0, 2.0]).double()[:, None]  # rounds differ in what they show at all
    evidence = placed(scale * (took[:, truth] + 0.2 * noise) + 7 * scale, took)
    assert float((evidence.argmax(1) == truth).double().mean()) > 0.98
    assert bool((evidence[:, 4] == -torch.inf).all())  # never there
    independent = placed(noise, took).argmax(1)
    assert 0.1 < float((independent == truth).double().mean()) < 0.4


def test_the_solution_is_the_least_squares_one() -> None:
    """Against the normal equations with a constant for each record, where sites take part in different numbers."""
    took = took_part([(0, 1, 2), (1,), (2, 3), (0, 3, 4), (4,), (0,), (1, 4), (2,)])
    traces = torch.randn(8, 30, generator=stream("disaggregation", "traces")).double()
    scaled = (traces - traces.mean(1, keepdim=True)) / traces.std(1, keepdim=True)
    design = torch.cat([took, torch.ones(8, 1, dtype=torch.float64)], 1)
    solved = torch.linalg.lstsq(design, scaled).solution[:SITES].T
    assert torch.allclose(placed(traces, took), solved, atol=1e-8)


def seen(*layers: Defense, participation: float = 0.6, rounds: int = 12, view: Any = "server") -> Guarded:
    sites = tuple(torch.arange(SITES * EACH).chunk(SITES))
    federation = Federation(sites=SITES, rounds=rounds, local=Local(epochs=2, batch=12), participation=participation)
    stack = Stack(layers).plan(federation, Shape((EACH,) * SITES, FEATURES, CLASSES))
    given = Assignment(sites, ("disaggregation",), ("disaggregation", "defense"))
    trained = train(TASK, stack, federation, Pool(X, Y, CLASSES), [given], chunk=5)[0]
    members, public = torch.arange(SITES * EACH), torch.arange(SITES * EACH, len(X))
    scene = Scene(
        TASK,
        stack,
        federation,
        CLASSES,
        FEATURES,
        trained.secret,
        Records(X[members], Y[members]),
        Records(X[public], Y[public]),
        len(members),
        keys("disaggregation", "adversary"),
        lambda _: [],
        lambda: None,
    )
    return Guarded(Seen(scene, Evidence(trained.rounds, trained.finals), Threat(view=view)), Disaggregation.needs)


def accuracy(observation: Any) -> float:
    evidence = Disaggregation().run(observation, stream("disaggregation", "attack")).value
    assert evidence.shape == (SITES * EACH, SITES)
    return float((evidence.argmax(1) == HOME).double().mean())


def test_masked_sums_place_most_records() -> None:
    masked = accuracy(seen(SecureAggregation()))
    assert masked > 0.8  # chance .2
    assert masked == pytest.approx(accuracy(seen()), abs=0.05)  # masks hide who sent what, not the sum


def test_who_took_part_is_what_tells() -> None:
    """With the rounds' participants in another order nothing is left."""

    class Shuffled:
        def __init__(self, whole: Any) -> None:
            self.whole = whole
            views = whole.rounds
            self.rounds = [replace(view, participants=views[t - 5].participants) for t, view in enumerate(views)]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.whole, name)

    assert accuracy(Shuffled(seen())) < 0.4


def test_a_constant_cohort_or_an_unknown_one_is_skipped_with_a_reason() -> None:
    for share in (1.0, 0.6):
        rounds = 3 if share == 1.0 else 1
        with pytest.raises(Skip, match="same sites take part"):
            Disaggregation().run(seen(participation=share, rounds=rounds), stream("x"))
    with pytest.raises(Skip, match="not told who"):
        Disaggregation().run(seen(view="site", rounds=2), stream("x"))


SUITE = """
suite: cohorts
data: {name: synthetic}
partition: {kind: iid, sites: 5}
federation: {rounds: 10, participation: %s, local: {epochs: 2, lr: 0.005}}
seeds: 1
defenses: [secure_aggregation]
attacks: [disaggregation, site_of_origin]
"""


@pytest.mark.parametrize("participation", [0.6, 1.0])
def test_a_suite_has_its_row(tmp_path: Path, participation: float) -> None:
    (tmp_path / "cohorts.yaml").write_text(SUITE % participation)
    table = api.run(tmp_path / "cohorts.yaml", out=tmp_path / "out", report=False, device="cpu")
    own = table[table["attack"] == "disaggregation"]
    assert list(table[table["attack"] == "site_of_origin"]["status"]) == ["skipped"]  # no update in the clear
    if participation == 1.0:
        assert list(own["status"]) == ["skipped"]
        assert "same sites" in own["reason"].iloc[0]
        return
    found = own.set_index("metric")
    assert found.loc["leakage", "low"] > 0
    assert found.loc["accuracy_of_origin", "low"] > found.loc["accuracy_of_origin:largest_site", "value"]
