"""What the README shows runs, straight out of the README."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def plugin(name: str) -> str:
    found = re.search(rf"<!-- plug-in: {re.escape(name)} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md no longer shows {name}"
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
