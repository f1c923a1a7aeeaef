"""Mini-batches in an order that nobody told: exact records first, then the order, and a certificate for nothing less than both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from observations import FakeObservation, message, mlp, normal, probe, r2
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.gradient_inversion.ladder import Ladder
from attacks.gradient_inversion.message import CERTIFIED, certified, distance
from attacks.gradient_inversion.order import FEW, Found, Shuffled, shuffles
from attacks.gradient_inversion.row_problem import Problem
from attacks.gradient_inversion.row_space import RowSpace, RowSpaceOfSum
from attacks.gradient_inversion.spear import Spear
from suites.contracts import Guess, Records
from tests.attacks.visible import shuffled

LR = 0.2  # the smaller the steps, the nearer the rounding of a single-precision update comes to 1e-6 of it


class Lab:
    """One message of eight records; ``order`` is the truth that no attack is given."""

    def __init__(self, epochs: int = 1, size: int = 4, draw: int = 0, features: int = 120, *, norm: bool = False, lr: float = LR) -> None:
        self.module = mlp([features, 64, 64, 14], 0, norm=norm)
        rng = np.random.default_rng(30 + draw)
        self.x, self.y = normal(8, features, seed=10 + draw), torch.from_numpy(rng.integers(0, 14, 8))
        steps = epochs * -(-8 // size)
        self.order = shuffled(8, size, steps, torch.Generator().manual_seed(70 + draw))
        self.target = probe(self.module, self.x, self.y, optimiser="sgd", steps=steps, lr=lr, minibatch=size, order=self.order)
        self.public = Records(normal(200, features, seed=99), torch.arange(200) % 14)
        self.features = features

    def seen(self, **changed: object) -> FakeObservation:
        target = replace(self.target, **changed)  # type: ignore[arg-type]
        return FakeObservation(self.module, self.features, 14, targets=[target], auxiliary=self.public)

    def r2(self, guess: Guess) -> float:
        found = guess.value[0]
        return r2([found[linear_sum_assignment(torch.cdist(self.x, found).numpy())[1]]], [self.x])


def run(attack: object, seen: FakeObservation) -> Guess:
    return attack.run(seen, torch.Generator().manual_seed(5))  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(("epochs", "size"), [(1, 4), (2, 4), (1, 3)])
def test_shuffled_minibatches_come_back_exactly_and_are_certified(epochs: int, size: int) -> None:
    lab = Lab(epochs, size)
    for attack in (RowSpace(budget=300), Spear(20_000)):
        guess = run(attack, lab.seen())
        assert lab.r2(guess) > 1 - 1e-6
        assert guess.certified is not None
        assert guess.certified.tolist() == [True]
    assert run(RowSpace(budget=300), lab.seen()).notes["order_found"] == 1


def test_the_ladder_ends_where_the_zeros_are() -> None:
    assert run(Ladder(), Lab().seen()).notes["ended:spear"] == 1


def test_without_the_protocol_s_batch_size_nothing_is_certified() -> None:
    """As if each step took all records: near, and never exact (what the search of orders is for)."""
    lab = Lab()
    guess = run(RowSpace(budget=60, restarts=4), lab.seen(minibatch=None))
    assert guess.certified is not None
    assert guess.certified.tolist() == [False]
    assert lab.r2(guess) < 1 - 1e-5


@pytest.mark.parametrize(("records", "size", "count"), [(8, 4, 70), (8, 2, 2520), (5, 2, 30), (6, 4, 15)])
def test_every_order_of_an_epoch_is_there_once(records: int, size: int, count: int) -> None:
    search = searched(Lab(), records, size)
    orders = search._every()
    assert search._count() == count == len(orders) == len(torch.unique(orders, dim=0))
    assert bool((orders.sum(1) == 1).all())
    assert orders.sum(2).unique(dim=0).tolist() == [[float(n) for n in search._sizes()]]


def searched(lab: Lab, records: int = 8, size: int = 4, epochs: int = 1) -> Shuffled:
    problem = Problem(lab.seen(), lab.target, None)
    search = Shuffled(lab.seen(), problem, problem.labels[:records], None)
    search.size, search.epoch, search.epochs = size, -(-records // size), epochs
    return search


def test_moves_keep_every_step_s_size_and_a_double_one_what_came_first_how_often() -> None:
    search = searched(Lab(), epochs=3)
    order = search._drawn(torch.Generator().manual_seed(1))
    moves = search._moves(order)
    trial = search._moved(order, moves)
    assert bool((trial.view(-1, 3, 2, 8).sum(2) == 1).all())
    assert bool((trial.sum(2) == 4).all())
    changed = (trial != order).view(-1, 3, 16).any(2).sum(1)
    single = moves[:, 1, 1] == moves[:, 1, 2]
    assert int(single.sum()) == 3 * 16
    assert changed[single].tolist() == [1] * 48
    assert int((~single).sum()) > 0
    assert set(changed[~single].tolist()) == {2}

    def first(orders: Tensor) -> Tensor:
        """How often each record was in its epoch's first mini-batch."""
        return orders.view(-1, 3, 2, 8)[:, :, 0].sum(1)

    assert torch.equal(first(trial[~single]), first(order[None]).expand(int((~single).sum()), -1))
    assert not bool((first(trial[single]) == first(order[None])).all(1).any())


