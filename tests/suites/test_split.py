"""Splits: disjoint, whole, stratified, seeded by coordinates; persons and sites kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from suites.cohorts.cohort import Cohort
from suites.cohorts.spec import PartitionSpec, SplitSpec
from suites.contracts import RequestError
from suites.split import Split, _dirichlet, split


def cohort(n: int, classes: int = 3, sites: int = 3, people: int | None = None, seed: int = 0) -> Cohort:
    rng = np.random.default_rng(seed)
    person = np.arange(n) if people is None else rng.integers(0, people, n)
    y = np.append(np.arange(classes), rng.integers(0, classes, n - classes))
    return Cohort(
        name="made",
        x=rng.normal(size=(n, 2)).astype(np.float32),
        y=y,
        classes=tuple("abcdefgh"[:classes]),
        features=("f", "g"),
        site=person % sites,
        sites=tuple(str(i) for i in range(sites)),
        person=person,
    )


def parts(cut: Split) -> list[torch.Tensor]:
    return [torch.cat(cut.sites), cut.validation, cut.test, cut.auxiliary]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(160, 300),  # fewer can leave a site of a column partition with one record, which is refused
    classes=st.integers(2, 6),
    unit=st.sampled_from(["record", "person"]),
    kind=st.sampled_from(["iid", "column", "dirichlet"]),
    people=st.integers(30, 60),
    seed=st.integers(0, 9999),
)
def test_every_record_is_in_one_part_and_no_person_straddles(n: int, classes: int, unit: str, kind: str, people: int, seed: int) -> None:
    data = cohort(n, classes, people=people, seed=seed)
    partition = PartitionSpec(kind=kind, sites=3, alpha=5.0)
    cut = split(data, SplitSpec(unit=unit), partition, "test", seed)
    assert torch.equal(torch.cat(parts(cut)).sort().values, torch.arange(n))
    assert min(len(site) for site in cut.sites) >= 2
    assert data.person is not None
    if unit == "person":
        holders = [set(data.person[part.numpy()]) for part in parts(cut)]
        assert sum(map(len, holders)) == len(set().union(*holders))
        if kind != "column":
            homes = [set(data.person[site.numpy()]) for site in cut.sites]
            assert sum(map(len, homes)) == len(set().union(*homes))
    again = split(data, SplitSpec(unit=unit), partition, "test", seed)
    assert all(torch.equal(a, b) for a, b in zip(parts(cut), parts(again)))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(60, 400), classes=st.integers(2, 6), seed=st.integers(0, 9999), train=st.floats(0.3, 0.7))
def test_records_are_stratified_by_class_and_site(n: int, classes: int, seed: int, train: float) -> None:
    data = cohort(n, classes, seed=seed)
    rest = (1 - train) / 3
    shares = (train, rest, rest, rest)
    cut = split(data, SplitSpec(train=train, validation=rest, test=rest, auxiliary=rest), PartitionSpec(sites=2), seed)
    for share, part in zip(shares, parts(cut)):
        assert abs(len(part) - share * n) <= 2
        for label in range(classes):
            assert abs((data.y[part.numpy()] == label).sum() - share * (data.y == label).sum()) <= 2
            for site in range(3):
                here = (data.y == label) & (data.site == site)
                assert abs(here[part.numpy()].sum() - share * here.sum()) <= 3


def test_parts_do_not_depend_on_the_partition_but_do_on_the_coordinates() -> None:
    data = cohort(200)
    cuts = [split(data, SplitSpec(), PartitionSpec(kind=kind, sites=4), "seed", 1) for kind in ("iid", "column", "dirichlet")]
    for other in cuts[1:]:
        assert torch.equal(cuts[0].test, other.test)
        assert torch.equal(torch.cat(cuts[0].sites).sort().values, torch.cat(other.sites).sort().values)
    assert not torch.equal(cuts[0].test, split(data, SplitSpec(), PartitionSpec(), "seed", 2).test)


def test_a_site_column_is_kept_and_its_names_told() -> None:
    data = cohort(120)
    cut = split(data, SplitSpec(), PartitionSpec(kind="column"), 0)
    assert data.site is not None
    assert [set(data.site[site.numpy()]) for site in cut.sites] == [{0}, {1}, {2}]
    assert cut.names == ("site 0", "site 1", "site 2")


def test_a_site_whose_persons_all_went_elsewhere_takes_no_part() -> None:
    data = cohort(160, sites=8, people=8)  # donors are sites
    cut = split(data, SplitSpec(unit="person"), PartitionSpec(kind="column"), 3)
    assert data.site is not None
    assert 2 <= len(cut.sites) == len(cut.names) < 8
    for name, site in zip(cut.names, cut.sites):
        assert set(data.site[site.numpy()]) == {int(name.removeprefix("site "))}


def test_iid_sites_are_even_and_a_small_alpha_skews_labels() -> None:
    data = cohort(800, classes=4)
    even = split(data, SplitSpec(), PartitionSpec(sites=5), 0)
    assert {len(site) for site in even.sites} == {80}

    def skew(cut: Split) -> float:
        """Mean share of the commonest class of a site."""
        return float(np.mean([np.bincount(data.y[site.numpy()]).max() / len(site) for site in cut.sites]))

    skewed = [split(data, SplitSpec(), PartitionSpec(kind="dirichlet", sites=3, alpha=alpha), 0) for alpha in (0.1, 1e4)]
    assert skew(skewed[0]) > 0.5
    assert skew(skewed[1]) < 0.35


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_the_skew_is_a_dirichlets(alpha: float) -> None:
    # For p ~ Dirichlet(alpha, S sites): E[sum p^2] = (alpha + 1) / (S alpha + 1); sampling a label n times adds (1 - that) / n.
    sites, n = 4, 500
    rng = torch.Generator().manual_seed(0)
    partition = PartitionSpec(kind="dirichlet", sites=sites, alpha=alpha)
    label = np.zeros(n, dtype=np.int64)
    squares = [float(((np.bincount(_dirichlet(label, 1, partition, rng), minlength=sites) / n) ** 2).sum()) for _ in range(400)]
    expected = (alpha + 1) / (sites * alpha + 1)
    assert np.mean(squares) == pytest.approx(expected + (1 - expected) / n, abs=4 * np.std(squares) / 20)


def test_every_kind_of_person_is_spread_by_the_shares() -> None:
    # 60 persons with a tumour, 60 with a tumour and a normal sample, 40 with a normal one: no part may be made of one kind.
    kind = np.repeat([0, 1, 2], [60, 60, 40])
    person = np.repeat(np.arange(160), np.where(kind == 1, 2, 1))
    second = np.append(False, person[1:] == person[:-1])
    y = np.where(second | (kind[person] == 2), 1, 0)
    data = Cohort("made", np.arange(220, dtype=np.float32)[:, None], y, ("tumour", "normal"), ("f",), person=person)
    for seed in range(10):
        cut = split(data, SplitSpec(unit="person"), PartitionSpec(), seed)
        for share, part in zip(SplitSpec().shares, parts(cut)):
            there = np.bincount(kind[np.unique(person[part.numpy()])], minlength=3)
            np.testing.assert_allclose(there, share * np.array([60, 60, 40]), atol=2)


def test_persons_shares_are_met_by_records() -> None:
    data = cohort(600, people=60, seed=4)
    cut = split(data, SplitSpec(unit="person"), PartitionSpec(), 0)
    for share, part in zip(SplitSpec().shares, parts(cut)):
        assert abs(len(part) / 600 - share) < 0.03


@pytest.mark.parametrize(
    ("spec", "partition", "match"),
    [
        (SplitSpec(unit="person"), PartitionSpec(), "name the person column"),
        (SplitSpec(), PartitionSpec(kind="column"), "name the site column"),
        (SplitSpec(), PartitionSpec(sites=30), "fewer than two training records"),
        (SplitSpec(), PartitionSpec(kind="dirichlet", sites=24, alpha=0.01), "fewer than two training records"),
    ],
)
def test_what_cannot_be_split_is_one_sentence(spec: SplitSpec, partition: PartitionSpec, match: str) -> None:
    whole = cohort(50)
    bare = Cohort("made", whole.x, whole.y, whole.classes, whole.features)
    with pytest.raises(RequestError, match=match) as caught:
        split(bare, spec, partition, 0)
    assert "\n" not in str(caught.value)


def test_too_few_persons_for_four_parts() -> None:
    with pytest.raises(RequestError, match="too few persons"):
        split(cohort(40, people=3), SplitSpec(unit="person"), PartitionSpec(sites=1), 0)


def test_eight_persons_give_one_to_a_small_part() -> None:
    found = split(
        cohort(400, people=8), SplitSpec(unit="person", train=0.5, validation=0.05, test=0.25, auxiliary=0.2), PartitionSpec(sites=2), 0
    )
    assert min(len(found.validation), len(found.test), len(found.auxiliary), *map(len, found.sites)) > 0


def test_a_site_of_the_column_with_one_training_record_is_refused() -> None:
    whole = cohort(60)
    site = np.zeros(60, dtype=np.int64)
    site[0] = 1
    data = Cohort("made", whole.x, whole.y, whole.classes, whole.features, site, ("big", "tiny"))
    with pytest.raises(RequestError, match="site tiny of made has fewer than two"):
        split(data, SplitSpec(), PartitionSpec(kind="column"), 0)


def test_shares_must_make_a_whole() -> None:
    with pytest.raises(ValidationError, match="sum to 1"):
        SplitSpec(train=0.6)
    for unit in ("record", "person"):
        without = SplitSpec(unit=unit, train=0.6, validation=0.0)
        assert len(split(cohort(50, people=20), without, PartitionSpec(sites=2), 0).validation) == 0


def test_sites_held_out_train_nothing_and_are_drawn_anew() -> None:
    data = cohort(300, people=60)
    every = split(data, SplitSpec(), PartitionSpec(sites=6), "seed", 1)
    some = split(data, SplitSpec(), PartitionSpec(sites=6, held_out=2), "seed", 1)
    assert (len(some.sites), len(some.withheld), len(some.names)) == (4, 2, 4)
    assert {tuple(site.tolist()) for site in (*some.sites, *some.withheld)} == {tuple(site.tolist()) for site in every.sites}
    assert torch.equal(some.test, every.test)
    drawn = {split(data, SplitSpec(), PartitionSpec(sites=6, held_out=2), "seed", seed).names for seed in range(8)}
    assert len(drawn) > 1
    with pytest.raises(RequestError, match="leaves nobody to train"):
        split(data, SplitSpec(), PartitionSpec(sites=3, held_out=3), 0)
