"""What was asked, of which data, under which eyes, and how to do it again: the parts of a report that come from the run's record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import pandas as pd

from reports import schema, words
from reports.plots.style import ordered
from reports.standing import key_order

Terms = list[tuple[str, str]]
_KINDS: Final = {"iid": "records spread at random (IID)", "dirichlet": "labels skewed (Dirichlet)"}
_PARTIES: Final = {
    "server": "The server sees",
    "site": "Another site sees",
    "outsider": "An outsider sees",
    "does_not_protect": "It does not protect",
}
_PARTS: Final = ("train", "validation", "test", "auxiliary")


def data_terms(results: pd.DataFrame, record: Mapping[str, Any]) -> Terms:
    """Which records, from where, whose, and how they were dealt out."""
    request, cohort = dict(record.get("request") or {}), dict(record.get("cohort") or {})
    terms = [("Cohort", ", ".join(dict.fromkeys(results["data"])) or str(cohort.get("name") or words.MISSING))]
    called = {"persons": cohort.get("units", "persons")}  # what a task with records of its own holds whole may be no person
    counted = [
        f"{cohort[what]} {called.get(what, what)}" for what in ("records", "features", "classes", "persons") if cohort.get(what) is not None
    ]
    terms += [("Size", ", ".join(counted))] if counted else []
    if copies := cohort.get("copies"):
        terms.append(("Left out", f"{copies} records that repeat another in every value: a non-member would equal a member"))
    if cohort.get("transform"):
        transform = str(cohort["transform"])
        terms.append(
            ("Transform of the stored values", "none: they are no counts, or are used as stored" if transform == "none" else transform)
        )
    terms += [(title, str(cohort[name])) for title, name in (("Source", "citation"), ("Licence", "licence")) if cohort.get(name)]
    split, parts = dict(request.get("split") or {}), dict(cohort.get("parts") or {})
    shares = [_share(part, split.get(part), parts.get(part)) for part in _PARTS]
    terms += [("Parts, disjoint", ", ".join(share for share in shares if share))] if any(shares) else []
    partition = dict(request.get("partition") or {})
    if partition:
        sites = (
            "by a column of the data"
            if partition.get("kind") == "column"
            else f"{partition.get('sites', '?')} sites, {_KINDS.get(str(partition.get('kind')), '?')}"
        )
        sites += f", α {partition.get('alpha')}" if partition.get("kind") == "dirichlet" else ""
        terms.append(("Sites", sites + (f"; {held} of them take no part" if (held := partition.get("held_out")) else "")))
    if by_seed := cohort.get("site_sizes_by_seed"):
        terms.append(("Training records at each site", "; ".join(f"seed {i}: {_listed(sizes)}" for i, sizes in enumerate(by_seed))))
    elif sizes := cohort.get("site_sizes"):
        terms.append(("Training records at each site", _listed(sizes)))
    digests = [cohort.get("digest"), record.get("data_digest")]
    digest = next((str(found) for found in digests if found and not str(found).startswith("named ")), "")
    return [*terms, ("Digest of the content (SHA-256)", digest)] if digest else terms


def _listed(sizes: Any) -> str:
    return ", ".join(str(size) for size in sizes)


def _share(part: str, share: Any, count: Any) -> str:
    said = [f"{share:.0%}"] if isinstance(share, int | float) else []
    return " ".join([*said, part, *([f"({count})"] if count is not None else [])]) if said or count is not None else ""


def card_terms(results: pd.DataFrame, record: Mapping[str, Any]) -> list[tuple[str, Terms]]:
    """Each card in words under the defenses that share it: what every party sees, and what stays unprotected.

    Cards come from the record (``cards``: defense -> a card a layer); a defense without one is named with that.
    """
    held = dict(record.get("cards") or {})
    groups: dict[str, list[str]] = {}
    for name in ordered({*results["defense"], *held}):
        own = [{part: card[part] for part in card if part != "layer"} for card in held.get(name) or []]
        groups.setdefault(json.dumps(own) if name in held else "", []).append(name)
    found = []
    for names in groups.values():
        title = ", ".join(words.defense(name) for name in names)
        cards = held.get(names[0])
        if not cards:
            why = "The defense says nothing of itself." if cards is not None else "The record of this run holds no card of it."
            found.append((title, [("Card", why)]))
            continue
        stacked = len(cards) > 1
        found.append((title, [term for card in cards for term in _card(card, named=stacked)]))
    return found


def _card(card: Mapping[str, str], *, named: bool) -> Terms:
    layer = f"{words.defense(card.get('layer', ''))}: " if named else ""
    return [
        (f"{layer}{title[0].lower() if layer else title[0]}{title[1:]}", str(card[party]))
        for party, title in _PARTIES.items()
        if card.get(party)
    ]


def threat_terms(results: pd.DataFrame, record: Mapping[str, Any]) -> Terms:
    """Who looks, at what, how often; from the record, and from the table where the record is silent."""
    request = dict(record.get("request") or {})
    views = [v for v in words.SEES if v in set(results["view"])]
    terms = [("Who looks", "; ".join(words.SEES[v] for v in views) or words.MISSING)]
    held = sorted(set(results.loc[results["goal"].isin(schema.GOALS), "key"]), key=key_order)
    terms.append(("What key they hold", "; ".join(words.key(k) for k in held) or words.MISSING))
    unit = (
        dict(request.get("split") or {}).get("unit")
        or ", ".join(sorted(set(results.get("unit", pd.Series(dtype=object)).dropna())))
        or words.MISSING
    )
    units = dict(record.get("cohort") or {}).get("units")
    terms.append(("Unit of privacy and of the split", f"{unit} (here: {units})" if unit == "person" and units else str(unit)))
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
        if federation.get("vanishing"):
            terms.append(("Sites that vanish in every round", str(federation["vanishing"])))
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
    if request.get("noise_draws", 1) > 1:
        said = f"the mean of {request['noise_draws']} federations a seed that differ in their noise alone; attacks meet the first"
        terms.append(("Utility of defenses that add noise", said))
    for probe in request.get("probes") or []:
        kind = (
            "gradient"
            if probe.get("optimiser", "gradient") == "gradient"
            else f"{probe.get('steps')} {probe.get('optimiser')} step(s) at {probe.get('lr')}"
        )
        kind += f" of {size} record(s) each, in an order that the site alone knows," if (size := probe.get("minibatch")) else ""
        terms.append(
            (
                "Messages that are inverted",
                f"{probe.get('gradients')} at each site, round {probe.get('round')}: {kind} of {probe.get('batch')} record(s)",
            )
        )
    return terms


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
    asked = [record, *(record.get("parts") or [])]
    if units := list(dict.fromkeys(str(found) for part in asked if (found := dict(part.get("cohort") or {}).get("units")))):
        said.append(f"Where a person is spoken of, the task holds something else whole: {', '.join(units)}.")
    if schema.upper_bound(results).any():
        said.append("Rows of an attack that read the truth are upper bounds; they are drawn as controls at most and enter no headline.")
    return said


def reproduction(record: Mapping[str, Any]) -> list[tuple[Literal["code", "terms", "heading"], Any]]:
    """Command, versions and digests, each with the kind of block that it makes."""
    suite = record.get("suite") or dict(record.get("request") or {}).get("suite") or "SUITE"
    command = str(record.get("command") or f"infl-bench run {suite} --out DIR")
    terms = [(title, str(record[key])) for title, key in (("infl-bench", "infl_bench"), ("Code (hash)", "code_hash")) if record.get(key)]
    content = dict(record.get("cohort") or {}).get("digest") or record.get("data_digest")
    terms[1:1] = [("Data (SHA-256 of the content)", str(content))] if content else []
    if versions := record.get("versions"):
        terms.append(("Versions", ", ".join(f"{name} {version}" for name, version in dict(versions).items())))
    if machine := record.get("machine"):
        terms.append(("Machine", ", ".join(f"{name} {value}" for name, value in dict(machine).items())))
    blocks: list[tuple[Literal["code", "terms", "heading"], Any]] = [("code", command), ("terms", terms)]
    if text := record.get("suite_text"):
        return [*blocks, ("heading", "The suite file"), ("code", str(text))]
    if request := record.get("request"):
        return [*blocks, ("heading", "The request"), ("code", json.dumps(request, indent=1))]
    return blocks
