"""The proteomics suites on the real cohort: who is in which part, what is at which site, and what the gaps are filled with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from suites.bench import Bench
from suites.cohorts.load import load as load_cohort
from suites.config import load
from suites.plan import plan
from tests.suites.cohorts.test_downloads import real

SUITES = ("proteomics", "proteomics_tumour", "proteomics_pam50")
DEFENSES = {"fedavg", "dp_sgd", "secure_aggregation", "infl:published", "infl:hardened"}


def cell(suite: str, defense: str, seed: int) -> dict[str, Any]:
    spec, _ = load(suite)
    made = next(c for c in plan(spec.model_copy(update={"defenses": (defense,), "seeds": seed + 1, "attacks": ()}), "cpu").cells)
    return {**copy.deepcopy(dict(made.spec)), "seed": seed}


@pytest.mark.parametrize("suite", SUITES)
def test_every_defense_is_there_and_dp_at_eight(suite: str) -> None:
    spec, _ = load(suite)
    assert {":".join(word for word in ref.split(":") if "=" not in word) for ref in spec.defenses} >= DEFENSES
    assert any(ref.startswith("dp_sgd:epsilon=8:") for ref in spec.defenses)
    assert spec.split.unit == "person"
    assert spec.data.missing == "impute_by_site"


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_person_straddles_a_part_and_every_site_has_two_classes(suite: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    bench = Bench(cell(suite, "fedavg", seed), None)
    prepared = bench.prepared
    assert prepared.person is not None
    parts = [torch.cat(prepared.sites), prepared.validation, prepared.test, prepared.auxiliary]
    held = [set(prepared.person[part].tolist()) for part in parts]
    assert sum(map(len, parts)) == len(prepared.pool.y)
    assert sum(map(len, held)) == len(set().union(*held)), "a person is in two parts"
    if suite != "proteomics_pam50":  # there persons gave a tumour and a normal sample
        assert len(prepared.person) > len(set(prepared.person.tolist())), "no person has two samples: nothing is tested"
    for site in prepared.sites:
        assert len(set(prepared.pool.y[site].tolist())) >= 2
    if suite == "proteomics":  # IID sites: persons as a whole
        owners = [set(prepared.person[site].tolist()) for site in prepared.sites]
        assert sum(map(len, owners)) == len(set().union(*owners)), "a person is at two sites"


@pytest.mark.slow
def test_gaps_are_filled_by_each_site_and_for_everybody_else_by_auxiliary_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    spec, _ = load("proteomics")
    cohort = load_cohort(spec.data)
    bench = Bench(cell("proteomics", "fedavg", 0), None)
    prepared = bench.prepared
    gaps = np.isnan(cohort.x)
    assert gaps.any()
    assert (prepared.pool.x[torch.from_numpy(gaps)] == 0).all()  # what candidates and the public are read from
    public = np.nanmean(cohort.x[prepared.auxiliary.numpy()].astype(np.float64), axis=0)
    np.testing.assert_allclose(prepared.mean.numpy(), public, atol=1e-5)
    for site in prepared.sites:
        own = cohort.x[site.numpy()].astype(np.float64)
        record, feature = np.argwhere(np.isnan(own) & (~np.isnan(own)).any(0))[0]
        expected = (np.nanmean(own[:, feature]) - public[feature]) / float(prepared.scale[feature])
        assert float(bench.inputs[site[record], feature]) == pytest.approx(expected, abs=1e-4)
    noised = Bench(cell("proteomics", "dp_sgd:epsilon=8", 0), None)
    assert torch.equal(noised.inputs, prepared.pool.x)  # a promise about records


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "least"), [("proteomics", 0.0), ("proteomics_tumour", -0.01), ("proteomics_pam50", -0.04)])
def test_the_centralised_network_holds_its_own_beside_logistic_regression(
    suite: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average over ten seeds, with as much room as that many test records (about 90, 65 and 25 a seed) leave to chance.

    Cancer classes leave it none: the network is ahead. Tumour against normal is all but solved by either.
    """
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    gaps = []
    for seed in range(10):
        bench = Bench(cell(suite, "centralized", seed), None)
        trained = bench.train([bench.assignment()], target=False)[0]
        found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
        gaps.append({m.metric: m.value for m in bench.yardsticks(found)}["accuracy:above_logistic_regression"])
        print(suite, seed, found["accuracy"], gaps[-1])
    assert sum(gaps) / len(gaps) >= least
