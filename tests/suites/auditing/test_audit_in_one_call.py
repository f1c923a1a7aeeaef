"""The one-call audit: what a user types, what comes back, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from reports.roc import auc
from reports.schema import validate, validate_curves
from suites.audit import Network, Trace, audit, audit_scores, audit_trace
from suites.auditing.arrays import _checked, _inclusion, _outputs
from suites.auditing.blind import blind_scores
from suites.auditing.thresholds import clopper_pearson
from suites.errors import RequestError


def records(n: int = 120, features: int = 40, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that features hardly tell, so that a model has to learn records by heart; which half are members is independent of both."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, features)).astype(np.float32)
    y = (x[:, :classes] + 2 * draw.normal(size=(n, classes))).argmax(1)
    return x, y, draw.permutation(n) < n // 2


SMALL = Network(hidden=32, blocks=1, epochs=30, batch=30, lr=3e-3)


# ---- scores


def test_scores_are_read_as_everywhere_else() -> None:
    draw = np.random.default_rng(1)
    inside, outside = draw.normal(1, 1, 400), draw.normal(0, 1, 400)
    told = audit_scores(inside, outside, delta=1e-5)
    area = auc(np.concatenate([inside, outside]), np.arange(800) < 400)
    assert told.value("auc") == area.value
    row = told.table.set_index("metric").loc["auc"]
    assert (row["low"], row["high"]) == (area.low, area.high)
    assert told.value("fpr@1%") <= 0.01
    assert told.value("tpr@1%") == np.mean(inside >= told.value("threshold@1%"))
    assert np.isnan(told.value("tpr@0.1%"))
    assert "not resolvable" in str(told)
    assert told.value("epsilon_lower:clopper_pearson") == clopper_pearson(inside, outside, delta=1e-5).epsilon
    validate(told.table)
    validate_curves(told.curves)
    assert told.table["protocol"].str.contains("tied").all()


def test_one_run_bounds_appear_only_where_inclusion_was_independent() -> None:
    draw = np.random.default_rng(2)
    inside, outside = draw.normal(2, 1, 200), draw.normal(0, 1, 200)
    without, stated = audit_scores(inside, outside), audit_scores(inside, outside, independent_inclusion=True)
    assert not without.table["metric"].str.contains("one_run").any()
    assert "One-run bounds are left out" in str(without)
    assert {"epsilon_lower:one_run", "epsilon_lower:one_run_f_dp", "epsilon_assumed:one_run_gaussian"} <= set(stated.table["metric"])
    kinds = {row.metric: row.reason.split(":")[0] for row in stated.table.itertuples() if row.metric.startswith("epsilon_")}
    assert set(kinds.values()) == {"bound", "assumption", "estimate"}
    assert all((kind == "bound") == name.startswith("epsilon_lower") for name, kind in kinds.items())


def test_a_claim_below_the_bound_is_flagged_and_one_above_is_not() -> None:
    inside, outside = np.ones(300), np.zeros(300)
    assert "flag:claim_refuted" in set(audit_scores(inside, outside, claimed=1.0).table["metric"])
    assert "lies above the claimed" in str(audit_scores(inside, outside, claimed=1.0))
    assert "flag:claim_refuted" not in set(audit_scores(inside, outside, claimed=20.0).table["metric"])


def test_the_page_is_one_file_with_the_audit_s_numbers(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    told = audit_scores(draw.normal(1, 1, 400), draw.normal(0, 1, 400), name="my model")
    page = told.report(tmp_path).read_text()
    assert f"{told.value('auc'):.3f}" in page
    assert "my model" in page
    assert "by Clopper–Pearson" in page
    assert f"{told.value('epsilon_lower:clopper_pearson'):.3f}" in page
    assert 'src="http' not in page


@pytest.mark.parametrize(("inside", "outside", "says"), [([], [1.0], "empty"), ([np.nan, 1.0], [1.0], "NaN"), (["x"], [1.0], "numbers")])
def test_scores_that_cannot_be_counted_are_refused(inside: list, outside: list, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        audit_scores(inside, outside)


# ---- a function that fits


def test_a_model_that_remembers_records_is_found_out_completely() -> None:
    x, y, member = records()
    told = audit(lambda X, Y: KNeighborsClassifier(1).fit(X, Y), x, y, member, references=0)
    assert told.value("auc", "loss_threshold") > 0.7
    memory = audit(_Memory, x, y, member, references=4)
    assert memory.value("auc", "lira") == 1.0
    assert memory.value("auc", "loss_threshold") == 1.0


class _Memory:
    """Certain about the records it saw, undecided about all others."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.classes_ = np.unique(y)
        self.known = {row.tobytes(): label for row, label in zip(x, y)}

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        out = np.full((len(x), len(self.classes_)), 1 / len(self.classes_))
        for i, row in enumerate(x):
            if row.tobytes() in self.known:
                out[i] = 0.97 * (self.classes_ == self.known[row.tobytes()]) + 0.01
        return out / out.sum(1, keepdims=True)


