"""Pages made from results hold what is installed today."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from suites import registry
from tests.attacks import attack_tables

DOCS = Path(__file__).parent.parent / "docs"


CONTROLS = {"class_mean", "nearest_auxiliary", "oracle_membership", "oracle_reconstruction", "random_guess", "random_membership"}
CONTROLS |= {"random_record", "random_candidate"}


def test_the_page_on_attacks_has_every_installed_attack_and_is_made_of_its_rows() -> None:
    attacks, defenses = attack_tables.asked()
    installed = {plugin.ref for plugin in registry.catalogue("attacks")}
    canaries = {name for name in installed if "canaries" in name}
    assert {name.partition(":")[0] for name in attacks} == installed - CONTROLS - canaries - {"sratta"}
    rows = pd.read_csv(DOCS / "attacks.csv")
    assert set(rows["attack"]) == set(attacks)
    page = (DOCS / "attacks.md").read_text(encoding="utf-8")
    assert attack_tables.table(rows, attacks, defenses) in page
    assert rows["leakage"].dropna().between(-20, 1.05).all()
    reached = rows.set_index("attack")["leakage"]
    for name in ("closed_form", "ladder", "span", "matched_span_of_sum", "key_vector", "imprint"):  # where nothing protects, these win
        assert reached[name] > 0.8, name
    assert rows["leakage"].isna().sum() <= 5
    assert set(rows[rows["leakage"].notna()]["strongest_on"]) <= set(defenses)
