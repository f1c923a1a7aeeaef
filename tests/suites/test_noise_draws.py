"""The utility of a defense that adds noise is the mean over several draws of that noise, and nothing else is drawn anew."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suites.bench import Bench
from suites.config import parse
from suites.plan import plan

SUITE = """
suite: draws
data: {name: synthetic, params: {records: 240, features: 20, classes: 3}}
partition: {kind: iid, sites: 2}
federation: {rounds: 2, local: {epochs: 2, batch: 40}}
seeds: 1
references: 2
noise_draws: 3
defenses: [fedavg, "dp_sgd:epsilon=4"]
attacks: [lira]
"""


def spec(defense: str, stage: str = "train", **changes: Any) -> dict[str, Any]:
    cells = plan(parse(SUITE, Path("draws.yaml")), "cpu").cells
    return {**copy.deepcopy(dict(next(c.spec for c in cells if c.stage == stage and c.columns["defense"].startswith(defense)))), **changes}


def utility(bench: Bench) -> dict[str, float]:
    return bench.utility(bench.train([bench.assignment()], target=False)[0])


def test_noisy_utility_is_the_mean_over_federations_that_differ_in_their_noise_alone() -> None:
    bench = Bench(spec("dp_sgd"), None)
    own = bench.assignment()
    drawn = [own, *(replace(own, defense_coordinates=(*own.defense_coordinates, "draw", i)) for i in (1, 2))]
    alone = [bench.utilities(bench.predict(t.secret), t.finals[0]) for t in (bench.train([a], target=False)[0] for a in drawn)]
    mean = {name: sum(one[name] for one in alone) / 3 for name in alone[0]}
    assert utility(bench) == pytest.approx(mean, abs=1e-6)
    assert len({one["accuracy"] for one in alone}) > 1  # the noise is not the same
    assert utility(Bench(spec("dp_sgd", noise_draws=1), None)) == pytest.approx(alone[0], abs=1e-6)


def test_without_noise_there_is_nothing_to_draw_again() -> None:
    assert utility(Bench(spec("fedavg"), None)) == utility(Bench(spec("fedavg", noise_draws=1), None))


def test_references_are_trained_once_whatever_the_draws() -> None:
    assert "noise_draws" not in spec("dp_sgd", "reference")
    assert spec("dp_sgd")["noise_draws"] == 3
