"""Integration: what is missing is neither read nor rebuilt nor contrasted, the contrast is one cell's own, controls stand beside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from suites.bench import Bench
from suites.clipping import ClippedSum
from suites.cohorts.spec import DataSpec
from suites.config import load
from suites.contracts import RequestError
from suites.plan import plan
from suites.prepared import prepare
from suites.room import Rows
from suites.scoring import score_utility
from suites.tasks.integration import ASIDE, Integration
from suites.tasks.layout import Layout
from tests.suites.cohorts.test_downloads import real

RNA, PROTEIN, N = 20, 5, 400


def write(folder: Path) -> str:
    """Four cell types, each with its own profile in both modalities."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % 4
    x, p = (m[kind] + rng.normal(0, 1.0, (N, m.shape[1])) for m in (rng.normal(0, 2, (4, RNA)), rng.normal(0, 2, (4, PROTEIN))))
    obs = pd.DataFrame({"kind": [f"k{v}" for v in kind]}, index=[f"cell{i}" for i in range(N)])
    data = anndata.AnnData(x.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(RNA)]))
    data.obsm["protein"] = p.astype(np.float32)
    path = folder / "paired.h5ad"
    data.write_h5ad(path)
    return str(path)


def spec(path: str, defense: str = "centralized", task: str = "integration:hidden=24:width=6", **changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": task,
        "data": DataSpec(path=path, label="kind", transform="none").model_dump(),
        "split": {"unit": "record", "train": 0.4, "validation": 0.1, "test": 0.3, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 3, "local": {"epochs": 15, "batch": 40, "lr": 3e-3}},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def small() -> tuple[Integration, torch.nn.Module, torch.Tensor]:
    """The task on 4 + 3 columns, its network, and four cells: whole, without second, without first, whole."""
    task = Integration(hidden=8, width=4, prototypes=5)
    task.learn(Layout((4, 3), ASIDE), {})
    torch.manual_seed(0)
    x = torch.randn(4, 10)
    x[:, 7:] = torch.tensor([[1.0, 1, 0], [1, 0, 3], [0, 1, 2], [1, 1, 1]])
    x[1, 4:7], x[2, :4] = 0, 0
    return task, task.net(10, 4), x


def test_the_mosaic_is_drawn_before_the_split(tmp_path: Path) -> None:
    path = write(tmp_path)
    prepared = prepare(spec(path), None)
    x = prepared.pool.x
    aside = x[:, -ASIDE:]
    assert bool((aside[:, 2] == 3).eq(aside[:, 1] == 0).all())  # the last site lacks protein
    assert bool((aside[:, 2] == 2).eq(aside[:, 0] == 0).all())  # the one before it RNA
    assert bool((x[aside[:, 1] == 0][:, RNA:-ASIDE] == 0).all())
    for part in (torch.cat(prepared.sites), prepared.test, prepared.auxiliary):
        lacking = (aside[part][:, :2] == 0).float().mean(0)
        assert lacking.tolist() == pytest.approx([0.25, 0.25], abs=0.06)  # members and non-members alike
    assert prepared.layout == Layout((RNA, PROTEIN), ASIDE)
    whole = prepare(spec(path, task="integration:mosaic=false"), None).pool.x
    assert bool((whole[:, -ASIDE:-1] == 1).all())


def test_a_second_modality_in_a_table_is_the_same_as_in_a_matrix(tmp_path: Path) -> None:
    told = DataSpec(**spec(write(tmp_path))["data"])
    plain = Integration().cohort(told)
    data = anndata.read_h5ad(tmp_path / "paired.h5ad")
    data.obsm["protein"] = pd.DataFrame(data.obsm["protein"], columns=[f"CD{i}" for i in range(PROTEIN)], index=data.obs_names)
    data.write_h5ad(tmp_path / "paired.h5ad")
    framed = Integration(second="protein").cohort(told)
    np.testing.assert_array_equal(framed.x, plain.x)
    assert framed.features[RNA:] == tuple(f"protein CD{i}" for i in range(PROTEIN))


def test_units_come_from_the_auxiliary_records_that_have_the_modality(tmp_path: Path) -> None:
    prepared = prepare(spec(write(tmp_path)), None)
    x = prepared.pool.x[prepared.auxiliary]
    for column, has in ((slice(0, RNA), x[:, -ASIDE] > 0), (slice(RNA, RNA + PROTEIN), x[:, -ASIDE + 1] > 0)):
        torch.testing.assert_close(x[has][:, column].mean(0), torch.zeros(x[:, column].shape[1]), atol=1e-5, rtol=0)


def test_a_missing_modality_moves_nothing() -> None:
    task, net, x = small()
    outputs = net(x)
    filled = x.clone()
    filled[1, 4:7], filled[2, :4] = 9.0, -9.0  # whatever stood there
    other = net(filled)
    torch.testing.assert_close(other[:, :4], outputs[:, :4])  # the joint embedding
    torch.testing.assert_close(task.loss(other, torch.zeros(4)), task.loss(outputs, torch.zeros(4)))


def test_loss_by_hand() -> None:
    task, net, x = small()
    outputs = net(x).detach()
    _, _, _, first, second, p, q, _ = task._parts(outputs)
    expected = []
    for i, (a, b) in enumerate([(1, 1), (1, 0), (0, 1), (1, 1)]):
        value = a * float((first[i] ** 2).mean()) + b * float((second[i] ** 2).mean())
        u, v = (torch.softmax(scores[i] / 0.2, 0) for scores in (p, q))
        value += 0.1 * a * b * float(-(u * v.log()).sum() - (v * u.log()).sum())
        expected.append(value)
    assert task.loss(outputs, torch.zeros(4)).tolist() == pytest.approx(expected, rel=1e-5)


def test_one_cells_loss_does_not_depend_on_the_others_and_clipping_takes_one_pass() -> None:
    task, net, x = small()
    alone = torch.cat([task.loss(net(row[None]), torch.zeros(1)) for row in x])
    torch.testing.assert_close(task.loss(net(x), torch.zeros(4)), alone)
    clipped = ClippedSum(net, task.loss)
    params = {name: tensor.detach()[None] for name, tensor in net.named_parameters()}
    sums, norms = clipped(params, {}, x[None], torch.zeros(1, 4), torch.ones(1, 4), 0.5)
    assert clipped.ghost
    total = {name: torch.zeros_like(tensor) for name, tensor in net.named_parameters()}
    for i, row in enumerate(x):
        net.zero_grad()
        task.loss(net(row[None]), torch.zeros(1)).sum().backward()  # type: ignore[no-untyped-call]
        grads = {name: torch.zeros_like(t) if t.grad is None else t.grad.clone() for name, t in net.named_parameters()}
        norm = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        assert float(norms[0, i]) == pytest.approx(float(norm), rel=1e-4)
        for name, grad in grads.items():
            total[name] += grad * min(1.0, 0.5 / float(norm))
    for name, grad in total.items():
        torch.testing.assert_close(sums[name][0], grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("defense", ["fedavg", "dp_sgd:epsilon=8", "infl:published:strength=1", "infl:hardened:minimum=1"])
def test_every_defense_trains_it_and_hands_on_what_is_aside(defense: str, tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path), defense), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    predict, test = bench.predict(trained.secret), bench.prepared.test
    x = bench.prepared.pool.x[test]
    assert torch.equal(predict(trained.finals[0], x)[:, -ASIDE:], x[:, -ASIDE:])
    assert set(bench.utilities(predict, trained.finals[0])) == {"ari", "nmi", "foscttm", "batch_mixing"}


def test_training_aligns_the_modalities(tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path)), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    controls = {m.metric: m for m in bench.yardsticks(found)}
    assert found["ari"] > 0.5
    assert found["foscttm"] < 0.3
    assert controls["foscttm:untrained_network"].direction == "lower"
    assert controls["foscttm:above_untrained_network"].value > 0.1  # less is better: the gain is positive
    assert controls["ari:pca"].value > 0.2
    assert bench.floor()["ari"] == 0.0
    assert bench.floor()["foscttm"] == pytest.approx(0.5)


