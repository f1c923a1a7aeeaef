"""The ladder stops at the first rung that reproduces the message, pays for no dearer one, and does not fit noise."""

import pytest
import torch
from observations import FakeObservation, cosine, mlp, normal, probe, r2
from scipy.optimize import linear_sum_assignment
from torch import nn

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.gradient_inversion.ladder import Ladder, LadderOfSum
from attacks.gradient_inversion.rank import KnownRecords, directions
from suites.contracts import Observation, Records, RequestError, Skip

F, K = 200, 10


def lab(batch: int, known: int = 0, features: int = F, noise: float = 0.0, tanh: bool = False, **step):
    module = nn.Sequential(*mlp([features, 64, K], 0)[:1], nn.Tanh(), mlp([64, K], 1)) if tanh else mlp([features, 64, 64, K], 0)
    x, y = normal(batch, features, seed=10), torch.arange(batch) % K
    added = None if noise == 0 else (lambda t: t + noise * t.std() * normal(*t.shape, seed=77))
    target = probe(module, x, y, noise=added, **step)
    public = normal(100, features, seed=99)
    labels = torch.arange(100) % K
    public[:known], labels[:known] = x[:known], y[:known]
    return FakeObservation(module, features, K, targets=[target], auxiliary=Records(public, labels)), x


def climb(seen: FakeObservation, **options: int):
    return Ladder(**options).run(seen, torch.Generator().manual_seed(5))


def error(guess: torch.Tensor, truth: torch.Tensor) -> float:
    order = linear_sum_assignment(torch.cdist(truth, guess).numpy())[1]
    return float(((guess[order] - truth).norm(dim=1) / truth.norm(dim=1)).max())


@pytest.mark.parametrize(
    ("given", "rung", "dearer"),
    [
        ({"batch": 1}, "closed_form", "known_records"),
        ({"batch": 4, "known": 4}, "known_records", "spear"),
        ({"batch": 4}, "spear", "row_space"),
        ({"batch": 2, "optimiser": "sgd", "steps": 3, "lr": 0.05}, "spear", "row_space"),
        ({"batch": 2, "optimiser": "sgd", "steps": 3, "lr": 0.05, "tanh": True}, "row_space", "cosine"),
    ],
)
def test_the_climb_ends_at_the_first_rung_that_reproduces_the_message(given: dict, rung: str, dearer: str) -> None:
    seen, truth = lab(**given)
    guess = climb(seen)
    assert guess.certified.tolist() == [True]
    assert guess.notes[f"ended:{rung}"] == 1
    assert guess.notes[f"seconds:{rung}"] > 0
    assert f"seconds:{dearer}" not in guess.notes
    assert error(guess.value[0], truth) < 1e-3


def test_under_noise_one_record_is_the_closed_form_s_and_no_search_is_paid_for() -> None:
    seen, truth = lab(1, noise=0.3)
    guess = climb(seen)
    assert torch.equal(guess.value[0], ClosedForm().run(seen, torch.Generator()).value[0])
    assert guess.certified.tolist() == [False]
    assert guess.notes["spoke:closed_form"] == 1
    assert not {"seconds:row_space", "seconds:cosine"} & set(guess.notes)
    assert r2([guess.value[0]], [truth]) > 0.5


def test_one_direction_of_one_record_is_not_searched_where_a_missing_key_leaves_it_unproven() -> None:
    seen, truth = lab(1)
    honest = seen.simulate
    seen.simulate = lambda *given, **options: {name: 1.5 * value for name, value in honest(*given, **options).items()}
    guess = climb(seen)
    assert guess.certified.tolist() == [False]
    assert guess.notes["spoke:closed_form"] == 1
    assert {name for name in guess.notes if name.startswith("seconds:")} == {"seconds:closed_form"}
    assert r2([guess.value[0]], [truth]) > 0.99


def test_adam_is_climbed_past_the_row_space_which_refuses_it() -> None:
    seen, truth = lab(1, optimiser="adam", steps=1, lr=1e-3)
    guess = climb(seen, budget=90)
    assert {"seconds:closed_form", "seconds:cosine"} <= set(guess.notes)
    assert guess.notes["spoke:closed_form"] == 1
    assert float(cosine(guess.value[0], truth).mean()) > 0.7
    assert r2([guess.value[0]], [truth]) > 0.5


