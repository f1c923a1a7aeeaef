"""LiRA against an independent formula, its small-sample paths, and the peers' figure on the shared workload."""

import math

import numpy as np
import pytest
import torch
from observations import FakeObservation, auc, auc_error, mlp, normal, wire
from scipy import stats
from workload import shared_workload, train

from attacks.membership.lira import LiRA, likelihood_ratio
from attacks.membership.loss import LossThreshold
from suites.contracts import Records, Reference


def by_hand(signal: np.ndarray, signals: np.ndarray, included: np.ndarray, pool: int) -> np.ndarray:
    """The same ratio, written record by record with scipy."""
    n = len(signal)
    residual = {True: [], False: []}
    for j in range(n):
        for side in (True, False):
            values = signals[included[:, j] == side, j]
            residual[side].append((np.sum((values - values.mean()) ** 2), len(values) - 1))
    out = np.empty(n)
    for j in range(n):
        density = {}
        for side in (True, False):
            values = signals[included[:, j] == side, j]
            if len(signals) >= pool:
                sd = values.std(ddof=1)
            else:
                sd = math.sqrt(sum(s for s, _ in residual[side]) / sum(f for _, f in residual[side]))
            density[side] = stats.norm.logpdf(signal[j], values.mean(), sd)
        out[j] = density[True] - density[False]
    return out


@pytest.mark.parametrize("references", [8, 64])
def test_the_ratio_agrees_with_an_independent_formula(references: int) -> None:
    draw = np.random.default_rng(3)
    included = draw.random((references, 50)) < 0.5
    included[:2], included[2:4] = True, False  # both sides filled
    signals = draw.normal(size=(references, 50)) + 1.5 * included
    signal = draw.normal(size=50)
    ours = likelihood_ratio(torch.from_numpy(signal), torch.from_numpy(signals), torch.from_numpy(included))
    assert np.allclose(ours.numpy(), by_hand(signal, signals, included, 64), rtol=1e-6, atol=1e-6)


def test_offline_is_a_one_sided_z_score() -> None:
    draw = np.random.default_rng(4)
    signals, signal = draw.normal(size=(16, 30)), draw.normal(size=30)
    ours = likelihood_ratio(torch.from_numpy(signal), torch.from_numpy(signals), torch.zeros(16, 30, dtype=torch.bool))
    sd = math.sqrt(((signals - signals.mean(0)) ** 2).sum() / (15 * 30))
    assert np.allclose(ours.numpy(), (signal - signals.mean(0)) / sd, rtol=1e-6)


def test_a_record_that_no_reference_holds_is_scored_like_the_others() -> None:
    draw = np.random.default_rng(5)
    included = draw.random((8, 400)) < 0.5
    included[:, :40] = False
    included[:, 40:80] = True
    signals = draw.normal(size=(8, 400)) + 3 * included
    member = draw.random(400) < 0.5
    signal = draw.normal(size=400) + 3 * member
    ours = likelihood_ratio(torch.from_numpy(signal), torch.from_numpy(signals), torch.from_numpy(included))
    assert bool(ours.isfinite().all())
    for part in (slice(0, 40), slice(40, 80), slice(80, 400)):
        assert auc(ours[part], torch.from_numpy(member[part])) > 0.9


def test_one_reference_is_enough_not_to_fail() -> None:
    ours = likelihood_ratio(torch.randn(9).double(), torch.randn(1, 9).double(), torch.zeros(1, 9, dtype=torch.bool))
    assert bool(ours.isfinite().all())


def small_world(seed: int, *, unseen: bool = False) -> tuple[FakeObservation, torch.Tensor]:
    """An overfitted model with 60 candidates, half of them members (or none trained on at all), and eight references."""
    draw = np.random.default_rng(seed)
    x, y = normal(120, 60, seed=seed), torch.from_numpy(draw.integers(0, 4, 120))
    member = torch.from_numpy(np.isin(np.arange(60), draw.permutation(60)[:30]))
    pool = torch.cat([member, torch.ones(60, dtype=torch.bool)]) if not unseen else torch.cat([torch.zeros(60), torch.ones(60)]).bool()
    module = mlp([60, 32, 4])

    def fit(rows: torch.Tensor, start: int) -> dict[str, torch.Tensor]:
        return train([60, 32, 4], x[rows], y[rows], start, epochs=30, batch=20)

    references = []
    for index in range(8):
        rows = torch.from_numpy(draw.random(120) < 0.5)
        params = fit(rows, 1000 + index)
        references.append(Reference(index, rows, params, lambda v, p=params: torch.func.functional_call(module, p, (v,))))
    released = fit(pool, 999)
    return FakeObservation(module, 60, 4, released=released, candidates=Records(x[:60], y[:60]), models=references), member


@pytest.mark.parametrize("attack", [LiRA, LossThreshold])
def test_power_on_an_overfitted_model_and_the_sign_is_right(attack: type) -> None:
    scores = [auc(attack().run(seen, torch.Generator()).value, member) for seen, member in (small_world(seed) for seed in range(4))]
    error = max(np.std(scores, ddof=1), 0.01) / 2
    assert np.mean(scores) - stats.t.ppf(0.975, 3) * error > 0.6


@pytest.mark.parametrize("attack", [LiRA, LossThreshold])
def test_no_power_where_no_candidate_was_trained_on(attack: type) -> None:
    scores = []
    for seed in range(4):
        seen, member = small_world(seed, unseen=True)
        scores.append(auc(attack().run(seen, torch.Generator()).value, member))
    assert np.mean(scores) - 3.1 * auc_error(member) / 2 <= 0.5


def test_fewer_references_when_asked() -> None:
    seen, _ = small_world(0)
    assert LiRA(count=4).run(seen, torch.Generator()).notes["references"] == 4


@pytest.mark.slow
def test_sixteen_references_reach_the_peers_figure() -> None:
    """LiRA AUC within .02 of .807 over five seeds on the shared workload (LeakPro .807, SACRO-ML .804)."""
    x, y, member = shared_workload()
    widths, scores = [1000, 64, 64, 14], []
    module = mlp(widths)
    for seed in range(5):
        draw = np.random.default_rng(seed)
        references = []
        for index in range(16):
            rows = torch.from_numpy(np.isin(np.arange(1200), draw.permutation(1200)[:600]))
            params = train(widths, x[rows], y[rows], 100 * seed + index + 1)
            references.append(Reference(index, rows, params, lambda v, p=params: torch.func.functional_call(module, p, (v,))))
        seen = FakeObservation(
            module, 1000, 14, released=train(widths, x[member], y[member], 100 * seed), candidates=Records(x, y), models=references
        )
        scores.append(auc(LiRA().run(seen, torch.Generator()).value, member))
    print("LiRA AUC", [round(s, 4) for s in scores], float(np.mean(scores)))
    assert abs(np.mean(scores) - 0.807) <= 0.02


def test_wire_names_are_the_modules() -> None:
    assert set(train([60, 32, 4], normal(4, 60, seed=0), torch.tensor([0, 1, 2, 3]), 0, epochs=1)) == set(wire(mlp([60, 32, 4])))
