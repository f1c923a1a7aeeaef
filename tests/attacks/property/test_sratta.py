"""Records from sums and whose they are: made-up sums with known answers, federations under masks, and where nothing is to be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.property.sratta import Sratta, recovered, row_space, site_spans, split
from baselines.secure_aggregation import SecureAggregation
from suites.contracts import Defense, Federation, Guess, Local, Records, Shape, Skip, Threat
from suites.federation import Assignment, Pool, train
from suites.observation import Evidence, Guarded, Scene, Seen
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

SITES, EACH, FEATURES, CLASSES, UNITS = 5, 8, 120, 4, 64
MEMBERS = SITES * EACH
HOME = torch.arange(SITES).repeat_interleave(EACH)
X = torch.randn(2 * MEMBERS, FEATURES, generator=stream("sratta", "x"))
Y = (X @ torch.randn(FEATURES, CLASSES, generator=stream("sratta", "y"))).argmax(1)
MLP = Classification(hidden=UNITS, blocks=2, head=16, dropout=0.0, network="mlp")
STEP = Local(epochs=1, batch=EACH, optimiser="sgd", lr=0.1)


def mixed(took: Tensor, noise: float = 0.0) -> tuple[Tensor, list[list[Tensor]], list[Tensor]]:
    """Sites' records [S, n, F + 1], their slopes of each round [n, H], half of them zero, and the rounds' sums."""
    rng = stream("sratta", "mixed")
    ones = torch.cat([torch.randn(SITES, 6, 100, generator=rng), torch.ones(SITES, 6, 1)], 2).double()
    slopes = [[torch.randn(6, UNITS, generator=rng).double().relu() for _ in range(SITES)] for _ in took]
    sums = []
    for each, row in zip(slopes, took):
        total = sum(each[s].T @ ones[s] for s in row.nonzero().flatten().tolist())
        sums.append(torch.as_tensor(total) + noise * torch.randn(UNITS, 101, generator=rng).double())
    return ones, slopes, sums


TOOK = torch.tensor([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]]).double()


def test_sums_are_split_into_the_sites_own_updates() -> None:
    ones, slopes, sums = mixed(TOOK)
    spans = site_spans([row_space(one) for one in sums], TOOK)
    assert sorted(spans) == [0, 1, 2, 3]  # the fifth has site 1 beside it whenever it takes part
    for site, span in spans.items():
        assert span.shape == (6, 101)
        inside = ones[site] @ span.T @ span
        assert torch.allclose(inside, ones[site], atol=1e-8)
    parts = split(sums, spans, TOOK)
    alone = slopes[0][0].T @ ones[0]  # what site 0 added to the first sum
    assert torch.allclose(parts[0][:UNITS] @ spans[0], alone / alone.norm(), atol=1e-8)
    assert len(parts[1]) == 2 * UNITS  # without the round that site 4 is in


@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_zeros_of_several_rounds_give_records_with_length_and_sign(noise: float) -> None:
    ones, _, sums = mixed(TOOK, noise)
    spans = site_spans([row_space(one) for one in sums], TOOK)
    for site, part in split(sums, spans, TOOK).items():
        found = recovered(part, UNITS, spans[site], 8, stream("sratta", "zeros"))
        distance = torch.cdist(ones[site][:, :-1], found).min(1).values / ones[site][:, :-1].norm(dim=1)
        assert found.shape == (6, 100)
        assert float(distance.max()) < max(1e-6, 100 * noise)


def test_noise_and_too_many_records_leave_no_rank() -> None:
    _, _, sums = mixed(TOOK, 1.0)
    with pytest.raises(Skip, match="full rank"):
        row_space(sums[0])


def seen(
    *layers: Defense, local: Local = STEP, participation: float = 0.6, task: Any = MLP, null: bool = False, view: Any = "server"
) -> Any:
    sites = tuple(torch.arange(MEMBERS).chunk(SITES))
    federation = Federation(sites=SITES, rounds=12, local=local, participation=participation)
    stack = Stack(layers).plan(federation, Shape((EACH,) * SITES, FEATURES, CLASSES))
    given = Assignment(sites, ("sratta", 1), ("sratta", "defense"))
    trained = train(task, stack, federation, Pool(X, Y, CLASSES), [given], chunk=5)[0]
    asked = torch.arange(MEMBERS, 2 * MEMBERS) if null else torch.arange(MEMBERS)
    scene = Scene(
        task,
        stack,
        federation,
        CLASSES,
        FEATURES,
        trained.secret,
        Records(X[asked], Y[asked]),
        Records(X[:0], Y[:0]),
        MEMBERS,
        keys("sratta", "adversary"),
        lambda _: [],
        lambda: None,
    )
    return Guarded(Seen(scene, Evidence(trained.rounds, trained.finals), Threat(view=view)), Sratta.needs)


def guessed(observation: Any) -> Guess:
    return Sratta().run(observation, stream("sratta", "attack"))


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_masked_sums_give_every_record_and_its_site(decay: float) -> None:
    guess = guessed(seen(SecureAggregation(), local=replace(STEP, weight_decay=decay)))
    placed = guess.value.any(1)
    told = int(guess.notes["sites_told"])
    assert told >= 4
    assert guess.notes["recovered"] == guess.notes["matched"] == int(placed.sum()) == told * EACH  # each recovered record is a true one
    assert bool((guess.value[placed].argmax(1) == HOME[placed]).all())


def test_records_that_nobody_trained_on_are_placed_nowhere() -> None:
    guess = guessed(seen(SecureAggregation(), null=True))
    assert int(guess.notes["recovered"]) >= 4 * EACH
    assert not bool(guess.value.any())


def test_with_other_participants_nothing_is_told() -> None:
    class Shuffled:
        def __init__(self, whole: Any) -> None:
            self.whole = whole
            views: Sequence[Any] = whole.rounds
            self.rounds = [replace(view, participants=views[t - 5].participants) for t, view in enumerate(views)]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.whole, name)

    with pytest.raises(Skip, match="no site is told"):
        guessed(Shuffled(seen()))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"local": replace(STEP, optimiser="adam")}, "rounds of Adam"),
        ({"local": replace(STEP, epochs=3, batch=4, weight_decay=0.01)}, "full rank"),
        ({"participation": 1.0}, "no site is told"),
        ({"view": "site"}, "not told who"),
        ({"task": Classification(hidden=UNITS, blocks=1, head=16, dropout=0.0)}, "no ReLU follows"),
    ],
)
def test_what_it_cannot_use_is_refused_in_a_sentence(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skip, match=reason):
        guessed(seen(**given))
