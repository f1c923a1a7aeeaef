"""The classics as their papers have them: each finds a record where nothing protects, and each lacks what the next one added."""

import pytest
import torch
from observations import FakeObservation, cosine, message, mlp, normal, probe, r2, wire
from torch import nn

from attacks.gradient_inversion.cosine import CosineInversion
from attacks.gradient_inversion.dlg import DLG, DLGOfSum
from attacks.gradient_inversion.full_space import FullSpace
from attacks.gradient_inversion.idlg import IDLG
from attacks.gradient_inversion.inverting_gradients import InvertingGradients
from attacks.gradient_inversion.tableak import aligned
from suites.contracts import Fact, RequestError, Skip

F, K = 60, 6


def lab(size: int = 1, count: int = 1, other: int | None = None, module: nn.Module | None = None, **step):
    module = mlp([F, 32, 16, K]) if module is None else module
    xs = [normal(size, F, seed=10 + i) for i in range(count)]
    shown = xs if other is None else [normal(size, F, seed=other + i) for i in range(count)]
    ys = [(torch.arange(size) + i) % K for i in range(count)]
    return FakeObservation(module, F, K, targets=[probe(module, x, y, **step) for x, y in zip(shown, ys)]), xs, ys


def run(attack, seen: FakeObservation, seed: int = 5):
    return attack.run(seen, torch.Generator().manual_seed(seed))


def fit(guess, truth) -> float:
    return r2([aligned(g, t) for g, t in zip(guess.value, truth)], truth)


def test_dlg_finds_record_and_label_together() -> None:
    seen, truth, labels = lab()
    problem = FullSpace(seen, seen.targets[0], None)
    x, soft, loss = DLG()._descend(problem, None, torch.Generator().manual_seed(5))
    assert float(cosine(x, truth[0])) > 0.99
    assert soft.argmax(-1).tolist() == labels[0].tolist()
    assert 0 <= loss < 1e-2


def test_idlg_reads_the_label_first_and_is_then_exact() -> None:
    seen, truth, _ = lab(count=3)
    guess = run(IDLG(), seen)
    assert fit(guess, truth) > 1 - 1e-9
    assert guess.certified.tolist() == [True] * 3
    for target, label in zip(seen.targets, lab(count=3)[2]):
        assert IDLG().labels(seen, target, K).argmax(-1).tolist() == label.tolist()


def test_knowing_labels_is_worth_something_in_a_batch() -> None:
    seen, truth, _ = lab(size=4)
    joint, given = fit(run(DLG(), seen), truth), fit(run(IDLG(), seen), truth)
    assert given > 0.9
    assert given > joint + 0.05


@pytest.mark.parametrize("attack", [DLG(), IDLG(), InvertingGradients(budget=200)])
def test_nothing_comes_out_of_an_update_of_other_records(attack) -> None:
    seen, truth, _ = lab(count=3, other=500)
    assert fit(run(attack, seen), truth) < 0


@pytest.mark.parametrize("attack", [DLG(budget=30), IDLG(budget=30), InvertingGradients(budget=30)])
def test_same_seed_same_bytes_and_another_seed_other_bytes(attack) -> None:
    seen, _, _ = lab(size=2)
    one, two, three = run(attack, seen), run(attack, seen), run(attack, seen, seed=6)
    assert torch.equal(one.value[0], two.value[0])
    assert not torch.equal(one.value[0], three.value[0])


def test_one_step_of_sgd_is_a_gradient_and_several_are_simulated() -> None:
    seen, truth, _ = lab(optimiser="sgd", steps=1, lr=0.05)
    assert fit(run(IDLG(), seen), truth) > 1 - 1e-6
    seen, truth, _ = lab(optimiser="sgd", steps=3, lr=0.05)
    assert fit(run(IDLG(budget=100, restarts=1), seen), truth) > 0.95


@pytest.mark.parametrize("attack", [DLG(), IDLG()])
def test_adam_is_refused_with_a_reason(attack) -> None:
    seen, _, _ = lab(optimiser="adam", steps=1, lr=1e-3)
    with pytest.raises(Skip, match="cosine_inversion"):
        run(attack, seen)


