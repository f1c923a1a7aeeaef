"""Span membership: exact below the hidden width, strong above it, blind to strangers, and better with a matched filter."""

import numpy as np
import pytest
import torch
from observations import FakeObservation, auc, auc_error, mlp, normal, wire
from torch import nn
from torch.nn import functional

from attacks.membership.matched_span import MatchedSpan, MatchedSpanOfSum
from attacks.membership.span import SpanMembership, SpanMembershipOfSum, coordinates, how_many_public, principal, share
from suites.contracts import Fact, Records, RoundView, Skip

K = 14


def omics(seed: int, count: int, features: int, factors: int = 30) -> torch.Tensor:
    """Correlated records [count, F]: ``factors`` hold 90 % of the variance; the loadings depend on the width alone."""
    loadings = np.random.default_rng(features).normal(size=(factors, features)) * (0.9 / factors) ** 0.5
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, factors)) @ loadings + draw.normal(size=(count, features)) * 0.1**0.5
    return torch.from_numpy(x.astype(np.float32))


def local(
    module: nn.Sequential, x: torch.Tensor, y: torch.Tensor, epochs: int, batch: int, *, adam: bool = True
) -> dict[str, torch.Tensor]:
    """One site's update."""
    before = wire(module)
    order = torch.Generator().manual_seed(5)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3) if adam else torch.optim.SGD(module.parameters(), lr=0.05)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            optimiser.zero_grad()
            functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimiser.step()
    update = {name: t - before[name] for name, t in wire(module).items()}
    module.load_state_dict(before)
    return update


def world(seed: int, sites: int = 3, size: int = 60, width: int = 32, features: int = 300, *, unseen: bool = False, adam: bool = True):
    """Sites of ``size`` records each and as many strangers; one round."""
    total = sites * size
    pool = omics(seed, 3 * total, features, 10)
    x, strangers, others = pool.split(total)
    y = torch.from_numpy(np.random.default_rng(seed).integers(0, K, 3 * total))
    member = torch.arange(2 * total) < total
    module = mlp([features, width, K], seed)
    rows = x if not unseen else others
    updates = {
        site: local(module, rows[site * size : (site + 1) * size], y[site * size : (site + 1) * size], 4, 20, adam=adam)
        for site in range(sites)
    }
    combined = {name: torch.stack([u[name] for u in updates.values()]).mean(0) for name in updates[0]}
    seen = FakeObservation(
        module,
        features,
        K,
        rounds=[RoundView(0, wire(module), updates, combined, {})],
        candidates=Records(torch.cat([x, strangers]), y[: 2 * total]),
        auxiliary=Records(omics(seed + 500, 150, features, 10), torch.arange(150) % K),
    )
    return seen, member


def run(attack: type, seen: FakeObservation):
    return attack().run(seen, torch.Generator().manual_seed(1))


def test_with_fewer_records_than_units_members_lie_wholly_inside() -> None:
    seen, member = world(0, sites=2, size=12, adam=False)
    scores = run(SpanMembership, seen).value
    assert float(scores[member].min()) > 0.999
    assert float(scores[~member].max()) < 0.9


@pytest.mark.parametrize(
    ("attack", "bar"), [(SpanMembership, 0.9), (MatchedSpan, 0.95), (SpanMembershipOfSum, 0.6), (MatchedSpanOfSum, 0.8)]
)
def test_power_with_adam_and_more_records_than_units(attack: type, bar: float) -> None:
    scores = [auc(run(attack, seen).value, member) for seen, member in map(world, range(3))]
    assert np.mean(scores) > bar


@pytest.mark.parametrize("attack", [SpanMembership, MatchedSpan, SpanMembershipOfSum, MatchedSpanOfSum])
def test_no_power_where_no_candidate_was_trained_on(attack: type) -> None:
    runs = [world(seed, unseen=True) for seed in range(3)]
    scores = [auc(run(attack, seen).value, member) for seen, member in runs]
    assert np.mean(scores) - 3.1 * auc_error(runs[0][1]) / 3**0.5 <= 0.5


@pytest.mark.parametrize("attack", [SpanMembershipOfSum, MatchedSpanOfSum])
def test_a_sum_is_all_that_the_sum_attacks_need(attack: type) -> None:
    seen, _ = world(0)
    assert "updates" not in attack.needs
    blinded = [RoundView(v.index, v.broadcast, {}, v.combined, {}) for v in seen.rounds]
    scores = run(attack, seen).value
    seen.rounds = blinded
    assert torch.equal(run(attack, seen).value, scores)


def test_the_match_adds_power_where_records_outnumber_units() -> None:
    def strength(attack: type) -> float:
        return float(np.mean([auc(run(attack, seen).value, member) for seen, member in (world(s, size=120) for s in range(3))]))

    assert strength(MatchedSpan) > strength(SpanMembership) + 0.01


def test_public_components_are_removed_and_their_number_comes_from_auxiliary_records() -> None:
    seen, member = world(1)
    delta = seen.rounds[0].updates[0]["0.weight"]
    count = how_many_public([delta], seen.auxiliary.x)
    assert 5 <= count <= 40  # ten factors are shared
    site = torch.zeros(len(member), dtype=torch.bool)
    site[:60] = True
    chosen = site | ~member

    def strength(components: int) -> float:
        return auc(share(delta, principal(seen.auxiliary.x, components), seen.candidates.x)[chosen], site[chosen])

    assert strength(count) > strength(0)


