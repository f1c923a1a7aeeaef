"""Who holds a cell's own expression and not its neighbours': what reaches an attack, what span still tells, how its rows read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.membership.lira import LiRA
from attacks.membership.matched_span import MatchedSpan, MatchedSpanOfSum
from attacks.membership.span import SpanMembership, SpanMembershipOfSum
from reports import schema, words
from reports.roc import auc
from suites import config
from suites.bench import Bench
from suites.contracts import Attack, RequestError, Skip, Threat
from suites.observation import Guarded, Seen
from suites.plan import plan
from suites.referee import attack_cell, train_cell
from suites.trial import Trial

GENES = 80  # own columns; 34 to 42 cells stand behind each site's update
UNKNOWN = {"view": "server", "neighbours": "unknown"}
SPANS = [SpanMembership, SpanMembershipOfSum, MatchedSpan, MatchedSpanOfSum]
SUITE: dict[str, Any] = {
    "suite": "s",
    "task": "spatial_domains:tiles=4",
    "data": {"name": "synthetic_tissue", "params": {"sections": 2, "rows": 10, "columns": 10, "features": GENES}},
    "split": {"unit": "person", "train": 0.35, "validation": 0, "test": 0.35, "auxiliary": 0.3},
    "partition": {"kind": "column"},
    "federation": {"rounds": 1, "local": {"epochs": 2, "batch": 10, "optimiser": "sgd", "lr": 0.05}},
    "probes": [],
}
SPEC = {**SUITE, "engine": {"chunk": 1}, "defense": "fedavg", "seed": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tissue") / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(SPEC, folder)
    return folder


@pytest.fixture(scope="module")
def bench(trained: Path) -> Bench:
    return Bench(SPEC, trained.parent.parent / "prepared")


def trial(bench: Bench, trained: Path, **threat: Any) -> Trial:
    return Trial(bench, Threat(**threat), trained, [])


def scores(attack: Attack, seen: Seen) -> torch.Tensor:
    found: torch.Tensor = attack.run(Guarded(seen, frozenset(attack.needs)), torch.Generator().manual_seed(0)).value
    return found


def test_the_neighbours_of_a_candidate_reach_nobody_and_the_mask_says_so(bench: Bench, trained: Path) -> None:
    """Every tensor that a guarded observation hands out about candidates, under either threat and each unit."""
    whole = bench.prepared.records(bench.prepared.candidates)
    assert whole.x.shape[1] == 3 * GENES + 2
    for unit in ("record", "person"):
        seen = Guarded(trial(bench, trained, **UNKNOWN, unit=unit).seen, LiRA.needs | SpanMembership.needs)
        mask = seen.known["columns"].value
        assert mask.dtype == torch.bool
        assert mask.tolist() == [True] * GENES + [False] * (2 * GENES + 2)
        assert torch.equal(seen.candidates.x[:, mask], whole.x[:, :GENES])
        assert float(seen.candidates.x[:, ~mask].abs().max()) == 0.0
        assert torch.equal(seen.candidates.y, whole.y)
        assert (seen.candidates.person is not None) == (unit == "person")
        held = [seen.candidates.x, seen.auxiliary.x, *(fact.value for fact in seen.known.values() if isinstance(fact.value, torch.Tensor))]
        secret = whole.x[:, GENES : 2 * GENES]  # what neighbours gave: in nothing that is handed out
        for tensor in (one for one in held if one.ndim == 2):
            assert float(torch.cdist(secret, tensor[:, GENES : 2 * GENES]).min()) > 0.0
    known = Guarded(trial(bench, trained).seen, LiRA.needs)
    assert bool(known.known["columns"].value.all())
    assert torch.equal(known.candidates.x, whole.x)


@pytest.mark.parametrize("attack", SPANS)
def test_with_fewer_cells_than_genes_members_are_told_by_their_own_expression(attack: type[Attack], bench: Bench, trained: Path) -> None:
    """Plain SGD: the rows of dW cut to the own columns span the members' own expression, whatever their neighbours gave."""
    member = bench.prepared.member
    at = trial(bench, trained, **UNKNOWN)
    assert max(len(site) for site in bench.prepared.sites) < GENES
    told = scores(attack(), at.seen)
    bar = 0.95 if "updates" in attack.needs else 0.8  # behind a sum stand twice as many cells
    assert auc(told.numpy(), member.numpy()).value > bar
    if attack is SpanMembership:
        assert float(told[member].min()) > 0.999  # known answer: the whole of each member, and of a stranger a part
        assert float(told[~member].max()) < 0.99


