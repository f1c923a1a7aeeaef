"""Registered cohorts: the one that scanpy installs, the generated one, and their cards."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import scanpy

from suites.cohorts import registry
from suites.cohorts.load import load
from suites.cohorts.originals import ORIGINALS
from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.cohorts.synthetic import Recipe, Truth, generate, recipe
from suites.contracts import RequestError

PBMC68K = "a6cc08679a55c0c935d83c46408563b6fe78955e27f6b16532622189100e84a9"


def test_pbmc68k_is_the_data_that_scanpy_gives() -> None:
    cohort = load(DataSpec(name="pbmc68k"))
    data = scanpy.datasets.pbmc68k_reduced()
    assert np.array_equal(cohort.x, data.raw.X.toarray())
    assert cohort.features == tuple(data.raw.var_names)
    assert [cohort.classes[code] for code in cohort.y] == data.obs["bulk_labels"].tolist()
    assert cohort.digest == PBMC68K
    assert cohort.transform == "none"
    assert "Zheng" in cohort.citation
    assert "BSD" in cohort.licence
    assert load(DataSpec(name="pbmc68k", label="phase")).classes == ("G1", "G2M", "S")


def test_reading_pbmc68k_imports_neither_scanpy_nor_anndata() -> None:
    script = (
        "import sys; from suites.cohorts.load import load; from suites.cohorts.spec import DataSpec; load(DataSpec(name='pbmc68k'));"
        "print([m for m in ('scanpy', 'anndata', 'pandas', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_card_is_complete_and_a_typo_is_answered() -> None:
    for name in registry.names():
        text = registry.card(name).text()
        assert text.startswith(f"{name}: ")
        assert all(line.split(maxsplit=1)[1:] for line in text.splitlines())
    with pytest.raises(RequestError, match="did you mean 'pbmc68k'"):
        load(DataSpec(name="pbmc86k"))
    with pytest.raises(RequestError, match="remove them"):
        load(DataSpec(name="pbmc68k", params={"records": 3}))


def test_a_card_says_where_its_files_come_from_and_what_they_are() -> None:
    for name, originals in ORIGINALS.items():
        said = card(name).text()
        for original in originals:
            assert f"{original.url} ({original.size:,} bytes, SHA-256 {original.sha256})" in said
    assert "SHA-256" not in card("pbmc68k").text()


def test_a_generated_cohort_is_its_truth_plus_unit_noise() -> None:
    cohort = generate(Recipe(records=600, features=150, donors=40, sites=3, factor_strength=1.0))
    truth: Truth = cohort.truth
    assert cohort.site is not None
    assert cohort.person is not None
    signal = (
        truth.baseline + truth.scores @ truth.loadings + truth.effects[cohort.y] + truth.shifts[cohort.site] + truth.donors[cohort.person]
    )
    noise = cohort.x - signal
    assert abs(float(noise.std()) - 1) < 0.02
    assert abs(np.corrcoef(noise.ravel(), signal.ravel())[0, 1]) < 0.02
    homes = {(person, site) for person, site in zip(cohort.person.tolist(), cohort.site.tolist())}
    assert len(homes) == 40  # a donor belongs to one site


def test_equal_recipes_give_equal_bytes_and_others_do_not() -> None:
    spec = {"records": 60, "features": 20}
    one, again = (load(DataSpec(name="synthetic", params=spec)) for _ in range(2))
    assert one.digest == again.digest
    assert load(DataSpec(name="synthetic", params={**spec, "seed": 1})).digest != one.digest


def test_gaps_are_as_many_as_asked_and_lie_low() -> None:
    cohort = load(DataSpec(name="synthetic", params={"records": 500, "missing": 0.2}, missing="impute"))
    gone = np.isnan(cohort.x)
    assert abs(gone.mean() - 0.2) < 0.01
    complete = cohort.truth.complete
    assert not np.isnan(complete).any()
    ranks = complete.argsort(0).argsort(0) / len(complete)
    assert ranks[gone].mean() < 0.45
    with pytest.raises(RequestError, match="missing: impute"):
        load(DataSpec(name="synthetic", params={"missing": 0.2}))


def test_imbalance_makes_the_first_class_common() -> None:
    share = np.bincount(generate(Recipe(records=2000, imbalance=1.0)).y) / 2000
    np.testing.assert_allclose(share, np.exp(-np.arange(4.0)) / np.exp(-np.arange(4.0)).sum(), atol=0.04)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"record": 5}, "did you mean 'records'"),
        ({"records": 5.5}, "whole number"),
        ({"records": "many"}, "whole number"),
        ({"separation": True}, "a number"),
        ({"classes": 1}, "at least 2"),
        ({"site_shift": -1}, "at least 0"),
        ({"missing": 1.0}, "below 1"),
    ],
)
def test_impossible_recipes_are_one_sentence(params: dict[str, object], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        recipe(params)
