"""The top genes of a perturbation are those that scanpy's t-test ranks first against the control cells of the line."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from suites.cohorts.spec import DataSpec, PartitionSpec, SplitSpec
from suites.split import split
from suites.tasks.differential import squared_error, squared_errors, top
from suites.tasks.perturbation import TOP, Perturbation

GENES, EACH = 90, 15


def screen() -> anndata.AnnData:
    """Two lines; genes differ in spread a hundredfold, so that the largest mean changes are not the surest."""
    rng = np.random.default_rng(0)
    spread = 10 ** rng.uniform(-1, 1, GENES)
    names = np.repeat(["control", "AAA", "BBB", "CCC", "AAA+BBB", "BBB+CCC"], EACH)
    effect = {name: rng.normal(0, 0.5, GENES) for name in np.unique(names)} | {"control": np.zeros(GENES)}
    obs, x = [], []
    for line in ("l1", "l2"):
        x.append(rng.normal(0, 1, GENES) + np.stack([effect[name] for name in names]) + rng.normal(0, spread, (len(names), GENES)))
        obs += [(name, line) for name in names]
    data = anndata.AnnData(np.concatenate(x).astype(np.float32), obs=pd.DataFrame(obs, columns=["condition", "line"]))
    data.obs_names, data.var_names = [f"c{i}" for i in range(len(obs))], [f"g{i}" for i in range(GENES)]
    return data


def test_squared_errors_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.random.default_rng(0).normal(3, 2, (23, 7)).astype(np.float32)
    whole = squared_error(cells)
    monkeypatch.setattr("suites.tasks.layout._BLOCK", 7 * 4)
    for found in (whole, squared_error(cells)):
        np.testing.assert_allclose(found, cells.astype(np.float64).var(0, ddof=1) / 23, rtol=1e-6)
    index = torch.arange(23) % 2
    mean = torch.stack([torch.from_numpy(cells)[index == group].double().mean(0) for group in (0, 1)])
    found = squared_errors(torch.from_numpy(cells), index, mean).numpy()
    np.testing.assert_allclose(found, [cells[group::2].astype(np.float64).var(0, ddof=1) / (12 - group) for group in (0, 1)], rtol=1e-6)
    assert squared_error(cells[:1]).tolist() == [0.0] * 7


def test_ranks_are_those_of_welchs_t() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(0, 10 ** rng.uniform(-1, 1, 50), (n, 50)) + rng.normal(0, 0.3, 50) for n in (12, 30))
    change = torch.tensor(a.mean(0) - b.mean(0))[None]
    found = top(change, torch.tensor(a.var(0, ddof=1) / 12 + b.var(0, ddof=1) / 30)[None], 50)[0]
    t = np.abs(stats.ttest_ind(a, b, equal_var=False).statistic)
    np.testing.assert_array_equal(found.numpy(), np.argsort(-t))
    dead = top(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0]]), 3)
    assert dead.tolist() == [[2, 1, 0]]  # sure and changed, changed, never seen


@pytest.mark.slow
def test_the_top_genes_are_scanpys(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    import scanpy

    data = screen()
    data.write_h5ad(f"{tmp_path}/screen.h5ad")
    task = Perturbation()
    cohort = task.cohort(DataSpec(path=f"{tmp_path}/screen.h5ad", label="condition", site="line", transform="none"))
    parts = split(cohort, SplitSpec(unit="person", train=0.3, validation=0.1, test=0.4, auxiliary=0.2), PartitionSpec(kind="column"), 0)
    table = task.table(cohort, parts)
    task.learn(table.layout, table.public)
    x, y = table.x[parts.test], torch.from_numpy(cohort.y)[parts.test]
    picked: list[torch.Tensor] = []

    def noted(change: torch.Tensor, squared: torch.Tensor, count: int) -> torch.Tensor:
        picked.append(top(change, squared, count))
        return picked[-1]

    monkeypatch.setattr("suites.tasks.perturbation.top", noted)
    outputs = torch.cat([torch.zeros(len(x), GENES), x[:, table.layout.fed :]], 1)
    task.utility(outputs, y, len(cohort.classes))
    by_size = task._means(outputs, y)[1].abs().topk(TOP).indices
    agree = []
    for row, code in enumerate(torch.unique(y).tolist()):
        condition, _, line = cohort.classes[code].rpartition(" in ")
        own = data[data.obs["line"] == line].copy()
        scanpy.tl.rank_genes_groups(own, "condition", groups=[condition], reference="control", method="t-test", rankby_abs=True)
        expected = {int(name[1:]) for name in own.uns["rank_genes_groups"]["names"][condition][:TOP]}
        assert set(picked[0][row].tolist()) == expected
        agree.append(len(set(by_size[row].tolist()) & expected))
    assert len(agree) > 2
    assert np.mean(agree) < 0.8 * TOP, "ranking by the mean change alone names other genes"
