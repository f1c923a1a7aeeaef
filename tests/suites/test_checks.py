"""The checks find planted faults, each under its own name, and let honest plug-ins pass."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from reports import schema
from reports.flags import with_flags
from suites import registry
from suites.checks import CheckResult, check_attack, check_defense, flag_messages, flag_results, main, similarity
from suites.checks_defense import carried
from suites.checks_stage import MEMBERS, Stage
from suites.contracts import Claim, Clip, Defense, Params, Secret
from suites.randomness import keys, stream
from suites.stack import Stack

HEAD = """
import math
from typing import ClassVar
import torch
from torch import nn
from suites.contracts import *
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def make(body: str, name: str = "Mine") -> str:
        path = tmp_path / "mine.py"
        path.write_text(HEAD + textwrap.dedent(body))
        return f"{path}:{name}"

    return make


def verdicts(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.verdict for result in results}


def failed(results: list[CheckResult]) -> set[str]:
    return {result.name for result in results if result.verdict == "fail"}


def detail(results: list[CheckResult], name: str) -> str:
    return next(result.detail for result in results if result.name == name)


# ------------------------------------------------------------------------------------------------------------- honest plug-ins


@pytest.mark.parametrize("ref", ["loss_threshold", "lira", "round_cosine", "closed_form", "key_vector", "open_with_wrong_keys"])
def test_the_projects_attacks_hold(ref: str) -> None:
    results = check_attack(ref)
    assert not failed(results), results
    assert any(name.startswith("power") and verdict == "pass" for name, verdict in verdicts(results).items())


@pytest.mark.parametrize("ref", ["oracle_reconstruction", "oracle_membership"])
def test_controls_that_read_the_truth_are_named_upper_bounds(ref: str) -> None:
    results = check_attack(ref)
    assert not failed(results)
    assert "upper bound" in detail(results, "reads")


@pytest.mark.parametrize(
    "ref", ["fedavg", "dp_sgd", "dp_sgd:noise_multiplier=0", "secure_aggregation", "infl:published+secure_aggregation"]
)
def test_the_projects_defenses_hold(ref: str) -> None:
    results = check_defense(ref)
    assert not failed(results), results


def test_an_attack_of_a_few_lines_holds_and_main_says_so(write: Any, capsys: Any) -> None:
    ref = write(
        """
        class Mine:
            goal = "membership"
            needs = frozenset({"released", "candidates", "predict"})

            def run(self, seen, rng):
                return Guess(-seen.loss(seen.predict(seen.released, seen.candidates.x), seen.candidates.y))
        """
    )
    assert main("attacks", ref) == 0
    assert "all checks hold" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- planted: attacks

MEMBERSHIP = """
class Mine:
    goal = "membership"
    needs = frozenset({needs})

    def run(self, seen, rng):
        {body}
"""


def membership(body: str, needs: str = '{"released", "candidates", "predict"}') -> str:
    return MEMBERSHIP.replace("{needs}", needs).replace("{body}", body)


LOSS = "seen.loss(seen.predict(seen.released, seen.candidates.x), seen.candidates.y)"


def test_a_sign_error_has_no_power(write: Any) -> None:
    results = check_attack(write(membership(f"return Guess({LOSS})")))
    assert failed(results) == {"power on fedavg"}
    assert "leakage -0.8" in detail(results, "power on fedavg")


def test_an_undeclared_read_is_the_end(write: Any) -> None:
    results = check_attack(write(membership("return Guess(seen.oracle())", '{"candidates"}')))
    assert failed(results) == {"undeclared reads raise"}
    assert "oracle" in detail(results, "undeclared reads raise")


def test_reading_past_the_guard_is_found_in_the_source_and_by_changing_the_truth(write: Any) -> None:
    open_cheat = check_attack(write(membership("return Guess(seen._seen._scene.truth())", '{"candidates"}')))
    assert failed(open_cheat) == {"reads only the observation", "selects nothing by the truth", "nothing on the null"}
    hidden = "return Guess(getattr(getattr(seen, '_se' + 'en'), '_sc' + 'ene').truth())"
    assert failed(check_attack(write(membership(hidden, '{"candidates"}')))) == {"selects nothing by the truth", "nothing on the null"}