def test_a_model_that_ignores_its_records_tells_nothing() -> None:
    """The null audit: no lower end above one half, at a family-wise level, and no epsilon."""
    x, y, member = records(400, 10)
    told = audit(lambda X, Y: lambda asked: np.tile(np.arange(3.0), (len(asked), 1)), x, y, member, references=4)
    for attack in ("lira", "rmia", "loss_threshold"):
        assert told.value("epsilon_lower", attack) == 0
        assert abs(told.value("auc", attack) - 0.5) < 0.1


def test_controls_lie_at_both_ends() -> None:
    x, y, member = records(300)
    told = audit(SMALL, x, y, member, references=2)
    assert told.value("auc", "oracle_membership") == 1.0
    assert abs(told.value("auc", "random_membership") - 0.5) < 0.12
    assert abs(told.value("auc", "blind") - 0.5) < 0.12
    assert set(told.table.loc[told.table["attack"] == "blind", "role"]) == {"control"}


def test_a_split_that_gives_members_away_is_the_blind_baselines_to_say() -> None:
    x, y, member = records(200)
    x = x + 0.8 * member[:, None]
    told = audit(SMALL, x, y, member, references=2)
    assert told.value("auc", "blind") > 0.95
    assert "without any model" in str(told)


def test_folds_left_out_in_closed_form_are_fits_without_them() -> None:
    x, y, member = records(60, 20)
    centred = (x - x.mean(0)) / x.std(0)
    kernel = centred @ centred.T / 20 + np.eye(3)[y] @ np.eye(3)[y].T
    rng, said = np.random.default_rng([3, 5]), np.zeros(60)
    for _ in range(4):
        for part in np.array_split(rng.permutation(60), 5):
            rest = np.setdiff1d(np.arange(60), part)
            gram = kernel[np.ix_(rest, rest)] + np.trace(kernel) / 60 * np.eye(len(rest))
            said[part] += kernel[np.ix_(part, rest)] @ np.linalg.solve(gram, member[rest] - 0.5) / 4
    assert np.allclose(blind_scores(x, y, member, 3), said, atol=1e-5)


def test_folds_do_not_bias_the_blind_baseline() -> None:
    draw = np.random.default_rng(5)
    found = []
    for seed in range(20):
        x, y, member = draw.normal(size=(150, 60)).astype(np.float32), draw.integers(0, 3, 150), draw.random(150) < 0.5
        found.append(auc(blind_scores(x, y, member, seed), member).value)
    assert abs(np.mean(found) - 0.5) < 4 * 0.047 / np.sqrt(20)


@pytest.mark.parametrize(
    "fit",
    [
        SMALL,
        lambda X, Y: LogisticRegression(C=100.0, max_iter=300).fit(X, Y),
        lambda X, Y, seed: RandomForestClassifier(20, random_state=seed).fit(X, Y),
        lambda X, Y: LogisticRegression(C=100.0, max_iter=300).fit(X, Y).decision_function,
        lambda X, Y: LogisticRegression(C=100.0, max_iter=300).fit(X, Y).predict_proba,
    ],
    ids=["network", "scikit-learn", "seeded", "logits", "probabilities"],
)
def test_whatever_fits_can_be_audited(fit: object) -> None:
    x, y, member = records(121)  # odd on purpose
    told = audit(fit, x, np.array(["a", "b", "c"])[y], member, references=6)  # type: ignore[arg-type]
    assert told.value("auc", "loss_threshold") > 0.6
    assert told.value("auc", "lira") > 0.6
    validate(told.table)


