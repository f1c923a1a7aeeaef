"""A dry run reads what the run would read: the same sentence for the same mistake, the same counts, and nothing written."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from suites import api
from suites.config import catalog, load, override
from suites.errors import RequestError
from suites.plan import plan
from suites.prepared import prepare
from suites.rehearsal import _seconds, at_hand, rehearse
from tests.suites.test_cli import complains, infl_bench

SUITE = """suite: small
task: classification:dropout=0
data: {name: synthetic, params: {records: 120, features: 12, sites: 2}}
partition: {kind: iid, sites: 2}
federation: {rounds: 1, local: {epochs: 1}}
seeds: 1
defenses: [local_only, "infl:published:strength=1"]
attacks: [closed_form, loss_threshold, open_with_held_key, open_without_key]
probes: {gradients: 1, batch: 1, round: 0}
threats:
  - {view: server, key: none}
  - {view: server, key: wrong}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE)
    return path


def sizes(suite: Path) -> list[int]:
    """The smaller site's records at each seed, by the split itself."""
    return [
        min(len(site) for site in prepare(cell.spec, None).sites)
        for cell in plan(load(str(suite))[0], "cpu").cells
        if cell.stage == "train"
    ]


def cells(path: Path, records: int = 40, features: int = 6) -> Path:
    x = np.random.default_rng(0).normal(5, 1, (records, features)).astype(np.float32)
    obs = pd.DataFrame({"kind": [["a", "b"][i % 2] for i in range(records)]}, index=[f"cell {i}" for i in range(records)], dtype=object)
    anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"gene {i}" for i in range(features)])).write_h5ad(path)
    return path


def test_a_missing_column_is_the_same_sentence_dry_or_not(suite: Path, tmp_path: Path) -> None:
    asked = ("run", suite, "--data", cells(tmp_path / "cells.h5ad"), "--label", "kinds", "--out", tmp_path / "out")
    dry = infl_bench(*asked, "--dry-run")
    complains(dry, "no obs column 'kinds'", "did you mean 'kind'")
    assert not (tmp_path / "out").exists()
    wet = infl_bench(*asked)
    complains(wet)
    assert dry.stderr.strip() == wet.stderr.strip()


@pytest.mark.parametrize("name", [name for name in catalog() if all(at_hand(part.data) for part in load(name)[0].each)])
def test_every_suite_of_the_catalogue_is_accepted_on_all_its_seeds(name: str) -> None:
    assert rehearse(plan(load(name)[0], "cpu")).unread == []


def test_every_defense_is_timed_and_more_rounds_foretell_more_time(suite: Path) -> None:
    text = suite.read_text().replace("rounds: 1, local: {epochs: 1}", "rounds: 20, local: {epochs: 5}").replace("seeds: 1", "seeds: 2")
    suite.write_text(text)
    timed = rehearse(plan(load(str(suite))[0], "cpu")).trainings
    assert [spec["seed"] for spec, _ in timed] == [0, 0], "one seed's trainings stand for all"
    short = {str(spec["defense"]): seconds for spec, seconds in timed}
    suite.write_text(text.replace("rounds: 20", "rounds: 20000"))
    long = {str(spec["defense"]): seconds for spec, seconds in rehearse(plan(load(str(suite))[0], "cpu")).trainings}
    assert set(short) == set(long) == {"local_only", "infl:published:strength=1"}
    assert all(long[name] > 100 * short[name] for name in short), "a thousand times the rounds, and what a first epoch costs only once"


def test_what_a_training_sets_out_with_is_foretold_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def short(rounds: int = 1, epochs: int = 1) -> None:
        clock[0] += 0.08 + 0.01 * rounds * epochs

    monkeypatch.setattr("suites.rehearsal.time", SimpleNamespace(process_time=lambda: clock[0]))
    federation = SimpleNamespace(rounds=10, local=SimpleNamespace(epochs=5))
    assert _seconds(SimpleNamespace(federation=federation, short=short)) == pytest.approx(0.08 + 0.01 * 50)  # type: ignore[arg-type]


