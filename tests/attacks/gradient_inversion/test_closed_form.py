"""The closed form is exact where nothing protects, honest under noise and blind without a signal."""

import pytest
import torch
from observations import FakeObservation, KeyedRows, cosine, mlp, normal, probe, r2, wire
from torch import nn

from attacks.gradient_inversion.closed_form import ClosedForm
from attacks.gradient_inversion.message import first_linear, output_bias
from suites.contracts import Records, Skip

F, K, TARGETS = 120, 7, 12


def observation(module: nn.Module, targets: list, features: int = F) -> FakeObservation:
    public = Records(normal(40, features, seed=99), torch.arange(40) % K)
    return FakeObservation(module, features, K, targets=targets, auxiliary=public)


def records(seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(TARGETS, F, seed=seed), torch.arange(TARGETS) % K


def run(seen: FakeObservation, seed: int = 5):
    return ClosedForm().run(seen, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("optimiser", "lr"), [("gradient", 0.0), ("sgd", 0.05)])
def test_one_record_comes_back_exactly(norm: bool, optimiser: str, lr: float) -> None:
    x, y = records()
    module = mlp([F, 32, 16, K], norm=norm)
    guess = run(observation(module, [probe(module, x[i : i + 1], y[i : i + 1], optimiser=optimiser, lr=lr) for i in range(TARGETS)]))
    for value, truth in zip(guess.value, x):
        assert cosine(value[0], truth) >= 0.9999
        assert (value[0] - truth).norm() / truth.norm() < 1e-3
    assert guess.notes["cases"] == "plain"
    if optimiser == "gradient":
        assert bool(guess.certified.all())


def test_a_certificate_needs_the_right_record() -> None:
    x, y = records()
    module = mlp([F, 32, 16, K])
    target = probe(module, x[:1], y[:1])
    off = {name: t + 1e-4 * t.abs().max() * normal(*t.shape, seed=3) for name, t in target.update.items()}
    moved = probe(module, x[:1], y[:1])
    object.__setattr__(moved, "update", off)
    assert run(observation(module, [target])).certified.tolist() == [True]
    assert run(observation(module, [moved])).certified.tolist() == [False]


def keyed(scale: torch.Tensor) -> nn.Sequential:
    """The same weights whatever the key."""
    plain = mlp([F, 64, K], seed=4)
    module = nn.Sequential(KeyedRows(F, 64, scale), nn.ReLU(), plain[2])
    module[0].load_state_dict(plain[0].state_dict())
    return module


@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_keyed_rows_give_the_direction_and_under_the_held_key_the_record(spread: float) -> None:
    x, y = records()
    scale = 1 + spread * normal(64, seed=8)
    module = keyed(scale)
    targets = [probe(module, x[i : i + 1], y[i : i + 1]) for i in range(TARGETS)]
    held = run(observation(module, targets))  # whose client has the true scales
    assert max(float((value[0] - truth).norm() / truth.norm()) for value, truth in zip(held.value, x)) < 1e-3

    alone = observation(module, targets)
    alone.auxiliary = Records(alone.auxiliary.x[:0], alone.auxiliary.y[:0])  # nothing to liken the rows to
    guess = run(alone)
    similar = torch.stack([cosine(value[0], truth) for value, truth in zip(guess.value, x)])
    assert bool((similar.abs() > 0.9999).all())
    assert int((similar > 0).sum()) >= TARGETS - 1  # the sign is a vote
    assert r2(guess.value, [row[None] for row in x]) > 0.5
    assert not bool(guess.certified.any())


def test_own_records_are_sent_once_a_checkpoint() -> None:
    x, y = records()
    module = keyed(1 + normal(64, seed=8))
    early = [probe(module, x[i : i + 1], y[i : i + 1]) for i in range(TARGETS)]
    with torch.no_grad():
        module[0].weight.mul_(-3).add_(normal(64, F, seed=10), alpha=0.1)
    late = [probe(module, x[i : i + 1], y[i : i + 1]) for i in range(TARGETS)]
    seen, sent = observation(module, [message for both in zip(early, late) for message in both]), []
    answer = seen.simulate
    seen.simulate = lambda *given, **named: sent.append(given) or answer(*given, **named)
    held = run(seen)
    assert max(float((value[0] - truth).norm() / truth.norm()) for value, truth in zip(held.value, x.repeat_interleave(2, 0))) < 1e-3
    assert (
        len([given for given in sent if len(given[1]) == 1 and any(torch.equal(given[1], own[None]) for own in seen.auxiliary.x)]) == 2 * 8
    )


def test_scales_of_another_key_still_give_sign_and_about_the_length() -> None:
    """As INFL's wrong keys: the true scales times one of their own each, within ten per cent."""
    x, y = records()
    scale = 1 + 0.5 * normal(64, seed=8)
    module = keyed(scale)
    targets = [probe(module, x[i : i + 1], y[i : i + 1]) for i in range(TARGETS)]
    other = keyed(scale * (1 + 0.1 * normal(64, seed=9)))
    guess = run(observation(other, targets))
    errors = [float((value[0] - truth).norm() / truth.norm()) for value, truth in zip(guess.value, x)]
    assert sum(errors) / len(errors) < 0.08
    assert max(errors) < 0.2


def test_noise_shrinks_the_guess_instead_of_blowing_it_up() -> None:
    x, y = records()
    module = mlp([F, 64, 16, K])
    scores = []
    for sigma in (1e-4, 1e-2, 10.0):
        draw = torch.Generator().manual_seed(77)

        def noise(t: torch.Tensor, sigma: float = sigma, draw: torch.Generator = draw) -> torch.Tensor:
            return t + sigma * torch.randn(t.shape, generator=draw)

        guess = run(observation(module, [probe(module, x[i : i + 1], y[i : i + 1], noise=noise) for i in range(TARGETS)]))
        scores.append(r2(guess.value, [row[None] for row in x]))
    assert scores[0] > 0.9
    assert 0.2 < scores[1] < scores[0]
    assert -0.1 < scores[2] < 0.1  # swamped: the guess falls back to the public mean


def test_nothing_comes_out_of_an_update_of_other_records() -> None:
    x, _y = records()
    other, labels = records(seed=2)
    module = mlp([F, 32, 16, K])
    guess = run(observation(module, [probe(module, other[i : i + 1], labels[i : i + 1]) for i in range(TARGETS)]))
    similar = torch.stack([cosine(value[0], truth) for value, truth in zip(guess.value, x)])
    lower = similar.mean() - 3.1 / (F * TARGETS) ** 0.5  # one-sided, one in a thousand; the cosine of independent records has sd 1/sqrt(F)
    assert lower <= 0
    assert r2(guess.value, [row[None] for row in x]) < 0


def test_a_batch_gives_one_guess_a_record() -> None:
    x, y = records()
    module = mlp([F, 64, 16, K])
    guess = run(observation(module, [probe(module, x[:4], y[:4])]))
    assert guess.value[0].shape == (4, F)
    closest = cosine(guess.value[0][:, None], x[None, :4]).max(0).values
    assert float(closest.mean()) > 0.5


def test_an_adam_step_still_gives_signs() -> None:
    x, y = records()
    module = mlp([F, 32, 16, K])
    guess = run(observation(module, [probe(module, x[i : i + 1], y[i : i + 1], optimiser="adam", lr=1e-3) for i in range(TARGETS)]))
    similar = torch.stack([cosine(value[0], truth) for value, truth in zip(guess.value, x)])
    assert float(similar.min()) > 0.7


def test_layers_are_found_by_shape() -> None:
    module = mlp([F, 32, 16, K], norm=True)
    params = wire(module)
    assert first_linear(params, F).weight == "0.weight"
    assert first_linear({"a.weight": torch.ones(3, 8), "b.weight": torch.ones(3, 64)}, F).weight == "b.weight"
    assert output_bias(params | {"6.weight": torch.ones(K, 16)}, K) == "6.bias"
    with pytest.raises(Skip):
        first_linear({"scale": torch.ones(3)}, F)


def test_a_zero_message_gives_the_public_mean() -> None:
    x, y = records()
    module = mlp([F, 32, 16, K])
    target = probe(module, x[:1], y[:1], noise=torch.zeros_like)
    assert run(observation(module, [target])).value[0].abs().max() == 0
