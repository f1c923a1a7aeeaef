"""The published layers give the reference's tensors: outputs and all gradients to 1e-10 relative, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infl.embed import embed
from infl.layers import KeyedLinear
from infl.published import Published
from suites.contracts import Secret

GOLDEN = Path(__file__).parents[1] / "golden" / "infl_published.npz"


class Net(nn.Module):
    """The golden network before it is keyed: embedding, two residual blocks with BatchNorm, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(37, 12)
        for block in "12":
            self.add_module(f"rb{block}_linear1", nn.Linear(12, 12))
            self.add_module(f"rb{block}_bn1", nn.BatchNorm1d(12))
            self.add_module(f"rb{block}_linear2", nn.Linear(12, 12))
            self.add_module(f"resblock{block}_bn", nn.BatchNorm1d(12))
        self.fc1 = nn.Linear(12, 6)
        self.fc2 = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        part = self.get_submodule
        h = self.embedding(x)
        for block in "12":
            inner = torch.relu(part(f"rb{block}_bn1")(part(f"rb{block}_linear1")(h)))
            h = part(f"resblock{block}_bn")(part(f"rb{block}_linear2")(inner) + h)
        out: Tensor = self.fc2(torch.relu(self.fc1(h)))
        return out


def ours(name: str) -> str:
    """Reference name -> our name: FiLM belongs to the layer it follows, the encoder to the first."""
    layer, _, rest = name.partition(".")
    if "_film" in layer:
        return f"{layer.replace('_film', '_linear' if layer.startswith('rb') else '')}.film.{rest}"
    return f"embedding.{name}" if layer == "key_encoder" else name


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def model(golden: dict[str, Tensor]) -> nn.Module:
    keyed = embed(Net().double(), golden["coordinates"], strength=20.0).eval()
    state = {ours(name.removeprefix("state/")): value for name, value in golden.items() if name.startswith("state/")}
    keyed.load_state_dict(state, strict=True)  # strict: no coordinates on the wire, and no name left over on either side
    return keyed


def assert_close(found: Tensor, expected: Tensor, name: str = "") -> None:
    error = ((found - expected).norm() / expected.norm()).item()
    assert error <= 1e-10, f"{name} differs from the reference by {error:.1e} relative"


def test_key_vector(model: nn.Module, golden: dict[str, Tensor]) -> None:
    assert_close(Published().derived(model)["key_vector"], golden["key_vector"])


def test_first_layer(model: nn.Module, golden: dict[str, Tensor]) -> None:
    layer = model.get_submodule("embedding")
    assert isinstance(layer, KeyedLinear)
    weight, bias = layer.effective()
    assert bias is not None
    assert_close(weight, golden["embedding_effective_weight"])
    assert_close(bias, golden["embedding_effective_bias"])
    assert_close(F.linear(golden["x"], weight, bias), golden["embedding_out"])
    assert_close(layer(golden["x"]), golden["embedding_film_out"])  # called alone, outside the model's forward pass


def test_logits_with_each_key(model: nn.Module, golden: dict[str, Tensor]) -> None:
    assert_close(model(golden["x"]), golden["logits"])
    assert_close(Published().without_key(model)(golden["x"]), golden["logits_without_key"])
    buffers = {"embedding.key_encoder.coordinates": golden["wrong_coordinates"]}
    assert_close(torch.func.functional_call(model, buffers, (golden["x"],)), golden["logits_wrong_key"])
    assert_close(model(golden["x"]), golden["logits"])  # neither call left its key behind


def test_every_gradient(model: nn.Module, golden: dict[str, Tensor]) -> None:
    loss = F.cross_entropy(model(golden["x"]), golden["y"])
    parameters = dict(model.named_parameters())
    found = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))
    expected = {ours(name.removeprefix("grad/")): value for name, value in golden.items() if name.startswith("grad/")}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value, name)


def test_stack_of_federations_each_with_its_own_key(model: nn.Module, golden: dict[str, Tensor]) -> None:
    stacked = torch.stack([golden["coordinates"], golden["wrong_coordinates"]])
    state = {name: value.expand(2, *value.shape) for name, value in model.state_dict().items()}

    def logits(parameters: dict[str, Tensor], coordinates: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, {**parameters, "embedding.key_encoder.coordinates": coordinates}, (golden["x"],))
        return out

    both = torch.func.vmap(logits)(state, stacked)
    assert_close(both[0], golden["logits"])
    assert_close(both[1], golden["logits_wrong_key"])


def test_differentiable_in_the_coordinates(golden: dict[str, Tensor]) -> None:
    coordinates = golden["coordinates"].clone().requires_grad_()
    keyed = Published().model(Net().double().eval(), Secret(coordinates=coordinates))
    (gradient,) = torch.autograd.grad(keyed(golden["x"]).square().sum(), coordinates)
    assert gradient.shape == (128, 2)
    assert float(gradient.abs().min()) > 0
