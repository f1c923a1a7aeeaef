"""Attacks where a loss is about numbers and not about classes: exact where nothing protects, silent where nothing is there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from attacks.gradient_inversion.closed_form import ClosedForm
from suites.bench import Bench, Row
from suites.contracts import Threat
from suites.referee import attack_cell, reference_cell, train_cell
from suites.trial import Trial

SCREEN = {"name": "synthetic_perturbation", "params": {"features": 60, "perturbed": 9, "doubles": 4, "cells": 8}}
TISSUE = {"name": "synthetic_tissue", "params": {"rows": 20, "columns": 20, "features": 12}}
PAIRED = {"name": "synthetic_paired", "params": {"cells": 200, "features": 70}}
TASKS = {"perturbation": (SCREEN, "person"), "spatial_domains": (TISSUE, "person"), "integration": (PAIRED, "record")}


def spec(task: str, defense: str = "fedavg", **changes: Any) -> dict[str, Any]:
    data, unit = TASKS[task.partition(":")[0]]
    return {
        "suite": "s",
        "task": task,
        "data": data,
        "split": {"unit": unit, "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 1, "local": {"epochs": 1, "batch": 50, "lr": 1e-3}},
        "probes": [{"gradients": 2, "batch": 1, "round": 0}],
        "engine": {"chunk": 1},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def run(folder: Path, given: dict[str, Any], *attacks: str, key: str = "none", references: int = 0) -> dict[str, dict[str, Row]]:
    """Every attack's rows by metric; a skipped one has its reason under ""."""
    inputs = {"train": folder / "train" / "target"}
    for name in ("target",) if not references else ("target", "reference"):
        (folder / ("train" if name == "target" else "reference") / name).mkdir(parents=True, exist_ok=True)
    train_cell(given, inputs["train"])
    if references:
        inputs["reference:0"] = folder / "reference" / "reference"
        reference_cell({**given, "first": 0, "count": references, "probes": []}, inputs["reference:0"])
    found = {}
    for attack in attacks:
        out = folder / "attack" / attack
        out.mkdir(parents=True)
        attack_cell({**given, "attack": attack, "threat": {"view": "server", "key": key}, "budget": 1.0}, out, inputs)
        found[attack] = {row["metric"]: row for row in json.loads((out / "rows.json").read_text())}
    return found


@pytest.mark.parametrize("task", list(TASKS))
def test_one_record_comes_back_exactly_without_any_label(task: str, tmp_path: Path) -> None:
    """Also what the network was to predict, of which the perturbation's message holds the residual alone."""
    closed = run(tmp_path, spec(task), "closed_form")["closed_form"]
    assert closed["r2"]["value"] > 0.999
    assert closed["exact"]["value"] == 1.0
    assert closed["reidentified"]["value"] == 1.0


def test_a_step_of_plain_gradient_descent_gives_as_much(tmp_path: Path) -> None:
    probe = {"gradients": 1, "batch": 1, "round": 0, "optimiser": "sgd", "steps": 1, "lr": 0.05}
    closed = run(tmp_path, spec("perturbation", probes=[probe]), "closed_form")["closed_form"]
    assert closed["exact"]["value"] == 1.0


@pytest.mark.parametrize("task", list(TASKS))
def test_noise_leaves_nothing_to_read(task: str, tmp_path: Path) -> None:
    """The null of the inversion: messages that are all noise say no more of the records than the best control does."""
    closed = run(tmp_path, spec(task, "dp_sgd:noise_multiplier=50"), "closed_form")["closed_form"]
    assert closed["leakage"]["value"] < 0.05
    assert closed["exact"]["value"] == 0.0


def test_what_is_predicted_is_the_residual_and_not_a_copy_of_the_truth(tmp_path: Path) -> None:
    """By hand: mean squared error over T genes, so target = output - T/2 of the output bias' slope."""
    given = spec("perturbation")
    bench = Bench(given, None)
    trained = bench.train([bench.assignment()], target=True)[0]
    layout = bench.prepared.layout
    assert layout is not None
    probe = trained.rounds[0].probes[0]
    record = bench.prepared.pool.x[list(probe.probe.records[0])]
    outputs = bench.predict(trained.secret)(trained.rounds[0].broadcast, record)
    by_hand = outputs[:, : layout.target] - probe.messages[0].payload["decoder.bias"] * layout.target / 2
    torch.testing.assert_close(by_hand, record[:, layout.fed :], rtol=1e-3, atol=1e-4)


def test_a_key_holder_is_told_what_a_stranger_is_not(tmp_path: Path) -> None:
    stranger = run(tmp_path / "a", spec("spatial_domains", "infl:hardened:minimum=1"), "closed_form")["closed_form"]
    holder = run(tmp_path / "b", spec("spatial_domains", "infl:hardened:minimum=1"), "closed_form", key="leaked")["closed_form"]
    assert holder["cosine"]["value"] > 0.99
    assert stranger["cosine"]["value"] < 0.5


