"""docs/published.md's account of a network without its keyed parts is that of its csv, and a seed of it can be made again."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.infl.published_keyless import measure
from tests.infl.published_tables import DOCS

TABLE = DOCS / "published_keyless.csv"


def test_the_page_says_what_the_seeds_say() -> None:
    page, table = (DOCS / "published.md").read_text(encoding="utf-8"), pd.read_csv(TABLE)
    long, quick = table[table["suite"] == "published"], table[table["suite"] == "quickstart"]
    assert (long["keyless"] < long["majority"]).all()
    assert (long["rank_of_top"] > 1).all()
    assert ", ".join(f"{value:.3f}".removeprefix("0") for value in long["keyless"]) in page
    low, high, mean = (
        f"{value:.3f}".removeprefix("0") for value in (quick["keyless"].min(), quick["keyless"].max(), quick["keyless"].mean())
    )
    above, largest = (quick["keyless"] > quick["majority"]).sum(), (quick["rank_of_top"] == 1).sum()
    assert f"{low} to {high}, mean {mean}; {above} of {len(quick)} above the majority" in page
    assert f"{largest} of {len(quick)} |" in page


@pytest.mark.parametrize("seed", [6])
def test_a_seed_comes_out_again(seed: int) -> None:
    """Of those that open without a key, by more than the interval of 175 cells."""
    made, table = measure("quickstart", "infl:published", seed), pd.read_csv(TABLE)
    said = table[(table["suite"] == "quickstart") & (table["seed"] == seed)].iloc[0]
    assert made["keyless"] == pytest.approx(said["keyless"], abs=0.03)
    assert made["keyless"] > made["majority"] + 0.1
    assert made["right"] == pytest.approx(said["right"], abs=0.03)
