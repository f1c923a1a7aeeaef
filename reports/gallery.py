"""Which pictures a report has, and for each one sentence on how to read it and what it shows in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from reports import schema, words
from reports.calibration import CONFIDENCE, calibration_error, held_out
from reports.drawing import Picture
from reports.plots import style
from reports.plots.cost import cost
from reports.plots.heatmap import heatmap
from reports.plots.key_curve import key_curve
from reports.plots.plane import plane
from reports.plots.reconstruction import reconstructions
from reports.plots.reliability import reliability_diagrams
from reports.plots.roc import roc
from reports.power import Power, powers
from reports.standing import Cell, Threat, cells, costs, each, openings, told, worst_profiles
from reports.worst import WITHOUT

# Embedded and generated cohorts: their records may be drawn.
SHOWN_COHORTS: Final = ("pbmc68k", "synthetic", "synthetic_perturbation", "synthetic_tissue", "synthetic_paired")

_PLANE: Final = (
    "Up is useful and left is private, so the best place is the upper left; a filled mark is measured, with 95 % "
    "intervals over seeds both ways, a hollow one in colour is "
    "what a claimed ε would still allow, a hollow grey one on the right was met by no attack that works on FedAvg and so is not measured, "
    "an arrow means that a value lies beyond the edge, and no other defense "
    "beats those on the stepped line on both axes."
)
_HEAT: Final = (
    "Dark means that the attack takes much (0 is what the controls reach, 1 is the truth), bold that its 95 % "
    "interval lies above the controls; hatched was skipped and "
    "crossed failed, for the reason with the same letter below, and blank was not asked for."
)
_ROC: Final = (
    "A line above the dashed diagonal tells members from others better than guessing, and its left end counts most, "
    "since there hardly anybody is accused wrongly; bands "
    "are 95 % intervals over seeds, the number is the area under the curve, and in the grey field there are too few non-members to tell."
)
_KEY: Final = (
    "A key that protects lets the line fall to the dashed one (what no features give) everywhere left of 1; a line "
    "that stays up means that a wrong key opens the model."
)
_RECONSTRUCTION: Final = (
    "Where the two strips look alike, and the dots lie on the diagonal, the attack has read this record; colours and "
    "axes count standard deviations from the public mean, "
    "so a pale strip is a guess that says nothing."
)
_CONFIDENCE: Final = (
    "On the dashed diagonal an attack is right as often as it says, so that it needs no truth to know what to believe, below it is "
    "over-confident and above it too modest; what chance a confidence stands for was fitted on the other seeds, bars are 95 % intervals, "
    "the small numbers count guesses."
)
_COST: Final = "Shorter is cheaper; each axis starts at 0 and the dark line is the 95 % interval over seeds."


def repeats(stands: Mapping[Threat, pd.DataFrame]) -> list[Threat]:
    """Threats with some of the key whose plane would only repeat another: the same numbers as without it, or what the key curve shows."""
    return [at for at, table in stands.items() if at[2] != WITHOUT and (at[0] == "key" or _alike(table, stands.get((*at[:2], WITHOUT))))]


def repeated(stands: Mapping[Threat, pd.DataFrame]) -> list[str]:
    """A sentence for each goal and view whose planes with some of the key are left out."""
    found: dict[tuple[str, str], list[str]] = {}
    for goal, view, key in repeats(stands):
        found.setdefault((goal, view), []).append(words.key(key) if key.startswith("partial:") else f"the {words.key(key)}")
    ends = {"key": "stand in the key curve, so no plane repeats them"}
    return [
        f"{words.GOALS.get(goal, goal)}, {words.VIEWS.get(view, view)}: the numbers with {' and with '.join(held)} "
        f"{ends.get(goal, 'are the same as without the key, so no plane repeats them')}."
        for (goal, view), held in found.items()
    ]


def _alike(table: pd.DataFrame, other: pd.DataFrame | None) -> bool:
    shown = ["defense", "leakage", "leakage_low", "leakage_high", "silent"]
    return other is not None and table[shown].equals(other[shown])


def planes(results: pd.DataFrame, stands: Mapping[Threat, pd.DataFrame], prefix: str = "") -> list[Picture]:
    """One privacy–utility plane for each goal and threat that has anything of its own to show."""
    marks = style.marks(results["defense"])
    made, left_out = [], repeats(stands)
    for (goal, view, key), table in stands.items():
        known = table[table["leakage"].notna() & table["utility"].notna()]
        if known.empty or (goal, view, key) in left_out:
            continue
        title = f"Utility against leakage: {words.GOALS.get(goal, goal)}, {words.threat(view, key)}"
        alt = "; ".join(
            f"{words.defense(r.defense)}: utility {words.number(r.utility)}, leakage "
            + ("not measured" if r.silent else told(r))
            + (f", claims ε ≤ {r.epsilon:.3g}" if math.isfinite(r.epsilon) else "")
            for r in each(known)
        )
        made.append(
            Picture(
                words.slug(prefix, "plane", goal, view, key),
                title,
                plane(results, goal, view, key, colours=marks, stand=table),
                _PLANE,
                alt,
                key != WITHOUT,
            )
        )
    return made


def heat(results: pd.DataFrame, prefix: str = "") -> list[Picture]:
    """The attack-by-defense heat map without the key, and another of adversaries who hold some of it."""
    held = results["key"].isin((*schema.HEADLINE_KEYS, ""))
    parts = (("heatmap", "without the key", results[held]), ("heatmap-with-key", "with some of the key", results[~held]))
    power = powers(results)
    return [_heat(part, table, power, words.slug(prefix, name), said) for name, said, part in parts if (table := cells(part))]


def _heat(results: pd.DataFrame, table: list[Cell], power: Power, name: str, said: str) -> Picture:
    counts = {status: sum(cell.status == status for cell in table) for status in ("ok", "skipped", "failed")}
    worst = sorted((c for c in table if math.isfinite(c.mean)), key=lambda c: -c.mean)[:5]
    alt = f"{counts['ok']} cells measured, {counts['skipped']} skipped, {counts['failed']} failed. Highest leakage: " + "; ".join(
        f"{words.attack(c.attack)} on {words.defense(c.defense)} ({words.threat(c.view, c.key)}) {words.number(c.mean, 2)}" for c in worst
    )
    figure = heatmap(results, table=table, power=power)
    return Picture(name, f"Leakage of every attack on every defense, {said}", figure, _HEAT, alt, name.endswith("with-key"))


def rocs(curves: pd.DataFrame, prefix: str = "") -> list[Picture]:
    """One log–log ROC a threat, left out where its curves only repeat those without the key."""
    rows = curves[(curves["curve"] == "roc") & (curves["goal"] == "membership")]
    made = []
    for view in [v for v in words.VIEWS if v in set(rows["view"])]:
        keys = sorted(set(rows.loc[rows["view"] == view, "key"]))
        for key in keys:
            title = f"ROC of membership attacks: {words.threat(view, key)}"
            part = rows[(rows["view"] == view) & (rows["key"] == key)]
            if key != "none" and _same_curves(part, rows[(rows["view"] == view) & (rows["key"] == "none")]):
                continue
            alt = (
                f"Defenses: {', '.join(words.defense(d) for d in style.ordered(part['defense']))}. Attacks: "
                f"{', '.join(words.attack(a) for a in sorted(part['attack'].unique()))}."
            )
            made.append(
                Picture(words.slug(prefix, "roc", view, key), title, roc(curves, view, key), _ROC, alt, key not in schema.HEADLINE_KEYS)
            )
    return made


def _same_curves(part: pd.DataFrame, base: pd.DataFrame) -> bool:
    """Whether every curve of ``part`` is in ``base``, point for point."""
    columns = ["defense", "attack", "seed", "x", "y"]
    base = base[base["defense"].isin(part["defense"].unique())]
    known = {at: own[["x", "y"]].to_numpy() for at, own in base[columns].groupby(columns[:3], sort=False)}
    return all(
        at in known and np.array_equal(own[["x", "y"]].to_numpy(), known[at]) for at, own in part[columns].groupby(columns[:3], sort=False)
    )


def keys(results: pd.DataFrame, curves: pd.DataFrame, prefix: str = "") -> list[Picture]:
    """The key curve, where a keyed defense was tried."""
    table = openings(results)
    if table.empty:
        return []
    alt = "; ".join(f"{words.defense(r.defense)}, {words.key(r.key)}: {words.interval(r.value, r.low, r.high)}" for r in each(table))
    figure = key_curve(results, curves, colours=style.marks(results["defense"]))
    return [Picture(words.slug(prefix, "key-curve"), "Utility that a key opens", figure, _KEY, alt)]


def records(results: pd.DataFrame, curves: pd.DataFrame, record: Mapping[str, Any], prefix: str = "") -> list[Picture]:
    """Reconstructions beside originals, only where records may be drawn (``drawable``)."""
    if not drawable(record):
        return []
    profiles = worst_profiles(results, curves)
    if profiles.empty:
        return []
    firsts = profiles.drop_duplicates("defense")
    alt = "; ".join(f"{words.defense(r.defense)}: {words.attack(r.attack)}, {words.threat(r.view, r.key)}" for r in each(firsts))
    return [
        Picture(
            words.slug(prefix, "reconstructions"),
            "A record and its reconstruction under each defense's worst attack",
            reconstructions(profiles),
            _RECONSTRUCTION,
            alt,
        )
    ]


def confidences(curves: pd.DataFrame, prefix: str = "") -> list[Picture]:
    """One figure a threat of reliability diagrams, left out where its confidences only repeat those without the key."""
    rows = curves[curves["curve"] == CONFIDENCE]
    made = []
    for view in [v for v in words.VIEWS if v in set(rows["view"])]:
        for key in sorted(set(rows.loc[rows["view"] == view, "key"])):
            part = rows[(rows["view"] == view) & (rows["key"] == key)]
            if key != "none" and _same_curves(part, rows[(rows["view"] == view) & (rows["key"] == "none")]):
                continue
            pairs = held_out(part)
            if pairs.empty:  # every guess right, every guess wrong, or a single seed: the table says so
                continue
            alt = "; ".join(
                f"{words.attack(str(attack))}: {len(own)} guesses, {int(own['right'].sum())} right, "
                f"calibration error {words.number(calibration_error(own['chance'], own['right']), 2)}"
                for attack, own in pairs.groupby("attack", sort=True)
            )
            title = f"What an attack's confidence is worth: {words.threat(view, key)}"
            name = words.slug(prefix, "confidence", view, key)
            made.append(Picture(name, title, reliability_diagrams(pairs), _CONFIDENCE, alt, key not in schema.HEADLINE_KEYS))
    return made


def drawable(record: Mapping[str, Any]) -> bool:
    """Whether single records may be drawn: embedded and synthetic cohorts by name, others only if the user asked (``draw_records``)."""
    if record.get("draw_records") is True:
        return True
    data = dict(dict(record.get("request") or {}).get("data") or {})
    return data.get("path") is None and data.get("name") in SHOWN_COHORTS


def cost_picture(results: pd.DataFrame, prefix: str = "") -> list[Picture]:
    """Seconds, memory, arithmetic, traffic."""
    table = costs(results)
    if table.empty:
        return []
    seconds = table[table["measure"] == "training_seconds"]
    alt = "Training time: " + "; ".join(f"{words.defense(r.defense)} {words.amount(r.value, 's')}" for r in each(seconds))
    return [Picture(words.slug(prefix, "cost"), "What a defense costs", cost(results, colours=style.marks(results["defense"])), _COST, alt)]