RESTARTS = """
class Mine:
    '''Three starts; the best is kept {how}.'''
    goal = "reconstruction"
    needs = frozenset({"probes", {more}})

    def run(self, seen, rng):
        features = seen.known["features"].value
        values = []
        for k, target in enumerate(seen.targets):
            slope = next(v for v in target.update.values() if v.ndim == 2)
            guesses = [slope[int(torch.randint(len(slope), (1,), generator=rng))][None] * scale for scale in (1.0, -30.0, 30.0)]
            truth = {truth}
            values.append(min(guesses, key=lambda g: float((g - truth).norm())))
        return Guess(values)
"""


def test_picking_the_best_restart_by_the_truth_is_found(write: Any) -> None:
    undeclared = RESTARTS.replace("{truth}", "seen.oracle()[k]").replace("{more}", '"auxiliary"')
    assert failed(check_attack(write(undeclared))) == {"undeclared reads raise"}
    hidden = RESTARTS.replace("{truth}", "getattr(getattr(seen, '_se' + 'en'), '_sc' + 'ene').truth()[k]").replace("{more}", '"auxiliary"')
    assert "selects nothing by the truth" in failed(check_attack(write(hidden)))
    declared = check_attack(write(RESTARTS.replace("{truth}", "seen.oracle()[k]").replace("{more}", '"oracle"')))
    assert "upper bound" in detail(declared, "reads")
    honest = check_attack(write(RESTARTS.replace("{truth}", "seen.auxiliary.x[0]").replace("{more}", '"auxiliary"')))
    assert "selects nothing by the truth" not in failed(honest)


START = """
class Mine:
    goal = "reconstruction"
    needs = frozenset({"probes"})

    def run(self, seen, rng):
        {generator}
        return Guess([torch.randn(target.batch, seen.known["features"].value, generator=generator) for target in seen.targets])
"""


def test_an_attack_seeded_like_the_data_is_found(write: Any) -> None:
    seeded = check_attack(write(START.replace("{generator}", "generator = torch.Generator().manual_seed(0)")))
    assert "not seeded like the data" in failed(seeded)
    assert "1.00" in detail(seeded, "not seeded like the data")
    assert verdicts(seeded)["power on fedavg"] == "pass", "the artefact looks like power, which is why the start is watched"
    honest = check_attack(write(START.replace("{generator}", "generator = rng")))
    assert failed(honest) == {"power on fedavg"}


def test_similarity_does_not_cry_wolf() -> None:
    truth = torch.randn(100, 50, generator=stream("wolf", 1))
    alarms = [
        found >= level for found, level in (similarity(torch.randn(40, 50, generator=stream("wolf", 2, k)), truth) for k in range(100))
    ]
    assert sum(alarms) == 0
    found, level = similarity(truth[3:4] + 0.5 * torch.randn(1, 50, generator=stream("wolf", 3)), truth)
    assert found > level


def test_randomness_of_its_own_is_found(write: Any) -> None:
    results = check_attack(write(membership(f"return Guess(-{LOSS} + 1e-3 * torch.rand(len(seen.candidates)))")))
    assert failed(results) == {"same bytes for the same seed"}


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        ("return Guess(torch.zeros(3))", "runs", "160 candidates"),
        ("return Guess([1, 2][5])", "runs", "IndexError"),
        ("raise Skip('not today')", "power", "not today"),
    ],
)
def test_an_attack_that_breaks_is_told_so_in_a_sentence(write: Any, body: str, name: str, said: str) -> None:
    results = check_attack(write(membership(body)))
    assert failed(results) == {name}
    assert said in detail(results, name)


