"""RMIA, quantile regression and the blind baseline: known answers, power and null."""

import numpy as np
import pytest
import torch
from observations import FakeObservation, auc, auc_error, mlp, normal
from torch.func import functional_call
from workload import shared_workload, train

from attacks.membership.blind import Blind
from attacks.membership.loss import LossThreshold
from attacks.membership.quantile import QuantileRegression, standing
from attacks.membership.rmia import RMIA, log_ratio, pairwise
from suites.contracts import Records, Reference, Skip

WIDTHS = [60, 32, 4]


def world(seed: int, *, unseen: bool = False) -> tuple[FakeObservation, torch.Tensor]:
    """Sixty candidates, half of them members (or none), 60 auxiliary records, eight references over both."""
    draw = np.random.default_rng(seed)
    centre = normal(4, 60, seed=1000)
    y = torch.from_numpy(draw.integers(0, 4, 180))
    x = 0.5 * centre[y] + normal(180, 60, seed=seed)
    member = torch.from_numpy(np.isin(np.arange(60), draw.permutation(60)[:30]))
    module = mlp(WIDTHS)
    references = []
    for index in range(8):
        rows = torch.from_numpy(draw.random(120) < 0.5)
        params = train(WIDTHS, x[:120][rows], y[:120][rows], 1000 + index, epochs=30, batch=20)
        references.append(Reference(index, rows, params, lambda v, p=params: functional_call(module, p, (v,))))
    trained = torch.cat([member if not unseen else torch.zeros(60).bool(), torch.zeros(60).bool(), torch.ones(60).bool()])
    released = train(WIDTHS, x[trained], y[trained], 999, epochs=30, batch=20)
    auxiliary = Records(x[60:120], y[60:120])
    return FakeObservation(
        module, 60, 4, released=released, candidates=Records(x[:60], y[:60]), auxiliary=auxiliary, models=references
    ), member


def scores(attack: type, seen: FakeObservation) -> torch.Tensor:
    return attack().run(seen, torch.Generator().manual_seed(2)).value


@pytest.mark.parametrize("attack", [RMIA, QuantileRegression])
def test_power_on_an_overfitted_model_and_the_sign_is_right(attack: type) -> None:
    assert np.mean([auc(scores(attack, seen), member) for seen, member in map(world, range(4))]) > 0.65


@pytest.mark.parametrize("attack", [RMIA, QuantileRegression, Blind])
def test_no_power_where_no_candidate_was_trained_on(attack: type) -> None:
    runs = [world(seed, unseen=True) for seed in range(4)]
    mean = np.mean([auc(scores(attack, seen), member) for seen, member in runs])
    assert mean - 3.1 * auc_error(runs[0][1]) / 2 <= 0.5


def test_rmia_agrees_with_an_independent_formula_and_breaks_ties_by_the_ratio() -> None:
    draw = np.random.default_rng(1)
    rows, target, included = -draw.exponential(size=(8, 40)), -draw.exponential(size=40), draw.random((8, 40)) < 0.5
    included[0], included[1] = True, False
    ours = log_ratio(torch.from_numpy(target), torch.from_numpy(rows), torch.from_numpy(included))
    p = np.exp(rows)
    mean = np.array([(p[included[:, j], j].mean() + p[~included[:, j], j].mean()) / 2 for j in range(40)])
    assert np.allclose(ours.numpy(), np.log(np.exp(target) / mean), rtol=1e-6)
    ranked = pairwise(ours[:20], ours[20:])
    by_hand = (ours[:20, None] >= ours[None, 20:]).double().mean(1)
    assert torch.allclose((ranked * 20).floor() / 20, by_hand, atol=1e-9)
    assert ranked.argsort().tolist() == ours[:20].argsort().tolist()  # at gamma = 1 the score is a monotone map of the ratio
    assert len(ranked.unique()) == 20


def test_quantiles_follow_a_spread_that_depends_on_the_record() -> None:
    draw = np.random.default_rng(2)
    known, asked = draw.normal(size=(600, 2)), draw.normal(size=(400, 2))
    spread = np.exp(known[:, 0]), np.exp(asked[:, 0])
    values, signal = known[:, 1] + spread[0] * draw.normal(size=600), asked[:, 1] + spread[1] * draw.normal(size=400)
    z = standing(*(torch.from_numpy(a) for a in (known, values, asked, signal)))
    low, high = z[asked[:, 0] < 0], z[asked[:, 0] >= 0]
    assert 0.75 < float(low.std() / high.std()) < 1.33


def test_the_blind_baseline_sees_a_split_that_leaks_and_no_model() -> None:
    assert Blind.needs == {"candidates", "auxiliary"}
    x = normal(200, 20, seed=3)
    member = torch.arange(200) < 100
    shifted = x + 1.0 * member[:, None]
    seen = FakeObservation(mlp([20, 4]), 20, 4, candidates=Records(shifted, torch.zeros(200).long()))
    seen.auxiliary = Records(normal(300, 20, seed=4), torch.zeros(300).long())
    assert auc(scores(Blind, seen), member) > 0.7
    classes = torch.where(member, torch.arange(200) % 4, torch.zeros(200).long())
    seen.candidates, seen.auxiliary = Records(x, classes), Records(normal(300, 20, seed=4), torch.zeros(300).long())
    assert auc(scores(Blind, seen), member) > 0.7


def test_quantiles_need_auxiliary_records() -> None:
    seen, _ = world(0)
    seen.auxiliary = Records(torch.empty(0, 60), torch.empty(0, dtype=torch.int64))
    with pytest.raises(Skip):
        scores(QuantileRegression, seen)


@pytest.mark.slow
def test_on_the_shared_workload() -> None:
    """Sixteen references: RMIA near the peers' .75 to .79; loss near .65; auxiliary records are fresh halves of nobody's."""
    x, y, member = shared_workload()
    widths, found = [1000, 64, 64, 14], {"rmia": [], "loss": []}
    module = mlp(widths)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        references = []
        for index in range(16):
            rows = torch.from_numpy(np.isin(np.arange(1200), draw.permutation(1200)[:600]))
            params = train(widths, x[rows], y[rows], 100 * seed + index + 1)
            # population records: the candidates themselves, as the peers use them
            references.append(Reference(index, rows.repeat(2), params, lambda v, p=params: functional_call(module, p, (v,))))
        released = train(widths, x[member], y[member], 100 * seed)
        seen = FakeObservation(module, 1000, 14, released=released, candidates=Records(x, y), auxiliary=Records(x, y), models=references)
        found["rmia"].append(auc(scores(RMIA, seen), member))
        found["loss"].append(auc(scores(LossThreshold, seen), member))
    print({name: [round(v, 3) for v in values] for name, values in found.items()})
    assert np.mean(found["rmia"]) > 0.72
    assert abs(np.mean(found["loss"]) - 0.653) < 0.03