@pytest.mark.parametrize("seed", range(4))
def test_no_more_components_are_removed_than_records_have_columns(seed: int) -> None:
    """Of 24 columns a basis of more is no basis; and where the rows hold all of every record, only rounding would choose a number."""
    public = omics(seed, 900, 24, 6)
    count = how_many_public([normal(8, 24, seed=100 + seed)], public)
    basis = principal(public, count)
    assert torch.allclose(basis @ basis.T, torch.eye(count), atol=1e-3)
    assert how_many_public([normal(32, 24, seed=100 + seed)], public) == 0


def test_where_part_of_a_record_is_known_its_rows_are_cut_to_that_part() -> None:
    """Plain SGD and fewer records than known columns: members lie wholly inside, whatever stands in the other columns."""
    seen, member = world(0, sites=2, size=12, adam=False)
    mask = torch.arange(300) < 100

    class Partly(FakeObservation):
        @property
        def known(self):  # type: ignore[no-untyped-def]
            return {**super().known, "columns": Fact(mask, "public")}

    filled = Records(torch.where(mask, seen.candidates.x, 0.0), seen.candidates.y)
    partly = Partly(seen.module, 300, K, rounds=seen.rounds, candidates=filled, auxiliary=seen.auxiliary)
    for attack in (SpanMembership, SpanMembershipOfSum):
        scores = run(attack, partly).value
        assert float(scores[member].min()) > 0.999
        assert float(scores[~member].max()) < 0.95
    blind = FakeObservation(seen.module, 300, K, rounds=seen.rounds, candidates=filled, auxiliary=seen.auxiliary)
    assert float(run(SpanMembership, blind).value[member].max()) < 0.95  # without the mask nobody lies wholly inside


def test_shares_and_components_equal_a_plain_decomposition() -> None:
    x, delta = normal(40, 50, seed=1), normal(8, 50, seed=2)
    exact = torch.linalg.svd(x, full_matrices=False).Vh[:6]
    ours = principal(x, 6)
    assert torch.allclose(ours.T @ ours, exact.T @ exact, atol=1e-4)
    rows = delta - delta @ exact.T @ exact
    basis = torch.linalg.svd(rows, full_matrices=False).Vh
    rest = x - x @ exact.T @ exact
    by_hand = (rest @ basis.T).square().sum(1) / rest.square().sum(1)
    assert torch.allclose(share(delta, ours, x), by_hand, atol=1e-4)
    inside, recipe = coordinates(delta, ours, x)
    assert torch.allclose(recipe.T @ (rows @ rows.T) @ recipe, torch.eye(8), atol=1e-3)
    assert torch.allclose(inside.square().sum(1), by_hand, atol=1e-4)


def test_without_auxiliary_records_nothing_is_projected_out() -> None:
    seen, member = world(0)
    seen.auxiliary = Records(torch.empty(0, 300), torch.empty(0, dtype=torch.int64))
    guess = run(SpanMembership, seen)
    assert guess.notes["public_components"] == 0
    assert auc(guess.value, member) > 0.7


@pytest.mark.parametrize("attack", [SpanMembership, MatchedSpan, SpanMembershipOfSum, MatchedSpanOfSum])
def test_one_round_of_many_is_read_where_one_is_asked_for(attack: type) -> None:
    one, _ = world(0)
    later, _ = world(1)
    alone = run(attack, one).value
    one.rounds = [*one.rounds, *later.rounds]
    assert torch.equal(attack(rounds=1).run(one, torch.Generator().manual_seed(1)).value, alone)
    assert not torch.equal(run(attack, one).value, alone)


def test_no_update_is_a_skip() -> None:
    seen, _ = world(0)
    seen.rounds = []
    for attack in (SpanMembership, MatchedSpan):
        with pytest.raises(Skip):
            run(attack, seen)


def tpr(scores: torch.Tensor, member: torch.Tensor, fpr: float) -> float:
    outside = scores[~member].sort(descending=True).values
    return float((scores[member] > outside[int(fpr * len(outside))]).float().mean())


@pytest.mark.slow
def test_wide_correlated_records_and_adam_deltas() -> None:
    """512 records, 5,000 strangers, MLP 1000-64-64-14, five epochs of batch 32: AUC >= .99 and TPR at 0.1 % >= .9."""
    for seed in range(3):
        x, y = omics(seed, 512, 1000), torch.from_numpy(np.random.default_rng(seed).integers(0, K, 5512))
        candidates, member = torch.cat([x, omics(seed + 50, 5000, 1000)]), torch.arange(5512) < 512
        module = mlp([1000, 64, 64, K], seed)
        update = local(module, x, y[:512], 5, 32)
        seen = FakeObservation(
            module,
            1000,
            K,
            rounds=[RoundView(0, wire(module), {0: update}, None, {})],
            candidates=Records(candidates, y),
            auxiliary=Records(omics(seed + 90, 1000, 1000), torch.arange(1000) % K),
        )
        for attack in (SpanMembership, MatchedSpan):
            scores = run(attack, seen).value
            print(attack.__name__, seed, round(auc(scores, member), 4), round(tpr(scores, member, 1e-3), 3))
            assert auc(scores, member) >= 0.99
            assert tpr(scores, member, 1e-3) >= 0.9
