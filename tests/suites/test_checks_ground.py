"""An attack that needs a scene of its own names it, and is judged there; nobody else's scene moves."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attacks.key.seed_search import CountingSource, SeedSearch
from suites.checks import CheckResult, check_attack
from suites.checks_attack import Examination
from suites.checks_stage import SITES, Stage
from suites.contracts import Ground, Observation, Secret
from suites.stack import Stack


def power(results: list[CheckResult]) -> CheckResult:
    return next(result for result in results if result.name.startswith("power"))


def test_a_search_finds_the_key_of_a_small_key_space() -> None:
    results = check_attack("seed_search")
    assert not [result for result in results if result.verdict == "fail"]
    assert power(results).name == "power on infl:published with integer_seed"
    assert "the federation's own key, one of 64" in power(results).detail


class Elsewhere(SeedSearch):
    """Tries the seeds past those that the scene draws from."""

    def _keys(self, seen: Observation, length: int, count: int) -> Iterator[Secret]:
        for number in range(64, 64 + min(count, 20)):
            key = seen.derive_key(CountingSource(number.to_bytes(length, "little")))
            assert key is not None
            yield key


def test_a_search_that_misses_the_key_fails() -> None:
    found = power(Examination(Elsewhere(), "seed_search").results())
    assert (found.verdict, found.detail) == ("fail", "the federation's key is one of 64, and no guess is that key")


def test_the_messages_of_a_scene_hold_as_many_records_as_it_names() -> None:
    stage = Stage(Stack([]), ground=Ground(batch=4))
    single, summed = stage.trial("reconstruction"), stage.trial("reconstruction", sums=True)
    assert {len(one) for one in single.truth} == {4}
    assert {len(one) for one in summed.truth} == {4 * SITES}
    behind = [[set(part) for part in probe.records] for probe in stage.probes]
    assert len(set().union(*(part for parts in behind for part in parts))) == 4 * 4 * SITES  # nobody twice
    for parts in behind:
        assert all(part <= set(site.tolist()) for part, site in zip(parts, stage.sites))
    null = stage.trial("reconstruction", null=True)
    known = {row.numpy().tobytes() for row in stage.pool.x[stage.members]}
    assert not any(row.numpy().tobytes() in known for one in null.truth for row in one)


def test_without_a_ground_the_scene_is_what_it_was() -> None:
    stage = Stage(Stack([]))
    assert [probe.records for probe in stage.probes] == [tuple((SITES * k + site,) for site in range(SITES)) for k in range(4)]
    assert stage.assignment.defense_coordinates == ("check", "target", "defense")
    assert not stage.federation.flaws
    assert torch.equal(torch.cat(stage.trial("reconstruction").truth), stage.pool.x[: 4 * SITES])
