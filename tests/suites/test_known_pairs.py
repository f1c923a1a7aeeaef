"""Records that are known behind some messages: whose they are, that nobody is asked about them, and who is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from attacks.key.known_plaintext import KnownPlaintext
from suites import api, config
from suites.checks_stage import Stage
from suites.contracts import Defense, Ground, Threat
from suites.observation import Guarded, UndeclaredReadError
from suites.plan import plan
from suites.stack import Stack


@pytest.mark.parametrize("batch", [1, 2])
def test_pairs_are_the_first_messages_with_their_own_records(batch: int) -> None:
    stage = Stage(Stack([Defense()]), rounds=1, ground=Ground(batch=batch))
    trial = stage.trial("reconstruction", known=3)
    every, seen = trial.seen(Threat()).targets, trial.seen(Threat(known_pairs=3))
    truth = stage.trial("reconstruction").truth
    assert [pair.target.update is target.update for pair, target in zip(seen.known_pairs, every)] == [True] * 3
    for pair, records in zip(seen.known_pairs, truth):
        assert torch.equal(pair.records.x, records)
        # the labels are theirs, too: a simulated client gives the very message
        again = seen.simulate(pair.target, pair.records.x, pair.records.y)
        assert all(torch.allclose(again[name], sent, atol=1e-5) for name, sent in pair.target.update.items())
    assert len(seen.targets) == len(every) - 3 == len(trial.truth)
    assert seen.targets[0].update is every[3].update
    assert torch.equal(trial.truth[0], truth[3])
    assert trial.seen(Threat()).known_pairs == []


def test_only_who_declares_them_is_told() -> None:
    seen = Stage(Stack([Defense()]), rounds=1).trial("reconstruction").seen(Threat(known_pairs=1))
    with pytest.raises(UndeclaredReadError, match="known_pairs"):
        Guarded(seen, frozenset({"probes", "oracle"})).known_pairs  # noqa: B018
    told = Guarded(seen, KnownPlaintext.needs)
    assert len(told.known_pairs) == 1
    assert not told.upper_bound


@pytest.mark.parametrize("threat", [{"view": "site"}, {"active": True}, {"neighbours": "unknown"}, {"known_pairs": -1}])
def test_a_threat_that_makes_no_sense_is_refused(threat: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="known_pairs"):
        config.ThreatSpec(**{"known_pairs": 2, **threat})  # type: ignore[arg-type]


def test_momentum_is_sgds() -> None:
    assert config.ProbeSpec(optimiser="sgd", lr=0.1, momentum=0.9).momentum == 0.9
    with pytest.raises(ValidationError, match="momentum"):
        config.ProbeSpec(optimiser="adam", lr=0.1, momentum=0.9)


def test_the_threat_is_put_to_those_who_use_it_alone() -> None:
    threats = (config.ThreatSpec(), config.ThreatSpec(known_pairs=4))
    suite = config.load("quickstart")[0].model_copy(
        update={"seeds": 1, "defenses": ("fedavg",), "attacks": ("closed_form", "known_plaintext"), "threats": threats}
    )
    made = plan(suite, "cpu")
    asked = {(c.columns["attack"], c.columns["view"]) for c in made.cells if c.stage == "attack"}
    assert asked == {("closed_form", "server"), ("known_plaintext", "server_known_pairs")}
    (skip,) = made.skipped
    assert (skip.columns["attack"], skip.columns["view"]) == ("known_plaintext", "server")
    assert "known_pairs" in skip.reason


SUITE = """
suite: told
data: {name: synthetic, params: {records: 300, features: 60}}
partition: {kind: iid, sites: 2}
federation: {rounds: 1, local: {epochs: 1, lr: 0.005}}
seeds: 1
probes: {gradients: 6}
defenses: [fedavg]
attacks: [known_plaintext]
threats: [{view: server, known_pairs: 4}]
"""


def test_a_suites_rows_are_about_the_others_and_are_no_upper_bound(tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(SUITE)
    table = api.run(tmp_path / "told.yaml", out=tmp_path / "out", report=False, device="cpu")
    (exact,) = table[(table["metric"] == "exact") & (table["attack"] == "known_plaintext")].to_dict("records")
    assert (exact["view"], exact["n"]) == ("server_known_pairs", 12 - 4)
    assert exact["value"] > 0.8
    assert not table["reason"].astype(str).str.startswith("upper bound").any()


@pytest.mark.slow
def test_where_every_record_is_known_nothing_is_asked(tmp_path: Path) -> None:
    (tmp_path / "told.yaml").write_text(SUITE.replace("known_pairs: 4", "known_pairs: 12"))
    table = api.run(tmp_path / "told.yaml", out=tmp_path / "all", report=False, device="cpu")
    (row,) = table[table["attack"] == "known_plaintext"].to_dict("records")
    assert row["status"] == "skipped"
    assert "none is left to ask about" in row["reason"]