def test_declarations_are_read(write: Any) -> None:
    assert failed(check_attack(write("class Mine:\n    goal = 'fame'\n    needs = frozenset()\n    def run(self, seen, rng): ..."))) == {
        "goal"
    }
    assert failed(check_attack(write(membership("return Guess(0)", '{"everything"}')))) == {"needs"}
    spare = check_attack(write(membership(f"return Guess(-{LOSS})", '{"released", "candidates", "predict", "references"}')))
    assert "references" in detail(spare, "reads")
    assert verdicts(spare)["reads"] == "warn"


def test_breaking_under_another_view_is_not_refusing(write: Any) -> None:
    body = f"assert seen.threat.view != 'outsider'; return Guess(-{LOSS})"
    results = check_attack(write(membership(body)))
    assert failed(results) == {"refuses what it cannot use"}
    skipping = f"if seen.threat.view == 'outsider': raise Skip('servers only')\n        return Guess(-{LOSS})"
    assert not failed(check_attack(write(membership(skipping))))


def test_stopping_too_early_is_a_warning(write: Any) -> None:
    body = """
    class Mine:
        goal = "membership"
        needs = frozenset({"released", "candidates", "predict"})

        def __init__(self, budget: int = 1):
            self.budget = budget

        def run(self, seen, rng):
            fit = -seen.loss(seen.predict(seen.released, seen.candidates.x), seen.candidates.y)
            return Guess(fit + 8 / self.budget ** 2 * torch.randn(len(fit), generator=rng))
    """
    results = check_attack(write(body))
    assert verdicts(results)["stopped only when done"] == "warn"
    assert "still improving" in detail(results, "stopped only when done")


# ------------------------------------------------------------------------------------------------------------- planted: defenses


@pytest.mark.parametrize(
    ("body", "name", "said"),
    [
        ("def secret(self, rng): return Secret(k=torch.arange(4.0))", "secret", "constant"),
        ("def secret(self, rng): return Secret(k=torch.randn(4))", "secret", "different secrets"),
        ("def secret(self, rng): return {'k': rng.normal(4)}", "runs", "Error"),
        (
            "def encode(self, update, rng): return {n: t + torch.randn(t.shape) for n, t in update.items()}",
            "noise and encode",
            "equal generators",
        ),
        ("def encode(self, update, rng): return {n: t.mul_(2) for n, t in update.items()}", "noise and encode", "changes the tensors"),
        ("def encode(self, update, rng): return {n: t.double() for n, t in update.items()}", "noise and encode", "type"),
        ("def prepare(self, x, secret): return x - x.mean(0)", "prepare and restore", "beside it"),
        ("def prepare(self, x, secret): return 2 * x", "prepare and restore", "differs from x"),
        ("def model(self, net, secret): return nn.Sequential(net, nn.Linear(4, 7))", "model", "[6, 7]"),
        ("def claim(self, federation, shape): return 'private'", "claim", "must be a Claim"),
        ("def claim(self, federation, shape): return Claim(kind='keyed')", "claim", "secret() gives none"),
        ("def claim(self, federation, shape): return Claim(kind='dp', epsilon=math.inf, delta=1e-5)", "claim", "promises nothing"),
        ("def claim(self, federation, shape): return Claim(kind='dp', epsilon=1.0, delta=1e-5)", "claim", "does not name"),
        ("def claim(self, federation, shape): return Claim(kind='none', epsilon=1.0)", "claim", "its kind is none"),
    ],
)
def test_each_planted_fault_of_a_defense_is_named(write: Any, body: str, name: str, said: str) -> None:
    results = check_defense(write(f"class Mine(Defense):\n    {body}"))
    assert name in failed(results), results
    assert said in detail(results, name)


KEYED = """
class Scaled(nn.Module):
    def __init__(self, net, key, persistent):
        super().__init__()
        self.net = net
        self.register_buffer("{buffer}", key.float(), persistent=persistent)

    def forward(self, x):
        return self.net(x * self.get_buffer("{buffer}"))

class Mine(Defense):
    def secret(self, rng):
        return Secret(key=rng.uniform(96, low=0.5, high=2.0))

    def weaken(self, secret, fraction, rng):
        return secret if fraction == 1 else self.secret(rng)

    def model(self, net, secret):
        return Scaled(net, secret["key"], {persistent})

    def encode(self, update, rng):
        return update
"""