def test_no_label_to_read_no_idlg() -> None:
    no_bias = nn.Sequential(nn.Linear(F, 16), nn.ReLU(), nn.Linear(16, K, bias=False))
    with pytest.raises(Skip, match="no output bias"):
        run(IDLG(), lab(module=no_bias)[0])
    seen, _, _ = lab()

    class Structured(FakeObservation):
        @property
        def known(self):
            return {**super().known, "layout": Fact(None, "public")}

    with pytest.raises(Skip, match="no label"):
        run(IDLG(), Structured(seen.module, F, K, targets=seen.targets))


def test_a_sum_is_inverted_as_one_batch() -> None:
    seen, truth, _ = lab(size=3)
    guess = run(DLGOfSum(), seen)
    assert guess.value[0].shape == truth[0].shape
    assert "probes" not in DLGOfSum.needs


def test_settings_that_make_no_search_are_refused() -> None:
    with pytest.raises(RequestError, match="idlg needs a budget"):
        IDLG(budget=0)


@pytest.mark.parametrize("norm", [False, True])
def test_both_distances_are_those_of_the_messages(norm: bool) -> None:
    """A plain chain goes through its closed form, a network with layer norms through the public client."""
    module = mlp([20, 16, 12, 5], norm=norm).double()
    x, y = normal(3, 20, seed=1).double(), torch.tensor([1, 4, 0])
    seen = FakeObservation(module, 20, 5, targets=[probe(module, x, y)])
    problem = FullSpace(seen, seen.targets[0], None)
    assert (problem.chain is None) == norm
    rough, soft = normal(2, 3, 20, seed=4).double().requires_grad_(), normal(2, 3, 5, seed=2).double().softmax(-1)
    received = seen.targets[0].update
    size = sum(there.square().sum() for there in received.values())
    for lane in range(2):
        sent = message(module, wire(module), rough[lane], soft[lane])
        gaps = {name: (sent[name] - there).square().sum() for name, there in received.items()}
        plain, relative = sum(gaps.values()) / size, sum(gap / received[name].square().sum() for name, gap in gaps.items())
        assert torch.allclose(problem.euclidean(rough, soft)[lane], plain, rtol=1e-9)
        assert torch.allclose(problem.relative(rough, soft)[lane], relative, rtol=1e-9)
        if not norm:  # torch's own slopes of a fused layer norm are wrong under vmap; suites.simulation takes it apart
            (ours,) = torch.autograd.grad(problem.euclidean(rough, soft)[lane], rough)
            (theirs,) = torch.autograd.grad(plain, rough)
            assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-12)


def test_inverting_gradients_steps_by_the_sign_alone_and_its_rate_falls_thrice() -> None:
    seen, _, _ = lab()
    start = torch.randn(1, 1, F, generator=torch.Generator().manual_seed(5))[0]
    moved = (run(InvertingGradients(budget=4), seen).value[0] - start).abs()
    # Four signs a coordinate, up to one for all of them: no more than eight ways to go, while slopes go as many as there are coordinates.
    assert len(torch.unique((moved * 1e5).round())) <= 8
    assert float((moved - 0.1).abs().max()) < 0.012  # the first step is the whole rate, the second a tenth of it
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    attack, rates = InvertingGradients(budget=80), []
    schedule = attack.schedule(optimiser)
    for _ in range(80):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert [round(rates[step], 6) for step in (0, 29, 30, 49, 50, 69, 70, 79)] == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]


@pytest.mark.slow
def test_inverting_gradients_wants_many_steps_and_our_variant_few() -> None:
    seen, truth, _ = lab(size=2)
    sizes, both = (60, 400), (InvertingGradients, CosineInversion)
    paper, variant = ([fit(run(attack(budget=budget, restarts=1), seen), truth) for budget in sizes] for attack in both)
    assert variant[0] > paper[0] + 0.1
    assert paper[1] > 0.95