@pytest.mark.parametrize("task", ["perturbation", "spatial_domains"])
def test_a_batch_is_found_in_its_row_space(task: str, tmp_path: Path) -> None:
    probes = [{"gradients": 1, "batch": 2, "round": 0}]
    found = run(tmp_path, spec(task, probes=probes), "row_space:limit=1")["row_space:limit=1"]
    assert found["r2"]["value"] > 0.99


def test_a_batch_behind_a_contrastive_gradient_comes_back(tmp_path: Path) -> None:
    """Reconstruction and contrast at once, no label: rows of both first layers give most of the variance, if no record exactly."""
    probes = [{"gradients": 1, "batch": 4, "round": 0}]
    found = run(tmp_path, spec("integration", probes=probes), "ladder")["ladder"]
    assert found["r2"]["value"] > 0.6
    assert found["leakage"]["value"] > 0.5
    assert found["chance_r2"]["value"] < 0  # records drawn at random, matched as well as they can be


def test_a_batch_behind_noise_does_not_come_back(tmp_path: Path) -> None:
    """The null of the same search: the message is all noise."""
    probes = [{"gradients": 1, "batch": 4, "round": 0}]
    found = run(tmp_path, spec("integration", "dp_sgd:noise_multiplier=50", probes=probes), "ladder", "cosine_inversion")
    for name in ("ladder", "cosine_inversion"):
        assert found[name]["r2"]["status"] == "ok"
        assert found[name]["leakage"]["value"] < 0.05
        assert found[name]["exact"]["value"] == 0.0


def test_a_keyed_batch_is_searched_without_the_key(tmp_path: Path) -> None:
    """Keys are single precision and the search is double: they meet."""
    probes = [{"gradients": 1, "batch": 1, "round": 0}]
    given = spec("perturbation", "infl:published:strength=1", probes=probes)
    found = run(tmp_path, given, "row_space:limit=1:budget=20:restarts=1", "row_space_of_sum:limit=1:budget=5:restarts=1", "norms_of_sum")
    assert all("r2" in found[name] for name in found if name.startswith("row_space"))
    assert found["norms_of_sum"][""]["status"] == "skipped"


def test_what_cannot_apply_is_skipped_with_its_reason(tmp_path: Path) -> None:
    found = run(tmp_path, spec("integration"), "row_space", "modified_entropy")
    assert {name: rows[""]["status"] for name, rows in found.items()} == {"row_space": "skipped", "modified_entropy": "skipped"}
    assert "two first layers" in found["row_space"][""]["reason"]
    assert "predicts none" in found["modified_entropy"][""]["reason"]


def membership(rate: float, epochs: int) -> dict[str, Any]:
    """Cells drawn at random from each condition, two of four in training: what a condition's mean says of its cells is their membership."""
    return spec(
        "perturbation",
        data={"name": "synthetic_perturbation", "params": {"features": 60, "perturbed": 30, "doubles": 0, "cells": 4}},
        split={"unit": "record", "train": 0.4, "validation": 0, "test": 0.4, "auxiliary": 0.2},
        federation={"rounds": 2, "local": {"epochs": epochs, "batch": 50, "lr": rate}},
        probes=[],
    )


MEMBERSHIP = ("loss_threshold", "lira", "span", "round_cosine")


def test_membership_shows_where_a_model_learns_its_cells(tmp_path: Path) -> None:
    found = run(tmp_path, membership(1e-2, 60), *MEMBERSHIP, references=4)
    for name in ("loss_threshold", "lira", "round_cosine"):
        assert found[name]["auc"]["low"] > 0.55, name


def test_membership_is_chance_where_nothing_was_learnt(tmp_path: Path) -> None:
    """Training at a rate of nearly nothing: whatever a score then tells apart, the training did not put there."""
    found = run(tmp_path, membership(1e-9, 1), "loss_threshold", "lira", references=4)
    for name, rows in found.items():
        n = rows["auc"]["n"] / 2
        error = math.sqrt((2 * n + 1) / (12 * n * n))
        assert abs(rows["auc"]["value"] - 0.5) < 3.5 * error, name


def test_a_place_that_no_message_depends_on_is_not_scored(tmp_path: Path) -> None:
    """Two columns of a spot's place travel aside: guessing them wrong may not hide that everything else came back."""
    given = spec("spatial_domains")
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(given, folder)
    bench = Bench(given, None)
    layout = bench.prepared.layout
    assert layout is not None
    assert (layout.aside, layout.target) == (2, 0)
    rows, _ = Trial(bench, Threat(), folder, []).run(ClosedForm(), "closed_form", {"attack": "closed_form", "goal": "reconstruction"})
    assert next(row for row in rows if row["metric"] == "r2")["value"] > 0.999


