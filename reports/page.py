"""The report's sections in order: what it says first, what it says later, and what it admits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from reports import gallery, schema, tables, verdict, words
from reports.drawing import Picture
from reports.plots.style import ordered
from reports.standing import Threat, each, key_order, standings
from reports.stats import summarise
from reports.tables import Table

Kind = Literal["text", "heading", "list", "flags", "terms", "code", "picture", "table", "file", "more"]


@dataclass(frozen=True, slots=True)
class Block:
    kind: Kind
    value: Any


@dataclass(frozen=True, slots=True)
class Section:
    name: str  # anchor
    title: str
    blocks: list[Block] = field(default_factory=list)


def sections(results: pd.DataFrame, curves: pd.DataFrame, record: Mapping[str, Any]) -> list[Section]:
    """All sections of one run; a table with several tasks or cohorts repeats the pictures for each."""
    groups = list(results.groupby(["suite", "task", "data"], sort=False)) if len(results) else []
    made: dict[str, Section] = {name: Section(name, title) for name, title in _TITLES.items()}
    made["reading"].blocks.extend(_READING)
    for (suite, task, data), own in groups:
        prefix = words.slug(str(suite), str(task), str(data)) if len(groups) > 1 else ""
        label = f"{data}, {task}" if len(groups) > 1 else ""
        part = curves[(curves["suite"] == suite) & (curves["task"] == task) & (curves["data"] == data)]
        for name, blocks in _group(own, part, record, prefix).items():
            if blocks:
                made[name].blocks.extend(([Block("heading", label)] if label else []) + blocks)
    if not groups:
        made["verdict"].blocks.append(Block("text", "The table has no rows, so there is nothing to say."))
    made["limits"].blocks.extend([Block("terms", threat_terms(results, record)), Block("list", limits_in_words(results, record))])
    made["again"].blocks.extend(reproduction(record))
    return [section for section in made.values() if section.blocks]


_TITLES = {
    "verdict": "Verdict",
    "reading": "How to read this report",
    "planes": "Utility against leakage",
    "heat": "Every attack on every defense",
    "membership": "Membership",
    "reconstruction": "Reconstructions",
    "keys": "Keys",
    "utility": "Utility",
    "claims": "Claims and measurements",
    "costs": "Costs",
    "limits": "Threat model and limits",
    "gaps": "What was not measured",
    "flags": "Warnings",
    "again": "Do it again",
}
_KINDS = {"iid": "records spread at random (IID)", "dirichlet": "labels skewed (Dirichlet)"}
_READING = [
    Block(
        "text",
        "Leakage has one scale for every attack: 0 is what a guess reaches that looked at no message (the best control), "
        "1 is the truth itself (the oracle). It is not clipped: "
        "below 0 an attack does worse than guessing. A defense is judged by its worst attack, never by an average; the "
        "worst is chosen on some seeds and scored on the others.",
    ),
    Block(
        "text",
        "A claim (ε, or “without the key the model is useless”) and a measurement are different things and stand in "
        "different columns: a claim bounds attacks that nobody has thought "
        "of yet, a measurement is what these attacks did reach. Brackets are 95 % intervals over seeds; n counts seeds.",
    ),
]


def _group(results: pd.DataFrame, curves: pd.DataFrame, record: Mapping[str, Any], prefix: str) -> dict[str, list[Block]]:
    def name(kind: str) -> str:
        return words.slug(prefix, kind)

    stands, summary = standings(results), summarise(results)
    said = verdict.verdict(results, stands)
    contradicted = verdict.contradictions(stands)
    blocks: dict[str, list[Block]] = {
        "verdict": ([Block("flags", contradicted)] if contradicted else [])
        + [block for title, lines in said for block in (Block("heading", title), Block("list", lines))]
        + ([] if said else [Block("text", "No cell gave a number; see what was not measured below.")]),
        "planes": [*_pictures(gallery.planes(results, stands, prefix)), *_tables(tables.leakage_table(stands, name("leakage")))],
        "heat": _pictures(gallery.heat(results, prefix)),
        "membership": _pictures(gallery.rocs(curves, prefix))
        + _tables(tables.attack_table(summary, "membership", ("auc", "tpr@1%", "tpr@0.1%", "advantage"), name("membership"))),
        "reconstruction": _pictures(gallery.records(results, curves, record, prefix))
        + _tables(
            tables.attack_table(
                results, "reconstruction", ("r2", "cosine", "exact", "reidentified", "chance_reidentified"), name("reconstruction")
            )
        ),
        "keys": _pictures(gallery.keys(results, curves, prefix)) + _keyed(results, summary, name("keys")),
        "utility": _tables(tables.utility_table(results, name("utility"))) if (results["role"] == "utility").any() else [],
        "claims": _tables(tables.claims_table(results, stands, name("claims")))
        + ([Block("list", sentences)] if (sentences := tables.claim_sentences(results)) else []),
        "costs": (_pictures(gallery.cost_picture(results, prefix)) + _tables(tables.cost_table(results, name("cost"))))
        if (results["role"] == "cost").any()
        else [],
        "gaps": _tables(tables.missing_table(results, name("missing"))) + _unresolved(results) + _notes(stands),
        "flags": _flags(results),
        "again": [Block("file", tables.scores_table(summary, name("scores")))],
    }
    if blocks["reconstruction"] and not gallery.drawable(record):
        blocks["reconstruction"].insert(
            0, Block("text", "Single records are drawn for embedded and synthetic cohorts only, so this report shows none.")
        )
    return blocks


def _pictures(pictures: list[Picture]) -> list[Block]:
    """Pictures of adversaries without the key first; those who hold some of it are folded away."""
    with_key = [Block("picture", picture) for picture in pictures if picture.aside]
    shown = [Block("picture", picture) for picture in pictures if not picture.aside]
    return shown + ([Block("more", (f"Adversaries who hold some of the key ({len(with_key)} pictures)", with_key))] if with_key else [])


def _tables(*given: Table | None) -> list[Block]:
    return [Block("table", table) for table in given if table is not None and len(table.shown)]


def _keyed(results: pd.DataFrame, summary: pd.DataFrame, name: str) -> list[Block]:
    defenses = [d for d in dict.fromkeys(results.loc[results["goal"] == "key", "defense"])]
    found = [line for defense in defenses for line in verdict.key_findings(results[results["defense"] == defense], defense)]
    table = tables.attack_table(summary, "key", ("opened", "opened_best", "leakage", "relative_error"), name)
    return ([Block("heading", "In numbers"), Block("list", found)] if found else []) + _tables(table)


def _unresolved(results: pd.DataFrame) -> list[Block]:
    rows = results[(results["status"] == "ok") & results["value"].isna() & (results["reason"] != "")]
    if rows.empty:
        return []
    lines = []
    for reason, own in rows.groupby("reason", sort=False):
        metrics = ", ".join(dict.fromkeys(words.metric(m) for m in own["metric"]))
        lines.append(f"{metrics}: {reason} ({len(own)} numbers)")
    return [Block("heading", "Numbers that cannot be stated"), Block("list", lines)]


def _notes(stands: Mapping[Threat, pd.DataFrame]) -> list[Block]:
    """What to know about a worst case that does have a number: attacks that broke, a single seed."""
    lines = []
    for (goal, view, key), table in stands.items():
        for row in each(table[table["leakage"].notna() & (table["note"] != "")]):
            lines.append(f"{words.GOALS.get(goal, goal)}, {words.threat(view, key)}, {words.defense(row.defense)}: {row.note}")
    return [Block("heading", "Worst cases to read with care"), Block("list", lines)] if lines else []


def _flags(results: pd.DataFrame) -> list[Block]:
    rows = results[
        (results["role"] == "flag") & (results["status"] == "ok") & ~results["metric"].str.startswith("note:") & (results["value"] != 0)
    ]
    lines = []
    for (metric, reason), own in rows.groupby(["metric", "reason"], sort=False):
        where = ", ".join(
            dict.fromkeys(
                f"{words.attack(a)} on {words.defense(d)}" if a else words.defense(d)
                for a, d in zip(own["attack"], own["defense"], strict=True)
            )
        )
        lines.append(f"{words.metric(str(metric).removeprefix('flag:'))}: {reason or words.number(float(own['value'].max()))} ({where})")
    return [Block("flags", lines)] if lines else []


def threat_terms(results: pd.DataFrame, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who looks, at what, how often, and at how many records; from the record, and from the table where the record is silent."""
    request = dict(record.get("request") or {})
    cohort = dict(record.get("cohort") or {})
    views = [v for v in words.SEES if v in set(results["view"])]
    terms = [("Who looks", "; ".join(words.SEES[v] for v in views) or words.MISSING)]
    held = sorted(set(results.loc[results["goal"].isin(schema.GOALS), "key"]), key=key_order)
    terms.append(("What key they hold", "; ".join(words.key(k) for k in held) or words.MISSING))
    unit = (
        dict(request.get("split") or {}).get("unit")
        or ", ".join(sorted(set(results.get("unit", pd.Series(dtype=object)).dropna())))
        or words.MISSING
    )
    terms.append(("Unit of privacy and of the split", str(unit)))
    terms.append(("Data", _data(results, request, cohort)))
    if sizes := cohort.get("site_sizes"):
        terms.append(("Training records at each site", ", ".join(str(size) for size in sizes)))
    partition = dict(request.get("partition") or {})
    if partition:
        sites = (
            "by a column of the data"
            if partition.get("kind") == "column"
            else f"{partition.get('sites', '?')} sites, {_KINDS.get(str(partition.get('kind')), '?')}"
        )
        terms.append(("Sites", sites + (f", α {partition.get('alpha')}" if partition.get("kind") == "dirichlet" else "")))
    federation = dict(request.get("federation") or {})
    if federation:
        local = dict(federation.get("local") or {})
        terms.append(
            (
                "Federation",
                f"{federation.get('rounds', '?')} rounds of {local.get('epochs', '?')} local epochs, batch "
                f"{local.get('batch', '?')}, {local.get('optimiser', '?')} at {local.get('lr', '?')}; "
                f"model of the {'last round' if federation.get('selection') == 'last' else 'round chosen on validation records'}",
            )
        )
        if federation.get("flaws"):
            terms.append(("Deliberate faults", ", ".join(federation["flaws"])))
    asked = {words.defense(name): name for name in ordered(results["defense"]) if "=" in name}
    if asked:
        terms.append(("Defenses with their settings", "; ".join(f"{said}: {name}" for said, name in asked.items())))
    seeds = record.get("seeds")
    terms.append(("Seeds", str(len(seeds)) if isinstance(seeds, list) else str(results["seed"].nunique() if len(results) else 0)))
    if request.get("references") is not None:
        terms.append(
            (
                "Reference federations of membership attacks",
                f"{request['references']} a defense and seed, trained under the same defense with the adversary's own keys",
            )
        )
    for probe in request.get("probes") or []:
        kind = (
            "gradient"
            if probe.get("optimiser", "gradient") == "gradient"
            else f"{probe.get('steps')} {probe.get('optimiser')} step(s) at {probe.get('lr')}"
        )
        terms.append(
            (
                "Messages that are inverted",
                f"{probe.get('gradients')} at each site, round {probe.get('round')}: {kind} of {probe.get('batch')} record(s)",
            )
        )
    return terms


