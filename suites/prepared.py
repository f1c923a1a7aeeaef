"""The data of one (suite, cohort, seed): public units, disjoint parts, sites. Computed once and kept beside the other cells.

Every cell of a run reads this small file instead of parsing the cohort again. It holds records, so it lies in the run's store and is
never part of a report.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from suites import registry
from suites.cohorts.spec import BY_SITE, DataSpec, PartitionSpec, SplitSpec
from suites.contracts import Records, RequestError
from suites.federation import Pool
from suites.randomness import digest, stream
from suites.tasks.layout import Layout
from suites.tasks.structured import Structured, Table


@dataclass(frozen=True, slots=True)
class Prepared:
    """One seed's data. ``sites`` are the training records of each site; all parts are disjoint indices into the pool.

    Gaps of the pool hold the public fill, and ``records`` gives them so, of members as of others; what a site fills in where the pool has
    ``gaps`` is for those who train (``Bench.inputs``).

    The pool's first records are the candidates in their shuffled order, then the auxiliary ones: what an adversary is given are views, so
    that a cell of a wide cohort holds one matrix, and of that what it looks at.
    """

    pool: Pool
    sites: tuple[Tensor, ...]
    validation: Tensor
    test: Tensor
    auxiliary: Tensor
    candidates: Tensor  # members (all training records) and non-members (test records, or those of sites held out), shuffled
    member: Tensor  # [n_candidates] bool, the scorer's
    person: Tensor | None  # [N]
    site_of: Tensor | None  # [N] the site a record would belong to, where sites are a column
    mean: Tensor  # [F] of the public units
    scale: Tensor
    layout: Layout | None = None  # of a structured task
    public: Mapping[str, Tensor] = field(default_factory=dict)  # its public facts
    home: Tensor | None = None  # [n_candidates] the site of each, those held out counted after the others; -1 for a test record
    attribute: Tensor | None = None  # [N] 1, 0, or -1 where nobody knows
    row: Tensor | None = None  # [N] the cohort's row of each record

    def records(self, index: Tensor) -> Records:
        """The records of these rows; of rows that follow each other, as candidates do, a view (never write to it)."""
        rows = index if len(index) == 0 or bool((index.diff() != 1).any()) else slice(int(index[0]), int(index[-1]) + 1)
        return Records(self.pool.x[rows], self.pool.y[rows])

    def auxiliary_records(self) -> Records:
        """The adversary's own, with their attribute."""
        known = self.records(self.auxiliary)
        return known if self.attribute is None else replace(known, attribute=self.attribute[self.auxiliary])


def prepare(spec: Mapping[str, Any], cache: Path | None) -> Prepared:
    """Prepare (or read back) the data that a cell's spec names.

    Parameters
    ----------
    spec : keys suite, task, data, split, partition, seed; ``data_digest`` where the plan knows it
    cache : folder for the prepared files, or None to compute in memory
    """
    parts = {name: spec[name] for name in ("suite", "task", "data", "split", "partition", "seed")}
    if cache is None:
        return _read(_compute(parts)[0])
    name = digest(json.dumps({**parts, "digest": spec.get("data_digest", "")}, sort_keys=True, default=str)).hex()[:24]
    path = cache / f"{name}.safetensors"
    if path.exists():
        return _read(load_file(path))
    cache.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=cache, suffix=".tmp")
    os.close(handle)
    try:
        tensors, cohort = _compute(parts)
        about = {**parts, "data_digest": spec.get("data_digest", "")}
        save_file(tensors, temporary, {"spec": json.dumps(about, default=str), "cohort": json.dumps(cohort)})  # for the run's record
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return _read(tensors)  # reading the file back would hold the matrix once more


