"""Calibrated R²: known answers at both ends, nothing learnt from a seed about itself, and the level of those who only draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from attacks.gradient_inversion.message import known_count
from reports import schema
from reports.shrinkage import Answers, fitted, isotonic, with_shrinkage
from suites import referee
from suites.bench import Bench
from suites.contracts import Guess, Records, Threat
from suites.randomness import stream
from suites.scoring import score_reconstruction
from suites.scoring_shrinkage import shrinkage_points
from suites.trial import Trial

F, BATCH, TARGETS = 60, 32, 2
CELL = {
    "suite": "s", "task": "t", "data": "d", "defense": "fedavg", "attack": "row_space", "goal": "reconstruction", "view": "server",
    "key": "none",
}  # fmt: skip
Answer = Callable[[list[Tensor], Tensor, torch.Generator], Guess]


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=rng)


def world(seed: int, *, candidates: int = 0, targets: int = TARGETS, batch: int = BATCH) -> tuple[list[Tensor], Tensor, Tensor]:
    """Truth, public records, and ``candidates`` records of which all true ones are part."""
    rng = stream("test shrinkage", seed, targets, batch)
    truth = list(normal(targets, batch, F, rng=rng))
    others = normal(max(candidates - targets * batch, 0), F, rng=rng)
    return truth, normal(100, F, rng=rng), torch.cat([*truth, others])


def table(answer: Answer, seeds: int = 4, shuffled: int | None = None, **scene: int) -> pd.DataFrame:
    """The rows of an attack that answers so; the truth of seed ``shuffled`` is another than the one that was attacked."""
    rows, lines = [], []
    for seed in range(seeds):
        truth, public, pool = world(seed, **scene)
        rng = stream("answer", seed)
        guess = answer(truth, pool, rng)
        drawn = {"random_record": [draw(truth, public, stream("public", seed, k)).value for k in range(4)]}
        if scene.get("candidates"):
            drawn["random_candidate"] = [draw(truth, pool, stream("control", seed, k)).value for k in range(4)]
        if seed == shuffled:
            truth = list(normal(len(truth), len(truth[0]), F, rng=stream("other truth")))
        controls = {"class_mean": [torch.zeros_like(one) for one in truth]}
        auxiliary = Records(public, torch.zeros(len(public), dtype=torch.int64))
        own = {**CELL, "seed": seed, "status": "ok", "seconds": 0.0, "schema_version": schema.SCHEMA_VERSION}
        for one in score_reconstruction(guess, truth, pool, auxiliary, controls, stream("s"), drawn=drawn):
            held = {name: getattr(one, name) for name in ("metric", "value", "low", "high", "n", "direction", "role", "reason")}
            rows.append({**own, **held})
        lines += [{**CELL, "seed": seed, **point} for point in shrinkage_points(guess, truth, public, controls, drawn)]
    results, curves = pd.DataFrame(rows)[list(schema.RESULTS)], schema.validate_curves(pd.DataFrame(lines)[list(schema.CURVES)])
    return schema.validate(with_shrinkage(schema.validate(results), curves))


def of(found: pd.DataFrame, metric: str) -> np.ndarray:
    return found[found["metric"] == metric].sort_values("seed")["value"].to_numpy()


def some_right(share: float, size: float = 1.0, says: bool = True) -> Answer:
    """Right for a share of the records, noise of a relative ``size`` for the others; the confidence has noise of its own."""

    def answer(truth: list[Tensor], _: Tensor, rng: torch.Generator) -> Guess:
        right = torch.rand(len(truth), len(truth[0]), generator=rng) < share
        value = [torch.where(own[:, None], one, size * normal(*one.shape, rng=rng)) for one, own in zip(truth, right)]
        order = [torch.randperm(len(one), generator=rng) for one in truth]
        sure = torch.cat([own.double()[at] for own, at in zip(right, order)])
        return Guess(
            [one[at] for one, at in zip(value, order)], confidence=sure * 10 + torch.rand(len(sure), generator=rng) if says else None
        )

    return answer


def draw(truth: list[Tensor], pool: Tensor, rng: torch.Generator) -> Guess:
    return Guess([pool[torch.randperm(len(pool), generator=rng)[: len(one)]] for one in truth])


# ------------------------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("size", [0.3, 1.0, 100.0])
def test_right_for_a_fifth_and_says_which_is_a_fifth(size: float) -> None:
    found = table(some_right(0.2, size), seeds=6)
    assert of(found, "r2_calibrated").mean() == pytest.approx(0.2, abs=0.05)
    assert of(found, "leakage_calibrated").mean() == pytest.approx(0.2, abs=0.05)
    if size >= 1:
        assert of(found, "r2").mean() < -0.3  # what full size costs
    assert set(found[found["metric"] == "r2_calibrated"]["role"]) == {"score"}


def test_wild_answers_are_known_by_their_length_alone() -> None:
    assert of(table(some_right(0.2, 100.0, says=False), seeds=6), "r2_calibrated").mean() == pytest.approx(0.2, abs=0.05)


def test_without_a_word_of_which_it_is_less() -> None:
    """One factor for right and wrong of one length: with a share p right, R² is p² at best (c = p, energy 1)."""
    held = of(table(some_right(0.2, says=False), seeds=6, batch=1, targets=100), "r2_calibrated")
    assert held.mean() == pytest.approx(0.2**2, abs=0.03)


def test_the_truth_is_one_and_the_public_mean_zero() -> None:
    found = table(lambda truth, _, rng: Guess([one.clone() for one in truth]))
    assert of(found, "r2_calibrated") == pytest.approx(1, abs=0.01)  # a record beyond the longest public ones is cut
    assert of(found, "leakage_calibrated") == pytest.approx(1, abs=0.01)
    silent = table(lambda truth, _, rng: Guess([torch.zeros_like(one) for one in truth]))
    assert (of(silent, "r2_calibrated") == 0).all()
    undefined = table(lambda truth, _, rng: Guess([torch.full_like(one, math.nan) for one in truth]))
    assert (of(undefined, "r2_calibrated") == 0).all()


@pytest.mark.parametrize(("batch", "targets"), [(1, 8), (4, 8), (32, 2)])
def test_noise_is_worth_nothing_over_many_draws(batch: int, targets: int) -> None:
    """Thirty seeds of noise that is sure of itself at random: each stays above -.02, and the mean is what matching gives, next to 0."""
    rng = stream("null")

    def noise(truth: list[Tensor], _: Tensor, __: torch.Generator) -> Guess:
        return Guess([normal(*one.shape, rng=rng) for one in truth], confidence=torch.randn(sum(map(len, truth)), generator=rng))

    found = table(noise, seeds=30, targets=targets, batch=batch)
    r2 = of(found, "r2_calibrated")
    assert abs(of(found, "leakage_calibrated").mean()) < 0.015  # and random public records are matched no worse
    assert r2.min() > -0.02
    assert r2.mean() < 0.07  # the gain of the best of 32! orders: (2 ln 32) / 60 = .12 at most, c = a third
    few = np.concatenate([of(table(noise, seeds=3, targets=targets, batch=batch), "r2_calibrated") for _ in range(10)])
    assert -0.02 < few.mean() < 0.07
    if batch == 1:
        assert abs(r2.mean()) < 0.01


def test_a_mirror_image_is_worth_nothing() -> None:
    assert abs(of(table(lambda truth, _, rng: Guess([-one for one in truth]), batch=1, targets=16), "r2_calibrated")).max() < 1e-12


# ------------------------------------------------------------------------------------------------------------- on the other seeds


def test_the_factors_are_fitted_on_the_other_seeds() -> None:
    """Another truth in seed 1 moves what the others score, and its own factors not at all."""
    held = {}
    for name, shuffled in (("as it is", None), ("other", 1)):
        truth_of = {}
        for seed in range(3):
            truth, public, pool = world(seed)
            guess = some_right(0.3)(truth, pool, stream("answer", seed))
            if seed == shuffled:
                truth = list(normal(TARGETS, BATCH, F, rng=stream("other truth")))
            truth_of[seed] = _records(shrinkage_points(guess, truth, public, {}, {}))
        held[name] = truth_of
    own = {name: fitted(_joined(of[0], of[2])) for name, of in held.items()}
    for name in ("by_confidence", "by_length"):
        assert all((a == b).all() for a, b in zip(getattr(own["as it is"], name), getattr(own["other"], name)))
    before, after = table(some_right(0.3), seeds=3), table(some_right(0.3), seeds=3, shuffled=1)
    assert not np.isclose(of(before, "r2_calibrated")[[0, 2]], of(after, "r2_calibrated")[[0, 2]]).any()
    # Had seed 1 been fitted on itself, its now worthless answers would score 0 and not what trust in them costs.
    assert of(after, "r2_calibrated")[1] < -0.1


def test_one_seed_says_that_it_cannot_be_told() -> None:
    found = table(some_right(0.2), seeds=1)
    for metric in ("r2_calibrated", "leakage_calibrated"):
        (row,) = found[found["metric"] == metric].to_dict("records")
        assert math.isnan(row["value"])
        assert row["reason"] == "not resolvable: a calibration needs another seed to be fitted on"


def test_older_tables_stay_as_they_are() -> None:
    found = table(some_right(0.2), seeds=2)
    older = found[~found["metric"].str.contains("calibrated")].reset_index(drop=True)
    assert with_shrinkage(older, schema.empty_curves()) is older


def test_the_fit_is_the_constrained_least_squares() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 6, 40).astype(float)
    energy = rng.gamma(2, 1, 40)
    inner = energy * (0.2 * x - 0.3 + 0.8 * rng.normal(size=40))
    knots, values = isotonic(x, inner, energy)

    def lost(steps: Any) -> float:
        c = np.cumsum(steps)[x.astype(int)]
        return float((c**2 * energy - 2 * c * inner).sum())

    best = minimize(lost, np.full(6, 0.1), bounds=[(0, 1)] * 6, constraints={"type": "ineq", "fun": lambda s: 1 - s.sum()}, tol=1e-12)
    assert knots.tolist() == list(range(6))
    assert values == pytest.approx(np.cumsum(best.x), abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- who only draws


def test_a_draw_of_candidates_leaks_nothing_on_either_scale() -> None:
    """64 records among 110 candidates: a draw is right for a third, which is no work of the message."""
    found = table(draw, seeds=8, candidates=110)
    chance = of(found, "reidentified:random_candidate").mean()
    assert chance == pytest.approx(32 / 110, abs=0.04)
    assert of(found, "reidentified").mean() == pytest.approx(chance, abs=0.06)
    assert of(found, "r2_calibrated").mean() > 0.08
    assert of(found, "leakage").mean() < 0.02
    assert abs(of(found, "leakage_calibrated").mean()) < 0.04


def test_whoever_names_half_of_them_leaks_beyond_the_draw() -> None:
    def names_half(truth: list[Tensor], pool: Tensor, rng: torch.Generator) -> Guess:
        blind = draw(truth, pool, rng).value
        return Guess([torch.cat([one[:16], other[16:]]) for one, other in zip(truth, blind)])

    assert of(table(names_half, seeds=4, candidates=110), "leakage_calibrated").min() > 0.2


def test_a_trial_subtracts_the_draw_from_an_attack_with_candidates_alone(tmp_path: Path) -> None:
    spec = {
        "suite": "draws", "task": "classification:dropout=0", "data": {"name": "synthetic"}, "seed": 0, "defense": "fedavg",
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2}, "partition": {"kind": "iid", "sites": 2},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 30}}, "probes": [{"gradients": 1, "batch": 64, "round": 0}],
    }  # fmt: skip
    referee.train_cell(spec, tmp_path)
    trial = Trial(Bench(spec, tmp_path / "prepared"), Threat(), tmp_path, [])
    where = {"goal": "reconstruction", "attack": "blind_draw", "view": "server", "key": "none"}
    rows, lines = trial.run(_Draw(frozenset({"probes", "candidates"})), "blind_draw", where)
    found = {row["metric"]: row["value"] for row in rows}
    assert found["r2:random_candidate"] > found["r2:random_record"]
    assert found["reidentified:random_candidate"] > 0.1
    assert abs(found["leakage"]) < 0.06
    assert {line["curve"] for line in lines} >= {"shrink:0:random_candidate", "shrink_by:1:guess"}
    without = {row["metric"] for row in trial.run(_Zero(frozenset({"probes"})), "zero", where)[0]}
    assert "r2:random_record" in without
    assert "r2:random_candidate" not in without


class _Draw:
    goal = "reconstruction"

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs

    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        x = seen.candidates.x
        return Guess([x[torch.randperm(len(x), generator=rng)[: one.batch]] for one in seen.targets])


class _Zero(_Draw):
    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        return Guess([torch.zeros(one.batch, known_count(seen.known, "features")) for one in seen.targets])


def _records(points: list[dict[str, Any]]) -> Answers:
    held = pd.DataFrame(points)
    own = held["curve"].str.endswith(":guess")
    sums, stated = (held[own & held["curve"].str.startswith(f"{kind}:")] for kind in ("shrink", "shrink_by"))
    return Answers(*(np.asarray(one) for one in (np.zeros(len(sums), int), sums["x"], sums["y"], stated["x"], stated["y"])))


def _joined(*held: Answers) -> Answers:
    return Answers(*(np.concatenate(column) for column in zip(*held)))
