"""The contract's tests of an attack: power where nothing protects, nothing where nothing leaks, and no other source of knowledge."""

from __future__ import annotations

import ast
import contextlib
import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

import torch
from torch import Tensor

from suites import registry
from suites.auditing.insertion import Inserting
from suites.checks_draws import Draws
from suites.checks_property import property_measures, property_trial, skewed
from suites.checks_result import CheckResult, judged
from suites.checks_stage import CLASSES, FEATURES, Stage, Trial, same, with_truth
from suites.contracts import Attack, Goal, Ground, Guess, KeyHeld, RequestError, Secret, Sees, Skip, Threat, View
from suites.crafting import Crafting, answered
from suites.modules import call
from suites.observation import _PROPERTIES, Guarded, UndeclaredReadError, why_not
from suites.randomness import stream
from suites.scoring import Measure, score_key, score_membership, score_reconstruction, score_vectors
from suites.stack import Stack

_PRIVATE = frozenset({"_seen", "_scene", "_evidence", "_needs", "_fields"})
_ALWAYS = frozenset({"threat", "known", "signal", "loss"})  # readable without a declaration
_PATIENCE = 20.0  # seconds of one run above which more budget is not tried


def check_attack(ref: str) -> list[CheckResult]:
    """Every promise of the contract, each with what was seen; stops at the first that makes the others meaningless."""
    plugin = registry.find("attacks", ref)
    attack: Attack = plugin.make()
    results = [*_declared(attack)]
    if any(result.verdict == "fail" for result in results):
        return results
    results.append(_private_reads(attack))
    return results + Examination(attack, ref).results()


def _declared(attack: Attack) -> list[CheckResult]:
    goal, needs = getattr(attack, "goal", None), getattr(attack, "needs", None)
    unknown = sorted(set(needs) - set(get_args(Sees))) if isinstance(needs, frozenset) else []
    return [
        judged("goal", goal in get_args(Goal), f"{goal}", f"goal is {goal!r}; it must be one of {', '.join(get_args(Goal))}"),
        judged(
            "needs",
            isinstance(needs, frozenset) and not unknown,
            ", ".join(sorted(needs or ())),
            f"needs must be a frozenset of sights; unknown: {', '.join(unknown)}" if unknown else "needs must be a frozenset",
        ),
    ]


def _private_reads(attack: Attack) -> CheckResult:
    """No name of the referee's own state in the attack's source; reading past the guard is not a reading of the observation."""
    try:
        tree = ast.parse(inspect.getsource(inspect.getmodule(type(attack)) or type(attack)))
    except (OSError, TypeError):
        return CheckResult("reads only the observation", "skip", "the source cannot be read")
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    own = {f"self.{name}" for name in vars(type(attack))}
    found = sorted((names & _PRIVATE) - {name.removeprefix("self.") for name in own})
    detail = f"the source names {', '.join(found)}, the referee's own state: what it holds is the truth; read the observation's properties"
    return judged("reads only the observation", not found, "no name of the referee's state in the source", detail)


