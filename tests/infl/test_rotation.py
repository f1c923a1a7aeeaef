"""Rotation: a hardened key that changes costs rounds, the published one costs none, since wrong keys open it."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from infl.hardened import Hardened
from infl.published import Published
from infl.rotation import RotationCost, rotation_cost
from suites.contracts import Defense, Local, RequestError
from suites.federation import Pool
from suites.randomness import stream
from suites.tasks.classification import Classification
from tests.infl import hardened_rotation
from tests.infl.hardened_rotation import key

DOCS = Path(__file__).parents[2] / "docs"
FEATURES, CLASSES, RECORDS = 64, 3, 480


def measured(defense: Defense, *, limit: int = 8) -> RotationCost:
    x = torch.randn(RECORDS, FEATURES, generator=stream("test rotation", "x"))
    centres = 1.5 * torch.randn(CLASSES, FEATURES, generator=stream("test rotation", "centres"))
    y = torch.arange(RECORDS) % CLASSES
    pool = Pool(x + 0.35 * centres[y], y, CLASSES)
    sites, test = torch.arange(360).chunk(3), torch.arange(360, RECORDS)
    task = Classification(hidden=24, blocks=1, head=12, dropout=0.0)
    local = Local(epochs=3, batch=40, lr=5e-3)
    return rotation_cost(task, defense, pool, sites, test, old=key(1), new=key(2), local=local, rounds=6, limit=limit, within=0.03)


def test_a_hardened_key_costs_rounds_and_comes_back() -> None:
    cost = measured(Hardened(minimum=64))
    assert cost.before > 0.85
    assert cost.after[0] < cost.before - 0.2  # the old model under the new key guesses
    assert cost.rounds is not None
    assert 1 <= cost.rounds <= 6
    assert cost.after[1:] != cost.anew[1:]  # the control starts from nothing, not from the trained model
    assert cost.steps_a_round == 9
    assert cost.steps == 9 * cost.rounds
    assert max(cost.after) >= cost.before - 0.03


def test_the_published_key_costs_nothing_because_wrong_keys_open_the_model() -> None:
    cost = measured(Published(strength=5.0))
    assert cost.before > 0.85
    assert cost.rounds == 0
    assert cost.rounds_anew
    assert len(cost.after) == 1


def test_the_global_generator_neither_decides_nor_moves() -> None:
    curves = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            curves.append(measured(Published(strength=5.0)).anew)
            assert torch.equal(torch.get_rng_state(), before)
    assert curves[0] == curves[1]


def test_a_limit_that_comes_first_is_said() -> None:
    cost = measured(Hardened(minimum=64), limit=0)
    assert cost.rounds is None
    assert len(cost.after) == 1


def test_one_version_is_no_rotation() -> None:
    with pytest.raises(RequestError, match="two versions"):
        rotation_cost(
            Classification(), Hardened(), Pool(torch.zeros(1, 1), torch.zeros(1), 1), [], torch.zeros(1), old=key(1), new=key(1),
            local=Local(), rounds=1, limit=1,
        )  # fmt: skip


def test_the_page_says_what_a_rotation_of_pbmc68k_costs() -> None:
    held = pd.read_csv(DOCS / "hardened_rotation.csv")
    assert set(held["data"]) == {"pbmc68k"}
    published, hardened = (own.set_index("seed") for _, own in sorted(held.groupby("defense"), reverse=True))
    assert list(published.index) == list(hardened.index) == list(range(5))
    assert (published["rounds"] == 0).all()
    assert (hardened["rounds"] >= 1).all()
    assert (hardened["right_after"] < hardened["before"] - 0.3).all()
    rounds, anew = hardened["rounds"], hardened["rounds_anew"]
    said = re.sub(r"\s+", " ", (DOCS / "hardened.md").read_text(encoding="utf-8"))
    assert (
        f"{rounds.min():.0f} to {rounds.max():.0f} rounds (median {rounds.median():.0f}), against {anew.min():.0f} to {anew.max():.0f} "
        f"(median {anew.median():.0f}) anew" in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_on_pbmc68k_comes_out_again(seed: int) -> None:
    """Five sites, ten rounds, as in the quickstart suite; the table of docs/hardened.md."""
    held = pd.read_csv(DOCS / "hardened_rotation.csv").set_index(["defense", "seed"])
    published, hardened = (hardened_rotation.cost(name, seed) for name in hardened_rotation.DEFENSES)
    assert published.rounds == 0
    assert hardened.after[0] < hardened.before - 0.3
    assert hardened.rounds is not None
    assert hardened.rounds_anew is not None
    assert hardened.rounds >= 1, hardened
    row = held.loc[("infl:hardened", seed)]
    assert hardened.before == pytest.approx(row["before"], abs=0.03)
    assert hardened.rounds == pytest.approx(row["rounds"], abs=3)  # another machine's sums round otherwise
    assert hardened.rounds_anew == pytest.approx(row["rounds_anew"], abs=3)