def test_a_message_of_other_records_yields_nothing_of_these() -> None:
    seen, _ = lab(4)
    guess = climb(seen)
    other = normal(4, F, seed=800)
    assert r2([guess.value[0]], [other]) < 0


@pytest.mark.parametrize(("power", "rung"), [pytest.param(1, "closed_form", marks=pytest.mark.slow), (3, "cocktail_party")])
def test_a_batch_that_no_search_inverts_is_told_apart_by_its_tails(power: int, rung: str) -> None:
    """Forty records on 64 units: what speaks is the independent components where records have tails, and the closed form where not."""
    module = mlp([1000, 64, 64, K], 0)
    x = normal(40, 1000, seed=10) ** power / (15**0.5 if power == 3 else 1)
    public = Records(normal(50, 1000, seed=99) ** power / (15**0.5 if power == 3 else 1), torch.arange(50) % K)
    seen = FakeObservation(module, 1000, K, targets=[probe(module, x, torch.arange(40) % K)], auxiliary=public)
    guess = climb(seen, budget=9, restarts=1)
    assert {name for name in guess.notes if name.startswith("spoke:")} == {f"spoke:{rung}"}
    order = linear_sum_assignment(torch.cdist(x, guess.value[0]).numpy())[1]
    assert (float(cosine(guess.value[0][order], x).mean()) > 0.7) == (power == 3)


def test_each_message_is_climbed_by_itself_and_only_so_many() -> None:
    one, _ = lab(1)
    four, truth = lab(4)
    both = FakeObservation(one.module, F, K, targets=[*one.targets, *four.targets, *one.targets], auxiliary=one.auxiliary)
    guess = climb(both, limit=2)
    assert (guess.notes["ended:closed_form"], guess.notes["ended:spear"]) == (1, 1)
    assert (guess.notes["targets"], guess.notes["of"], len(guess.value)) == (2, 3, 2)
    assert error(guess.value[1], truth) < 1e-3
    with pytest.raises(RequestError, match="at least 1"):
        Ladder(limit=0)


def test_sums_are_climbed_by_the_same_rungs() -> None:
    seen, truth = lab(4, contributors=4)

    class SumsOnly:
        target_sums = seen.targets

        def __getattr__(self, name: str) -> object:
            assert name != "targets"
            return getattr(seen, name)

    guess = LadderOfSum().run(SumsOnly(), torch.Generator().manual_seed(5))
    assert error(guess.value[0], truth) < 1e-3
    assert "probes" not in LadderOfSum.needs


def test_where_no_rung_can_look_there_is_a_reason() -> None:
    seen, _ = lab(2)
    bare = seen.targets[0]
    object.__setattr__(bare, "update", {name: t for name, t in bare.update.items() if t.ndim == 1})
    with pytest.raises(Skip, match="no linear layer"):
        climb(seen)


# ------------------------------------------------------------------------------------------------------------- rank and span


def known(seen: Observation):
    return KnownRecords().run(seen, torch.Generator())


def test_the_rank_of_an_update_counts_its_records() -> None:
    for batch in (1, 3, 8):
        seen, truth = lab(batch)
        rows, rank = directions(seen.targets[0], F)
        assert rank == batch
        inside = truth.double() @ rows.T
        assert torch.allclose(inside.norm(dim=1), truth.double().norm(dim=1), rtol=1e-5)
    assert directions(lab(3, noise=0.05)[0].targets[0], F)[1] > 3


def test_records_in_hand_are_found_in_the_span_and_nobody_else_is() -> None:
    seen, truth = lab(4, known=3)
    guess = known(seen)
    assert guess.notes["known_records"] == 3
    assert {tuple(row) for row in guess.value[0][:3].tolist()} == {tuple(row) for row in truth[:3].tolist()}
    assert not guess.value[0][3].any()
    assert guess.certified.tolist() == [False]
    assert known(lab(4)[0]).notes["known_records"] == 0
    with pytest.raises(Skip, match="more directions"):
        known(lab(4, noise=0.05)[0])
