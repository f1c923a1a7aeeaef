"""The key vector of INFL as published falls out of one message: the bars of the project, and what must not be found."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.key.key_vector import KeyVector, KeyVectorOfSum, shared_inputs
from infl.published import Published
from suites.contracts import Params, RequestError, Skip, Target
from suites.modules import initialise
from suites.randomness import keys, stream


class Net(nn.Module):
    """A residual network in the manner of the suite's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = nn.Linear(200, 64), nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 8)
        self.norm = nn.LayerNorm(64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        out: Tensor = self.last(torch.relu(self.third(h + torch.relu(self.norm(self.second(h))))))
        return out


def federation(seed: int, *, keyed: bool = True) -> nn.Module:
    defense = Published()
    model = defense.model(Net(), defense.secret(keys("key_vector", seed))) if keyed else Net()
    initialise(model, stream("key_vector", seed))
    return model


def message(
    model: nn.Module,
    optimiser: Literal["gradient", "sgd", "adam"],
    batch: int,
    *,
    lr: float = 0.0,
    steps: int = 1,
    site: int = 0,
    momentum: float = 0.0,
) -> Target:
    generator = stream("records", site)
    x, y = torch.randn(batch, 200, generator=generator), torch.randint(0, 8, (batch,), generator=generator)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    if optimiser == "gradient":
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return Target(before, dict(zip(before, gradients)), batch, optimiser, steps, lr, site, 1, 0)
    stepper: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    if optimiser == "sgd":
        stepper = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for _ in range(steps):
        stepper.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        stepper.step()
    update: Params = {name: value.detach() - before[name] for name, value in model.named_parameters()}
    model.load_state_dict(before)
    return Target(before, update, batch, optimiser, steps, lr, site, 1, 0)


def attack(*targets: Target, attack: type[KeyVector] = KeyVector) -> Any:
    seen: Any = SimpleNamespace(targets=targets, target_sums=targets)
    return attack().run(seen, torch.Generator())


def relative_error(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_gradient_gives_the_key_vector(batch: int, seed: int) -> None:
    model = federation(seed)
    guess = attack(message(model, "gradient", batch))
    assert guess.certified.tolist() == [True]
    assert relative_error(guess.value["shared_input:16"], Published().derived(model)["key_vector"]) <= 1e-6


@pytest.mark.parametrize(("lr", "bar"), [(0.05, 1e-6), (5e-4, 1e-5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_weight_delta_gives_the_key_vector(lr: float, bar: float, seed: int) -> None:
    model = federation(seed)
    guess = attack(message(model, "sgd", 32, lr=lr))
    assert guess.certified.all()
    assert relative_error(guess.value["shared_input:16"], Published().derived(model)["key_vector"]) <= bar


def test_combining_all_layers_beats_each_alone() -> None:
    model = federation(0)
    true = Published().derived(model)["key_vector"].double()
    target = message(model, "sgd", 32, lr=5e-4)
    alone = [target.update[f"{name}.key_to_mod.0.weight"].double() for name in ("first", "second", "third", "last")]
    biases = [target.update[f"{name}.key_to_mod.0.bias"].double() for name in ("first", "second", "third", "last")]
    best = min(relative_error(b @ w / b.square().sum(), true) for w, b in zip(alone, biases))
    assert relative_error(shared_inputs(target.update, target.params)[0].vector, true) < best / 2


def test_a_sum_over_sites_hides_nothing_since_all_share_the_key() -> None:
    model = federation(0)
    targets = [message(model, "gradient", 8, site=site) for site in range(5)]
    mean = {name: torch.stack([target.update[name] for target in targets]).mean(0) for name in targets[0].update}
    combined = Target(targets[0].params, mean, 40, "gradient", 1, 0.0, None, 5, 0)
    guess = attack(combined, attack=KeyVectorOfSum)
    assert relative_error(guess.value["shared_input:16"], Published().derived(model)["key_vector"]) <= 1e-6
    assert KeyVectorOfSum.needs == {"probe_sums"}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("lr", "bar"), [(5e-6, 5e-4), (5e-4, 1e-2)])
def test_several_steps_of_sgd_give_the_key_vector_but_for_how_far_it_moved(momentum: float, lr: float, bar: float) -> None:
    """Each step's share of dW is an outer product with that step's key vector, with momentum too: the delta points to their mean."""
    model = federation(0)
    target = message(model, "sgd", 32, lr=lr, steps=5, momentum=momentum)
    guess = attack(target)
    found, true = guess.value["shared_input:16"], Published().derived(model)["key_vector"]
    model.load_state_dict({name: value + target.update[name] for name, value in target.params.items()})
    moved = relative_error(Published().derived(model)["key_vector"], true)
    assert relative_error(found, true) <= min(bar, moved)
    assert not guess.certified.any()  # several steps: no proof


@pytest.mark.parametrize("steps", [1, 20])
def test_adam_leaves_a_direction_and_no_certificate(steps: int) -> None:
    model = federation(0)
    guess = attack(message(model, "adam", 32, lr=1e-3, steps=steps))
    assert not guess.certified.any()
    cosine = torch.cosine_similarity(guess.value["shared_input:16"], Published().derived(model)["key_vector"], dim=0)
    assert 0.7 < float(cosine) < 0.99


def test_the_message_is_chosen_without_the_truth_or_by_kind() -> None:
    model = federation(0)
    true = Published().derived(model)["key_vector"]
    gradient, step, adam = message(model, "gradient", 8), message(model, "sgd", 8, lr=5e-4), message(model, "adam", 8, lr=1e-3)
    assert relative_error(attack(adam, step, gradient).value["shared_input:16"], true) <= 1e-6
    later = replace(message(federation(1), "gradient", 8), round=5)
    assert relative_error(attack(later, step).value["shared_input:16"], true) <= 1e-4
    seen: Any = SimpleNamespace(targets=(gradient, adam))
    assert not KeyVector(optimiser="adam").run(seen, torch.Generator()).certified.any()  # type: ignore[union-attr]
    with pytest.raises(Skip, match="sgd"):
        KeyVector(optimiser="sgd").run(seen, torch.Generator())
    with pytest.raises(RequestError, match="optimiser"):
        KeyVector(optimiser="momentum")  # type: ignore[arg-type]


def test_a_different_key_is_not_what_was_found() -> None:
    guess = attack(message(federation(0), "gradient", 4))
    other = Published().derived(federation(1))["key_vector"]
    assert relative_error(guess.value["shared_input:16"], other) > 1e-3


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("optimiser", ["gradient", "sgd"])
def test_a_plain_network_has_no_shared_input(batch: int, optimiser: Literal["gradient", "sgd"]) -> None:
    with pytest.raises(Skip, match="no key vector"):
        attack(message(federation(0, keyed=False), optimiser, batch, lr=0.01))


def test_nothing_special_to_infl_any_shared_input_is_found() -> None:
    code, bases = torch.randn(5), [torch.nn.Linear(5, 7), torch.nn.Linear(5, 3)]
    loss = sum(layer(code).square().sum() for layer in bases)
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    update = {
        f"{i}.{part}": value.grad for i, layer in enumerate(bases) for part, value in layer.named_parameters() if value.grad is not None
    }
    (shared,) = shared_inputs(update)
    assert shared.layers == ("0", "1")
    assert relative_error(shared.vector.float(), code) < 1e-6