def _data(results: pd.DataFrame, request: Mapping[str, Any], cohort: Mapping[str, Any]) -> str:
    names = ", ".join(dict.fromkeys(results["data"])) or words.MISSING
    size = (
        f": {cohort['records']} records, {cohort['features']} features, {cohort['classes']} classes"
        if {"records", "features", "classes"} <= set(cohort)
        else ""
    )
    split = dict(request.get("split") or {})
    shares = [
        f"{split[part]:.0%} {part}" for part in ("train", "validation", "test", "auxiliary") if isinstance(split.get(part), int | float)
    ]
    source = "; ".join(str(cohort[k]) for k in ("citation", "licence") if cohort.get(k))
    return names + size + (f"; {', '.join(shares)}" if shares else "") + (f" ({source})" if source else "")


def limits_in_words(results: pd.DataFrame, record: Mapping[str, Any]) -> list[str]:
    """What this report cannot say."""
    said = [
        "Attacks only ever give lower bounds: a stronger one, a larger budget or more background knowledge may take more "
        "than is shown here.",
        "The adversary's background knowledge is the auxiliary part of the same cohort; in the world it may be nearer to "
        "the target, or farther.",
        "The referee follows the protocol: nobody lies about what is broadcast or sent, unless a threat is called active.",
    ]
    seeds = results["seed"].nunique() if len(results) else 0
    if seeds == 1:
        said.append("One seed: intervals are over the records or targets of that seed and say nothing of what another seed would give.")
    elif 1 < seeds < 10:
        said.append(f"{seeds} seeds are few: intervals over seeds are wide and rest on Student's t.")
    if dict(dict(record.get("request") or {}).get("split") or {}).get("unit") == "record":
        said.append(
            "Records, not persons, are the unit: where a person has several records, that person's membership is easier to "
            "tell than a record's."
        )
    if schema.upper_bound(results).any():
        said.append("Rows of an attack that read the truth are upper bounds; they are drawn as controls at most and enter no headline.")
    return said


def reproduction(record: Mapping[str, Any]) -> list[Block]:
    """Command, versions and digests."""
    suite = record.get("suite") or dict(record.get("request") or {}).get("suite") or "SUITE"
    command = str(record.get("command") or f"infl-bench run {suite} --out DIR")
    terms = [
        (title, str(record[key]))
        for title, key in (("infl-bench", "infl_bench"), ("Data (SHA-256 of the content)", "data_digest"), ("Code (hash)", "code_hash"))
        if record.get(key)
    ]
    if versions := record.get("versions"):
        terms.append(("Versions", ", ".join(f"{name} {version}" for name, version in dict(versions).items())))
    if machine := record.get("machine"):
        terms.append(("Machine", ", ".join(f"{name} {value}" for name, value in dict(machine).items())))
    blocks = [Block("code", command), Block("terms", terms)]
    if text := record.get("suite_text"):
        blocks += [Block("heading", "The suite file"), Block("code", str(text))]
    elif request := record.get("request"):
        blocks += [Block("heading", "The request"), Block("code", json.dumps(request, indent=1))]
    return [block for block in blocks if block.value]
