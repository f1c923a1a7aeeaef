"""Cohorts that need no download: the one that scanpy installs, and the generated one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from suites.cohorts.cohort import Cohort
from suites.cohorts.load import from_file
from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError


def pbmc68k(data: DataSpec) -> Cohort:
    """Zheng et al. 2017, 700 cells x 765 genes: the file inside the scanpy package, read without importing scanpy (seconds)."""
    found = find_spec("scanpy")
    path = Path(found.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad" if found and found.origin else None
    if path is None or not path.exists():
        raise RequestError("cohort pbmc68k comes with scanpy, which is not installed completely; run pip install --force-reinstall scanpy")
    about = card("pbmc68k")
    known = {"label": data.label or "bulk_labels", "matrix": data.matrix or "raw"}
    return from_file(data.model_copy(update=known), path, "pbmc68k", about.citation, about.licence)


def synthetic(data: DataSpec) -> Cohort:
    """The generated cohort; ``data.params`` are fields of ``suites.cohorts.synthetic.Recipe``."""
    from suites.cohorts.synthetic import generate, recipe

    made = recipe(data.params)
    if made.missing and data.missing != "impute":
        raise RequestError("this synthetic cohort has missing values, which no network survives; set missing: impute")
    return generate(made)
