"""INFL as published, trained: keys of the adversary's own drawing open it, and inputs fall out of its first layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.key.open_model import HeldKey, WithoutKey, WrongKeys
from infl.published import Published
from suites.contracts import Secret, Skip
from suites.modules import initialise
from suites.randomness import keys, stream

CLASSES, FEATURES = 6, 60
DEFENSE = Published()


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def records(count: int, role: str) -> tuple[Tensor, Tensor]:
    centres = torch.randn(CLASSES, FEATURES, generator=stream("centres"))
    generator = stream("records", role)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return 0.7 * centres[y] + torch.randn(count, FEATURES, generator=generator), y


def drawn(index: int) -> Secret:
    return DEFENSE.secret(keys("adversary", index))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = DEFENSE.model(net(), DEFENSE.secret(keys("federation")))
    initialise(model, stream("start"))
    x, y = records(600, "train")
    optimiser, order = torch.optim.Adam(model.parameters(), lr=1e-3), stream("batches")
    for _ in range(12):
        for batch in torch.randperm(len(x), generator=order).split(50):  # type: ignore[no-untyped-call]
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model


def accuracy(model: nn.Module, key: Secret | None) -> float:
    x, y = records(1000, "test")
    if key is None:
        outputs = DEFENSE.without_key(model)(x)
    else:
        outputs = torch.func.functional_call(model, {"0.key_encoder.coordinates": key["coordinates"].float()}, (x,))
    return float((outputs.argmax(1) == y).float().mean())


def seen(key: Secret | None = None, *, keyed: bool = True) -> Any:
    return SimpleNamespace(key=key, draw_key=lambda index: drawn(index) if keyed else None)


def test_wrong_keys_open_the_model_and_no_key_does_not(trained: nn.Module) -> None:
    right = accuracy(trained, DEFENSE.secret(keys("federation")))
    guesses = WrongKeys().run(seen(), torch.Generator()).value
    wrong = [accuracy(trained, key) for key in guesses]
    (without,) = [accuracy(trained, key) for key in WithoutKey().run(seen(), torch.Generator()).value]
    noise = 2 * (right * (1 - right) / 1000) ** 0.5
    assert right > 0.9
    assert len(wrong) == 20
    assert abs(sum(wrong) / 20 - right) < noise, f"right key {right:.3f}, wrong keys {min(wrong):.3f} to {max(wrong):.3f}"
    assert without < 0.6


def test_wrong_keys_are_twenty_different_ones() -> None:
    values = [key["coordinates"] for key in WrongKeys().run(seen(), torch.Generator()).value]
    true = DEFENSE.secret(keys("federation"))["coordinates"]
    assert len({tuple(value.flatten().tolist()) for value in values}) == 20
    assert not any((value == true).any() for value in values)


def test_held_key_is_passed_on_and_a_defense_without_a_key_is_skipped() -> None:
    key = drawn(3)
    assert HeldKey().run(seen(key), torch.Generator()).value == [key]
    for attack in (HeldKey(), WrongKeys()):
        with pytest.raises(Skip, match="no key"):
            attack.run(seen(keyed=False), torch.Generator())


@pytest.mark.parametrize("strength", [1.0, 5.0, 20.0])
def test_inputs_fall_out_of_the_first_layer_without_any_key(strength: float) -> None:
    """For one record dL/dW_i = s_i g_i x and dL/db_i = g_i: x up to one factor."""
    defense = Published(strength=strength)
    model = defense.model(net(), defense.secret(keys("federation")))
    initialise(model, stream("start"))
    x, y = records(8, "victims")
    for record, label in zip(x[:, None], y[:, None]):
        model.zero_grad()
        F.cross_entropy(model(record), label).backward()  # type: ignore[no-untyped-call]
        weight, bias = model.get_parameter("0.weight").grad, model.get_parameter("0.bias").grad
        assert weight is not None
        assert bias is not None
        row = weight.norm(dim=1).argmax()
        assert abs(float(torch.cosine_similarity(weight[row], record[0], dim=0))) >= 0.999