def test_orders_are_compared_by_the_client_s_own_messages() -> None:
    lab = Lab(2)
    problem = Problem(lab.seen(), lab.target, None)
    search = Shuffled(lab.seen(), problem, lab.y, None)
    inside = lab.x.double() @ problem.rows.T
    params = {name: tensor.double() for name, tensor in lab.target.params.items()}
    orders = torch.stack([lab.order, lab.order[[2, 3, 0, 1]], lab.order[[1, 0, 2, 3]]]).double()
    for order, loss in zip(orders, search.losses(inside, orders)):
        sent = message(lab.module, params, lab.x.double(), lab.y, "sgd", 4, LR, order)
        gaps = [(sent[name] - there.double()).square().sum() / there.double().square().sum() for name, there in lab.target.update.items()]
        assert float(loss) == pytest.approx(float(sum(gaps)), rel=1e-4, abs=1e-11)
    best, losses = search.best(inside, 4000, torch.Generator().manual_seed(1))
    assert torch.equal(best[0], lab.order.double())
    assert float(losses[0]) < problem.solved < 1e-6 < float(losses[1:].min() if len(losses) > 1 else 1.0)
    assert len(best) <= FEW


def test_a_certificate_takes_records_labels_and_order() -> None:
    lab = Lab()
    seen = lab.seen()
    assert certified(seen, lab.target, lab.x, lab.y, None, lab.order)
    assert not certified(seen, lab.target, lab.x, lab.y, None, lab.order.flip(0))
    assert not certified(seen, lab.target, lab.x, lab.y, None)
    assert not certified(seen, lab.target, lab.x, lab.y.roll(1), None, lab.order)
    assert not certified(seen, lab.target, normal(8, 120, seed=700), lab.y, None, lab.order)


def test_a_client_s_own_rounding_is_repeated_by_the_certificate() -> None:
    """Two small steps in single precision are further than 1e-6 from the same in double, and equal to the same in single."""
    lab = Lab(features=1000)
    small = probe(lab.module, lab.x, lab.y, optimiser="sgd", steps=2, lr=0.01, minibatch=4, order=lab.order)
    params = {name: tensor.double() for name, tensor in small.params.items()}
    apart = distance(message(lab.module, params, lab.x.double(), lab.y, "sgd", 2, 0.01, lab.order), small.update)
    assert float(apart) > 2 * CERTIFIED
    assert certified(lab.seen(), small, lab.x, lab.y, None, lab.order)
    assert not certified(lab.seen(), small, lab.x, lab.y, None, lab.order.flip(0))


def test_an_update_at_another_model_is_not_certified_and_the_notes_say_so() -> None:
    lab, other = Lab(), mlp([120, 64, 64, 14], 3)
    stranger = probe(other, lab.x, lab.y, optimiser="sgd", steps=2, lr=LR, minibatch=4, order=lab.order)
    guess = run(RowSpace(budget=40, restarts=4), lab.seen(update=stranger.update))
    assert guess.certified is not None
    assert guess.certified.tolist() == [False]
    assert guess.notes["order_unknown"] == 1
    assert "order_found" not in guess.notes


def test_where_no_order_explains_more_the_records_are_today_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search of orders may only add: its result counts where it fits the message better than steps on all records do."""
    lab, worse = Lab(), torch.zeros(8, 8, dtype=torch.float64)
    monkeypatch.setattr(Shuffled, "solve", lambda self, inside, budget, rng: Found(worse, self.labels, 9.0, lab.order))
    guess = run(RowSpace(budget=60, restarts=4), lab.seen())
    assert lab.r2(guess) > 0.8
    assert guess.notes["order_unknown"] == 1


def test_a_network_without_zeros_is_searched_under_the_best_orders() -> None:
    """Layer norms before the ReLUs leave no zero in D: what counts then is that the message is explained better, never worse."""
    lab = Lab(norm=True, features=60)
    free, ordered = (run(RowSpace(budget=24, restarts=2), seen) for seen in (lab.seen(minibatch=None), lab.seen()))
    assert free.confidence is not None
    assert ordered.confidence is not None
    assert float(ordered.confidence[0]) > float(free.confidence[0])
    assert lab.r2(ordered) >= lab.r2(free)


def test_sums_single_steps_and_whole_batches_have_no_order_to_find() -> None:
    target = Lab().target
    assert shuffles(target)
    assert not any(
        shuffles(replace(target, **changed)) for changed in ({"contributors": 3}, {"steps": 1}, {"minibatch": 8}, {"minibatch": None})
    )
    asked: list[Tensor | None] = []
    seen = Lab().seen(contributors=2, site=None)
    honest = seen.simulate
    seen.simulate = lambda *given, order=None: (asked.append(order), honest(*given, order=order))[1]  # type: ignore[method-assign]
    run(RowSpaceOfSum(budget=8, restarts=2), seen)
    assert asked
    assert all(order is None for order in asked)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 5])
def test_the_reference_network_in_fours(epochs: int) -> None:
    """MLP 1000-64-64-14, eight records, mini-batches of four: as if each step took all, R² is .98 to .996 and nothing certified."""
    fits, proven = [], []
    for draw in range(3):
        lab = Lab(epochs, draw=draw, features=1000, lr=0.05)
        guess = run(RowSpace(), lab.seen())
        fits.append(lab.r2(guess))
        assert guess.certified is not None
        proven.append(bool(guess.certified[0]))
    print(f"{epochs} epochs in fours: R² {fits}, certified {proven}")
    assert min(fits) > 1 - 1e-6
    assert all(proven)