def test_a_cell_that_sent_nothing_falls_out_of_its_neighbours_message(tmp_path: Path) -> None:
    """Whoever knows five of a spot's six neighbours reads the sixth off its message: the mean over all is in the record (graph known)."""
    given = spec("spatial_domains", data={"name": "synthetic_tissue", "params": {"rows": 24, "columns": 24, "features": 12}})
    folder = tmp_path / "train" / "target"
    folder.mkdir(parents=True)
    train_cell(given, folder)
    bench = Bench(given, None)
    trial = Trial(bench, Threat(), folder, [])
    guess, _ = trial.guess(ClosedForm(), "closed_form")
    probe = trial.evidence.rounds[0].probes[0].probe
    x, tile, genes = bench.prepared.pool.x, bench.prepared.person, 12
    spot = probe.records[0][0]
    assert tile is not None
    home = (tile == tile[spot]).nonzero().squeeze(1)
    gap = (x[home, -2:] - x[spot, -2:]).norm(dim=1).double()
    near = home[gap.argsort()[1:7]]
    torch.testing.assert_close(x[near, :genes].mean(0), x[spot, genes : 2 * genes], rtol=1e-4, atol=1e-4)  # choose another seed: a tie
    unseen = next(i for i in near.tolist() if i not in probe.records[0])
    known = [i for i in near.tolist() if i != unseen]
    read = 6 * guess.value[0][0, genes : 2 * genes] - x[known, :genes].sum(0)
    assert float(torch.nn.functional.cosine_similarity(read, x[unseen, :genes], dim=0)) > 0.99


SECTIONS = {"sections": 30, "rows": 4, "columns": 4, "features": 40, "section_shift": 2.0, "noise": 0.3}


def unit_row(folder: Path, rate: float, unit: str, task: str = "spatial_domains:unit=section", **changes: Any) -> Row:
    """The AUC over units, or the reason why there is none, of the loss threshold on small sections of unlike tissue."""
    given = spec(
        task,
        "centralized",
        **{
            "data": {"name": "synthetic_tissue", "params": SECTIONS},
            "split": {"unit": "person", "train": 0.4, "validation": 0, "test": 0.4, "auxiliary": 0.2},
            "federation": {"rounds": 1, "local": {"epochs": 80, "batch": 36, "lr": rate}},
            "probes": [],
            **changes,
        },
    )
    target, out = folder / "train" / "target", folder / "attack" / "loss"
    target.mkdir(parents=True)
    out.mkdir(parents=True)
    train_cell(given, target)
    threat = {"view": "server", "key": "none", "unit": unit}
    attack_cell({**given, "attack": "loss_threshold", "threat": threat, "budget": 1.0}, out, {"train": target})
    rows = {row["metric"]: row for row in json.loads((out / "rows.json").read_text())}
    found: Row = rows.get("auc", rows.get("", {}))
    return found


def test_membership_of_a_section_shows_where_its_cells_are_learnt_and_not_where_nothing_is(tmp_path: Path) -> None:
    learnt, nothing = unit_row(tmp_path / "learnt", 1e-2, "person"), unit_row(tmp_path / "nothing", 1e-9, "person")
    assert learnt["n"] == nothing["n"] == 24  # sections
    assert learnt["value"] > 0.9
    assert 0.15 < nothing["value"] < 0.85


def test_membership_of_a_section_that_is_a_site_is_asked_where_some_are_held_out(tmp_path: Path) -> None:
    """Here a section is a hospital's: tiles are what the parts share out, and nine of thirty sections take no part."""
    tiles: dict[str, Any] = {
        "task": "spatial_domains:tiles=3",
        "split": {"unit": "person", "train": 0.6, "validation": 0, "test": 0.2, "auxiliary": 0.2},
    }
    asked = unit_row(tmp_path / "asked", 1e-2, "site", partition={"kind": "column", "held_out": 9}, **tiles)
    assert asked["n"] == 30
    assert asked["value"] > 0.7
    without = unit_row(tmp_path / "without", 1e-9, "site", **tiles)
    assert without["status"] == "skipped"
    assert "every site takes part" in without["reason"]


def test_where_nobody_is_named_membership_of_donors_is_skipped(tmp_path: Path) -> None:
    given = spec("integration", probes=[])
    target, out = tmp_path / "train" / "target", tmp_path / "attack" / "loss"
    target.mkdir(parents=True)
    out.mkdir(parents=True)
    train_cell(given, target)
    threat = {"view": "server", "key": "none", "unit": "person"}
    attack_cell({**given, "attack": "loss_threshold", "threat": threat, "budget": 1.0}, out, {"train": target})
    (row,) = json.loads((out / "rows.json").read_text())
    assert row["status"] == "skipped"
    assert "no person column" in row["reason"]
