"""A suite with several tasks: written once, planned together, told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from suites import api, parts
from suites.cohorts.registry import card
from suites.config import SuiteSpec, load, override, parse
from suites.errors import RequestError
from suites.plan import plan

TEXT = """suite: two
title: Two tasks
seeds: 2
references: 0
defenses: [fedavg]
attacks: [loss_threshold]
federation: {rounds: 1, local: {epochs: 1}}
parts:
  - task: classification:dropout=0
    data: {name: synthetic, params: {records: 120, features: 12, sites: 2}}
    partition: {kind: iid, sites: 2}
  - task: perturbation:hidden=8
    data: {name: synthetic_perturbation, params: {features: 10, perturbed: 4, doubles: 2, cells: 6}}
    partition: {kind: column}
    defenses: [fedavg, "infl:published:strength=1"]
    attacks: [loss_threshold, closed_form]
    probes: {gradients: 1, batch: 1, round: 0}
"""


def two(text: str = TEXT) -> SuiteSpec:
    return parse(text, Path("two.yaml"))


def test_what_is_trained_for_utility_alone_has_rows_of_utility_and_brings_the_simple_methods(tmp_path: Path) -> None:
    text = TEXT.replace("seeds: 2", "seeds: 1").replace(
        "attacks: [loss_threshold]\n", "attacks: [loss_threshold]\nutility_only: [centralized]\n", 1
    )
    (tmp_path / "two.yaml").write_text(text)
    found = api.run(tmp_path / "two.yaml", out=tmp_path / "out", workers=1, report=True)
    alone = found[found["defense"] == "centralized"]
    assert not (found["status"] == "failed").any()
    assert set(alone["goal"]) == {"utility", "cost"}
    assert set(alone["attack"]) == {""}
    assert {"accuracy:above_logistic_regression", "pearson_delta:above_additive_model"} <= set(alone["metric"])
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Utility minus that of each control on the same seed" in page


def test_a_part_is_the_suite_but_for_what_it_says() -> None:
    first, second = two().parts
    assert (first.task, second.task) == ("classification:dropout=0", "perturbation:hidden=8")
    assert first.federation == second.federation
    assert (first.seeds, second.seeds) == (2, 2)
    assert (first.defenses, second.defenses) == (("fedavg",), ("fedavg", "infl:published:strength=1"))
    assert two().data == first.data  # the suite's own is its first part's
    assert load("quickstart")[0].each == (load("quickstart")[0],)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("partition: {kind: column}", "partion: {kind: column}", ["unknown key 'partion'", "did you mean 'partition'"]),
        ("    attacks: [loss_threshold, closed_form]", "    seeds: 7", ["'seeds'", "beside parts"]),
        (
            "  - task: perturbation:hidden=8\n"
            "    data: {name: synthetic_perturbation, params: {features: 10, perturbed: 4, doubles: 2, cells: 6}}",
            "  - task: classification:dropout=0.5\n    data: {name: synthetic}",
            ["two parts", "classification on synthetic"],
        ),
    ],
)
def test_each_mistake_in_a_part_is_one_sentence(old: str, new: str, words: list[str]) -> None:
    assert old in TEXT
    with pytest.raises(RequestError) as caught:
        two(TEXT.replace(old, new))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_an_option_changes_every_part() -> None:
    changed = override(two(), seeds=5, attacks=["blind"])
    assert [(part.seeds, part.attacks) for part in changed.parts] == [(5, ("blind",))] * 2
    assert (changed.seeds, changed.title) == (5, "Two tasks")


def test_a_task_picks_its_part() -> None:
    found, left = parts.chosen(two(), "perturbation")
    assert (found.task, found.parts, left) == ("perturbation:hidden=8", (), None)
    assert parts.chosen(load("quickstart")[0], "perturbation")[1] == "perturbation"  # without parts it replaces the task
    with pytest.raises(RequestError, match="did you mean 'perturbation'"):
        parts.chosen(two(), "pertubation")


def test_a_file_needs_to_know_whose_it_is(tmp_path: Path) -> None:
    suite = tmp_path / "two.yaml"
    suite.write_text(TEXT)
    with pytest.raises(RequestError, match="--data needs to know which; add --task"):
        api.request(suite, data="nowhere.h5ad")
    with pytest.raises(RequestError, match="--label needs to know which"):
        api.request(suite, label="x")


def test_parts_are_planned_together_and_trainings_come_first() -> None:
    whole = plan(two(), "cpu")
    each = [plan(part, "cpu") for part in two().parts]
    assert {cell.id for cell in whole.cells} == {cell.id for one in each for cell in one.cells}
    assert len(whole.skipped) == sum(len(one.skipped) for one in each)
    stages = [cell.stage for cell in whole.cells]
    assert stages == sorted(stages, key=("train", "reference", "attack").index)


def test_the_report_shows_the_parts_apart(tmp_path: Path) -> None:
    suite = tmp_path / "two.yaml"
    suite.write_text(TEXT)
    table = api.run(suite, out=tmp_path / "out", workers=1, seeds=1)
    assert not (table["status"] == "failed").any()
    assert set(zip(table["task"], table["data"])) == {
        ("classification:dropout=0", "synthetic"),
        ("perturbation:hidden=8", "synthetic_perturbation"),
    }
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    for heading in ("synthetic, classification:dropout=0", "synthetic_perturbation, perturbation:hidden=8"):
        assert page.count(heading) >= 3, heading  # verdict, data and threat model at least
    assert "Single records are drawn for embedded" not in page  # both cohorts are generated


def test_without_downloads_every_cohort_is_installed_or_generated() -> None:
    spec = load("standard")[0]
    assert any(card(str(part.data.name)).download for part in spec.parts)
    stood = parts.embedded(spec)
    stand_ins = ["pbmc68k", "synthetic", "synthetic_perturbation", "synthetic_tissue", "synthetic_paired"]
    assert [part.data.name for part in stood.parts] == stand_ins
    assert [part.task for part in stood.parts] == [part.task for part in spec.parts]
    assert not any(card(str(part.data.name)).download for part in stood.parts)
    with pytest.raises(RequestError, match="give one of them"):
        api.request("quickstart", data="pbmc68k", data_only_embedded=True)


def test_every_download_has_a_stand_in() -> None:
    from suites.cohorts.registry import CARDS

    for about in CARDS.values():
        assert bool(about.stand_in) == about.download
        assert not about.download or not card(about.stand_in).download


def test_standard_holds_what_it_promises() -> None:
    spec = load("standard")[0]
    tasks = [part.task.partition(":")[0] for part in spec.parts]
    assert tasks == ["classification", "classification", "perturbation", "spatial_domains", "integration"]
    assert [part.data.name for part in spec.parts][:2] == ["pbmc68k", "cptac"]  # cells, and proteomes as the suite of that name
    for name, part in zip(["proteomics", "perturbation", "spatial", "multiomics"], spec.parts[1:]):
        own = load(name)[0]
        assert (part.task, part.data, part.partition, part.federation) == (own.task, own.data, own.partition, own.federation)
        assert set(part.defenses) <= {*own.defenses, "infl:hardened"}
    assert (spec.seeds, spec.references) == (5, 8)
    for part in spec.parts:
        assert part.attacks == ("standard",)
        heads = [":".join(ref.split(":")[:2]) if ref.startswith("infl") else ref.split(":")[0] for ref in part.defenses]
        assert heads == ["fedavg", "dp_sgd", "secure_aggregation", "infl:published", "infl:hardened"]
        assert "epsilon=8" in part.defenses[1]