def test_a_key_in_the_state_dict_is_found_under_any_name(write: Any) -> None:
    for buffer in ("key", "running_statistic"):
        leaky = check_defense(write(KEYED.replace("{persistent}", "True").replace("{buffer}", buffer)))
        assert failed(leaky) == {"model", "no secret on the wire"}
        assert buffer in detail(leaky, "model")
    assert not failed(check_defense(write(KEYED.replace("{persistent}", "False").replace("{buffer}", "key"))))


def test_secrets_are_searched_inside_longer_tensors_and_other_types() -> None:
    key = torch.rand(8, dtype=torch.float64, generator=stream("key"))
    held = {"a": torch.cat([torch.zeros(3), key.float(), torch.ones(2)]), "b": torch.rand(30, generator=stream("other"))}
    assert list(carried(Secret(k=key), held)) == ["a <- k"]
    assert not list(carried(Secret(k=torch.ones(4)), {"w": torch.ones(20)}))  # a constant is found everywhere and tells nothing


UNDER_NOISED = """
class Mine(Defense):
    clip = Clip(1.0)

    def noise(self, clipped_sum, rng):
        return {n: t + {sigma} * torch.randn(t.shape, generator=rng) for n, t in clipped_sum.items()}

    def claim(self, federation, shape):
        return Claim("dp", 8.0, 1e-5, relation="add_remove", sampler="poisson", sampling_rate=0.5, noise_multiplier=1.7, steps=24,
                     server_sees="noised updates", sentence="noised")
"""


def test_a_tenth_of_the_claimed_noise_is_caught(write: Any) -> None:
    assert failed(check_defense(write(UNDER_NOISED.replace("{sigma}", "0.17")))) == {"noise as claimed"}
    assert not failed(check_defense(write(UNDER_NOISED.replace("{sigma}", "1.7"))))


def test_a_channel_that_shows_single_updates_is_found(write: Any) -> None:
    body = """
    class Open:
        def run(self, updates, weights, exchange):
            mean = {n: sum(w * u[n] for u, w in zip(updates, weights)) / sum(weights) for n in updates[0]}
            return Delivery(tuple(Message(i, "update", u) for i, u in enumerate(updates)), mean, tuple(range(len(updates))))

    class Mine(Defense):
        channel = Open()
    """
    results = check_defense(write(body))
    assert failed(results) == {"channel"}
    assert "single sites" in detail(results, "channel")


def test_main_exits_with_one_when_a_check_fails(write: Any, capsys: Any) -> None:
    assert main("defenses", write("class Mine(Defense):\n    topology = 'star'")) == 1
    assert "FAIL  topology" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- flags on results


def rows(values: list[float], **more: Any) -> pd.DataFrame:
    base = {
        "suite": "s", "task": "t", "data": "d", "defense": "fedavg", "attack": "lira", "goal": "membership", "view": "server",
        "key": "none", "metric": "leakage", "reason": "", "low": np.nan, "high": np.nan, "n": 10,
        "direction": "higher", "role": "score", "status": "ok",
        "seconds": 1.0, "schema_version": schema.SCHEMA_VERSION,
    }  # fmt: skip
    return pd.DataFrame([{**base, "seed": seed, "value": value, **more} for seed, value in enumerate(values)])


def flags(*frames: pd.DataFrame) -> dict[str, str]:
    found = schema.validate(flag_results(pd.concat(frames, ignore_index=True)))
    return dict(zip(found["metric"], found["attack"]))


def test_healthy_results_are_not_flagged() -> None:
    assert flags(rows([0.5, 0.52, 0.48]), rows([0.0, 0.1, -0.1], defense="dp_sgd")) == {}


