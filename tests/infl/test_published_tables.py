"""docs/published.md holds what docs/published.csv says, and the csv what its function makes of a run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.infl.published_tables import DIFFERENCE, DOCS, OURS, PLAIN, TITLES, measure, put, table, tabulated


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return pd.read_csv(DOCS / "published.csv", keep_default_na=False)


def rows(found: pd.DataFrame, attack: str, held: str = "none", metric: str = "leakage") -> pd.DataFrame:
    return found[(found["attack"] == attack) & (found["key"] == held) & (found["metric"] == metric)].set_index("defense")


def test_the_page_holds_the_table_of_the_results(found: pd.DataFrame) -> None:
    page = (DOCS / "published.md").read_text(encoding="utf-8")
    assert put(page, table(found)) == page
    assert table(found) in page
    assert set(found["attack"]) == {*TITLES, ""}
    assert found["seeds"].min() >= 3


def test_differences_are_those_of_the_columns(found: pd.DataFrame) -> None:
    compared = 0
    for (attack, held, metric), own in found.groupby(["attack", "key", "metric"]):
        sides = rows(found, attack, held, metric)["mean"]
        assert (own["low"] <= own["mean"]).all()
        assert (own["mean"] <= own["high"]).all()
        if DIFFERENCE in sides:
            assert sides[DIFFERENCE] == pytest.approx(sides[OURS] - sides[PLAIN], abs=2e-5)
            compared += 1
    assert compared >= 15


def test_what_the_page_says_in_words(found: pd.DataFrame) -> None:
    for attack in ("closed_form", "ladder"):
        assert rows(found, attack).loc[OURS, "low"] > 0.99
        assert rows(found, attack, metric="reidentified").loc[OURS, "mean"] == 1.0
        assert rows(found, attack, "leaked", "exact").loc[OURS, "mean"] == 1.0
        assert rows(found, attack, metric="exact").loc[DIFFERENCE, "high"] < 0
    assert rows(found, "key_vector").loc[OURS, "low"] > 0.99
    assert rows(found, "open_with_wrong_keys").loc[OURS, "low"] > 0.95
    assert rows(found, "open_without_key").loc[OURS, "high"] < 0.2
    assert PLAIN not in rows(found, "open_with_wrong_keys").index
    for attack in ("lira", "round_cosine", "loss_threshold", "span"):
        assert rows(found, attack).loc[DIFFERENCE, "high"] < 0
    membership = found[(found["goal"] == "membership") & (found["defense"] == OURS) & (found["key"] == "none")].set_index("attack")["mean"]
    assert membership.idxmax() in {"span", "matched_span"}
    assert membership.max() > 0.85
    for defense in (PLAIN, OURS):
        assert rows(found, "blind").loc[defense, "low"] < 0 < rows(found, "blind").loc[defense, "high"]
    accuracy = rows(found, "", metric="accuracy").loc[DIFFERENCE]
    assert accuracy["low"] < 0 < accuracy["high"]
    assert -0.02 < accuracy["mean"] < -0.01


def test_a_table_is_made_of_results() -> None:
    base = {"status": "ok", "role": "score", "goal": "membership", "attack": "lira", "metric": "leakage"}
    values = {
        (PLAIN, "none"): (0.9, 0.8, 1.0),
        (OURS, "none"): (0.5, 0.3, 0.7),
        (OURS, "leaked"): (0.6, 0.6, 0.6),
        (OURS, "wrong"): (0, 0, 0),
        (PLAIN, "wrong"): (0, 0, 0),
    }
    made = [
        {**base, "defense": defense, "key": key, "seed": seed, "value": value}
        for (defense, key), each in values.items()
        for seed, value in enumerate(each)
    ]
    made += [
        {**base, "attack": "closed_form", "metric": "exact", "defense": OURS, "key": "none", "seed": s, "value": s / 2} for s in range(3)
    ]
    made += [{**base, "attack": "span", "status": "skipped", "defense": PLAIN, "key": "none", "seed": 0, "value": 1.0}]
    found = tabulated(pd.DataFrame(made))
    assert set(found["key"]) == {"none", "leaked"}
    plain = rows(found, "lira").loc[DIFFERENCE]
    assert plain["mean"] == pytest.approx(-0.4)
    assert plain["high"] - plain["mean"] == pytest.approx(
        4.30265 * 0.1 / 3**0.5, abs=1e-4
    )  # t at 2 degrees; the differences' deviation is .1
    assert rows(found, "lira", "leaked").loc[DIFFERENCE, "mean"] == pytest.approx(-0.3)
    shares = rows(found, "closed_form", metric="exact").loc[OURS]
    assert (shares["low"], shares["high"]) == (0.0, 1.0)
    assert "| reconstruction: closed form: exact | no key | 0.500 [0.000, 1.000] | - |" in table(found)
    assert "| membership: LiRA, key leaked | 0.900 [0.652, 1.148] | 0.600 [0.600, 0.600] | -0.300 [-0.548, -0.052] |" in table(found)


@pytest.mark.slow
def test_the_table_comes_out_again(tmp_path: Path, found: pd.DataFrame) -> None:
    again = measure(tmp_path, seeds=3)
    for attack in TITLES:
        held = "leaked" if attack == "open_with_held_key" else "none"
        means = [float(rows(one, attack, held).loc[OURS, "mean"]) for one in (again, found)]
        assert abs(means[0] - means[1]) < 0.35
