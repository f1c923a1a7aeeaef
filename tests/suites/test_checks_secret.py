"""What a defense hides is tried to be done without, by attacks that know no defense by name; each kind of leak is planted and found."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.key.joint_key import JointKey
from attacks.key.seed_search import CountingSource, SeedSearch
from infl.published import Published
from suites import checks_secret
from suites.checks_budget import Limits
from suites.checks_result import CheckResult
from suites.checks_secret import Scenes, eliminate
from suites.contracts import Card, Defense, Federation, KeySource, Records, RequestError, Secret, Shape, Skip, Threat
from suites.randomness import keys, stream
from suites.tasks.classification import Classification
from tests.attacks.visible import Sight, look


class Seeded(Published):
    """The published method with its key from an integer seed, whoever plans it."""

    def plan(self, federation: Federation, shape: Shape) -> Seeded:
        planned = copy.copy(self)
        planned.flaws = frozenset({"integer_seed"})
        return planned


class Spoken(Defense):
    """Shifts records by a secret that its card spells out."""

    card = Card(server="", site="", outsider="", does_not_protect="")

    def secret(self, rng: KeySource) -> Secret:
        drawn = Secret(shift=rng.uniform(96))
        numbers = ", ".join(f"{float(one):.6g}" for one in drawn["shift"][:4])
        type(self).card = Card(server=f"shifted by {numbers}", site="", outsider="", does_not_protect="")
        return drawn

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else x + secret["shift"].to(x)

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else x - secret["shift"].to(x)


def published(layer: Defense, seed: int = 0) -> Sight:
    generator = stream("test_checks_secret", "records")
    records = Records(torch.randn(60, 40, generator=generator), torch.randint(0, 3, (60,), generator=generator))
    task = Classification(dropout=0.0, hidden=16, blocks=1, head=8)
    sent = [[0], [1]]
    rest = torch.arange(30, 60)
    return look([layer], records, sent, torch.arange(30), rest, classes=3, task=task, secret=keys("test_checks_secret", seed))


def number(seed: int) -> int:
    """The two bytes behind a planted key."""
    return int.from_bytes(keys("test_checks_secret", seed).child("layer", 0).bytes(2), "little")


def test_a_key_from_an_integer_seed_is_found_by_trying() -> None:
    low = next(seed for seed in range(60_000) if number(seed) < 24)
    view, attack = published(Seeded(), low), SeedSearch(budget=30)
    guess = view.guess(attack, "search")
    assert guess.certified.tolist() == [True]
    assert torch.equal(_only(guess.value[0]), _only(view.scene.secret))
    assert (attack.tried, attack.total) == (number(low) + 1, 65536)
    assert 0 < attack.seconds_for_all < 24 * 3600  # all of them within a day of one slow core


def _only(secret: Secret | None) -> Tensor:
    assert secret is not None
    (name,) = secret.names
    return secret[name]


def test_a_seed_outside_the_fraction_tried_is_not_claimed() -> None:
    high = next(seed for seed in range(1000) if number(seed) > 100)
    guess = published(Seeded(), high).guess(SeedSearch(budget=5), "search")
    assert guess.certified.tolist() == [False]


def test_a_key_of_many_bits_is_not_searched() -> None:
    with pytest.raises(Skip, match="16384 random bits"):
        published(Published()).guess(SeedSearch(), "search")
    with pytest.raises(RequestError, match="seed_search"):
        SeedSearch(bits=80)


def test_a_counting_source_counts_and_repeats() -> None:
    source = CountingSource(b"\x05\x00")
    assert source.bytes(2) == b"\x05\x00"
    assert (source.bytes(3), source.used) == (b"\0\0\0", 5)
    for draw in (lambda s: s.uniform(3), lambda s: s.normal(3), lambda s: s.signs(9), lambda s: s.permutation(4)):
        assert torch.equal(draw(CountingSource(b"abcdefgh" * 9)), draw(CountingSource(b"abcdefgh" * 9)))


@pytest.mark.slow
def test_one_record_under_published_keys_is_exact_without_the_key() -> None:
    view = published(Published())
    guess = view.guess(JointKey(limit=1), "joint")
    assert guess.certified.all()
    assert float((guess.value[0] - view.truth[0]).norm() / view.truth[0].norm()) < 1e-3


def test_without_any_key_the_joint_search_is_the_closed_form() -> None:
    view = published(Defense())
    guess = view.guess(JointKey(limit=1), "joint")
    assert float((guess.value[0] - view.truth[0]).norm() / view.truth[0].norm()) < 1e-4


@pytest.fixture(scope="module")
def of_published() -> dict[str, CheckResult]:
    return {result.name: result for result in eliminate("infl:published")}


@pytest.mark.slow
def test_published_loses_its_secret_automatically(of_published: dict[str, CheckResult]) -> None:
    """No line of the ensemble names the method, and all of this comes out of it."""

    def error(kind: str) -> float:
        return float(of_published[f"secret in closed form from {kind}"].detail.split()[2].rstrip(","))

    assert error("gradient") <= 1e-6
    assert error("one step of SGD") <= 1e-4
    assert error("20 steps of SGD") < error("20 steps of SGD with momentum") <= 5e-2
    for kind in ("one step of Adam", "20 steps of Adam"):
        assert "cosine 0.8" in of_published[f"secret in closed form from {kind}"].detail
    joint = of_published["without the key: one record beside an optimised key (joint_key)"].detail
    assert "leakage 1.000" in joint
    assert "exact 0.00" not in joint
    assert "auc 1.00" in of_published["without the key: row space (span)"].detail
    assert of_published["opened by wrong keys"].verdict == "warn"
    assert of_published["opened by one colluding site"].verdict == "warn"
    assert of_published["searched"].verdict == "pass"
    for result in of_published.values():  # whatever was tried says how far
        if result.name.startswith(("without the key", "one colluding", "a server")):
            assert ("no budget to raise" in result.detail) != ("x budget: " in result.detail and "stopped: " in result.detail), result
    assert "at 1x, 10x, 100x budget" in of_published["without the key: lengths (norms)"].detail
    for what in ("records (ladder_of_sum)", "membership (span_of_sum)"):
        assert of_published[f"one colluding site reads the others' {what}"].verdict == "warn"


@pytest.mark.slow
def test_hardened_keeps_its_key_and_loses_single_records() -> None:
    found = {result.name: result for result in eliminate("infl:hardened:minimum=8")}
    assert found["without the key: inner products (gram_search)"].verdict == "warn"
    assert found["without the key: records beside known plaintexts (known_plaintext)"].verdict == "warn"
    for name in ("inputs in closed form (closed_form)", "lengths (norms)", "row space (span)"):
        assert found[f"without the key: {name}"].verdict == "pass"
    for kind in ("gradient", "20 steps of Adam"):
        assert found[f"secret in closed form from {kind}"].verdict == "pass"
    for who, verdict in (("one colluding site", "warn"), ("wrong keys", "pass"), ("50% of the key", "pass")):
        assert found[f"opened by {who}"].verdict == verdict
    for who in ("one colluding site reads the others' records (ladder_of_sum)", "a server to which one site lent its key reads records"):
        held = next(result for name, result in found.items() if name.startswith(who))
        assert held.verdict == "warn"  # who holds the key holds all that it hides


class Turned(Defense):
    """Rotates records by a secret rotation."""

    def secret(self, rng: KeySource) -> Secret:
        return Secret(turn=torch.linalg.qr(rng.normal(96, 96))[0])

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else x @ secret["turn"].to(x)

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else x @ secret["turn"].to(x).T


class Unrelated(Defense):
    """Feeds the network noise in place of records: there is nothing left to undo."""

    def secret(self, rng: KeySource) -> Secret:
        return Secret(code=rng.normal(4))

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else torch.randn(x.shape, generator=stream("test_checks_secret", "noise", len(x)))


@pytest.mark.parametrize(("layer", "verdict"), [(Turned, "warn"), (Unrelated, "pass")])
def test_plaintexts_and_principal_axes_undo_a_rotation_and_nothing_else(layer: type[Defense], verdict: str, monkeypatch: Any) -> None:
    """The first's pairs and the second's axes are in the scenes that the two attacks name; noise is the control at the other end."""
    asked = ("known_plaintext:budget=1", "principal_components")
    monkeypatch.setattr(checks_secret, "_INVARIANTS", {name: "as asked" for name in asked})
    found = list(checks_secret._remains(Scenes([layer()]), Limits((1, 2))))
    assert [result.name for result in found] == [f"without the key: as asked ({name})" for name in asked]
    assert [result.verdict for result in found] == [verdict, verdict]
    assert "upper bound" not in found[0].detail
    assert "no budget to raise" in found[1].detail
    assert found[0].detail.endswith("stopped: a hit" if verdict == "warn" else "stopped: all budgets tried")


def test_who_holds_the_key_reads_what_it_hides_and_who_does_not_hold_it_not(monkeypatch: Any) -> None:
    asked = {"site": ("row_space_of_sum", Threat("site", "right")), "server": ("row_space_of_sum", Threat())}
    monkeypatch.setattr(checks_secret, "_HOLDERS", asked)
    site, server = checks_secret._held(Scenes([Turned()]), Limits((1,)))
    assert (site.name, site.verdict) == ("site (row_space_of_sum)", "warn")
    assert server.verdict == "pass"


def test_a_secret_spelt_out_is_found_and_no_secret_is_nothing_to_check(monkeypatch: Any) -> None:
    monkeypatch.setattr(checks_secret, "_enters_a_layer", lambda layers: [])
    for part in ("_remains", "_held"):
        monkeypatch.setattr(checks_secret, part, lambda scenes, limits: [])
    monkeypatch.setattr(checks_secret, "_keys", lambda stage: [])
    monkeypatch.setattr(checks_secret, "searched", lambda stage, limits: CheckResult("searched", "pass", ""))
    spoken, _ = eliminate("", planned=[Spoken()])
    assert (spoken.name, spoken.verdict) == ("secret in names and metadata", "warn")
    assert eliminate("", planned=[Defense()]) == []
