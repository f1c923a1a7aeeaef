"""What a run's record says of its data and of its defenses, read without importing torch or a plug-in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from suites import ensembles, registry
from suites.config import SuiteSpec
from suites.plan import Plan
from suites.store import Store

PARTS = ("validation", "test", "auxiliary")
PARTIES = ("server", "site", "outsider", "does_not_protect")


def cohort(plan: Plan, store: Store, part: SuiteSpec | None = None) -> dict[str, Any]:
    """Name, records, features, classes, persons (if known), copies left out (if any), sizes of sites and parts, citation, licence, digest.

    Read from the headers of the prepared data; empty where no cell got so far. Sizes are the first seed's; where another seed has others
    ``site_sizes_by_seed`` lists them all. ``part`` says which cohort, where the suite has several.
    """
    seeds: dict[int, tuple[dict[str, Any], dict[str, list[int]]]] = {}
    targets = [cell.spec for cell in plan.cells if cell.stage == "train"]
    asked = part or next(iter(plan.suite.parts), None)
    if asked is not None:
        own = {"task": registry.find("tasks", asked.task).ref, "data": asked.data.model_dump(mode="json")}
        targets = [target for target in targets if all(target[name] == value for name, value in own.items())]
    for spec, facts, shapes in _prepared(store.root / "prepared"):
        if any(all(target.get(name) == value for name, value in spec.items()) for target in targets):
            seeds[int(spec["seed"])] = facts, shapes
    if not seeds:
        return {}
    facts, shapes = seeds[min(seeds)]
    sizes = [_sites(own) for _, (_, own) in sorted(seeds.items())]
    made = {"name": facts.pop("name"), "records": shapes["x"][0], "features": shapes["x"][1], **facts, "site_sizes": sizes[0]}
    made["parts"] = {"train": sum(sizes[0]), **{part: shapes[part][0] for part in PARTS if part in shapes}}
    return made | ({"site_sizes_by_seed": sizes} if any(own != sizes[0] for own in sizes) else {})


def cards(defenses: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Every defense's card, a layer of its stack each: what the server, a site and an outsider see, and what stays unprotected.

    Read from the source of each class; a layer without a card, or with one that only running would tell, is left out of its list.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for ref in defenses:
        layers = registry.stack(ref)
        found[registry.label(layers)] = [card for layer in layers if (card := _card(layer.label, layer.facts.values.get("card")))]
    return found


def attacks(plan: Plan) -> dict[str, dict[str, Any]]:
    """What each attack of the suite is after, needs and does, by the name that tables give it."""
    named = [ref for part in plan.suite.each for ref in part.attacks]
    found = (registry.find("attacks", ref) for ref in ensembles.expanded(named))
    return {one.label: {"goal": one.goal or "", "needs": sorted(one.needs or ()), "summary": one.facts.summary} for one in found}


def _card(layer: str, card: object) -> dict[str, str]:
    """Empty unless every party has its words."""
    said = {party: card.get(party) for party in PARTIES} if isinstance(card, Mapping) else {}
    words = {party: text for party, text in said.items() if isinstance(text, str)}
    return {"layer": layer, **words} if len(words) == len(PARTIES) else {}


def _prepared(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, list[int]]]]:
    """Spec, facts and tensor shapes of every prepared file that says of what cohort it is; a broken one is no reason to lose a run."""
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError, SafetensorError), safe_open(path, framework="np") as held:
            about = held.metadata() or {}
            if {"spec", "cohort"} <= set(about):
                shapes = {name: list(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118
                yield json.loads(about["spec"]), json.loads(about["cohort"]), shapes


def _sites(shapes: Mapping[str, list[int]]) -> list[int]:
    count = sum(name.startswith("site/") for name in shapes)
    return [shapes[f"site/{index}"][0] for index in range(count)]
