"""Gaps filled by sites: with their own means and nothing else's, in no candidate, and under no promise about single records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.membership.blind import Blind
from suites.bench import Bench
from suites.cohorts.load import load as load_cohort
from suites.cohorts.spec import DataSpec
from suites.config import parse
from suites.contracts import Attack, Goal, Guess, Observation, RequestError, Sees, Threat
from suites.federation import POOLED, Pool, Trained, train
from suites.gaps import fill
from suites.prepared import Prepared, prepare
from suites.referee import train_cell
from suites.trial import Trial

GAPPY: dict[str, Any] = {"records": 600, "features": 60, "classes": 3, "sites": 3, "site_shift": 3.0, "missing": 0.3}


def spec(defense: str = "fedavg", **changes: Any) -> dict[str, Any]:
    """Three in ten values missing, and sites so far apart that a site's mean is plainly not the public one."""
    return {
        "suite": "s",
        "task": "classification:dropout=0",
        "data": {"name": "synthetic", "params": GAPPY, "missing": "impute_by_site"},
        "split": {"unit": "record", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 50, "lr": 1e-3}},
        "probes": [{"gradients": 2, "batch": 1, "round": 0}],
        "engine": {"chunk": 4},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def raw(prepared: Prepared) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The cohort in public units with NaN where nothing was measured."""
    x = load_cohort(DataSpec(**spec()["data"])).x.astype(np.float64)
    assert prepared.row is not None
    return np.asarray((x[prepared.row.numpy()] - prepared.mean.double().numpy()) / prepared.scale.double().numpy())


# ------------------------------------------------------------------------------------------------------------ what is filled in


def test_a_site_fills_with_its_own_training_records_by_numpy() -> None:
    prepared = prepare(spec(), None)
    expected, public = raw(prepared), prepared.pool.x.clone()
    gaps = np.isnan(expected)
    assert 0.25 < gaps.mean() < 0.35
    filled = fill(prepared.pool.x, prepared.pool.gaps, prepared.sites)[-1]
    for site in prepared.sites:
        own = expected[site.numpy()]
        own = np.where(np.isnan(own), np.nanmean(own, 0), own)
        np.testing.assert_allclose(filled[site].numpy(), own, atol=1e-5)
        assert np.abs(own[gaps[site.numpy()]]).mean() > 0.3  # not the public mean by another name
    outside = torch.cat([prepared.validation, prepared.test, prepared.auxiliary])
    assert torch.equal(filled[outside], public[outside])
    assert torch.equal(prepared.pool.x, public)  # what everybody else reads is not written to
    assert bool((public[torch.from_numpy(gaps)] == 0).all())


def test_what_a_site_never_measured_keeps_the_public_mean() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [0.0, 6.0]])
    gaps = torch.tensor([[False, True], [False, True], [True, False], [False, False]])
    first, second = fill(x, gaps, [torch.tensor([0, 1]), torch.tensor([2, 3])])
    assert first is second  # sites that share no record share the memory
    assert first.tolist() == [[1.0, 0.0], [3.0, 0.0], [0.0, 8.0], [0.0, 6.0]]
    assert fill(x, gaps, [torch.tensor([0, 1, 2])])[0].tolist() == [[1.0, 8.0], [3.0, 8.0], [2.0, 8.0], [0.0, 6.0]]
    assert fill(x, None, [torch.tensor([0])])[0] is x


def test_a_site_that_holds_all_records_fills_them_by_all() -> None:
    x, gaps = torch.tensor([[2.0], [0.0], [8.0], [0.0]]), torch.tensor([[False], [True], [False], [True]])
    first, second, pooled = fill(x, gaps, [torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0, 1, 2, 3])])
    assert first[:, 0].tolist() == second[:, 0].tolist() == [2.0, 2.0, 8.0, 8.0]
    assert pooled[:, 0].tolist() == [2.0, 5.0, 8.0, 5.0]


def test_a_record_moves_no_input_but_its_own_site_s() -> None:
    prepared = prepare(spec(), None)
    moved = prepared.pool.x.clone()
    record = int(prepared.sites[0][0])
    moved[record] += torch.where(prepared.pool.gaps[record], 0.0, 5.0) if prepared.pool.gaps is not None else 0.0
    before, after = (fill(x, prepared.pool.gaps, prepared.sites)[0] for x in (prepared.pool.x, moved))
    touched = set((before != after).any(1).nonzero().squeeze(1).tolist())
    assert touched <= set(prepared.sites[0].tolist())
    assert len(touched) > len(prepared.sites[0]) / 2  # which is why it goes with no promise about records


# ------------------------------------------------------------------------------------------------------------ who trains on it


def same(ours: Trained, theirs: Trained) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(ours.finals, theirs.finals) for name in a)


@pytest.mark.parametrize("defense", ["fedavg", "centralized", "local_only", "infl:published", "infl:hardened:minimum=1"])
def test_sites_train_on_what_they_filled_in(defense: str) -> None:
    """Bit for bit what training on a pool that was filled beforehand gives; with the public fill it is something else."""
    bench = Bench(spec(defense, probes=[]), None)
    pool = bench.prepared.pool
    sites = (torch.cat(bench.prepared.sites),) if defense == "centralized" else bench.prepared.sites

    def trained(held: Pool) -> Trained:
        return train(bench.task, bench.stack, bench.federation, held, [bench.assignment()], keep=lambda _: False, chunk=4)[0]

    own = bench.train([bench.assignment()], target=False)[0]
    assert same(own, trained(replace(pool, x=fill(pool.x, pool.gaps, sites)[0], gaps=None)))
    assert not same(own, trained(replace(pool, gaps=None)))


def test_the_adversary_s_own_federations_fill_by_their_own_sites() -> None:
    bench = Bench(spec(probes=[]), None)
    pool = bench.prepared.pool
    drawn = [bench.reference_assignment(index)[0] for index in range(2)]
    for assignment, own in zip(drawn, bench.train(drawn, target=False)):
        held = replace(pool, x=fill(pool.x, pool.gaps, assignment.sites)[0], gaps=None)
        alone = train(bench.task, bench.stack, bench.federation, held, [assignment], keep=lambda _: False, chunk=4)[0]
        gap = max(float((own.finals[0][name] - value).abs().max()) for name, value in alone.finals[0].items())
        assert gap < 1e-6
        other = train(bench.task, bench.stack, bench.federation, replace(pool, gaps=None), [assignment], keep=lambda _: False, chunk=4)[0]
        assert max(float((own.finals[0][name] - value).abs().max()) for name, value in other.finals[0].items()) > 1e-4


def test_a_pooled_client_fills_as_one_that_holds_all() -> None:
    given = spec(probes=[], federation={"rounds": 1, "flaws": (POOLED,), "local": {"epochs": 1, "batch": 50, "lr": 1e-3}})
    bench = Bench(given, None)
    trained = bench.train([bench.assignment()], target=False)[0]
    pool, sites = bench.prepared.pool, bench.prepared.sites
    wrong = replace(pool, x=fill(pool.x, pool.gaps, sites)[0], gaps=None)
    assert not same(trained, train(bench.task, bench.stack, bench.federation, wrong, [bench.assignment()], chunk=4)[0])


# ------------------------------------------------------------------------------------------------------------ who must not see it


class _FromRecords:
    """Membership from the candidates' values alone."""

    goal: ClassVar[Goal] = "membership"
    needs: ClassVar[frozenset[Sees]] = frozenset({"candidates", "auxiliary"})


