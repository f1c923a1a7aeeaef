"""The grid: what is planned, what is skipped with which reason, and on what an id depends."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from suites import config, registry
from suites.closure import closure
from suites.errors import RequestError
from suites.plan import Cell, Plan, data_digest, plan
from suites.sight import available, skip_reason
from tests.suites import fake_suite


def planned(suite: Path, **changes: object) -> Plan:
    return plan(config.override(config.load(suite)[0], **changes), "cpu", fake_suite.FUNCTIONS)


def named(plan: Plan) -> Mapping[str, str]:
    return {cell.title + str(cell.spec.get("first", "")): cell.id for cell in plan.cells}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return fake_suite.write(tmp_path, references=3)


def test_grid_and_inactive_combinations(suite: Path) -> None:
    found = planned(suite)
    counts = Counter((cell.columns["defense"], cell.columns["attack"], cell.columns["view"], cell.columns["key"]) for cell in found.cells)
    plain, keyed = "defenses.py:Plain", "defenses.py:Keyed"
    assert counts[plain, "second.py:Second", "server", "none"] == 2  # two seeds
    assert counts[plain, "second.py:Second", "server", "leaked"] == 0  # no secret, no key
    assert counts[keyed, "second.py:Second", "server", "leaked"] == 2
    assert counts[keyed, "first.py:First", "server", "leaked"] == 0  # reads no key
    assert counts[keyed, "first.py:First", "server", "none"] == 2
    assert {(s.columns["attack"], s.columns["view"]) for s in found.skipped} == {("third.py:Third", "outsider")}
    assert len({cell.id for cell in found.cells}) == len(found.cells)
    known = {cell.id for cell in found.cells}
    assert all(identity in known for cell in found.cells for identity in cell.inputs.values())


def test_references_come_in_whole_chunks_and_do_not_depend_on_their_number(suite: Path) -> None:
    def references(n: int) -> dict[int, list[str]]:
        cells = [cell for cell in planned(suite, references=n, seeds=1).cells if cell.stage == "reference"]
        return {first: [c.id for c in cells if c.spec["first"] == first] for first in {c.spec["first"] for c in cells}}

    assert set(references(3)) == {0, 2}
    assert set(references(5)) == {0, 2, 4}
    assert references(3)[0] == references(5)[0]
    assert references(3)[2] == references(4)[2]  # whether one or both of the chunk are asked for
    attack = next(cell for cell in planned(suite).cells if cell.columns["attack"] == "third.py:Third")
    assert set(attack.inputs) == {"train", "reference:0", "reference:1"}
    assert attack.spec["references"] == 3
    other = next(cell for cell in planned(suite).cells if cell.columns["attack"] == "first.py:First")
    assert set(other.inputs) == {"train"}


def test_what_is_trained_for_its_utility_alone_adds_trainings_and_no_attack(suite: Path) -> None:
    plain = planned(suite, utility_only=[])
    more = planned(suite, utility_only=["centralized", "local_only"])
    before, after = named(plain), named(more)
    assert before.items() <= after.items()
    added = sorted(title for title in after if title not in before)
    assert added == [f"train / {name} / seed {seed}" for name in ("centralized", "local_only") for seed in (0, 1)]
    assert more.skipped == plain.skipped
    assert not config.override(more.suite, defenses=["fedavg"]).utility_only  # who names the defenses means no others
    with pytest.raises(RequestError, match=r"defenses and utility_only holds 'fedavg' twice"):
        planned(suite, defenses=["fedavg"], utility_only=["fedavg"])


def test_every_part_of_standard_stands_beside_simple_methods_and_sites_alone() -> None:
    for part in config.load("standard")[0].each:
        assert part.utility_only == ("centralized", "local_only")
        assert len(part.defenses) == 5
        assert not {"centralized", "local_only"} & set(part.defenses)


def test_no_references_are_trained_that_nobody_reads(suite: Path) -> None:
    assert not [c for c in planned(suite, attacks=[str(suite.parent / "first.py:First")]).cells if c.stage == "reference"]


def test_an_edited_attack_changes_its_own_cells_only(suite: Path) -> None:
    before = named(planned(suite))
    path = suite.parent / "second.py"
    path.write_text(path.read_text() + "# edited\n")
    after = named(planned(suite))
    assert before.keys() == after.keys()
    changed = {title for title in before if before[title] != after[title]}
    assert changed == {title for title in before if "second.py" in title}


def test_an_edited_defense_changes_all_its_cells(suite: Path) -> None:
    before = named(planned(suite))
    path = suite.parent / "defenses.py"
    path.write_text(path.read_text() + "# edited\n")
    assert not set(before.values()) & set(named(planned(suite)).values())


def test_ids_do_not_depend_on_where_the_files_lie(suite: Path, tmp_path: Path) -> None:
    moved = fake_suite.write(tmp_path / "elsewhere", references=3)
    assert named(planned(suite)) == named(planned(moved))


def test_what_computes_is_part_of_the_id(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = named(planned(suite))
    monkeypatch.setattr("suites.plan.versions", lambda: {"torch": "0.1"})
    assert not set(before.values()) & set(named(planned(suite)).values())


def test_adding_an_attack_or_a_seed_moves_nobody(suite: Path) -> None:
    everything = named(planned(suite, seeds=3))
    less = named(planned(suite, seeds=1, attacks=[str(suite.parent / "first.py:First")]))
    assert less.items() <= everything.items()


def test_data_files_are_known_by_content(tmp_path: Path) -> None:
    from suites.cohorts.spec import DataSpec

    (tmp_path / "a.h5ad").write_bytes(b"one")
    assert data_digest(DataSpec(path=str(tmp_path / "a.h5ad"))) == hashlib.sha256(b"one").hexdigest()
    with pytest.raises(RequestError, match="no data file"):
        data_digest(DataSpec(path=str(tmp_path / "b.h5ad")))
    with pytest.raises(RequestError, match="is not a file"):
        data_digest(DataSpec(path=str(tmp_path)))
    with pytest.raises(RequestError, match="did you mean 'pbmc68k'"):
        data_digest(DataSpec(name="pbmc68"))


def test_twins_are_refused(suite: Path) -> None:
    twin = fake_suite.write(suite.parent / "twin")
    with pytest.raises(RequestError, match=r"holds 'first\.py:First' twice"):
        planned(suite, attacks=[str(suite.parent / "first.py:First"), str(twin.parent / "first.py:First")])
    with pytest.raises(RequestError, match="threats holds"):
        planned(suite, threats=[{"view": "server"}, {"view": "server", "auxiliary": 9}])


def test_an_attack_must_state_its_goal_in_the_open(suite: Path) -> None:
    path = suite.parent / "first.py"
    path.write_text(path.read_text().replace('goal = "membership"', 'goal = "member" + "ship"'))
    with pytest.raises(RequestError, match="goal"):
        planned(suite)


def test_closure_follows_imports_inside_functions_and_stops_at_the_five_packages(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import numpy\ndef f():\n    from attacks.membership import lira\n")
    code = closure(file)
    assert "attacks.membership.lira" in code
    assert "suites.contracts" in code
    assert not any(name.startswith("numpy") for name in code)
    assert "attacks.membership" in code  # its __init__ runs too


def test_closure_of_a_function_takes_what_it_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "from suites import sight, stack\nN = 1\ndef one():\n    return sight, N\ndef two():\n    return stack\n"
    path = tmp_path / "cells_of_mine.py"

    def of(function: str) -> dict[str, str]:
        return closure(f"cells_of_mine:{function}")

    path.write_text(text)
    before = of("one")
    assert "suites.stack" not in before
    assert "suites.stack" in of("two")
    path.write_text(text.replace("return stack", "return stack, 1"))
    assert of("one") == before
    path.write_text(text.replace("N = 1", "N = 2"))
    assert of("one") != before


def test_an_attacks_code_is_not_in_the_training_key() -> None:
    train = closure("suites.referee:train_cell")
    assert "suites.federation" in train
    assert not [name for name in train if name.startswith("attacks")]
    assert "suites.trial" not in train  # nor how a guess is scored
    assert "suites.trial" in closure("suites.referee:attack_cell")


def test_sight_by_view_and_defense() -> None:
    def sees(view: str, topology: str = "federated", *, masked: bool = False) -> frozenset[str]:
        return available(view, topology=topology, masked=masked, has_references=False)

    assert {"probes", "updates"} <= sees("server")
    assert not {"probes", "updates"} & sees("server", masked=True)
    assert {"sums", "probe_sums"} <= sees("server", masked=True)
    assert "released" not in sees("server", "local_only")
    assert not {"broadcasts", "sums"} & (sees("outsider") | sees("server", "centralized"))
    reason = skip_reason({"probes", "updates"}, "server", topology="federated", masked=True, has_references=False)
    assert reason == "single sites' updates are not visible to this view (they are masked: the server reads only their sum)"
    assert skip_reason({"released"}, "outsider", topology="federated", masked=True, has_references=False) is None


def test_a_site_without_the_key_of_its_defense_is_nobody() -> None:
    suite = config.load("quickstart")[0].model_copy(
        update={
            "seeds": 1,
            "defenses": ("fedavg", "infl:published"),
            "attacks": ("span_of_sum", "ladder_of_sum"),
            "threats": tuple(config.ThreatSpec(view="site", key=key) for key in ("none", "right")),
        }
    )
    made = plan(suite, "cpu")
    asked = {(c.columns["defense"], c.columns["attack"], c.columns["key"]) for c in made.cells if c.stage == "attack"}
    keys = {defense: {key for one, _, key in asked if one == defense} for defense in ("fedavg", "infl:published")}
    assert keys == {"fedavg": {"none"}, "infl:published": {"right"}}
    assert {skip.reason for skip in made.skipped if skip.columns["defense"] == "infl:published"} == {
        "every site holds the key of this defense; ask with key: right"
    }


def test_what_the_planner_reads_is_what_the_stack_is() -> None:
    for plugin in registry.catalogue("defenses"):
        try:
            made = plugin.make()
        except RequestError:
            continue  # needs parameters
        assert plugin.masked == (made.channel is not None), plugin.label


def test_ids_look_like_ids(suite: Path) -> None:
    cells: tuple[Cell, ...] = planned(suite).cells
    assert all(re.fullmatch("[0-9a-f]{32}", cell.id) for cell in cells)