def _compute(spec: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of ``Prepared``, and of what cohort they are."""
    from suites.cohorts.load import load  # the parsers, and with them anndata, only where data is parsed
    from suites.preprocess import Preprocessor
    from suites.split import split

    partition = PartitionSpec(**spec["partition"])
    task = registry.find("tasks", spec["task"]).make()
    own = task if isinstance(task, Structured) else None
    data = DataSpec(**spec["data"])
    cohort = own.cohort(data) if own is not None else load(data)
    where = (spec["suite"], spec["task"], cohort.name, "seed", spec["seed"])
    parts = split(cohort, SplitSpec(**spec["split"]), partition, *where, "split", units=getattr(task, "units", "persons"))
    gaps = _gaps(cohort.x, data, spec["task"], own is not None)
    if own is not None:
        table = own.table(cohort, parts)
    else:
        preprocessor = Preprocessor.fit(cohort.x[parts.auxiliary.numpy()])
        table = Table(preprocessor.transform(cohort.x, in_place=True), preprocessor.mean, preprocessor.scale, Layout((cohort.x.shape[1],)))
    members = torch.cat(parts.sites)
    outside = torch.cat(parts.withheld) if parts.withheld else parts.test
    candidates = torch.cat([members, outside])
    home = torch.full((len(candidates),), -1)
    every = torch.cat([torch.full((len(site),), code) for code, site in enumerate((*parts.sites, *parts.withheld))])
    home[: len(every)] = every
    order = torch.randperm(len(candidates), generator=stream(*where, "candidate order"))
    rows = torch.cat([candidates[order], parts.auxiliary])
    rows = torch.cat([rows, _others(len(cohort.y), rows)])
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    _rearrange(table.x.numpy(), rows)
    tensors = {
        **({} if gaps is None else {"gaps": gaps[rows]}),
        "x": table.x,
        "y": torch.from_numpy(cohort.y)[rows],
        "classes": torch.tensor(len(cohort.classes)),
        "row": rows,
        "validation": place[parts.validation],
        "test": place[parts.test],
        "auxiliary": place[parts.auxiliary],
        "candidates": place[candidates[order]],
        "member": (torch.arange(len(candidates)) < len(members))[order],
        "home": home[order],
        "mean": torch.as_tensor(table.mean, dtype=torch.float32),
        "scale": torch.as_tensor(table.scale, dtype=torch.float32),
        **{f"site/{i}": place[site] for i, site in enumerate(parts.sites)},
    }
    if own is not None:
        tensors["layout"] = torch.tensor([*table.layout.blocks, table.layout.aside, table.layout.target, table.layout.own])
        tensors |= {f"public/{name}": tensor for name, tensor in table.public.items()}
    if cohort.person is not None:
        tensors["person"] = torch.from_numpy(cohort.person)[rows]
    if cohort.attribute is not None:
        tensors["attribute"] = torch.from_numpy(cohort.attribute)[rows]
    if partition.kind == "column" and cohort.site is not None:
        tensors["site_of"] = torch.from_numpy(cohort.site)[rows]
    about = {name: getattr(cohort, name) for name in ("name", "citation", "licence", "transform", "digest")}
    persons = {} if cohort.person is None else {"persons": len(set(cohort.person.tolist()))}
    persons |= {"units": task.units} if persons and hasattr(task, "units") else {}  # what a task calls them, where they are no persons
    copies = {"copies": parts.copies} if parts.copies else {}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, {**about, "classes": len(cohort.classes), **persons, **copies}


def _others(count: int, rows: Tensor) -> Tensor:
    """The indices below ``count`` that are not among ``rows``, ascending."""
    left = torch.ones(count, dtype=torch.bool)
    left[rows] = False
    return left.nonzero().squeeze(1)


def _rearrange(x: NDArray[np.float32], rows: Tensor) -> None:
    """Put record ``rows[i]`` of ``x`` [N, F] in place ``i``, in its own memory: along each cycle, one record held aside."""
    source, done = rows.tolist(), [False] * len(rows)
    for start in range(len(source)):
        if done[start] or source[start] == start:
            continue
        held, place = x[start].copy(), start
        while source[place] != start:
            x[place] = x[source[place]]
            done[place], place = True, source[place]
        x[place], done[place] = held, True


def _gaps(x: NDArray[np.float32], data: DataSpec, task: str, structured: bool) -> Tensor | None:
    """Where sites fill in what is missing [N, F]; None where nothing is, or the public fill is asked for."""
    if data.missing != BY_SITE:
        return None
    if structured:
        raise RequestError(
            f"missing: {BY_SITE} fills features, and the task {task} lays out records of its own (targets, neighbours); "
            "use missing: impute (--missing impute)"
        )
    gaps = np.isnan(x)
    return torch.from_numpy(gaps) if gaps.any() else None


def _read(tensors: dict[str, Tensor]) -> Prepared:
    sites = sum(name.startswith("site/") for name in tensors)
    return Prepared(
        Pool(tensors["x"], tensors["y"], int(tensors["classes"]), tensors.get("person"), tensors.get("gaps")),
        tuple(tensors[f"site/{i}"] for i in range(sites)),
        tensors["validation"],
        tensors["test"],
        tensors["auxiliary"],
        tensors["candidates"],
        tensors["member"],
        tensors.get("person"),
        tensors.get("site_of"),
        tensors["mean"],
        tensors["scale"],
        _layout(tensors["layout"].tolist()) if "layout" in tensors else None,
        {name.removeprefix("public/"): tensor for name, tensor in tensors.items() if name.startswith("public/")},
        tensors.get("home"),
        tensors.get("attribute"),
        tensors.get("row"),
    )


def _layout(widths: list[int]) -> Layout:
    return Layout(tuple(widths[:-3]), *widths[-3:])