def test_pca_ignores_no_modality() -> None:
    task, _, x = small()
    many = torch.cat([x, torch.randn(60, 10)])
    many[:, 7:9] = 1.0
    found = task.baselines(Rows(many, torch.arange(64)), torch.zeros(64), 2)["pca"](many)
    assert found.shape == (64, 3 * 4 + 7 + 2 * 5 + ASIDE)
    assert float(found[:, 8:12].abs().max()) > 0  # protein's own
    assert float(found[:, 8:11].std()) > 0
    assert found[:, 11].abs().max() == 0  # three columns have no fourth component


def test_a_mosaic_needs_three_sites() -> None:
    with pytest.raises(RequestError, match=r"3 sites where two of them lack.*mosaic=false"):
        Integration(sites=2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_site_column_of_fewer_than_three_sites_leaves_no_paired_cell_and_is_refused(count: int, tmp_path: Path) -> None:
    write(tmp_path)
    data = anndata.read_h5ad(tmp_path / "paired.h5ad")
    data.obs["batch"] = [f"b{i // 4 % count}" for i in range(N)]
    data.write_h5ad(tmp_path / "paired.h5ad")
    told = DataSpec(path=str(tmp_path / "paired.h5ad"), label="kind", transform="none", site="batch")
    assert not np.isnan(Integration(mosaic=False).cohort(told).x).any()
    if count < 3:
        with pytest.raises(RequestError, match=rf"none of the {count} of paired \(b0.*\) would be left with both; set mosaic=false"):
            Integration().cohort(told)
    else:
        lacking = np.isnan(Integration().cohort(told).x[:, [0, -1]])
        assert (~lacking).all(1).mean() == pytest.approx(1 / 3, abs=0.01)


def test_one_embedding_for_all_has_no_mixing_to_compare_with(tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path)), None)
    assert np.isnan(bench.floor()["batch_mixing"])
    found = score_utility({"ari": 0.5, "batch_mixing": 0.9}, bench.floor(), 100)
    assert {m.metric for m in found} == {"ari", "batch_mixing", "ari:floor"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_real_cells(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    suite, _ = load("multiomics")
    cell = next(iter(plan(suite.model_copy(update={"defenses": ("centralized",), "attacks": ()}), "cpu").cells))
    bench = Bench({**copy.deepcopy(dict(cell.spec)), "seed": seed}, None)
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    controls = {m.metric: m.value for m in bench.yardsticks(found)}
    print(seed, found, {k: round(v, 3) for k, v in controls.items() if ":above" not in k})
    assert controls["ari:above_pca"] > 0
    assert controls["ari:above_untrained_network"] > 0.1
    assert controls["foscttm:above_untrained_network"] > 0.1