class PublicMeans(_FromRecords):
    """Who has values that are exactly the public mean was filled publicly."""

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        return Guess(-(seen.candidates.x == 0).sum(1).double())


class Repeated(_FromRecords):
    """Who has values that others have to the last bit was filled by the same site."""

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        x = seen.candidates.x
        found = torch.zeros(len(x), dtype=torch.float64)
        for column in x.T:
            _, place, times = torch.unique(column, return_inverse=True, return_counts=True)
            found += (times[place] > 1) & (column != 0)
        return Guess(found)


def aucs(given: dict[str, Any], folder: Path, *, leak: bool = False) -> dict[str, float]:
    """Of each attack; with ``leak`` the candidates as their sites filled them, which is what must never be."""
    folder.mkdir(parents=True)
    train_cell(given, folder)
    bench = Bench(given, None)
    member = bench.prepared.member.numpy()
    attacks: list[Attack] = [Blind(), PublicMeans(), Repeated()]
    if leak:
        bench.prepared = replace(bench.prepared, pool=replace(bench.prepared.pool, x=bench.inputs, gaps=None))
    trial = Trial(bench, Threat(), folder, [])
    found = {}
    for attack in attacks:
        scores = trial.guess(attack, "a")[0].value.numpy()
        found[type(attack).__name__] = float(mannwhitneyu(scores[member], scores[~member]).statistic / (member.sum() * (~member).sum()))
    return found


def test_no_candidate_tells_by_its_fill_whether_it_is_a_member(tmp_path: Path) -> None:
    """With three in ten values missing, over three splits of 300 members and 120 others (one split errs by .03)."""
    each = [aucs(spec(seed=seed, probes=[]), tmp_path / "work" / f"{seed}") for seed in range(3)]
    for name in each[0]:
        assert abs(np.mean([found[name] for found in each]) - 0.5) < 0.06, (name, each)
    leaked = aucs(spec(probes=[]), tmp_path / "work" / "leaked", leak=True)
    assert leaked["PublicMeans"] > 0.99  # what the same attacks find where the site's fill reaches the candidates
    assert leaked["Repeated"] > 0.99