def test_a_reference_that_lacks_a_class_is_no_trouble() -> None:
    x, y, member = records(60)
    y[:] = 0
    y[30:] = 1
    y[5] = 2  # one record of its own class: most references never see it
    told = audit(lambda X, Y: LogisticRegression(max_iter=200).fit(X, Y), x, y, member, references=4)
    assert np.isfinite(told.value("auc", "lira"))


def test_the_columns_of_a_model_that_lacks_a_class_are_put_in_their_places() -> None:
    class Two:
        classes_ = np.array(["a", "c"])

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return np.tile([0.3, 0.7], (len(x), 1))

    x, _, member = records(6)
    data = _checked(x, np.array(["a", "b", "c"])[[0, 1, 2, 0, 1, 2]], member)
    assert torch.allclose(_outputs(Two(), data)(data.x).exp(), torch.tensor([0.3, 0.0, 0.7], dtype=torch.float64), atol=1e-9)


def test_public_records_bring_in_quantile_regression() -> None:
    x, y, member = records(200)
    more, labels, _ = records(150, seed=9)
    with_public = audit(SMALL, x, y, member, references=2, public=(more, labels))
    assert np.isfinite(with_public.value("auc", "quantile"))
    without = audit(SMALL, x, y, member, references=2)
    skipped = without.table[without.table["attack"] == "quantile"]
    assert list(skipped["status"]) == ["skipped"]
    assert "public" in skipped["reason"].iloc[0]


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    x, y, member = records()
    first, again, other = (audit(SMALL, x, y, member, references=4, seed=seed).table.drop(columns="seconds") for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["value"].equals(other["value"])


def test_references_are_drawn_without_looking_at_membership() -> None:
    member = np.random.default_rng(1).permutation(500) < 200
    drawn = _inclusion(member, 16, 0)
    assert (drawn[0] == member).all()
    within = drawn[1:].sum(0)
    assert set(within) == {6}  # 0.4 of 16, for every record alike
    assert abs(np.corrcoef(drawn[1:].mean(1), np.arange(16))[0, 1]) < 1
    assert max(abs(np.corrcoef(row, member)[0, 1]) for row in drawn[1:]) < 0.2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"X": np.zeros((5, 2))}, "same records"),
        ({"member": np.full(120, 2)}, "true or false"),
        ({"member": np.ones(120)}, "at least two"),
        ({"X": np.full((120, 40), np.nan)}, "NaN"),
        ({"X": np.full((120, 40), "a")}, "not a number"),
        ({"y": np.arange(120) / 7}, "classifiers"),
        ({"X": np.zeros((120, 40))}, "at once"),
        ({"references": 1}, "2 or more"),
        ({"fit": lambda X, Y: 3}, "predict_proba"),
        ({"fit": lambda X, Y: lambda asked: np.zeros((len(asked), 7))}, "one value a class"),
        ({"fit": lambda X, Y: lambda asked: np.full((len(asked), 3), np.nan)}, "NaN"),
        ({"public": (np.zeros((4, 3)), np.zeros(4))}, "public must be"),
        ({"public": (records()[0][:3], records()[1][:3])}, "3 of the public records are in X too"),
        ({"delta": 2.0}, "delta"),
    ],
)
def test_what_cannot_be_audited_is_said_in_one_sentence(change: dict, says: str) -> None:
    x, y, member = records()
    with pytest.raises(RequestError, match=says):
        audit(**{"fit": SMALL, "X": x, "y": y, "member": member, "references": 2, **change})


# ---- a training loop


def trained(trace: Trace, rounds: int = 6) -> Trace:
    """Plain torch: some steps of SGD a round on the members."""
    x, y, member = (torch.as_tensor(np.asarray(one)) for one in (trace.X, trace.y, trace.member))
    optimiser = torch.optim.SGD(trace.model.parameters(), lr=0.1)
    for _ in range(rounds):
        with trace.round():
            for rows in torch.randperm(int(member.sum()), generator=torch.Generator().manual_seed(1)).split(20):
                optimiser.zero_grad()
                nn.functional.cross_entropy(trace.model(x[member][rows]), y[member][rows]).backward()
                optimiser.step()
    return trace


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))


def test_a_training_loop_s_updates_give_its_records_away() -> None:
    x, y, member = records(80)
    told = audit_trace(trained(Trace(net(), x, y, member)))
    assert told.value("auc", "round_cosine") > 0.85
    assert np.isfinite(told.value("auc", "span"))
    assert told.value("auc", "oracle_membership") == 1.0
    assert set(told.table["view"]) == {"server"}


