"""What README and CONTRIBUTING show runs, straight out of them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


def plugin(name: str, document: str = "README.md") -> str:
    found = re.search(rf"<!-- plug-in: {re.escape(name)} -->\n```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert found, f"{document} no longer shows {name}"
    return found[1]


@pytest.mark.parametrize(("name", "most"), [("my_attack.py", 15), ("my_defense.py", 10)])
def test_plug_ins_are_short(name: str, most: int) -> None:
    assert len([line for line in plugin(name).splitlines() if line.strip()]) <= most


def test_the_plug_ins_run(tmp_path: Path) -> None:
    from suites import api

    for name in ("my_attack.py", "my_defense.py"):
        (tmp_path / name).write_text(plugin(name))
    suite = tmp_path / "readme.yaml"
    suite.write_text(
        "suite: readme\n"
        "data: {name: synthetic, params: {records: 240, features: 30, classes: 3}}\n"
        "partition: {kind: iid, sites: 3}\n"
        "federation: {rounds: 2, local: {epochs: 2}}\n"
        "seeds: 1\n"
        "defenses: [fedavg, 'my_defense.py:SignOnly']\n"
        "attacks: [loss_threshold, 'my_attack.py:Confidence']\n"
    )
    table = api.run(suite, out=tmp_path / "out", workers=2)
    assert isinstance(table, pd.DataFrame)
    scored = table[(table["metric"] == "auc") & (table["status"] == "ok")]
    assert set(scored["defense"]) == {"fedavg", "my_defense.py:SignOnly"}
    assert set(scored["attack"]) == {"loss_threshold", "my_attack.py:Confidence"}


@pytest.mark.parametrize(("name", "of", "least"), [("my_property.py", "SamePush", 0.1), ("my_active.py", "Bins", 0.6)])
def test_attacks_of_other_kinds_pass_their_check_and_win_where_nothing_protects(tmp_path: Path, name: str, of: str, least: float) -> None:
    from suites.checks import check_attack

    (tmp_path / name).write_text(plugin(name, "CONTRIBUTING.md"))
    found = check_attack(f"{tmp_path / name}:{of}")
    assert [f"{result.name}: {result.detail}" for result in found if result.verdict == "fail"] == []
    power = next(result.detail for result in found if result.name.startswith("power"))
    low = re.search(r"\[(-?[\d.]+),", power)
    assert low, power
    assert float(low[1]) > least
