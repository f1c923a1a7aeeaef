"""What a suite asks for acts, or is refused: budgets, a site's own records, few auxiliary records, threats, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from suites import api
from suites.errors import RequestError
from suites.observation import Seen

SUITE = """
suite: review
data: {name: synthetic}
federation: {rounds: 2, local: {epochs: 2, lr: 0.005}}
seeds: 1
probes: {gradients: 1}
defenses: [fedavg]
attacks: [%s]
threats: [%s]
"""


def write(folder: Path, attacks: str, threats: str = "{view: server}") -> Path:
    path = folder / "review.yaml"
    path.write_text(SUITE % (attacks, threats))
    return path


def notes(table: pd.DataFrame, name: str) -> float:
    return float(table.loc[table["metric"] == f"note:{name}", "value"].iloc[0])


def test_a_budget_multiplies_what_an_attack_spends(tmp_path: Path) -> None:
    suite = write(tmp_path, "cosine_inversion:limit=1:budget=4:restarts=1, loss_threshold")
    tables = [api.run(suite, out=tmp_path / str(b), budget=b, report=False, device="cpu") for b in (1.0, 3.0)]
    assert [notes(table, "iterations") for table in tables] == [4, 12]
    spent = tables[1].groupby("attack")["budget"].max()
    assert spent["loss_threshold"] == 1  # which has no effort to multiply
    assert spent["cosine_inversion:budget=4:limit=1:restarts=1"] == 3


def test_a_site_is_not_asked_about_its_own_records(tmp_path: Path) -> None:
    suite = write(tmp_path, "loss_threshold", "{view: server}, {view: site}")
    table = api.run(suite, out=tmp_path / "out", report=False, device="cpu")
    counted = table[table["metric"] == "auc"].set_index("view")["n"]
    assert 0 < counted["server"] - counted["site"] < counted["server"] / 2


@pytest.mark.parametrize("threat", ["{colluders: 2}", "{unit: condition}"])
def test_threats_that_nobody_measures_are_refused(tmp_path: Path, threat: str) -> None:
    with pytest.raises(RequestError, match="not measured yet"):
        api.request(write(tmp_path, "loss_threshold", threat))


def test_few_auxiliary_records_are_drawn_whatever_their_order(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from suites.contracts import Records, Threat

    y = torch.arange(120) // 40  # sorted by class, as many files are
    everyone = Records(torch.zeros(120, 3), y)
    scene: Any = SimpleNamespace(auxiliary=everyone, candidates=everyone, features=3)
    few = Seen(scene, SimpleNamespace(), Threat(auxiliary=20)).auxiliary  # type: ignore[arg-type]
    assert len(few) == 20
    assert set(few.y.tolist()) == {0, 1, 2}


def test_another_cohort_gets_a_folder_and_a_title_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.h5ad"
    draw = np.random.default_rng(0)
    cells = anndata.AnnData(
        draw.normal(size=(60, 5)).astype(np.float32), obs=pd.DataFrame({"kind": ["a", "b"] * 30}, index=[f"c{i}" for i in range(60)])
    )
    cells.write_h5ad(path)
    asked = api.request(write(tmp_path, "loss_threshold"), data=str(path), label="kind")
    assert asked.out == Path("infl-bench-out") / "review-mine"
    assert asked.plan.suite.title == "review on mine"
    assert api.request(write(tmp_path, "loss_threshold")).out == Path("infl-bench-out") / "review"


def test_no_defense_is_not_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(RequestError):
        api.request(write(tmp_path, "loss_threshold"), defenses=[])


def test_a_person_column_keeps_persons_together(tmp_path: Path) -> None:
    asked = api.request(write(tmp_path, "loss_threshold"), person="donor")
    assert asked.plan.suite.split.unit == "person"