def test_what_a_later_seeds_split_breaks_is_told_before_the_first_seed_runs(suite: Path) -> None:
    text = suite.read_text().replace("kind: iid", "kind: dirichlet, alpha: 1").replace("seeds: 1", "seeds: 5")
    suite.write_text(text.replace('local_only, "infl:published:strength=1"', "local_only"))
    first, *later = sizes(suite)
    assert min(later) < first, "the first seed is to be one that fits"
    suite.write_text(text.replace("local_only", f"infl:hardened:minimum={first}"))
    with pytest.raises(RequestError, match=f"fewer than {first} records"):
        rehearse(plan(load(str(suite))[0], "cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defenses": ["dp_sgd:epsilon=0.01"]}, ["ε = 0.01", "accountant"]),
        ({"defenses": ["dp_sgd:epsilon=8:noise_multiplier=1"]}, ["epsilon and noise_multiplier"]),
        ({"defenses": ["infl:hardened+centralized"]}, ["exchanges no updates"]),
        ({"data": "{}/empty.h5ad", "label": "kind"}, ["holds no records"]),
        ({"data": "{}/narrow.h5ad", "label": "kind"}, ["holds no features"]),
        ({"data": "{}/table.csv", "label": "kind"}, ["table of text", "write_h5ad('table.h5ad')"]),
        ({"data": "{}/absent.csv", "label": "kind"}, ["no data file", "absent.csv"]),
    ],
)
def test_wrong_requests_fail_before_anything_runs(suite: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    cells(tmp_path / "empty.h5ad", records=0)
    cells(tmp_path / "narrow.h5ad", features=0)
    (tmp_path / "table.csv").write_text("kind,gene\na,1\nb,2\n")
    given = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(RequestError) as caught:
        rehearse(api.request(suite, out=tmp_path / "out", **given).plan)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_as_many_are_skipped_as_was_foretold(suite: Path, tmp_path: Path) -> None:
    dry = infl_bench("run", suite, "--dry-run", "--out", tmp_path / "out").stdout
    wet = infl_bench("run", suite, "--out", tmp_path / "out", "--workers", "1").stdout
    foretold, found = re.search(r"skipped +(\d+)", dry), re.search(r"(\d+) skipped,", wet)
    assert foretold is not None
    assert found is not None, wet  # no further ones that found nothing to read
    assert int(foretold[1]) == int(found[1]) > 0


@pytest.mark.parametrize(("command", "word"), [("show", "pbmc68k"), ("fetch", "cptac")])
def test_a_name_that_is_left_out(command: str, word: str) -> None:
    complains(infl_bench("data", command), f"`infl-bench data {command}` needs NAME, a cohort", word, "infl-bench list data")


def test_what_would_have_to_be_downloaded_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("INFL_BENCH_DATA", str(tmp_path))
    spec = override(load("perturbation")[0], defenses=["fedavg"], attacks=[])
    (said,) = rehearse(plan(spec, "cpu")).unread
    assert "norman_mcfaline is not on this machine" in said
    assert not (tmp_path / "cache").exists()
    assert at_hand(load("quickstart")[0].data)


def test_what_is_done_to_the_values_can_be_said_on_the_command_line(suite: Path, tmp_path: Path) -> None:
    path = cells(tmp_path / "cells.h5ad")
    asked = api.request(suite, data=str(path), label="kind", transform="none", missing="impute", drop=["rare", "empty"])
    data = asked.plan.suite.data
    assert (data.transform, data.missing, data.drop) == ("none", "impute", ("rare", "empty"))
    said = infl_bench("run", suite, "--data", path, "--label", "kind", "--drop", "rare,emty", "--dry-run")
    complains(said, "data.drop", "'emty'")
