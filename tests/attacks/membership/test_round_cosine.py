"""Ghost inner products equal per-record gradients, and the cosine of rounds tells members from a site's update."""

import numpy as np
import pytest
import torch
from observations import FakeObservation, KeyedRows, auc, auc_error, mlp, normal, wire
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from workload import train

from attacks.membership.ghost import RecordGradients
from attacks.membership.round_cosine import RoundCosine, RoundCosineOfSum
from suites.contracts import Params, Records, RoundView, Skip

F, K = 30, 4


def per_record(module: nn.Module, params: Params, x: torch.Tensor, y: torch.Tensor) -> Params:
    def loss(p: Params, one: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(module, p, (one[None],)), label[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)


def losses(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, y, reduction="none")


def of_records(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> RecordGradients:
    return RecordGradients(lambda params, x: functional_call(module, params, (x,)), losses, Records(x, y))


@pytest.mark.parametrize("norm", [False, True])
def test_ghost_cosines_equal_per_record_gradients(norm: bool) -> None:
    module = mlp([F, 16, 12, K], norm=norm)
    params, x, y = wire(module), normal(25, F, seed=1), torch.arange(25) % K
    updates = [{name: normal(*t.shape, seed=5 + s) for name, t in params.items()} for s in range(3)]
    ours = of_records(module, x, y).products(params, updates).cosine()
    slopes = per_record(module, params, x, y)
    flat = torch.cat([slopes[name].flatten(1) for name in params], 1)
    moved = torch.stack([torch.cat([update[name].flatten() for name in params]) for update in updates])
    exact = functional.cosine_similarity(moved[:, None], -flat[None], dim=-1)
    assert torch.allclose(ours, exact, atol=1e-5, rtol=1e-4)


def test_keyed_layers_are_compared_by_effective_weight() -> None:
    module = nn.Sequential(KeyedRows(F, 16, 1 + normal(16, seed=2)), nn.ReLU(), nn.Linear(16, K))
    nn.init.normal_(module[0].weight, std=0.2)
    params, x, y = wire(module), normal(10, F, seed=1), torch.arange(10) % K
    update = {name: 0.01 * normal(*t.shape, seed=4) for name, t in params.items()}
    ours = of_records(module, x, y).products(params, [update]).cosine()
    plain = nn.Sequential(nn.Linear(F, 16), nn.ReLU(), nn.Linear(16, K))
    scale = module[0].scale[:, None]
    effective = {**params, "0.weight": scale * params["0.weight"]}
    delta = {**update, "0.weight": scale * update["0.weight"]}
    slopes = per_record(plain, effective, x, y)
    flat = torch.cat([slopes[name].flatten(1) for name in params], 1)
    exact = functional.cosine_similarity(torch.cat([delta[name].flatten() for name in params])[None], -flat, dim=-1)
    assert torch.allclose(ours[0], exact, atol=1e-4)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(Skip):
        RecordGradients(lambda p, x: p["a"] * x, lambda o, y: o.sum(1), Records(torch.ones(3, 2), torch.zeros(3))).products(
            {"a": torch.ones(2)}, [{"a": torch.ones(2)}]
        )


class ReadsPoints(nn.Module):
    """A first layer whose weights a network makes of as many points as it has hidden units, as implicit representations do."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.points = nn.Linear(2, features)
        self.register_buffer("at", normal(out, 2, seed=6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.points(self.get_buffer("at")))


def test_as_many_points_as_records_are_told_from_them_and_parts_give_what_all_give(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(ReadsPoints(F, 16), nn.ReLU(), nn.Linear(16, K))
    params, x, y = wire(module), normal(16, F, seed=1), torch.arange(16) % K
    update = {name: 0.01 * normal(*t.shape, seed=4) for name, t in params.items()}
    rows: list[int] = []

    def predict(params: Params, x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return functional_call(module, params, (x,))

    def said() -> tuple[torch.Tensor, ...]:
        rows.clear()
        gradients = RecordGradients(predict, losses, Records(x, y))
        found = gradients.products(params, [update])
        return found.dot, found.record, found.update, found.bias_dot, gradients.first_slopes(params)

    whole = said()
    assert rows == [1, 2, 2, 1, 1, 16, 16], "what the calls read, both models' weights, and all records for each of the two"
    plain = nn.Sequential(nn.Linear(F, 16, bias=False), nn.ReLU(), nn.Linear(16, K))
    with torch.no_grad():
        before = module[0].points(module[0].at)
        own = {name.removeprefix("0.points."): params[name] + update[name] for name in params if "points" in name}
        after = functional_call(module[0].points, own, module[0].at)
    effective = {"0.weight": before, **{name: params[name] for name in ("2.weight", "2.bias")}}
    slopes = per_record(plain, effective, x, y)
    moved = {"0.weight": after - before, **{name: update[name] for name in ("2.weight", "2.bias")}}
    torch.testing.assert_close(whole[3][0], -(slopes["2.bias"] * moved["2.bias"]).sum(1), rtol=1e-3, atol=1e-6)
    exact = -torch.stack([(slopes[name] * moved[name]).flatten(1).sum(1) for name in effective]).sum(0)
    torch.testing.assert_close(whole[0][0], exact, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(whole[1], torch.stack([slopes[name].flatten(1).square().sum(1) for name in effective]).sum(0))
    torch.testing.assert_close(torch.einsum("nh,nf->nhf", whole[4], x), -slopes["0.weight"])
    monkeypatch.setattr("suites.room.BLOCK", 8 * F * 5)
    for one, other in zip(said(), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert rows[-4:] == [5, 5, 5, 1]


def federation(seed: int, *, unseen: bool = False) -> tuple[FakeObservation, torch.Tensor]:
    """Three sites of 20 records, four rounds; 120 candidates, half of them members (or twins that nobody trained on)."""
    draw = np.random.default_rng(seed)
    module, widths = mlp([F, 16, K], seed), [F, 16, K]
    x, y = normal(180, F, seed=seed), torch.from_numpy(draw.integers(0, K, 180))
    member = torch.arange(120) < 60
    trained = torch.arange(60) if not unseen else torch.arange(120, 180)
    current, rounds = wire(module), []
    for index in range(4):
        updates = {}
        for site in range(3):
            rows = trained[site * 20 : (site + 1) * 20]
            local = mlp(widths)
            local.load_state_dict(current)
            optimiser = torch.optim.Adam(local.parameters(), lr=5e-3)
            for _ in range(6):
                optimiser.zero_grad()
                functional.cross_entropy(local(x[rows]), y[rows]).backward()
                optimiser.step()
            updates[site] = {name: t.detach() - current[name] for name, t in local.state_dict().items()}
        mean = {name: torch.stack([u[name] for u in updates.values()]).mean(0) for name in current}
        rounds.append(RoundView(index, current, updates, mean, {}))
        current = {name: t + mean[name] for name, t in current.items()}
    return FakeObservation(module, F, K, rounds=rounds, candidates=Records(x[:120], y[:120])), member


@pytest.mark.parametrize(("attack", "bar"), [(RoundCosine, 0.7), (RoundCosineOfSum, 0.6)])
def test_power_on_plain_federated_averaging_and_the_sign_is_right(attack: type, bar: float) -> None:
    scores = [auc(attack().run(seen, torch.Generator()).value, member) for seen, member in map(federation, range(3))]
    assert np.mean(scores) > bar


@pytest.mark.parametrize("attack", [RoundCosine, RoundCosineOfSum])
def test_no_power_where_no_candidate_was_trained_on(attack: type) -> None:
    runs = [federation(seed, unseen=True) for seed in range(3)]
    scores = [auc(attack().run(seen, torch.Generator()).value, member) for seen, member in runs]
    assert np.mean(scores) - 3.1 * auc_error(runs[0][1]) / 3**0.5 <= 0.5


def test_rounds_without_messages_are_passed_over_and_none_at_all_is_a_skip() -> None:
    seen, _ = federation(0)
    seen.rounds = [RoundView(0, None, {}, None, {}), *seen.rounds[:1]]
    assert RoundCosine().run(seen, torch.Generator()).notes["rounds"] == 1
    seen.rounds = seen.rounds[:1]
    with pytest.raises(Skip):
        RoundCosine().run(seen, torch.Generator())


def test_trainer_is_deterministic() -> None:
    x, y = normal(10, F, seed=0), torch.arange(10) % K
    assert all(torch.equal(a, b) for a, b in zip(train([F, 8, K], x, y, 3, 2).values(), train([F, 8, K], x, y, 3, 2).values()))


def test_a_model_that_calls_other_layers_for_other_records_is_refused() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(F, K), nn.Linear(K, K)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.first(x)
            return out if len(x) < 3 else self.second(out)

    module = Moody()
    params = wire(module)
    with pytest.raises(Skip, match="other layers"):
        of_records(module, normal(5, F, seed=1), torch.arange(5) % K).products(params, [params])
    with pytest.raises(Skip, match="no records"):
        of_records(module, normal(0, F, seed=1), torch.arange(0)).first_slopes(params)
