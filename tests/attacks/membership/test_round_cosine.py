"""Ghost inner products equal per-record gradients, and the cosine of rounds tells members from a site's update."""

import numpy as np
import pytest
import torch
from observations import FakeObservation, KeyedRows, auc, auc_error, mlp, normal, wire
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from workload import train

from attacks.membership.ghost import cosines
from attacks.membership.round_cosine import RoundCosine, RoundCosineOfSum
from suites.contracts import Params, Records, RoundView, Skip

F, K = 30, 4


def per_record(module: nn.Module, params: Params, x: torch.Tensor, y: torch.Tensor) -> Params:
    def loss(p: Params, one: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(functional_call(module, p, (one[None],)), label[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)


@pytest.mark.parametrize("norm", [False, True])
def test_ghost_cosines_equal_per_record_gradients(norm: bool) -> None:
    module = mlp([F, 16, 12, K], norm=norm)
    params, x, y = wire(module), normal(25, F, seed=1), torch.arange(25) % K
    updates = [{name: normal(*t.shape, seed=5 + s) for name, t in params.items()} for s in range(3)]
    ours = cosines(lambda p: functional_call(module, p, (x,)), lambda o: functional.cross_entropy(o, y, reduction="none"), params, updates)
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
    ours = cosines(lambda p: functional_call(module, p, (x,)), lambda o: functional.cross_entropy(o, y, reduction="none"), params, [update])
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
        cosines(lambda p: p["a"] * torch.ones(3, 2), lambda o: o.sum(1), {"a": torch.ones(2)}, [{"a": torch.ones(2)}])


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
