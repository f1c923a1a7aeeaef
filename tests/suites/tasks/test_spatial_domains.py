"""Spatial domains: the graph stays within a site and a part, places are handed on and never read, controls stand beside the network."""

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
from suites.cohorts.spec import DataSpec
from suites.config import load
from suites.contracts import RequestError
from suites.plan import plan
from suites.prepared import Prepared, prepare
from suites.tasks.clusters import coherence
from suites.tasks.layout import Layout
from suites.tasks.spatial_domains import SpatialDomains, bins
from tests.suites.cohorts.test_downloads import real

GENES = 9
MOVED = 320 + 7 * 20 + 9  # in the second section, at the corner of its tile: its neighbours lie in four tiles


def write(folder: Path, *, place: bool = True, shift: float = 0.0) -> str:
    """Two sections of a 20 x 16 grid, each with three layers that differ in expression; ``shift`` moves one cell of the second."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(20.0), np.arange(16.0)), -1).reshape(-1, 2) + rng.uniform(-0.2, 0.2, (320, 2))  # no ties
    layer = np.minimum(grid[:, 0] // 7, 2).astype(int)
    mean = rng.normal(0, 1, (3, GENES))
    x = np.concatenate([mean[layer] + rng.normal(0, 1.2, (len(grid), GENES)) for _ in range(2)]).astype(np.float32)
    x[MOVED] += shift
    obs = pd.DataFrame({"layer": [f"L{v}" for v in np.tile(layer, 2)], "section": np.repeat(["s1", "s2"], len(grid))})
    obs["donor"] = [f"d{v}" for v in 5 * np.arange(len(obs)) // len(obs)]  # the third gave tissue to both sections
    obs.index = pd.Index([f"cell{i}" for i in range(len(obs))])
    data = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(GENES)]))
    if place:
        data.obsm["spatial"] = np.tile(grid, (2, 1)).astype(np.float32)
    path = folder / "tissue.h5ad"
    data.write_h5ad(path)
    return str(path)


def spec(path: str, defense: str = "centralized", **changes: Any) -> dict[str, Any]:
    return {
        "suite": "s",
        "task": "spatial_domains:hidden=24:width=6:tiles=4",
        "data": DataSpec(path=path, label="layer", site="section", transform="none").model_dump(),
        "split": {"unit": "person", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "column"},
        "federation": {"rounds": 3, "local": {"epochs": 10, "batch": 50, "lr": 3e-3}},
        "defense": defense,
        "seed": 0,
        **changes,
    }


def test_bins_hold_equal_numbers() -> None:
    assert np.bincount(bins(np.random.default_rng(0).normal(size=100).astype(np.float32), 4)).tolist() == [25] * 4
    assert bins(np.array([3.0, 1.0, 2.0], dtype=np.float32), 3).tolist() == [2, 0, 1]


def test_tiles_and_strips(tmp_path: Path) -> None:
    cohort = SpatialDomains(strips=2, tiles=3).cohort(DataSpec(**spec(write(tmp_path))["data"]))
    assert cohort.sites == ("s1, strip 1", "s1, strip 2", "s2, strip 1", "s2, strip 2")
    assert cohort.site is not None
    assert cohort.person is not None
    assert np.bincount(cohort.site).tolist() == [160] * 4
    for tile in np.unique(cohort.person):
        assert len(set(cohort.site[cohort.person == tile].tolist())) == 1, "a tile is at two sites"
    assert len(np.unique(cohort.person)) == 4 * 9
    long = cohort.x[:, -2]  # the longer side is cut
    assert long[cohort.site == 0].max() <= long[cohort.site == 1].min()


def moved_in(prepared: Prepared) -> int:
    """The place of the moved cell in the pool."""
    assert prepared.row is not None
    return int((prepared.row == MOVED).nonzero())


def test_neighbours_are_of_the_same_tile(tmp_path: Path) -> None:
    """Moving one cell's values moves the inputs of cells of its own tile, and of nobody else (the public units aside)."""
    prepared, moved = (prepare(spec(write(tmp_path, shift=shift)), None) for shift in (0.0, 50.0))
    cell = moved_in(prepared)
    parts = {"train": torch.cat(prepared.sites), "test": prepared.test, "validation": prepared.validation, "auxiliary": prepared.auxiliary}
    name = next(name for name, rows in parts.items() if cell in rows.tolist())
    assert name != "auxiliary", "choose another seed: the moved cell must not set the public units"
    touched = (prepared.pool.x != moved.pool.x).any(1).nonzero().squeeze(1).tolist()
    assert cell in touched
    assert 1 < len(touched) < 60
    assert prepared.row is not None
    section = (prepared.row >= 320).nonzero().squeeze(1)
    near = section[torch.cdist(prepared.pool.x[cell : cell + 1, -2:], prepared.pool.x[section, -2:])[0].topk(9, largest=False).indices]
    tile = prepared.person
    assert tile is not None
    assert len(set(tile[near].tolist())) > 1, "the moved cell has no neighbour in another tile"
    assert set(tile[touched].tolist()) == {int(tile[cell])}


