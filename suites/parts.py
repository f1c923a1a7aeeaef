"""A suite in several parts: each has a task and a cohort, and the report shows them apart.

A part is written as the keys in which it differs from the suite around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from suites.cohorts.registry import card
from suites.cohorts.spec import DataSpec
from suites.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from suites.config import SuiteSpec

SHARED = ("suite", "title", "seeds", "budget", "device", "parts")  # one for the whole suite


def spread(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """A suite's keys with every part written out; the suite's own task and data, where it gives none, are its first part's."""
    parts = given.get("parts")
    if not parts or not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        return given
    base = {key: value for key, value in given.items() if key != "parts"}
    for part in parts:
        own = [key for key in SHARED if key in part]
        if own:
            raise ValueError(f"a part has a key '{own[0]}', which is the whole suite's; write it beside parts")
    return {**parts[0], **base, "parts": [{**base, **part} for part in parts]}


def refuse_twins(named: Sequence[tuple[str, str]]) -> None:
    """Two parts of one task and cohort would share their rows."""
    twins = [pair for pair in named if named.count(pair) > 1]
    if twins:
        raise ValueError(f"two parts have the task {twins[0][0]} on {twins[0][1]}, and tables could not tell them apart; keep one")


def chosen(spec: SuiteSpec, task: str | None) -> tuple[SuiteSpec, str | None]:
    """The suite that ``--task`` leaves, and the task that is still to be set: of a suite with parts it picks one instead."""
    if task is None or not spec.parts:
        return spec, task
    found = [part for part in spec.parts if task in (part.task, part.task.partition(":")[0])]
    if not found:
        known = [part.task.partition(":")[0] for part in spec.parts]
        raise RequestError(f"{spec.suite} has no part with the task '{task}'{did_you_mean(task, known)} (it has {', '.join(known)})")
    if len(found) == 1:
        return found[0].model_copy(update={"title": spec.title}), None
    return spec.model_copy(update={"parts": tuple(found)}), None


def embedded(spec: SuiteSpec) -> SuiteSpec:
    """The suite without downloads: each downloaded cohort gives way to the generated or installed one that serves its task."""
    if spec.parts:
        changed = tuple(embedded(part) for part in spec.parts)
        return spec.model_copy(update={"data": changed[0].data, "parts": changed})
    about = None if spec.data.name is None else card(spec.data.name)
    if about is None or not about.download:
        return spec
    stood = DataSpec(name=about.stand_in, params={"sites": spec.partition.sites} if about.stand_in == "synthetic" else {})
    return spec.model_copy(update={"data": stood})


def refuse_many(spec: SuiteSpec, option: str) -> None:
    """What speaks of one cohort's columns says nothing of several cohorts."""
    if len(spec.parts) > 1:
        tasks = ", ".join(part.task.partition(":")[0] for part in spec.parts)
        raise RequestError(f"{spec.suite} has a cohort for each of its parts ({tasks}), so {option} needs to know which; add --task")
