"""The report's sections in order: what it says first, what it says later, and what it admits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from reports import gallery, setting, tables, verdict, words
from reports.beside_table import beside_table
from reports.drawing import Picture
from reports.overview import attacks_table
from reports.plots.style import ordered
from reports.power import powers
from reports.receipts import receipts_table, refusals
from reports.standing import Threat, each, openings, standings
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
        told = {**record, **next((p for p in record.get("parts") or [] if (p["task"], p["data"]) == (task, data)), {})}
        for name, blocks in _group(own, part, told, prefix).items():
            if blocks:
                made[name].blocks.extend(([Block("heading", label)] if label else []) + blocks)
    if not groups:
        made["verdict"].blocks.append(Block("text", "The table has no rows, so there is nothing to say."))
    for part in record.get("parts") or [{}]:
        own, told = _of_part(results, part), {**record, **part}
        heading = [Block("heading", f"{part['data']}, {part['task']}")] if part else []
        made["data"].blocks.extend([*heading, Block("terms", setting.data_terms(own, told))])
        made["limits"].blocks.extend([*heading, Block("terms", setting.threat_terms(own, told))])
    for title, terms in setting.card_terms(results, record):
        made["cards"].blocks.extend([Block("heading", title), Block("terms", terms)])
    made["cards"].blocks.extend(_tables(receipts_table(record, "receipts")))
    made["cards"].blocks.extend([Block("list", said)] if (said := refusals(record)) else [])
    limits = setting.limits_in_words(results, record)
    made["limits"].blocks.append(Block("list", limits))
    made["again"].blocks.extend(Block(kind, value) for kind, value in setting.reproduction(record) if value)
    return [section for section in made.values() if section.blocks]


def _of_part(results: pd.DataFrame, part: Mapping[str, Any]) -> pd.DataFrame:
    return results[(results["task"] == part["task"]) & (results["data"] == part["data"])] if part else results


_TITLES = {
    "verdict": "Verdict",
    "reading": "How to read this report",
    "planes": "Utility against leakage",
    "heat": "Every attack on every defense",
    "membership": "Membership",
    "property": "Properties",
    "reconstruction": "Reconstructions",
    "keys": "Keys",
    "utility": "Utility",
    "claims": "Claims and measurements",
    "costs": "Costs",
    "data": "The data",
    "cards": "What each defense lets whom see",
    "limits": "Threat model and limits",
    "gaps": "What was not measured",
    "flags": "Warnings",
    "again": "Do it again",
}
_EPSILON = (
    "epsilon_lower",
    *(f"epsilon_lower:{name}" for name in ("clopper_pearson", "multi_split", "one_run", "one_run_f_dp")),
    *(f"epsilon_assumed:{name}" for name in ("gaussian_family", "one_run_gaussian")),
    "epsilon_estimate:raw_counts",
)
_LEVELS = (
    "Intervals hold both levels, the records of a seed and the seeds: Student's t on the seeds' values, each of which scatters by its own "
    "records, and never narrower than the records' own intervals allow."
)
_READING = [
    Block(
        "text",
        "Leakage has one scale for every attack: 0 is what a guess reaches that looked at no message (the best control), "
        "1 is the truth itself (the oracle). It is not clipped: "
        "below 0 an attack does worse than guessing. A defense is judged by its worst attack, never by an average, and guessing "
        "is always open to an adversary: where every attack does worse by the seeds that choose among them, the worst case is 0; the "
        "worst is chosen on some seeds and scored on the others, which widens its interval beyond that of the same attack in the tables.",
    ),
    Block(
        "text",
        "Of a reconstruction there is a second scale. Calibrated R² shrinks each guess by as much as its confidence and length proved "
        "to be worth on the other seeds, as an attack would that knows when it fails; calibrated leakage is the share of what the best "
        "control, treated alike, leaves open. Whoever is given candidates is set against a draw among these. Worst cases and headlines "
        "are of the raw scale.",
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

    stands, summary, power = standings(results), summarise(results), powers(results)
    said = verdict.verdict(results, stands)
    contradicted = verdict.contradictions(stands)
    blocks: dict[str, list[Block]] = {
        "verdict": ([Block("flags", contradicted)] if contradicted else [])
        + [block for title, lines in said for block in (Block("heading", title), Block("list", lines))]
        + ([] if said else [Block("text", "No cell gave a number; see what was not measured below.")]),
        "planes": _pictures(gallery.planes(results, stands, prefix))
        + ([Block("list", repeated)] if (repeated := gallery.repeated(stands)) else [])
        + _tables(tables.leakage_table(stands, name("leakage"))),
        "heat": _pictures(gallery.heat(results, prefix)) + _tables(attacks_table(summary, results, record, name("attacks"))),
        "membership": _pictures(gallery.rocs(curves, prefix))
        + _tables(tables.attack_table(summary, "membership", ("auc", "tpr@1%", "tpr@0.1%", "advantage"), name("membership"), power))
        + _tables(
            *(
                tables.attack_table(
                    summary, f"membership:{unit}", ("auc", "auc:record", "tpr@1%", "advantage"), name(f"membership-{unit}"), power
                )
                for unit in ("person", "site")
            )
        )
        + _conventions(results),
        "property": _tables(
            tables.attack_table(
                summary,
                "property",
                (
                    "leakage",
                    *("accuracy_of_origin", "accuracy_of_origin:largest_site", "accuracy_of_origin:imputation"),
                    *("share_error", "share_error:imputation"),
                ),
                name("property"),
                power,
            )
        ),
        "reconstruction": _pictures(gallery.records(results, curves, record, prefix) + gallery.confidences(curves, prefix))
        + _tables(
            tables.attack_table(
                summary,
                "reconstruction",
                ("r2", "r2_calibrated", "leakage_calibrated", "cosine", "exact", "reidentified", "chance_reidentified", "rero"),
                name("reconstruction"),
                power,
            ),
            tables.exposure_table(summary, name("exposure")),
            tables.confidence_table(summary, name("confidence")),
        ),
        "keys": _pictures(gallery.keys(results, curves, prefix)) + _keyed(results, summary, name("keys")),
        "utility": _tables(tables.utility_table(results, name("utility")), beside_table(results, name("beside")))
        if (results["role"] == "utility").any()
        else [],
        "claims": _tables(
            tables.claims_table(results, stands, name("claims")),
            tables.attack_table(summary, "audit", ("auc", *_EPSILON), name("audit"), power),
            tables.attack_table(summary, "membership", _EPSILON, name("membership-epsilon")),
        )
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


def _conventions(results: pd.DataFrame) -> list[Block]:
    """How membership's rates and areas were read, as their rows say it; older tables say nothing."""
    if "protocol" not in results.columns:
        return []
    told = results.loc[results["goal"].str.startswith("membership"), "protocol"]
    said = [str(text) for text in dict.fromkeys(told) if isinstance(text, str) and text]
    return [Block("text", f"Convention of every rate and area: {'; '.join(said)}. {_LEVELS}")] if said else []


def _keyed(results: pd.DataFrame, summary: pd.DataFrame, name: str) -> list[Block]:
    table = tables.attack_table(summary, "key", ("opened", "opened_best", "leakage", "relative_error"), name)
    numbers = [
        block
        for defense in ordered(openings(results)["defense"])  # those without a key are asked too, and have nothing to open
        for block in (Block("heading", f"{words.defense(defense)}, in numbers"), Block("list", verdict.key_findings(results, defense)))
    ]
    return numbers + _tables(table)


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
