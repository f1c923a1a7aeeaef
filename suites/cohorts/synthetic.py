"""A generated omics cohort whose truth is known: factors, class effects, site shifts, donors, missingness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from suites.cohorts.cohort import Cohort
from suites.cohorts.synthetic_omics import Multiome, Paired, Screen, Tissue
from suites.errors import RequestError, did_you_mean
from suites.randomness import stream


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and strengths; all in units of the measurement noise's standard deviation.

    x = baseline + factors @ loadings + class effect + site shift + donor effect + noise, like a log-intensity matrix.
    """

    records: int = 400
    features: int = 200
    classes: int = 4
    sites: int = 4
    donors: int = 0  # 0: every record its own person, and no donor effect
    factors: int = 8
    separation: float = 1.0  # standard deviation of a class's effect on a feature
    factor_strength: float = 0.5
    site_shift: float = 0.3
    donor_effect: float = 0.3
    imbalance: float = 0.0  # class k is exp(-imbalance k) times as frequent as class 0
    attribute_effect: float = 0.0  # 0: no attribute; else site s of S has it in (s + 1/2) / S of its records, moved so far a feature
    missing: float = 0.0  # expected share of missing values, low values first (as in proteomics); needs missing: impute
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Truth:
    """What the generator knows: x (without gaps) = baseline + scores @ loadings + effects[y] + shifts[site] + donors[person] + noise."""

    baseline: NDArray[np.float32]  # [F]
    loadings: NDArray[np.float32]  # [factors, F]
    scores: NDArray[np.float32]  # [N, factors]
    effects: NDArray[np.float32]  # [K, F]
    shifts: NDArray[np.float32]  # [sites, F]
    donors: NDArray[np.float32]  # [donors, F]
    complete: NDArray[np.float32]  # [N, F] before values went missing


def recipe(params: Mapping[str, object]) -> Recipe:
    """The recipe with ``params`` put in; refuses unknown names, wrong types and impossible sizes."""
    made = Recipe(**_values("synthetic", Recipe, params, {"records": 2, "features": 1, "classes": 2, "sites": 1}))
    if made.missing >= 1:
        raise RequestError(f"synthetic missing is a share and must lie below 1, not {made.missing:g}")
    return made


def omics_recipe(name: str, params: Mapping[str, object]) -> Screen | Tissue | Paired | Multiome:
    """The same for the generated cohorts of the other tasks."""
    if name == "synthetic_perturbation":
        return Screen(**_values(name, Screen, params, {"lines": 1, "perturbed": 2, "cells": 4, "features": 2}))
    if name == "synthetic_tissue":
        return Tissue(**_values(name, Tissue, params, {"sections": 1, "rows": 4, "columns": 4, "regions": 2, "features": 2}))
    if name == "synthetic_multiome":
        return Multiome(**_values(name, Multiome, params, {"cells": 8, "types": 2, "features": 2, "peaks": 2, "factors": 1}))
    return Paired(**_values(name, Paired, params, {"cells": 8, "types": 2, "features": 2, "proteins": 2, "factors": 1}))


def _values(cohort: str, kind: Any, params: Mapping[str, object], low: Mapping[str, int]) -> dict[str, Any]:
    """Every field's value; ``low`` has the least sizes, and nothing is negative."""
    known: dict[str, type] = {field.name: type(field.default) for field in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in params.items():
        if name not in known:
            raise RequestError(f"{cohort} has no parameter '{name}'{did_you_mean(name, known)}")
        wanted = known[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or (wanted is int and value != int(value)):
            raise RequestError(f"{cohort} {name} must be {'a whole number' if wanted is int else 'a number'}, not {value!r}")
        values[name] = wanted(value)
    for name, value in values.items():
        if value < low.get(name, 0):
            raise RequestError(f"{cohort} {name} must be at least {low.get(name, 0)}, not {value:g}, or there is no cohort to speak of")
    return values


def generate(made: Recipe) -> Cohort:
    """The cohort of a recipe, with its ``Truth`` in ``cohort.truth``; equal recipes give equal bytes."""
    coordinates = [[name, value] for name, value in sorted(asdict(made).items()) if name != "attribute_effect" or value]

    def rng(role: str) -> torch.Generator:
        return stream("synthetic", coordinates, role)

    def normal(role: str, rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return (torch.randn(rows, columns, generator=rng(role)) * scale).numpy()

    n, f, k = made.records, made.features, made.classes
    frequency = torch.exp(-made.imbalance * torch.arange(k, dtype=torch.float64))
    y = torch.multinomial(frequency, n, replacement=True, generator=rng("labels")).numpy()
    y[: 2 * k] = np.arange(2 * k)[: len(y)] % k  # every class has two records where there is room
    people = made.donors or n
    person = np.arange(n) % people
    person = person[torch.randperm(n, generator=rng("persons")).numpy()] if made.donors else person
    # A donor belongs to one site.
    site = (torch.randperm(people, generator=rng("sites")).numpy() % made.sites)[person]
    truth = Truth(
        baseline=normal("baseline", 1, f, 2.0)[0] + 20.0,
        loadings=normal("loadings", made.factors, f, made.factor_strength),
        scores=normal("scores", n, made.factors, 1.0),
        effects=normal("effects", k, f, made.separation),
        shifts=normal("shifts", made.sites, f, made.site_shift),
        donors=normal("donors", made.donors, f, made.donor_effect),
        complete=np.empty((n, f), dtype=np.float32),
    )
    x = truth.complete
    x[:] = truth.baseline + truth.scores @ truth.loadings + truth.effects[y] + truth.shifts[site] + normal("noise", n, f, 1.0)
    if made.donors:
        x += truth.donors[person]
    attribute = None
    if made.attribute_effect:
        chance = (site + 0.5) / made.sites
        attribute = (torch.rand(people, generator=rng("attribute")).numpy()[person] < chance).astype(np.int64)  # a donor has it or not
        x += attribute[:, None] * normal("attribute effect", 1, f, made.attribute_effect)
    seen = x
    if made.missing:
        # Half of the gaps fall on low values (below detection), half anywhere; the expected share is `missing`.
        depth = np.argsort(np.argsort(x, axis=0), axis=0) / n
        chance = np.clip(made.missing * (0.5 + (1.0 - depth)), 0.0, 1.0)
        gone = torch.rand(n, f, generator=rng("missing")).numpy() < chance
        seen = np.where(gone, np.float32(np.nan), x)
    return Cohort(
        name="synthetic",
        x=seen,
        y=y,
        classes=tuple(f"class {code}" for code in range(k)),
        features=tuple(f"feature {code}" for code in range(f)),
        site=site,
        sites=tuple(f"{code}" for code in range(made.sites)),
        person=person,
        attribute=attribute,
        citation="generated by infl-bench",
        licence="MIT",
        truth=truth,
    )
