"""Pages made from results name what the suites run today."""

from __future__ import annotations

from pathlib import Path

from reports import words
from suites.config import load

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_on_attacks_has_every_attack_and_threatened_defense_of_quickstart() -> None:
    page, (suite, _) = (DOCS / "attacks.md").read_text(), load("quickstart")
    with words.among(suite.defenses, suite.attacks):
        for name in set(suite.attacks) - {"blind", "open_with_held_key"}:  # a control, and one that needs the key itself
            assert f"| {words.attack(name)} |" in page
        for name in suite.defenses:
            assert words.defense(name) in page
