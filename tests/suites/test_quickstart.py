"""The suite that newcomers run: its accuracies are those of a run five times as long."""

from __future__ import annotations

import copy
import statistics

import pytest

from suites import registry
from suites.bench import Bench
from suites.config import load
from suites.plan import plan

SUITE, _ = load("quickstart")


def accuracy(defense: str, seed: int, rounds: int) -> float:
    """As the suite trains it: its own cell, with more rounds."""
    label = registry.label(registry.stack(defense))
    cells = (cell for cell in plan(SUITE, "cpu").cells if cell.stage == "train")
    cell = next(cell for cell in cells if cell.columns["defense"] == label and cell.columns["seed"] == seed)
    spec = {**copy.deepcopy(dict(cell.spec)), "probes": []}
    spec["federation"] = {**spec["federation"], "rounds": rounds}
    bench = Bench(spec, None)
    return bench.utility(bench.train([bench.assignment()], target=False)[0])["accuracy"]


def test_it_has_three_seeds_ten_rounds_and_eight_references() -> None:
    assert SUITE.seeds >= 3
    assert SUITE.federation.rounds >= 10
    assert SUITE.references >= 8


@pytest.mark.slow
@pytest.mark.parametrize("defense", SUITE.defenses)
def test_five_times_the_rounds_move_no_accuracy_by_two_points(defense: str) -> None:
    """Mean over the suite's seeds; settings were chosen on others (100 to 107), so this is no fit to these records."""
    rounds = SUITE.federation.rounds
    short, long = ([accuracy(defense, seed, n) for seed in range(SUITE.seeds)] for n in (rounds, 5 * rounds))
    moves = [b - a for a, b in zip(short, long)]
    moved, spread = statistics.mean(moves), statistics.stdev(moves) / len(moves) ** 0.5
    print(f"{defense}: {statistics.mean(short):.3f}, {moved:+.3f} (standard error {spread:.3f}) after {5 * rounds} rounds")
    assert abs(moved) <= 0.02
