"""How far a check looked and why it stopped: by a clock of its own, and on keys that fall at ten times the budget, never, or too slowly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from suites import checks_budget, checks_secret, registry
from suites.checks_budget import Found, Limits, tried
from suites.checks_secret import searched
from suites.checks_stage import Stage
from suites.contracts import Defense, KeySource, Secret
from suites.stack import Stack

SEARCH = "class Search:\n    def __init__(self, budget=3, depth=1): self.budget, self.depth = budget, depth\n"


def pushed(
    tmp_path: Path,
    monkeypatch: Any,
    *,
    falls: float = float("inf"),
    each: float = 0.01,
    ref: str = "Search",
    source: str = SEARCH,
    refuses: float = float("inf"),
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> tuple[Found | str, list[int]]:
    """An attack that takes ``each`` second a unit of budget, hits from ``falls`` on, and cannot run from ``refuses`` on; its budgets."""
    (tmp_path / "mine.py").write_text(source)
    now, budgets = [0.0], list[int]()
    monkeypatch.setattr(checks_budget, "time", SimpleNamespace(process_time=lambda: now[0]))

    def run(attack: Any) -> Any:
        budgets.append(getattr(attack, "budget", 1))
        now[0] += each * budgets[-1]
        return "too much" if budgets[-1] >= refuses else {}

    found = tried(f"{tmp_path}/mine.py:{ref}", run, lambda attack, _: Found(attack.budget >= falls, f"with {attack.budget}"), limits)
    return found, budgets


def test_it_stops_at_the_first_hit(tmp_path: Path, monkeypatch: Any) -> None:
    found, budgets = pushed(tmp_path, monkeypatch, falls=30)
    assert found == Found(True, "at 1x budget: with 3; at 10x budget: with 30; stopped: a hit")
    assert budgets == [3, 30]


def test_what_never_falls_names_all_budgets(tmp_path: Path, monkeypatch: Any) -> None:
    found, budgets = pushed(tmp_path, monkeypatch)
    assert found == Found(False, "at 1x budget: with 3; at 10x budget: with 30; at 100x budget: with 300; stopped: all budgets tried")
    assert budgets == [3, 30, 300]


def test_patience_cuts_before_and_says_how_long_it_would_take(tmp_path: Path, monkeypatch: Any) -> None:
    found, budgets = pushed(tmp_path, monkeypatch, falls=300, each=0.5)
    assert isinstance(found, Found)
    assert (found.hit, budgets) == (False, [3, 30])
    assert found.shown.endswith("stopped: 100x would take about 150 s, more than the limit of 60 s (--patience)")
    found, budgets = pushed(tmp_path, monkeypatch, falls=300, each=0.5, limits=Limits(patience=200))
    assert isinstance(found, Found)
    assert (found.hit, budgets) == (True, [3, 30, 300])


def test_what_a_larger_budget_refuses_is_said_and_a_refusal_at_once_is_the_answer(tmp_path: Path, monkeypatch: Any) -> None:
    found, _ = pushed(tmp_path, monkeypatch, refuses=30)
    assert found == Found(False, "at 1x budget: with 3; stopped: at 10x: too much")
    assert pushed(tmp_path, monkeypatch, refuses=1)[0] == "too much"


def test_a_references_own_parameters_stay_and_its_budget_is_what_is_multiplied(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[tuple[int, int]] = []
    (tmp_path / "mine.py").write_text(SEARCH)

    def judge(attack: Any, _: Any) -> Found:
        seen.append((attack.budget, attack.depth))
        return Found(False, "nothing")

    found = tried(f"{tmp_path}/mine.py:Search:budget=5:depth=7", lambda _: {}, judge, Limits((1, 10)))
    assert seen == [(5, 7), (50, 7)]
    assert found == Found(False, "at 1x, 10x budget: nothing; stopped: all budgets tried")


def test_an_attack_without_a_budget_is_run_once_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    found, budgets = pushed(tmp_path, monkeypatch, source="class Search:\n    budget = 2\n")  # a constant, not a parameter
    assert found == Found(False, "with 2; no budget to raise: it does not search")
    assert budgets == [2]


class Gated(nn.Module):
    """A network whose inputs are scaled and shifted by two linear layers that read one code."""

    code: Tensor

    def __init__(self, net: nn.Module, code: Tensor) -> None:
        super().__init__()
        self.net, self.scale, self.shift = net, nn.Linear(len(code), 96), nn.Linear(len(code), 96)
        self.register_buffer("code", code, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x * (1 + self.scale(self.code)) + self.shift(self.code))
        return out


class Few(Defense):
    """Hides a code that is one of ``keys``, whichever its two bytes say."""

    keys = 0

    def secret(self, rng: KeySource) -> Secret:
        number = int.from_bytes(rng.bytes(2), "little") % self.keys
        return Secret(code=torch.randn(6, generator=torch.Generator().manual_seed(number)))

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        return net if secret is None else Gated(net, secret["code"].float())


def few(keys: int, monkeypatch: Any, first: int) -> tuple[Stage, int]:
    """The small federation under one of ``keys`` keys, and the number of the first that is its own; ``first`` seeds are tried at 1x."""
    monkeypatch.setattr(checks_secret, "_SEEDS", first)
    layer = Few()
    layer.keys = keys
    stage = Stage(Stack([layer]))
    secret = stage.trained.secret
    assert secret is not None
    (name,) = secret.names
    codes = [torch.randn(6, generator=torch.Generator().manual_seed(number)) for number in range(keys)]
    return stage, next(number for number, code in enumerate(codes) if torch.equal(code, secret[name]))


def test_a_key_that_falls_at_ten_times_the_budget_is_found_there(monkeypatch: Any) -> None:
    stage, number = few(37, monkeypatch, 4)
    assert 4 <= number < 40  # else this test shows nothing
    result = searched(stage)
    assert result.verdict == "warn"
    assert result.detail.startswith("at 1x budget: not among 4 tried; all 65536 take ")
    assert f"at 10x budget: found as number {number + 1}; all 65536 take " in result.detail
    assert result.detail.endswith("stopped: a hit")


def test_a_key_beyond_all_budgets_is_not_found_and_all_are_named(monkeypatch: Any) -> None:
    stage, number = few(20_000, monkeypatch, 1)
    assert number >= 100
    result = searched(stage)
    assert [result.detail.count(f"at {times}x budget: not among {times} tried") for times in (1, 10, 100)] == [1, 1, 1]
    assert result.detail.endswith("stopped: all budgets tried")
    impatient = searched(stage, Limits(patience=0)).detail
    assert "at 10x" not in impatient
    assert "stopped: 10x would take about " in impatient
    assert impatient.endswith("more than the limit of 0 s (--patience)")


def test_the_flag_reaches_the_check(monkeypatch: Any, capsys: Any) -> None:
    from suites import checks, cli

    given: list[Limits] = []

    def eliminate(ref: str, limits: Limits) -> list[Any]:
        given.append(limits)
        return []

    monkeypatch.setattr(checks, "eliminate", eliminate)
    monkeypatch.setattr(checks, "check_defense", lambda ref: [])
    monkeypatch.setattr(registry, "refuse_intruders", lambda: None)
    for words in (["check", "infl:published", "--patience", "900"], ["check", "infl:published"]):
        assert cli.app(words, standalone_mode=False) == 0
    assert given == [Limits(patience=900.0), Limits()]