def test_of_a_split_by_record_neighbours_are_of_the_same_part_too(tmp_path: Path) -> None:
    split = {"unit": "record", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2}
    prepared, moved = (prepare(spec(write(tmp_path, shift=shift), split=split), None) for shift in (0.0, 50.0))
    parts = (torch.cat(prepared.sites), prepared.test, prepared.validation, prepared.auxiliary)
    cell = moved_in(prepared)
    own = next(set(rows.tolist()) for rows in parts if cell in rows.tolist())
    assert cell not in prepared.auxiliary, "choose another seed: the moved cell must not set the public units"
    assert set((prepared.pool.x != moved.pool.x).any(1).nonzero().squeeze(1).tolist()) <= own


def test_the_units_of_the_split_may_be_sections_or_donors(tmp_path: Path) -> None:
    data = {"name": "synthetic_tissue", "params": {"sections": 8, "rows": 8, "columns": 10, "features": 6}}
    prepared = prepare({**spec(""), "data": data, "task": "spatial_domains:unit=section"}, None)
    assert prepared.person is not None
    parts = [torch.cat(prepared.sites), prepared.validation, prepared.test, prepared.auxiliary]
    held = [set(prepared.person[part].tolist()) for part in parts]
    assert sum(map(len, held)) == len(set().union(*held)) == 8, "a section is in two parts"
    assert len(prepared.sites) == len(held[0])  # a section that nobody trains on is no site
    donors = DataSpec(**{**spec(write(tmp_path))["data"], "person": "donor"})
    cohort = SpatialDomains(unit="donor").cohort(donors)
    assert cohort.person is not None
    assert len(np.unique(cohort.person)) == 5
    place = Bench({**spec(""), "data": donors.model_dump(), "task": "spatial_domains:unit=donor"}, None).prepared
    assert place.person is not None
    assert not set(place.person[torch.cat(place.sites)].tolist()) & set(place.person[place.test].tolist())


@pytest.mark.parametrize(
    ("task", "person", "said"),
    [
        ({"unit": "donor"}, None, "nobody says which donor"),
        ({}, "donor", "would spread a donor's cells"),
        ({"unit": "section"}, None, "has 2 of them where each of the split's 4 parts needs one"),
    ],
)
def test_units_that_cannot_be_kept_whole_are_told(task: dict[str, Any], person: str | None, said: str, tmp_path: Path) -> None:
    data = {**spec(write(tmp_path))["data"], "person": person}
    with pytest.raises(RequestError, match=said):
        SpatialDomains(**task).cohort(DataSpec(**data))
    with pytest.raises(RequestError, match="whole tiles, sections or donors"):
        SpatialDomains(unit="patient")  # type: ignore[arg-type]


def test_an_epsilon_for_tiles_covers_all_that_a_tile_gave(tmp_path: Path) -> None:
    """A whole tile of other values moves one person's summed gradient, and no other person's: what clipping by person rests on."""
    path = write(tmp_path)
    bench = Bench(spec(path, "dp_sgd:epsilon=8:unit=person:epochs=1"), None)
    assert bench.shape.persons is not None
    assert sum(bench.shape.persons) == len(torch.unique(bench.prepared.person[torch.cat(bench.prepared.sites)]))  # type: ignore[index]
    task, x, y = bench.task, bench.prepared.pool.x, bench.prepared.pool.y
    net = task.net(x.shape[1], 3)
    tile = bench.prepared.person
    assert tile is not None
    other = prepare(spec(write(tmp_path, shift=9.0)), None).pool.x
    moved = (task.loss(net(x), y) - task.loss(net(other), y)).abs() > 0
    assert int(moved.sum()) > 0
    assert set(tile[moved].tolist()) == {int(tile[moved_in(bench.prepared)])}


def test_hops_are_means_over_six_nearest(tmp_path: Path) -> None:
    path = write(tmp_path)
    prepared = prepare(spec(path), None)
    x, site = prepared.pool.x, prepared.sites[0]
    place, own, one, two = x[site, -2:], x[site, :GENES], x[site, GENES : 2 * GENES], x[site, 2 * GENES : 3 * GENES]
    gap = torch.cdist(place.double(), place.double())
    gap.fill_diagonal_(torch.inf)
    assert prepared.person is not None
    tile = prepared.person[site]
    gap[tile[:, None] != tile] = torch.inf
    inner = [i for i in range(len(site)) if gap[i].sort().values[6] > gap[i].sort().values[5] + 1e-9]  # no tie for the sixth
    assert inner
    for i in inner[:5]:
        near = gap[i].topk(6, largest=False).indices
        torch.testing.assert_close(one[i], own[near].mean(0))
        torch.testing.assert_close(two[i], one[near].mean(0))
    assert prepared.layout == Layout((3 * GENES,), 2, own=GENES)


