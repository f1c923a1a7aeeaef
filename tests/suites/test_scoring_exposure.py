"""Reconstruction at several checkpoints: each has its row, named by the records that a site had trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reports.stats import summarise
from reports.tables import exposure_table
from suites import api
from suites.scoring_exposure import exposure_measures

SUITE = """suite: small
task: classification:dropout=0
data: {name: synthetic, params: {records: 240, features: 20, classes: 3, sites: 2}}
split: {unit: record, train: 0.5, validation: 0.0, test: 0.25, auxiliary: 0.25}
partition: {kind: iid, sites: 2}
federation: {rounds: 4, local: {epochs: 2}}
seeds: 1
defenses: [fedavg, secure_aggregation]
attacks: [closed_form, cosine_inversion_of_sum:budget=5:restarts=1, known_plaintext]
probes:
  - {gradients: 2, batch: 1, round: 0}
  - {gradients: 1, batch: 1, round: 3}
threats:
  - {view: server, key: none}
  - {view: server, key: none, known_pairs: 3}
"""


def test_targets_of_one_checkpoint_need_no_row_and_those_of_several_have_their_own_mean() -> None:
    fit = np.array([1.0, 0.5, -1.0, 0.0])
    assert exposure_measures(fit, [2, 2, 2, 2], 100.0) == []
    found = exposure_measures(fit, [0, 5, 0, 5], 103.0)
    assert [(one.metric, one.value, one.n) for one in found] == [("r2:exposure=0", 0.0, 2), ("r2:exposure=520", 0.25, 2)]


def test_a_run_says_what_each_checkpoint_gave_away(tmp_path: Path) -> None:
    table = api.run(suite(tmp_path), out=tmp_path / "out", workers=2)
    rows = table[table["metric"].str.startswith("r2:exposure=")]
    assert set(rows["metric"]) == {"r2:exposure=0", "r2:exposure=360"}  # 120 records at two sites, two epochs, three rounds
    single = rows[(rows["attack"] == "closed_form") & (rows["defense"] == "fedavg")].set_index("metric")
    assert single["n"].to_dict() == {"r2:exposure=0": 4, "r2:exposure=360": 2}
    assert single["value"].min() > 0.99
    sums = rows[(rows["attack"] != "closed_form") & (rows["defense"] == "secure_aggregation")].set_index("metric")
    assert sums["n"].to_dict() == {"r2:exposure=0": 2, "r2:exposure=360": 1}
    known = rows[rows["attack"] == "known_plaintext"].set_index("metric")
    assert known["n"].to_dict() == {"r2:exposure=0": 1, "r2:exposure=360": 2}, "nobody is asked about the three that are known"
    whole = table[(table["attack"] == "closed_form") & (table["defense"] == "fedavg") & (table["metric"] == "r2")]["value"].item()
    parts = single["value"] @ single["n"] / single["n"].sum()
    assert whole == pytest.approx(parts)
    shown = exposure_table(summarise(table), "exposure")
    assert shown is not None
    assert list(shown.shown.columns[-2:]) == ["R² after 0 records", "R² after 360 records"]
    assert exposure_table(summarise(table[~table["metric"].str.startswith("r2:exposure=")]), "exposure") is None


def suite(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(SUITE)
    return path