class Examination:
    """One attack on the small federation."""

    def __init__(self, attack: Attack, ref: str, *, stage: Stage | None = None) -> None:
        self.attack, self.ref, self.goal = attack, ref, attack.goal
        ground: Ground = getattr(attack, "ground", Ground())
        named = ground.defense or ("infl:published" if self.goal == "key" else "")
        self.inserting = cast(Inserting, attack) if self.goal == "audit" and hasattr(attack, "inserts") else None
        own = [plugin.make() for plugin in registry.stack(named)] if named else []
        self.stage = Stage(Stack(own), inserting=self.inserting, ground=ground) if stage is None else stage
        if self.goal == "property" and stage is None:
            skewed(self.stage)
        self.where = " with ".join([named or "fedavg", *sorted(ground.flaws)])
        self.sums = "probe_sums" in attack.needs and "probes" not in attack.needs
        self.control = type(attack).__module__.rpartition(".")[2] == "controls"
        self.reads: set[str] = set()
        self.threat = Threat(known_pairs=ground.known_pairs)

    def results(self) -> list[CheckResult]:
        if self.goal == "audit" and self.inserting is None:
            return [CheckResult("inserts", "fail", "an audit brings canaries: give the attack a method inserts(auxiliary, classes, rng)")]
        if self.goal not in ("reconstruction", "membership", "key", "audit", "property"):
            return [CheckResult("power", "skip", f"there is no scene with a known answer for the goal {self.goal} yet")]
        view = next((v for v in get_args(View) if why_not(self.attack, v, self.stage.stack, has_references=True) is None), None)
        if view is None:
            return [CheckResult("power", "fail", f"no view of {self.where} gives all of its needs: {', '.join(sorted(self.attack.needs))}")]
        self.view: View = view
        self.trial = self._trial(self.stage, view)
        started = time.perf_counter()
        draws = Draws(FEATURES)
        try:
            guess = self._first(draws)
            self.seconds = time.perf_counter() - started
            scores = self._scores(guess, self.trial)
        except UndeclaredReadError as error:
            return [CheckResult("undeclared reads raise", "fail", str(error))]
        except Skip as skip:
            return [CheckResult("power", "fail", f"skips even {self.where}: {skip}")]
        except Exception as error:  # whatever a plug-in does, the check says it in a sentence
            return [CheckResult("runs", "fail", f"{type(error).__name__}: {error}")]
        return [
            CheckResult("runs", "pass", f"{self.seconds:.2f} s at the {view}'s view of {self.where}"),
            self._unread(),
            self._searched(guess, scores) if self.stage.ground.keys else self._power(scores),
            self._null(guess),
            *self._repeats(guess),
            self._start(draws),
            self._ceiling(scores),
            *self._refusals(),
            self._still_improving(scores),
        ]

    # ---- running and scoring

    def _trial(self, stage: Stage, view: View, *, null: bool = False) -> Trial:
        trial = stage.trial(self.goal, null=null, sums=self.sums, view=view, known=self.threat.known_pairs)
        return property_trial(stage, self.attack, trial, null=null) if self.goal == "property" else trial

    def scored(self, threat: Threat) -> dict[str, Measure]:
        """One run under one threat, and its scores: a reconstruction's leakage beyond what class means and random records give."""
        self.threat = threat
        trial = self._trial(self.stage, threat.view)
        return self._scores(self._run(self.attack, trial, view=threat.view), trial, controls=self._priors(trial, threat.view))

    def _priors(self, trial: Trial, view: View) -> dict[str, Any]:
        """The guesses of those who look at no message."""
        found: dict[str, Any] = {}
        for name in ("class_mean", "random_guess") if self.goal == "reconstruction" else ():
            control: Any = registry.find("attacks", name).make()
            with contextlib.suppress(Skip):
                found[name] = self._run(control.of_sums() if self.sums else control, trial, view=view).value
        return found

    def _first(self, draws: Draws) -> Guess:
        """The first run; a key attack is also offered a wrong and the right key, since some only use a held one."""
        offered: tuple[KeyHeld, ...] = ("none", "wrong", "right") if self.goal == "key" else ("none",)
        for held in offered[:-1]:
            self.threat = replace(self.threat, view=self.view, key=held)
            with contextlib.suppress(Skip):
                return self._run(self.attack, self.trial, draws)
        self.threat = replace(self.threat, view=self.view, key=offered[-1])
        return self._run(self.attack, self.trial, draws)

    def _run(self, attack: Attack, trial: Trial, draws: Draws | None = None, *, ambient: int = 1, view: View | None = None) -> Guess:
        threat = replace(self.threat, view=view or self.view, active=isinstance(attack, Crafting))
        guarded = Guarded(trial.seen(threat), frozenset(attack.needs))
        with torch.random.fork_rng(devices=[]), draws or contextlib.nullcontext():
            torch.manual_seed(ambient)  # the global generator is nobody's business: another state must not move the guess
            if isinstance(attack, Crafting):
                crafted = answered(attack, guarded, trial.evidence, trial.ask, stream("check", "crafting"))
                guarded = Guarded(replace(trial, evidence=crafted).seen(threat), frozenset(attack.needs), guarded.reads)
            guess = attack.run(guarded, stream("check", "attack"))
        self.reads |= guarded.reads
        if not isinstance(guess, Guess):
            raise RequestError(f"run returned {type(guess).__name__}, but a guess is what is scored; return suites.contracts.Guess(...)")
        return guess

    def _scores(self, guess: Guess, trial: Trial, controls: Mapping[str, Any] | None = None) -> dict[str, Measure]:
        stage, truth = self.stage, trial.truth
        if self.goal in ("membership", "audit"):
            measures = score_membership(guess.value, torch.as_tensor(truth).bool())
        elif self.goal == "property":
            measures = property_measures(stage, self.attack, guess, truth)
        elif self.goal == "reconstruction":
            pool = torch.cat([stage.pool.x[stage.members], stage.pool.x[stage.unseen]])
            truth = truth[: len(guess.value)]
            priors = {name: made[: len(truth)] for name, made in (controls or {}).items()}
            measures = score_reconstruction(guess, truth, pool, trial.scene.auxiliary, priors, stream("check", "scorer"))
        elif isinstance(guess.value, Mapping):
            module = stage.module(stage.trained.secret)
            module.load_state_dict(stage.evidence.rounds[0].broadcast)
            measures = score_vectors(guess.value, stage.stack.derived(module))
        else:
            opened = [self._opened(key) for key in guess.value]
            floor = next(iter(stage.task.floor(stage.pool.y[stage.members], stage.pool.y[stage.members], CLASSES).values()))
            measures = score_key(opened, self._opened(stage.trained.secret), floor)
        return {measure.metric: measure for measure in measures}

    def _opened(self, key: Secret | None) -> float:
        """How much of the members an opened model says right: of unseen records the overfitted one says no more than rounding decides."""
        stage, module = self.stage, self.stage.module(self.stage.trained.secret if key is None else key)
        if key is None:
            module = stage.stack.without_key(module)
        with torch.no_grad():
            outputs = call(module, stage.evidence.finals[0], stage.stack.prepare(stage.pool.x[stage.members], key))
        return next(iter(stage.task.utility(outputs, stage.pool.y[stage.members], CLASSES).values()))

    # ---- what is promised

    def _unread(self) -> CheckResult:
        read = [_PROPERTIES[name] for name in self.reads - _ALWAYS]
        needed = self.attack.needs - ({"released"} if self.goal == "key" else set())  # the scorer opens it with the guessed key
        unused = sorted(need for need in needed if not any(need in sights for sights in read))
        if "oracle" in self.reads:
            return CheckResult("reads", "warn", "it read the truth: every row of it is an upper bound and enters no headline")
        if unused:
            return CheckResult("reads", "warn", f"declared but never read: {', '.join(unused)}; each one makes it skip where it could run")
        return CheckResult("reads", "pass", ", ".join(sorted(self.reads)))

    def _power(self, scores: dict[str, Measure]) -> CheckResult:
        name = f"power on {self.where}"
        if self.control:
            return CheckResult(name, "skip", "a control is a guess without the message")
        leakage = scores["leakage"]
        shown = f"leakage {leakage.value:.3f} [{leakage.low:.3f}, {leakage.high:.3f}]"
        if self.goal == "key":  # no defense is bound to fall to one key attack, so this can only be a warning
            weak = not leakage.value > 0
            return CheckResult(name, "warn" if weak else "pass", shown + (": it opens no more than the majority guess" if weak else ""))
        if self.goal == "property" and math.isnan(leakage.low):  # all sites together are one figure
            return CheckResult(name, "pass" if leakage.value > 0.5 else "warn", f"leakage {leakage.value:.3f}, without an interval")
        found = scores.get("reidentified")
        pointed = found is not None and found.low > 2 * scores["chance_reidentified"].value
        if leakage.low > 0 or pointed:
            extra = f", {found.value:.0%} re-identified" if found is not None else ""
            return CheckResult(name, "pass", shown + extra)
        return CheckResult(name, "fail", f"{shown}: where nothing protects it finds nothing, so its silence elsewhere means nothing")

    def _searched(self, guess: Guess, scores: dict[str, Measure]) -> CheckResult:
        """Among few keys the federation's own has to be found; what it opens is up to the model."""
        key, count = self.stage.trained.secret, self.stage.ground.keys
        assert key is not None  # a key space has keys
        true = {name: key[name] for name in key.names}
        said = [{name: one[name] for name in one.names} for one in guess.value if isinstance(one, Secret)]
        hit = any(same(one, true) for one in said)
        shown = f"the federation's own key, one of {count}; leakage {scores['leakage'].value:.3f}"
        return judged(f"power on {self.where}", hit, shown, f"the federation's key is one of {count}, and no guess is that key")

    def _null(self, guess: Guess) -> CheckResult:
        name = "nothing on the null"
        if self.goal == "key":
            return CheckResult(name, "skip", "no key is hidden in a scene without one")
        trial = self._trial(self.stage, self.view, null=True)
        if self.goal in ("membership", "audit", "property"):
            guess = self._run(self.attack, trial)
        elif "oracle" in self.reads:
            return CheckResult(name, "skip", "it read the truth")
        leakage = self._scores(guess, trial)["leakage"]
        if "oracle" in self.reads:
            return CheckResult(name, "skip", "it read the truth")
        shown = f"leakage {leakage.value:.3f} [{leakage.low:.3f}, {leakage.high:.3f}]"
        firmly = leakage.value - 1.5 * (leakage.value - leakage.low)  # one in 600, since many plug-ins are checked
        return judged(name, not firmly > 0, shown, f"{shown} on records that no model or message saw: it measures something else")

    def _repeats(self, guess: Guess) -> list[CheckResult]:
        """Once more with another truth and another global generator; only where that moves the guess it is asked which of them did."""
        truth = self.trial.truth
        if isinstance(truth, list):
            other: Any = [-one.flip(-1) for one in reversed(truth)]
        elif isinstance(truth, Tensor):
            other = 1 - truth
        else:
            other = None
        again = self._run(self.attack, with_truth(self.trial, other), ambient=2)
        seeded = selected = _equal(guess, again)
        if not seeded:
            seeded = _equal(guess, self._run(self.attack, self.trial, ambient=2))
            selected = not seeded
        same_bytes = judged(
            "same bytes for the same seed", seeded, "two runs agree", "two runs with equal generators differ: draw from ``rng`` alone"
        )
        if "oracle" in self.reads:
            return [same_bytes]
        if not seeded:
            return [same_bytes, CheckResult("selects nothing by the truth", "skip", "runs differ anyhow")]
        wrong = "the guess changes with the truth: it reads what only the scorer may hold"
        return [same_bytes, judged("selects nothing by the truth", selected, "the guess stays when the truth changes", wrong)]

    def _start(self, draws: Draws) -> CheckResult:
        records = [self.stage.pool.x[self.stage.members]]
        found, level = draws.similarity(records)
        name = "not seeded like the data"
        if not draws.kept:
            return CheckResult(name, "pass", "it draws no record")
        shown = f"largest cosine of a drawn row with a true record {found:.2f}"
        return judged(
            name, found < level, shown, f"{shown}: its start is the truth itself; draw from ``rng``, never from a seed of its own"
        )

    def _ceiling(self, scores: dict[str, Measure]) -> CheckResult:
        leakage, slack = scores["leakage"], 1e-6
        if "opened:right_key" in scores:  # the right key is no oracle: on eighty records another one may do better by luck
            room = scores["opened:right_key"].value - scores["opened:majority"].value
            slack = 2 * (0.5 / len(self.stage.members)) ** 0.5 / max(room, 1e-9)
        above = leakage.low > 1 + slack if leakage.low == leakage.low else leakage.value > 1 + slack
        return judged(
            "leakage never above the oracle's",
            not above,
            f"{leakage.value:.3f}",
            f"{leakage.value:.3f} is more than the truth itself gives",
        )

    def _refusals(self) -> list[CheckResult]:
        """Other views, no references, masked sums: it runs, or there is a reason why not."""
        said = []
        masked = (
            Stage(
                Stack([registry.find("defenses", "secure_aggregation").make()]),
                rounds=2,
                inserting=self.inserting,
                ground=replace(self.stage.ground, flaws=frozenset(), keys=0),
            )
            if self._installed()
            else None
        )
        for label, stage, view, has in (
            *((f"{view} without references", self.stage, view, False) for view in get_args(View)),
            *((view, self.stage, view, True) for view in get_args(View)),
            *(((f"{view} under secure_aggregation", masked, view, True) for view in get_args(View)) if masked is not None else ()),
        ):
            reason = why_not(self.attack, view, stage.stack, has_references=has)
            if reason is not None:
                said.append(f"{label}: {reason}")
                continue
            if (view == self.view and stage is self.stage) or not has or self.seconds > _PATIENCE:
                continue
            try:
                guess = self._run(self.attack, self._trial(stage, view), view=view)
                said.append(f"{label}: runs" if guess.value is not None else f"{label}: no guess")
            except Skip as skip:
                said.append(f"{label}: {skip}")
            except Exception as error:
                return [
                    CheckResult("refuses what it cannot use", "fail", f"{label}: {type(error).__name__}: {error}; raise Skip with a reason")
                ]
        return [CheckResult("refuses what it cannot use", "pass", "; ".join(dict.fromkeys(said)) or "runs everywhere")]

    def _installed(self) -> bool:
        if self.goal == "key":
            return False
        try:
            registry.find("defenses", "secure_aggregation").load()
        except Exception:
            return False
        return True

    def _still_improving(self, scores: dict[str, Measure]) -> CheckResult:
        name, budget = "stopped only when done", getattr(self.attack, "budget", None)
        plugin = registry.find("attacks", self.ref)
        if not isinstance(budget, int | float) or "budget" not in inspect.signature(plugin.load().__init__).parameters:
            return CheckResult(name, "skip", "it has no parameter budget")
        if self.seconds > _PATIENCE:
            return CheckResult(name, "skip", f"one run took {self.seconds:.0f} s; run it at 10 and 100 times the budget in a suite")
        more = type(self.attack)(**{**plugin.parameters, "budget": 4 * budget})
        after = self._scores(self._run(more, self.trial), self.trial)["leakage"].value
        gain = after - scores["leakage"].value
        shown = f"leakage {scores['leakage'].value:.3f}, with four times the budget {after:.3f}"
        return CheckResult(name, "warn" if gain > 0.05 else "pass", shown + (": still improving when stopped" if gain > 0.05 else ""))


def _equal(a: Guess, b: Guess) -> bool:
    def same_value(one: Any, other: Any) -> bool:
        if isinstance(one, Tensor):
            return isinstance(other, Tensor) and one.shape == other.shape and one.dtype == other.dtype and _bytes(one) == _bytes(other)
        if isinstance(one, Mapping):
            return isinstance(other, Mapping) and same(dict(one), dict(other))
        if isinstance(one, Secret):
            return isinstance(other, Secret) and same({n: one[n] for n in one.names}, {n: other[n] for n in other.names})
        if isinstance(one, list | tuple):
            return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same_value, one, other))
        return bool(one == other)

    return same_value(a.value, b.value)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