def test_the_network_does_not_read_the_place(tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path)), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    predict, x = bench.predict(trained.secret), bench.prepared.pool.x[:5]
    elsewhere = torch.cat([x[:, :-2], x[:, -2:] + 7], 1)
    a, b = predict(trained.finals[0], x), predict(trained.finals[0], elsewhere)
    assert torch.equal(a[:, :-2], b[:, :-2])
    assert torch.equal(b[:, -2:], elsewhere[:, -2:])


@pytest.mark.parametrize("defense", ["fedavg", "dp_sgd:epsilon=8", "infl:published:strength=1", "infl:hardened:minimum=1"])
def test_every_defense_trains_it_and_the_untrained_network_stands_beside(defense: str, tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path), defense), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    assert set(found) == {"ari", "nmi", "coherence_gap"} == set(bench.floor())
    assert {"ari:untrained_network", "ari:above_untrained_network"} <= {m.metric for m in bench.yardsticks(found)}


def test_layers_are_found_better_with_neighbours(tmp_path: Path) -> None:
    bench = Bench(spec(write(tmp_path)), None)
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    controls = {m.metric: m.value for m in bench.yardsticks(found)}
    assert found["ari"] > controls["ari:pca_without_neighbours"]
    assert found["ari"] > 0.3
    test = bench.prepared.records(bench.prepared.test)
    own = coherence(test.y.numpy(), test.x[:, -2:].double().numpy())
    assert own > 0.2
    assert bench.floor() == {"ari": 0.0, "nmi": 0.0, "coherence_gap": own}  # no structure at all: as far off as the annotation has any
    assert found["coherence_gap"] < own


def test_clusters_smoother_than_the_annotation_are_no_better_than_the_annotation_itself() -> None:
    task = SpatialDomains(width=2)
    task.learn(Layout((3,), 2), {})
    place = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0))
    rng = torch.Generator().manual_seed(0)
    halves = (place[:, 0] >= 10).long()
    ragged = torch.where(torch.rand(400, generator=rng) < 0.15, 1 - halves, halves)  # annotated regions with a ragged border
    noise = torch.where(torch.rand(400, generator=rng) < 0.35, 1 - halves, halves)

    def gap(clusters: torch.Tensor) -> float:
        z = torch.stack([clusters.float(), torch.zeros(400)], 1)
        return task.utility(torch.cat([z, torch.zeros(400, 3), place], 1), ragged, 2)["coherence_gap"]

    own, smooth, rough = (coherence(one.numpy(), place.double().numpy()) for one in (ragged, halves, noise))
    assert rough < own < smooth
    assert gap(ragged) == 0.0
    assert gap(halves) == pytest.approx(smooth - own)
    assert gap(noise) == pytest.approx(own - rough)
    assert min(smooth - own, own - rough) > 0.1
    assert "coherence_gap" in task.lower


def test_a_file_without_places_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="needs each cell's place in obsm"):
        SpatialDomains().cohort(DataSpec(**spec(write(tmp_path, place=False))["data"]))


def test_places_in_a_table_are_read_and_other_numbers_of_coordinates_are_told(tmp_path: Path) -> None:
    told = DataSpec(**spec(write(tmp_path))["data"])
    plain = SpatialDomains().cohort(told)
    data = anndata.read_h5ad(tmp_path / "tissue.h5ad")
    data.obsm["spatial"] = pd.DataFrame(data.obsm["spatial"], columns=["x_px", "y_px"], index=data.obs_names)
    data.write_h5ad(tmp_path / "tissue.h5ad")
    framed = SpatialDomains().cohort(told)
    np.testing.assert_array_equal(framed.x, plain.x)
    data.obsm["spatial"] = data.obsm["spatial"].assign(z=1.0)
    data.write_h5ad(tmp_path / "tissue.h5ad")
    with pytest.raises(RequestError, match="3 coordinates"):
        SpatialDomains().cohort(told)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_real_sections(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside PCA of the same inputs within five points: the autoencoder adds nothing that PCA lacks here, and must not lose it."""
    monkeypatch.setenv("INFL_BENCH_DATA", str(real()))
    suite, _ = load("spatial")
    cell = next(iter(plan(suite.model_copy(update={"defenses": ("centralized",), "attacks": ()}), "cpu").cells))
    bench = Bench({**copy.deepcopy(dict(cell.spec)), "seed": seed}, None)
    prepared = bench.prepared
    assert prepared.person is not None
    held = [set(prepared.person[part].tolist()) for part in (torch.cat(prepared.sites), prepared.test, prepared.auxiliary)]
    assert sum(map(len, held)) == len(set().union(*held)), "a tile is in two parts"
    trained = bench.train([bench.assignment()], target=False)[0]
    found = bench.utilities(bench.predict(trained.secret), trained.finals[0])
    controls = {m.metric: m.value for m in bench.yardsticks(found)}
    print(seed, found, {k: round(v, 3) for k, v in controls.items() if ":above" not in k})
    assert controls["ari:above_pca"] > -0.05
    assert found["ari"] > 0.1