@pytest.mark.parametrize("attack", SPANS)
def test_neither_neighbours_nor_places_move_a_score_and_noise_is_no_member(attack: type[Attack], bench: Bench, trained: Path) -> None:
    member, at = bench.prepared.member, trial(bench, trained, **UNKNOWN)
    x, drawn = at.scene.candidates.x, torch.Generator().manual_seed(3)
    told = scores(attack(), at.seen)

    def asked(own: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        scene = replace(at.scene, candidates=replace(at.scene.candidates, x=torch.cat([own, rest], 1)))
        return scores(attack(), Seen(scene, at.evidence, at.threat))

    noise = torch.randn(x.shape, generator=drawn)
    assert torch.equal(asked(x[:, :GENES], noise[:, GENES:]), told)
    nothing = asked(noise[:, :GENES], x[:, GENES:])  # with the true neighbours' columns, which nobody may read
    found = auc(nothing.numpy(), member.numpy())
    assert found.low <= 0.5 <= found.high


def test_no_training_is_chance(bench: Bench, tmp_path: Path) -> None:
    """The null: updates that are all noise (DP-SGD's) say nothing of who took part."""
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    drowned = {**SPEC, "defense": "dp_sgd:noise_multiplier=50"}
    train_cell(drowned, folder)
    at = trial(Bench(drowned, tmp_path / "prepared"), folder, **UNKNOWN)
    for attack in (SpanMembership, MatchedSpan):
        found = auc(scores(attack(), at.seen).numpy(), bench.prepared.member.numpy())
        assert found.low <= 0.5 <= found.high


def row(folder: Path, trained: Path, spec: Mapping[str, Any], attack: str, **threat: Any) -> dict[str, Any]:
    out = folder / "attack" / f"{attack}-{'-'.join(threat.values())}"
    out.mkdir(parents=True)
    attack_cell({**spec, "attack": attack, "threat": threat, "budget": 1.0}, out, {"train": trained})
    rows = {row["metric"]: row for row in json.loads((out / "rows.json").read_text())}
    found: dict[str, Any] = rows.get("auc", rows.get("", {}))
    return found


def test_rows_stand_apart_from_those_where_neighbours_are_known(trained: Path) -> None:
    folder = trained.parent.parent
    known, unknown = (row(folder, trained, SPEC, "span", view="server", neighbours=one) for one in ("known", "unknown"))
    assert (known["view"], unknown["view"]) == ("server", "server_neighbours_unknown")
    assert known["goal"] == unknown["goal"] == "membership"
    assert unknown["value"] > 0.95
    for view in schema.VIEWS:
        assert view in words.VIEWS
        assert view in words.SEES
    assert words.threat("server_neighbours_unknown", "none") == "server, neighbours unknown, no key"
    assert words.threat("server", "none") == "server, no key"
    assert Threat(active=True, neighbours="unknown").view_label == "active_server_neighbours_unknown"
    for view in ("server", "site", "outsider"):
        given: Any = {"view": view, "neighbours": "unknown"}
        spec = config.ThreatSpec(**given)
        assert spec.view_label == Threat(**given).view_label
        assert spec.view_label in schema.VIEWS


def test_a_task_whose_records_hold_nobody_else_s_data_is_skipped(tmp_path: Path) -> None:
    """By the plan from the task's text, and by the referee for whoever comes past it."""
    spec = {
        **SPEC,
        "task": "classification",
        "data": {"name": "synthetic", "params": {"records": 200, "features": 12}},
        "partition": {"kind": "iid", "sites": 2},
        "split": {"unit": "record", "train": 0.5, "validation": 0, "test": 0.3, "auxiliary": 0.2},
    }
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(spec, folder)
    skipped = row(tmp_path, folder, spec, "loss_threshold", **UNKNOWN)
    assert skipped["status"] == "skipped"
    assert "leave out neighbours: unknown" in skipped["reason"]
    with pytest.raises(Skip, match="no record of this task holds what its neighbours gave"):
        trial(Bench(spec, None), folder, **UNKNOWN)
    planned = asked(task="classification", data=spec["data"], partition=spec["partition"], split=spec["split"])
    assert {said.columns["attack"] for said in planned.skipped} == {"loss_threshold"}
    assert all("leave out neighbours: unknown" in said.reason for said in planned.skipped)


def asked(**changes: Any) -> Any:
    """Both threats of an attack that reads candidates and of one that does not."""
    given = {
        "probes": [{"gradients": 1}],
        "seeds": 1,
        "defenses": ["fedavg"],
        "attacks": ["loss_threshold", "closed_form"],
        "threats": [{"view": "server"}, UNKNOWN],
    }
    return plan(config.SuiteSpec.model_validate({**SUITE, **given, **changes}), "cpu")


def test_only_who_asks_about_candidates_is_asked_twice() -> None:
    found = asked()
    views = {(cell.columns["attack"], cell.columns["view"]): cell for cell in found.cells if cell.stage == "attack"}
    assert set(views) == {
        ("loss_threshold", "server"),
        ("loss_threshold", "server_neighbours_unknown"),
        ("closed_form", "server"),
    }
    assert len({cell.id for cell in views.values()}) == 3
    assert not found.skipped
    alone = asked(threats=[UNKNOWN])
    assert {(cell.columns["attack"], cell.columns["view"]) for cell in alone.cells if cell.stage == "attack"} == set(views) - {
        ("loss_threshold", "server")
    }
    default = asked(threats=[{"view": "server", "neighbours": "known"}])
    assert {cell.id for cell in default.cells} == {cell.id for cell in asked(threats=[{"view": "server"}]).cells}


def test_mistakes_complain(tmp_path: Path) -> None:
    text = (config.CATALOG / "spatial.yaml").read_text().split("threats:")[0]
    for threat, said in (
        ("{view: server, neighbours: some}", "neighbours"),
        ("{view: server, neighbors: unknown}", "did you mean 'neighbours'"),
    ):
        with pytest.raises(RequestError, match=said):
            config.parse(f"{text}threats:\n  - {threat}\n", tmp_path / "s.yaml")
    with pytest.raises(RequestError, match="threats holds 'view server_neighbours_unknown"):
        asked(threats=[UNKNOWN, UNKNOWN])


@pytest.mark.parametrize("name", ["spatial", "spatial_osmfish"])
def test_the_suites_of_tissue_ask_both_ways(name: str) -> None:
    spec, _ = config.load(name)
    assert {"server", "server_neighbours_unknown"} <= {threat.view_label for threat in spec.threats}
    assert "matched_span" in spec.attacks
