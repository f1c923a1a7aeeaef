"""What a record says of data and defenses: from files' headers and classes' text, for every defense, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from suites import about, config, plan, registry, sight
from suites.prepared import prepare
from suites.store import Store

SUITE = """suite: small
task: classification
data: {name: synthetic, params: {records: 120, features: 12, classes: 3}}
split: {unit: record, train: 0.5, validation: 0.1, test: 0.2, auxiliary: 0.2}
partition: {kind: dirichlet, sites: 3, alpha: 0.3}
federation: {rounds: 1, local: {epochs: 1}}
seeds: 2
references: 2
defenses: [local_only, "infl:published+secure_aggregation", "dp_sgd:epsilon=8"]
attacks: [lira, loss_threshold]
threats: [{view: server, key: none}]
"""


@pytest.fixture
def planned(tmp_path: Path) -> plan.Plan:
    (tmp_path / "small.yaml").write_text(SUITE)
    spec, _ = config.load(tmp_path / "small.yaml")
    return plan.plan(spec, "cpu")


def test_the_cohort_is_the_one_that_was_prepared(planned: plan.Plan, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert about.cohort(planned, store) == {}  # nothing has run yet
    targets = {cell.spec["seed"]: cell.spec for cell in planned.cells if cell.stage == "train"}
    held = {seed: prepare(spec, store.root / "prepared") for seed, spec in targets.items()}
    prepare({**targets[0], "suite": "another"}, store.root / "prepared")  # of another suite in the same folder
    said = about.cohort(planned, store)
    assert (said["name"], said["records"], said["features"], said["classes"]) == ("synthetic", 120, 12, 3)
    assert said["site_sizes"] == [len(site) for site in held[0].sites]
    assert said["site_sizes_by_seed"] == [[len(site) for site in held[seed].sites] for seed in (0, 1)]
    parts = {"validation": held[0].validation, "test": held[0].test, "auxiliary": held[0].auxiliary}
    assert said["parts"] == {"train": sum(said["site_sizes"]), **{name: len(part) for name, part in parts.items()}}
    assert held[0].person is not None
    assert said["persons"] == len(set(held[0].person.tolist()))
    assert said["licence"] == "MIT"
    assert len(said["digest"]) == 64


def test_a_prepared_file_without_a_word_on_its_cohort_is_passed_over(planned: plan.Plan, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    from safetensors.torch import load_file, save_file

    store = Store(tmp_path / "store")
    prepare(planned.cells[0].spec, store.root / "prepared")
    (path,) = (store.root / "prepared").glob("*.safetensors")
    save_file(load_file(path), path)
    path.with_name("torn.safetensors").write_bytes(path.read_bytes()[:100])
    assert about.cohort(planned, store) == {}


def test_every_installed_defense_has_a_card_that_is_read_from_its_text() -> None:
    for plugin in registry.catalogue("defenses"):
        (card,) = about.cards([plugin.label])[plugin.label]
        loaded = plugin.load().card
        assert {party: card[party] for party in about.PARTIES} == {party: getattr(loaded, party) for party in about.PARTIES}


def test_a_stack_has_a_card_a_layer_and_a_stranger_none(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text('class Mine:\n    """No card."""\n\n\nclass Half:\n    """Half."""\n\n    card = Card(server=f"x{1}", site="")\n')
    stacked = about.cards(["infl:published+secure_aggregation", f"{own}:Mine", f"{own}:Half"])
    assert [[card["layer"] for card in cards] for cards in stacked.values()] == [["infl:published", "secure_aggregation"], [], []]


def test_neither_needs_torch() -> None:
    code = "import sys; from suites import about; about.cards(['fedavg']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_where_nothing_leaves_a_site_the_reason_is_one(planned: plan.Plan) -> None:
    """References are trained; what is missing is a model to compare with them."""
    assert {row.reason for row in planned.skipped if row.columns["defense"] == "local_only"} == {"no model is released"}
    needs = {"released", "references"}

    def why(topology: str, *, has_references: bool) -> str | None:
        return sight.skip_reason(needs, "server", topology=topology, masked=False, has_references=has_references)

    assert why("local_only", has_references=True) == "no model is released"
    assert why("federated", has_references=False) == "the suite trains no reference models"
    assert why("federated", has_references=True) is None
