"""Property attacks on whole cells: they find what is there, say nothing of noise, and never see a single site under secure aggregation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.property.shadow import regress
from suites.referee import attack_cell, train_cell

SHARES = {"name": "synthetic", "params": {"records": 1000, "features": 60, "sites": 5, "attribute_effect": 0.7, "site_shift": 0.0}}


def spec(defense: str = "fedavg", **changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": "classification:dropout=0",
        "data": SHARES,
        "split": {"unit": "record", "train": 0.4, "validation": 0.0, "test": 0.2, "auxiliary": 0.4},
        "partition": {"kind": "column"},
        "federation": {"rounds": 2, "local": {"epochs": 2, "lr": 1e-3}},
        "engine": {"chunk": 1},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def run(folder: Path, given: dict[str, Any], *attacks: str) -> list[dict[str, dict[str, Any]]]:
    trained = folder / "train" / "target"
    trained.mkdir(parents=True)
    train_cell(given, trained)
    found = []
    for attack in attacks:
        out = folder / "attack" / attack
        out.mkdir(parents=True)
        attack_cell({**given, "attack": attack, "threat": {"view": "server"}, "budget": 1.0}, out, {"train": trained})
        found.append({row["metric"]: row for row in json.loads((out / "rows.json").read_text())})
    return found


def test_what_the_sites_hold_is_read_off_their_updates(tmp_path: Path) -> None:
    wide = {"name": "synthetic", "params": {"records": 700, "features": 250}}
    skewed = spec(partition={"kind": "dirichlet", "sites": 5, "alpha": 0.5}, data=wide)
    origin, mix = run(tmp_path / "a", skewed, "site_of_origin", "class_mix")
    assert origin["leakage"]["goal"] == "property"
    assert origin["accuracy_of_origin"]["value"] > 0.9
    assert origin["leakage"]["low"] > 0.5
    assert mix["leakage"]["low"] > 0.5
    assert mix["share_error"]["value"] < mix["share_error:imputation"]["value"] / 2
    (attribute,) = run(tmp_path / "b", spec(), "donor_attribute")
    assert attribute["leakage"]["low"] > 0.3
    assert attribute["leakage"]["n"] == 5
    assert attribute["share_error:imputation"]["role"] == "control"


def test_noise_tells_nothing(tmp_path: Path) -> None:
    noisy = spec("dp_sgd:noise_multiplier=50", partition={"kind": "dirichlet", "sites": 5, "alpha": 0.5})
    for found in run(tmp_path, noisy, "site_of_origin", "class_mix:shadows=12:rounds=1", "donor_attribute:shadows=12:rounds=1"):
        leakage = found["leakage"]
        assert leakage["low"] <= 0  # and a number: a question that could not be asked is no evidence


def test_an_attribute_that_no_value_shows_is_not_found(tmp_path: Path) -> None:
    hidden = {**SHARES, "params": {**SHARES["params"], "attribute_effect": 1e-6}}  # type: ignore[dict-item]
    (found,) = run(tmp_path, spec(data=hidden), "donor_attribute")
    assert found["leakage"]["low"] <= 0
    assert found["leakage"]["value"] < 0.2


def test_under_secure_aggregation_only_all_sites_together_can_be_asked(tmp_path: Path) -> None:
    asked = ("class_mix", "class_mix_of_sum:shadows=24", "donor_attribute_of_sum:shadows=24")
    alone, together, attribute = run(tmp_path, spec("secure_aggregation", federation={"rounds": 1}), *asked)
    assert "masked" in alone[""]["reason"]
    assert together["share_error"]["value"] < 0.2
    assert together["share_error"]["n"] == attribute["share_error"]["n"] == 1


def test_without_the_column_an_attribute_is_no_question(tmp_path: Path) -> None:
    plain = {"name": "synthetic", "params": {"records": 300, "features": 20}}
    (found,) = run(tmp_path, spec(data=plain), "donor_attribute")
    assert found[""]["status"] == "skipped"
    assert "name its column" in found[""]["reason"]


def test_regression_recovers_a_linear_map_and_draws_back_where_it_has_not_been() -> None:
    rng = torch.Generator().manual_seed(0)
    mixes = torch.softmax(torch.randn(80, 3, generator=rng), 1).double()
    ways = torch.randn(3, 50, generator=rng).double()

    def updates(shares: torch.Tensor, noise: float) -> list[dict[str, torch.Tensor]]:
        return [{"w": row} for row in shares @ ways + noise * torch.randn(len(shares), 50, generator=rng).double()]

    asked = torch.softmax(torch.randn(10, 3, generator=rng), 1).double()
    found, error = regress(updates(mixes, 0.01), mixes, updates(asked, 0.01))
    assert float((found - asked).abs().max()) < 0.03
    assert 0 < error < 0.03
    lost, _ = regress(updates(mixes, 0.01), mixes, updates(asked, 100.0))
    assert float((lost - mixes.mean(0)).abs().max()) < 0.05


@pytest.mark.parametrize("count", [12, 40])
def test_the_error_that_is_told_is_that_of_mixes_left_out(count: int) -> None:
    """Mixes that have nothing to do with the updates: no better than their spread, however many directions there are."""
    rng = torch.Generator().manual_seed(count)
    mixes = torch.softmax(2 * torch.randn(count, 3, generator=rng), 1).double()
    updates = [{"w": row} for row in torch.randn(count, 500, generator=rng).double()]
    _, error = regress(updates, mixes, updates[:1])
    assert error > 0.8 * float((mixes - mixes.mean(0)).square().mean().sqrt())
