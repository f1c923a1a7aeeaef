"""The standard ensembles name attacks that exist, of the goal they stand for, and take no parameters."""

from __future__ import annotations

import pytest

from suites import ensembles, registry
from suites.config import load, override
from suites.errors import RequestError
from suites.plan import plan


@pytest.mark.parametrize("goal", ensembles.MEMBERS)
def test_every_member_exists_and_has_the_goal(goal: str) -> None:
    for ref in ensembles.MEMBERS[goal]:
        assert registry.find("attacks", ref).goal == goal


def test_an_ensemble_stands_for_its_members_once_and_in_order() -> None:
    assert ensembles.expanded(["span", "standard:key", "span"]) == ("span", *ensembles.MEMBERS["key"])
    assert ensembles.expanded(["standard"]) == tuple(
        ref for goal in ("reconstruction", "membership", "key") for ref in ensembles.MEMBERS[goal]
    )


@pytest.mark.parametrize(("ref", "words"), [("standard:membreship", "did you mean 'membership'"), ("standard:budget=2", "no knobs")])
def test_it_has_no_knobs(ref: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ensembles.expanded([ref])


def test_a_suite_may_name_it() -> None:
    suite = override(load("quickstart")[0], attacks=["standard:membership"], defenses=["fedavg"], seeds=1)
    labels = {cell.columns["attack"] for cell in plan(suite, "cpu").cells if cell.stage == "attack"}
    assert {"span", "lira", "rmia", "quantile"} <= labels
    assert "closed_form" not in labels
