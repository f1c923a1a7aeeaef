"""Confidence beside the truth: pairs of targets and of records, in any order, and their way from a cell to the table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from attacks.gradient_inversion.closed_form import ClosedForm
from reports.roc import CONVENTION
from suites import gather, referee
from suites.bench import Bench
from suites.contracts import Guess, Records, Threat
from suites.randomness import stream
from suites.scoring import score_reconstruction
from suites.scoring_confidence import RIGHT, confidence_measures, confidence_pairs
from suites.trial import Trial

F = 32


def normal(*shape: int, at: str) -> torch.Tensor:
    return torch.randn(*shape, generator=stream("test confidence", at, *shape))


def blurred(truth: list[torch.Tensor], size: torch.Tensor) -> list[torch.Tensor]:
    """Each target with noise of a relative size of its own, so that its R² is 1 - size²."""
    noise = [normal(*one.shape, at=f"noise {k}") for k, one in enumerate(truth)]
    return [one + s * one.norm() / n.norm() * n for one, n, s in zip(truth, noise, size)]


def test_a_target_is_right_from_its_r2() -> None:
    truth = list(normal(40, 2, F, at="truth"))
    size = torch.linspace(0.05, 0.8, 40)
    pairs = confidence_pairs(Guess(blurred(truth, size), confidence=-size), truth)
    assert pairs is not None
    assert (pairs.right == (1 - size.numpy() ** 2 >= RIGHT)).all()
    assert pairs.right.any()
    assert not pairs.right.all()
    (area,) = confidence_measures(pairs)
    assert (area.metric, area.value, area.n) == ("confidence_auc", 1.0, 40)
    assert area.low < 1


@pytest.mark.parametrize("features", [None, F])
def test_records_keep_their_confidence_in_whatever_order_they_are_guessed(features: int | None) -> None:
    """One record of each four is right, and the confidence is that of its place in the guess, of features their mean."""
    truth = list(normal(10, 4, F, at="batches"))
    orders = [torch.randperm(4, generator=stream("order", k)) for k in range(10)]
    said = [torch.where(torch.arange(4)[:, None] == 1, one, 0.1 * one)[order] for one, order in zip(truth, orders)]
    trust = torch.cat([(torch.arange(4) == 1).double()[order] for order in orders])
    confidence = trust if features is None else trust[:, None] + torch.linspace(-1, 1, features)
    pairs = confidence_pairs(Guess(said, confidence=confidence), truth)
    assert pairs is not None
    assert (pairs.right == trust.bool().numpy()).all()
    assert list(pairs.target) == [k for k in range(10) for _ in range(4)]
    assert confidence_measures(pairs)[0].value == 1


def test_a_certificate_of_a_record_goes_with_its_record() -> None:
    truth = list(normal(10, 4, F, at="certified"))
    orders = [torch.randperm(4, generator=stream("other order", k)) for k in range(10)]
    said = [torch.where(torch.arange(4)[:, None] == 1, one, 0.5 * one)[order] for one, order in zip(truth, orders)]
    mark = torch.cat([(torch.arange(4) == 1)[order] for order in orders])
    auxiliary = Records(normal(20, F, at="auxiliary"), torch.zeros(20, dtype=torch.int64))
    found = score_reconstruction(Guess(said, certified=mark), truth, torch.cat(truth), auxiliary, {}, stream("s"))
    share = next(one for one in found if one.metric == "certified_exact")
    assert (share.value, share.n) == (1.0, 10)


def test_the_area_is_scikit_learns_and_a_half_without_information() -> None:
    truth = list(normal(400, 1, F, at="many"))
    size = 0.1 + 0.5 * torch.rand(400, generator=stream("sizes"))
    confidence = torch.rand(400, generator=stream("confidence"))
    pairs = confidence_pairs(Guess(blurred(truth, size), confidence=confidence), truth)
    assert pairs is not None
    (area,) = confidence_measures(pairs)
    assert area.value == pytest.approx(roc_auc_score(1 - size.numpy() ** 2 >= RIGHT, confidence.numpy()))
    assert area.low <= 0.5 <= area.high
    assert area.value == pytest.approx(0.5, abs=0.06)
    mixed = confidence_pairs(Guess(blurred(truth, size), confidence=confidence - size), truth)
    assert mixed is not None
    assert confidence_measures(mixed)[0].low > 0.6


def test_what_an_attack_leaves_unsaid() -> None:
    truth = list(normal(6, 1, F, at="few"))
    assert confidence_pairs(Guess(truth), truth) is None
    assert confidence_pairs(Guess(truth, confidence=torch.zeros(0)), truth) is None
    held = confidence_pairs(Guess(truth, confidence=torch.tensor([math.nan, 1.0, math.inf, -math.inf, 0.0, 2.0])), truth)
    assert held is not None
    assert list(held.confidence) == [1.0, 1e30, -1e30, 0.0, 2.0]
    (area,) = confidence_measures(held)
    assert (area.reason, area.n) == ("not resolvable: every guess is right", 0)
    assert math.isnan(area.value)
    with pytest.raises(ValueError, match="confidence says 5 things, but there are 6 targets with 6 records"):
        confidence_pairs(Guess(truth, confidence=torch.zeros(5)), truth)


# ------------------------------------------------------------------------------------------------------------- to the table


def test_pairs_of_the_cells_become_calibrated_rows_and_rocs_name_their_convention(tmp_path: Path) -> None:
    """Two seeds of two attacks in a store; the calibration is of the seeds together, so no cell could have written it."""
    rng = np.random.default_rng(3)
    named = {"suite": "s", "task": "t", "data": "d", "defense": "fedavg", "view": "server", "key": "none", "unit": "record", "budget": 1.0}
    cells = []
    for seed in range(2):
        for attack, goal in (("dlg", "reconstruction"), ("lira", "membership:person"), ("", "")):
            cell = SimpleNamespace(
                id=f"{attack}{seed}", stage="attack" if attack else "train", columns={**named, "attack": attack, "goal": goal, "seed": seed}
            )
            if not attack:
                cell.columns |= {"view": "", "key": ""}
            metric = {"dlg": "confidence_auc", "lira": "auc", "": "accuracy"}[attack]
            held = {"metric": metric, "value": 0.7, "low": 0.6, "high": 0.8, "n": 50, "role": "score" if attack else "utility"}
            chance = rng.random(50)
            right = rng.random(50) < chance
            lines = [{"curve": "confidence", "x": float(c), "y": float(r)} for c, r in zip(chance, right)] if attack == "dlg" else []
            (tmp_path / cell.id).mkdir()
            (tmp_path / cell.id / gather.ROWS).write_text(json.dumps([held if attack else {**held, "goal": "utility"}]))
            (tmp_path / cell.id / gather.CURVES).write_text(json.dumps(lines))
            cells.append(cell)
    plan: Any = SimpleNamespace(cells=cells, skipped=[])
    store: Any = SimpleNamespace(manifest=lambda stage, name: {"seconds": 1.0}, folder=lambda stage, name: tmp_path / name)
    outcome: Any = SimpleNamespace(failed={})
    curve_table = gather.curves(plan, store, outcome)
    table = gather.results(plan, store, outcome, curve_table)
    own = table[table["attack"] == "dlg"]
    found = own[own["seed"] == 1].set_index("metric")["value"]
    assert 0.02 < found["expected_calibration_error"] < 0.25
    assert found["brier"] < found["brier:share_alone"]
    assert (own["protocol"] == "").all()
    told = table.set_index("metric")["protocol"]
    assert set(told["auc"]) == {CONVENTION}
    assert set(told["accuracy"]) == {""}
    assert "tied" in CONVENTION
    assert "step ROC" in CONVENTION
    older = gather.results(plan, store, outcome, curve_table.iloc[:0])
    pd.testing.assert_frame_equal(older, table[~table["metric"].str.startswith(("expected", "brier"))].reset_index(drop=True))


def test_a_trial_gives_the_pairs_of_an_attack_that_says_how_sure_it_is(tmp_path: Path) -> None:
    """Closed form: exact on single records, a mixture of four; an attack without a confidence leaves rows and curves as they were."""
    spec = {
        "suite": "confidence", "task": "classification:dropout=0", "data": {"name": "synthetic"}, "seed": 0, "defense": "fedavg",
        "split": {"train": 0.6, "validation": 0.0, "test": 0.2, "auxiliary": 0.2}, "partition": {"kind": "iid", "sites": 2},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 30}},
        "probes": [{"gradients": 3, "batch": 1, "round": 0}, {"gradients": 2, "batch": 4, "round": 0}],
    }  # fmt: skip
    referee.train_cell(spec, tmp_path)
    trial = Trial(Bench(spec, tmp_path / "prepared"), Threat(), tmp_path, [])
    where = {"goal": "reconstruction", "attack": "closed_form", "view": "server", "key": "none"}
    rows, lines = trial.run(_Own(), "closed_form", where)
    pairs = [(line["x"], line["y"]) for line in lines if line["curve"] == "confidence"]
    assert [right for _, right in pairs] == [1.0] * 6 + [0.0] * 4
    assert min(x for x, right in pairs if right) > 4
    assert max(x for x, right in pairs if not right) < 0
    named = [row["metric"] for row in rows]
    assert next(row["value"] for row in rows if row["metric"] == "confidence_auc") == 1
    mute, rest = trial.run(_Mute(), "closed_form", where)
    assert [row for row in rows if row["metric"] != "confidence_auc"] == mute
    told = ("confidence", *(f"shrink_by:{target}:guess" for target in range(10)))
    assert [line for line in lines if line["curve"] not in told] == [line for line in rest if line["curve"] not in told]
    assert named.count("confidence_auc") == 1


class _Own(ClosedForm):
    """In units of its own."""

    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        guess = super().run(seen, rng)
        assert guess.confidence is not None
        return replace(guess, confidence=7 * guess.confidence - 2)


class _Mute(ClosedForm):
    def run(self, seen: Any, rng: torch.Generator) -> Guess:
        return replace(super().run(seen, rng), confidence=None)