def test_a_candidate_looks_the_same_whether_it_is_a_member_or_not() -> None:
    """Other splits make other members: the same record, filled by the public mean, has the same gaps at the public mean each time."""
    for seed in range(2):
        prepared = prepare(spec(seed=seed), None)
        asked = prepared.candidates
        assert prepared.pool.gaps is not None
        shown = prepared.records(asked).x
        assert bool((shown[prepared.pool.gaps[asked]] == 0).all())
        np.testing.assert_allclose(shown.numpy(), np.nan_to_num(raw(prepared)[asked.numpy()]), atol=1e-5)


def test_the_truth_of_a_reconstruction_is_what_the_site_fed(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(spec(), folder)
    trial = Trial(Bench(spec(), None), Threat(), folder, [])
    rows, _ = trial.run(ClosedForm(), "closed_form", {"attack": "closed_form", "goal": "reconstruction", "view": "server", "key": "none"})
    found = {row["metric"]: row["value"] for row in rows}
    assert found["exact"] == 1.0
    assert found["reidentified"] == 1.0


def test_a_site_sees_its_own_records_as_it_filled_them(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(spec(), folder)
    bench = Bench(spec(), None)
    trial = Trial(bench, Threat(view="site"), folder, [])
    assert torch.equal(trial.seen.own_records.x, bench.inputs[bench.prepared.sites[bench.colluder]])
    assert torch.equal(trial.seen.candidates.x, bench.prepared.pool.x[bench.prepared.candidates])


# ------------------------------------------------------------------------------------------------------------ what does not go with it


@pytest.mark.parametrize("defense", ["dp_sgd:epsilon=8", "dp_sgd:noise_multiplier=0"])
def test_under_a_promise_about_records_gaps_keep_the_public_fill(defense: str) -> None:
    bench = Bench(spec(defense), None)
    assert bench.prepared.pool.gaps is None
    assert bench.inputs is bench.prepared.pool.x
    gappy = prepare(spec(), None).pool
    with pytest.raises(RequestError, match=r"no epsilon covers; use missing: impute \(--missing impute\)$"):
        train(bench.task, bench.stack, bench.federation, gappy, [bench.assignment()])


def test_a_promise_about_whole_sites_goes_with_it() -> None:
    bench = Bench(spec("dp_fedavg:epsilon=8"), None)
    claim = bench.stack.claim(bench.federation, bench.shape)
    assert claim is not None
    assert (claim.kind, claim.unit) == ("dp", "site")
    assert bench.prepared.pool.gaps is not None
    bench.train([bench.assignment()], target=False)


def test_an_audit_s_canaries_move_nobody_s_inputs() -> None:
    bench = Bench(spec(inserts="random_canaries:count=8", probes=[]), None)
    assert bench.prepared.pool.gaps is None


# ------------------------------------------------------------------------------------------------------------ how it is asked for


def test_it_is_asked_for_and_kept_beside_the_cells(tmp_path: Path) -> None:
    public = spec(data={**spec()["data"], "missing": "impute"})
    assert prepare(public, None).pool.gaps is None
    fresh, kept = prepare(spec(), tmp_path).pool, prepare(spec(), tmp_path).pool
    assert fresh.gaps is not None
    assert kept.gaps is not None
    assert torch.equal(fresh.gaps, kept.gaps)
    assert torch.equal(fresh.x, prepare(public, None).pool.x)
    whole = {**GAPPY, "missing": 0.0}
    assert prepare(spec(data={**spec()["data"], "params": whole}), None).pool.gaps is None  # nothing is missing


def test_another_word_and_a_task_without_features_are_told(tmp_path: Path) -> None:
    text = "suite: s\ndata: {name: cptac, missing: by_site}\ndefenses: [fedavg]\n"
    with pytest.raises(RequestError, match=r"line 2: 'data.missing': input should be 'error', 'impute' or 'impute_by_site', but"):
        parse(text, tmp_path / "s.yaml")
    tissue = {"name": "synthetic_tissue", "params": {"rows": 8, "columns": 8, "features": 6}, "missing": "impute_by_site"}
    with pytest.raises(
        RequestError,
        match=r"spatial_domains lays out records of its own \(targets, neighbours\); use missing: impute \(--missing impute\)$",
    ):
        prepare(spec(task="spatial_domains", data=tissue), None)
