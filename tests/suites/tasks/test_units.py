"""A run's record says what stands as its persons, where a task holds tiles, sections, donors or perturbations whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from suites.cohorts.spec import DataSpec
from suites.prepared import prepare

SPATIAL = {"name": "synthetic_tissue", "params": {"rows": 12, "columns": 12, "sections": 5}}
SCREEN = {"name": "synthetic_perturbation"}


def units(folder: Path, task: str, data: dict[str, Any]) -> str | None:
    split = {"unit": "person" if task != "integration" else "record", "train": 0.4, "validation": 0.2, "test": 0.2, "auxiliary": 0.2}
    spec = {"suite": "s", "task": task, "data": DataSpec(**data).model_dump(), "split": split, "partition": {"kind": "column"}, "seed": 0}
    prepare(spec, folder)
    (path,) = folder.glob("*.safetensors")
    with safe_open(path, framework="np") as held:
        cohort = json.loads(held.metadata()["cohort"])
    assert ("persons" in cohort) or "units" not in cohort
    said = cohort.get("units")
    return None if said is None else str(said)


@pytest.mark.parametrize(
    ("task", "data", "said"),
    [
        ("spatial_domains:tiles=3", SPATIAL, "tiles of tissue"),
        ("spatial_domains:unit=section", SPATIAL, "sections of tissue"),
        ("perturbation", SCREEN, "perturbations in a cell line"),
        ("integration", {"name": "synthetic_paired", "params": {"cells": 200}}, None),
    ],
)
def test_units_are_named_in_the_record(task: str, data: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    assert units(tmp_path, task, data) == said