def test_each_meaningless_evaluation_is_flagged() -> None:
    assert flags(rows([0.1, -0.1, 0.0])) == {"flag:no_power": "lira"}
    assert flags(rows([1.2, 1.21, 1.19])) == {"flag:above_oracle": "lira"}
    growing = [rows([v, v + 0.01, v - 0.01], budget=b) for v, b in ((0.3, 1.0), (0.6, 10.0))]
    assert flags(*growing) == {"flag:still_improving": "lira"}
    assert flags(*(rows([0.3, 0.31, 0.29], budget=b) for b in (1.0, 10.0))) == {}
    keyed = [rows([v, v + 0.01, v - 0.01], defense="infl", key=key) for v, key in ((0.8, "none"), (0.2, "right"))]
    assert flags(*keyed) == {"flag:oblivious_beats_aware": "lira"}


def test_flags_join_the_table_they_are_about() -> None:
    table = schema.validate(rows([0.0, 0.1, -0.1], unit="record", budget=1.0))
    joined = schema.validate(with_flags(table))
    assert list(joined["metric"]) == ["leakage"] * 3 + ["flag:no_power"]
    assert (joined.dtypes == table.dtypes).all()
    assert with_flags(rows([0.5, 0.52, 0.48])).equals(rows([0.5, 0.52, 0.48]))


def test_upper_bounds_and_controls_are_left_out_of_flags() -> None:
    assert flags(rows([1.5, 1.5, 1.5], reason=f"{schema.UPPER_BOUND}: read the truth"), rows([1.5, 1.5, 1.5], role="control")) == {}


# ------------------------------------------------------------------------------------------------------------- flags on messages


class Nothing(Defense):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        return {name: torch.zeros_like(tensor) for name, tensor in update.items()}


class Clean(Defense):
    """Clips, claims noise, adds none."""

    clip = Clip(1.0)


def said(defense: Defense, claim: Claim | None = None) -> set[str]:
    stage = Stage(Stack([defense]), rounds=1)
    x = stage.pool.x
    measures = flag_messages(stage.evidence, stage.stack, stage.task, stage.trained.module, x, stage.pool.y, claim)
    assert all(measure.role == "flag" and measure.reason for measure in measures)
    return {measure.metric for measure in measures}


def test_zero_and_clean_messages_are_flagged() -> None:
    claim = Claim("dp", 8.0, 1e-5, noise_multiplier=1.0)
    assert said(Defense()) == set()
    assert said(Nothing()) == {"flag:zero_gradient"}
    assert said(Clean(), claim) == {"flag:clean_under_claim"}
    assert said(Clean()) == set()
    assert said(Defense(), claim) == {"flag:clean_under_claim"}


def test_a_victim_under_another_key_is_flagged() -> None:
    """The messages of a federation under one key, judged by a module that holds another one."""
    stage = Stage(Stack([registry.find("defenses", "infl:hardened:minimum=1").make()]), rounds=1)
    own, other = stage.trained.secret, stage.stack.secret(keys("check", "another"))

    def flags(secret: Secret | None) -> set[str]:
        inputs = stage.stack.prepare(stage.pool.x, secret)
        return {flag.metric for flag in flag_messages(stage.evidence, stage.stack, stage.task, stage.module(secret), inputs, stage.pool.y)}

    assert flags(own) == set()
    assert flags(other) == {"flag:victim_under_wrong_key"}


def test_the_stage_overfits_and_its_null_is_unseen() -> None:
    stage = Stage(Stack([]))
    null = stage.trial("membership", null=True)
    seen = {row.numpy().tobytes() for row in stage.pool.x[stage.members]}
    assert not any(row.numpy().tobytes() in seen for row in null.scene.candidates.x)
    assert sum(row.numpy().tobytes() in seen for row in stage.trial("membership").scene.candidates.x) == MEMBERS
    assert all(torch.equal(one[0], stage.pool.x[k]) for k, one in enumerate(stage.trial("reconstruction").truth))
    assert math.isclose(float(null.truth.mean()), 0.5)
