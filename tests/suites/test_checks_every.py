"""Every registered attack passes the contract tests that ``infl-bench check`` runs: power, nothing on the null, views, bytes, reads."""

from __future__ import annotations

import pytest

from suites import registry
from suites.checks import check_attack


@pytest.mark.slow
@pytest.mark.parametrize("name", [plugin.ref for plugin in registry.catalogue("attacks")])
def test_every_attack_passes_its_check(name: str) -> None:
    found = check_attack(name)
    assert found
    assert [f"{result.name}: {result.detail}" for result in found if result.verdict == "fail"] == []