def test_span_membership_reads_the_row_space_of_wide_records() -> None:
    draw = np.random.default_rng(4)
    x, y, member = draw.normal(size=(60, 400)).astype(np.float32), draw.integers(0, 3, 60), draw.permutation(60) < 30
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, 3))
    told = audit_trace(trained(Trace(model, x, y, member), 3))
    assert told.value("auc", "span") > 0.95


def test_recorded_pairs_are_as_good_as_the_block_and_the_model_is_left_alone() -> None:
    x, y, member = records(80)
    trace = trained(Trace(net(), x, y, member))
    state = {name: tensor.clone() for name, tensor in trace.model.state_dict().items()}
    by_hand = Trace(net(), x, y, member, rounds=[(dict(before), dict(update)) for before, update in trace.rounds])
    one, other = audit_trace(trace), audit_trace(by_hand)
    pd.testing.assert_frame_equal(one.table.drop(columns="seconds"), other.table.drop(columns="seconds"))
    assert trace.model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in trace.model.state_dict().items())


def test_updates_that_have_nothing_to_do_with_the_records_tell_nothing() -> None:
    x, y, member = records(200)
    trace = Trace(net(), x, y, member)
    noise = torch.Generator().manual_seed(3)
    state = {name: tensor.clone() for name, tensor in trace.model.state_dict().items()}
    trace.rounds = [(state, {name: torch.randn(t.shape, generator=noise) for name, t in state.items()}) for _ in range(3)]
    told = audit_trace(trace)
    for attack in ("round_cosine", "span", "loss_threshold"):
        assert told.table.set_index(["attack", "metric"]).loc[(attack, "leakage"), "low"] < 0.1
        assert told.value("epsilon_lower", attack) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rounds": []}, "no round"),
        ({"rounds": [({"a": torch.zeros(1)}, {"a": torch.zeros(1)})]}, "names other tensors"),
        ({"y": np.zeros(80)}, "class numbers"),
        ({"member": np.ones(80, dtype=bool)}, "non-members"),
        ({"X": np.zeros((3, 40))}, "same records"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(change: dict, says: str) -> None:
    x, y, member = records(80)
    trace = trained(Trace(net(), x, y, member), 1)
    for name, value in change.items():
        setattr(trace, name, value)
    with pytest.raises(RequestError, match=says):
        audit_trace(trace)


def test_a_trace_is_checked_before_a_training_is_spent_on_it_and_prints_no_record() -> None:
    x, y, member = records(80)
    for given, says in (
        ((x, y[:40], member), "same records"),
        ((x, y, np.flatnonzero(member)), "True or False"),
        ((x, y, np.ones(80, dtype=bool)), "non-members"),
        ((x, y.astype(float), member), "class numbers"),
    ):
        with pytest.raises(RequestError, match=says):
            Trace(net(), *given)
    assert repr(Trace(net(), x, y, member)) == "Trace()"


@pytest.mark.parametrize("claimed", [-1.0, float("nan")])
def test_an_epsilon_below_zero_is_no_claim(claimed: float) -> None:
    with pytest.raises(RequestError, match="at least 0"):
        audit_scores(np.arange(50.0), np.arange(50.0), claimed=claimed)


# ---- what the README shows, straight out of it

SECTION = (Path(__file__).parents[3] / "README.md").read_text().split("### Audit a model of your own")[1].split("\n### ")[0]
SHOWN = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)


def test_the_readme_shows_scores_arrays_and_a_loop() -> None:
    for call, snippet in zip(("audit_scores(scores", "(audit(", "audit_trace(trace"), SHOWN, strict=True):
        assert call in snippet


@pytest.mark.parametrize("snippet", SHOWN)
def test_ten_lines_are_enough(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(6)
    x, y, member = records(80)
    model = net()

    def train_one_epoch(module: nn.Module) -> None:
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        nn.functional.cross_entropy(module(torch.from_numpy(x[member])), torch.from_numpy(y[member])).backward()
        optimiser.step()

    names = {"scores_of_members": draw.normal(1, 1, 300), "scores_of_others": draw.normal(0, 1, 300)}
    assert len(snippet.strip().splitlines()) <= 10
    exec(snippet, {**names, "X": x, "y": y, "member": member, "model": model, "train_one_epoch": train_one_epoch})
    assert "AUC" in capsys.readouterr().out
