"""Where every defense stands: the small tables that pictures, tables and sentences are made from.

All take a results table (``reports.schema``) of one task and one cohort; intervals are over seeds (``reports.stats``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from reports import schema, words
from reports.intervals import over_seeds
from reports.plots.style import ordered
from reports.power import silences
from reports.stats import SHARES
from reports.worst import BESIDE, WITHOUT, worst_case

NAN: Final = float("nan")
FLOOR: Final = ":floor"
COSTS: Final = {  # measure -> title, unit
    "training_seconds": ("Training time", "s"),
    "peak_memory_bytes": ("Peak memory", "B"),
    "flop_per_round": ("Arithmetic\na round", "FLOP"),
    "bytes_up_per_round": ("Sent by sites\na round", "B"),
    "bytes_down_per_round": ("Sent to sites\na round", "B"),
}
_COST_NAMES: Final = {  # as other tables may call them
    "seconds": "training_seconds",
    "train_seconds": "training_seconds",
    "peak_bytes": "peak_memory_bytes",
    "peak_memory": "peak_memory_bytes",
    "flop": "flop_per_round",
    "flops": "flop_per_round",
    "bytes_per_round": "bytes_up_per_round",
}
WRONG_KEYS: Final = "open_with_wrong_keys"
NOT_ASKED: Final = "no attack was asked for"
Threat = tuple[str, str, str]  # goal, view, key
_SUFFIXES: Final = (("value", ""), ("low", "_low"), ("high", "_high"), ("n", "_n"))
_PROFILE: Final = ("defense", "attack", "view", "key", "feature", "truth", "guess")


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of the heat map; ``reason`` is why it is empty, or why it is no headline."""

    goal: str
    attack: str
    view: str
    key: str
    defense: str
    status: str
    mean: float
    low: float
    high: float
    n: int
    reason: str


def each(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, a column an attribute."""
    return iter(table.itertuples(index=False))


def headline(results: pd.DataFrame) -> str:
    """The utility metric that counts: the first that the task names, or "" without utility rows."""
    names = results.loc[(results["role"] == "utility") & (results["status"] == "ok"), "metric"]
    return "" if names.empty else str(names.iloc[0])


def utilities(results: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """Defense, metric, value, low, high, n of every utility metric (or of one), over seeds; in the order of the table."""
    rows = results[(results["role"] == "utility") & (results["status"] == "ok")]
    if metric is not None:
        rows = rows[rows["metric"] == metric]
    table = _over_seeds(rows, ["defense", "metric"])
    shares = table["metric"].isin(SHARES)
    table.loc[shares, ["low", "high"]] = table.loc[shares, ["low", "high"]].clip(0, 1)  # what a share can be
    return table


def limits(results: pd.DataFrame) -> tuple[float, float, float, str]:
    """The utility axis of all pictures alike (low, high), the floor without features (NaN if unknown), and the headline metric."""
    metric = headline(results)
    table = utilities(results, metric)
    floors = results.loc[(results["metric"] == metric + FLOOR) & (results["status"] == "ok"), "value"].dropna()
    floor = float(floors.mean()) if len(floors) else NAN
    values = np.concatenate([table[c].dropna().to_numpy(float) for c in ("value", "low", "high")] + [floors.to_numpy(float)])
    if len(values) == 0:
        return 0.0, 1.0, floor, metric
    pad = 0.07 * max(float(np.ptp(values)), 0.1)
    return float(values.min()) - 1.4 * pad, float(values.max()) + pad, floor, metric


def threats(results: pd.DataFrame) -> list[Threat]:
    """Every (goal, view, key) that was asked for; the key "without" stands for an adversary who has none of it (none or wrong)."""
    rows = results[results["goal"].isin(schema.GOALS) & (results["role"] == "score")]
    keys = rows["key"].where(~rows["key"].isin(schema.HEADLINE_KEYS), WITHOUT)
    found = set(zip(rows["goal"], rows["view"], keys, strict=True))
    return sorted(found, key=lambda t: (schema.GOALS.index(t[0]), schema.VIEWS.index(t[1]), key_order(t[2])))


def standings(results: pd.DataFrame) -> dict[Threat, pd.DataFrame]:
    """``standing`` of every (goal, view, key) of the table, at the price of one."""
    use, promised = (_by(table, "defense") for table in (utilities(results, headline(results)), claims(results)))
    worst = _by(worst_case(results), "goal", "view", "defense", "key")
    names, why = ordered(results["defense"]), silences(results)
    return {threat: pd.DataFrame([_stand(name, threat, use, worst, promised, why) for name in names]) for threat in threats(results)}


def standing(results: pd.DataFrame, goal: str, view: str, key: str) -> pd.DataFrame:
    """One row a defense under one threat.

    Columns: defense; utility, utility_low, utility_high, utility_n (headline metric); leakage, leakage_low, leakage_high, leakage_n and
    the worst ``attack`` with its ``attack_key`` (chosen on some seeds, scored on others), or, where guessing does better, what the best
    attack alone did (best, best_low, best_high); ``n_attacks``; ``held``, the key of the rows that
    were used: a defense without a key is judged by its rows without one; epsilon, delta (claims, the maximum over sites); ``note``, why
    there is no leakage or what to know about it; ``silent``, why a leakage that is not above the controls means nothing
    (``reports.power``), else "". ``n`` counts seeds. A threat that nobody asked for gives rows without leakage.
    """
    use, promised = (_by(table, "defense") for table in (utilities(results, headline(results)), claims(results)))
    asked = (results["goal"] == goal) & (results["view"] == view)
    worst = _by(worst_case(results[asked]), "goal", "view", "defense", "key")
    why = silences(results)
    return pd.DataFrame([_stand(name, (goal, view, key), use, worst, promised, why) for name in ordered(results["defense"])])


Rows = Mapping[Any, Mapping[str, Any]]


def _by(table: pd.DataFrame, *columns: str) -> dict[Any, dict[str, Any]]:
    """The rows of a table by the values of some columns."""
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    return {tuple(row[name] for name in columns) if len(columns) > 1 else row[columns[0]]: row for row in rows}


def _stand(name: str, threat: Threat, use: Rows, worst: Rows, promised: Rows, why: Mapping[Any, str]) -> dict[str, Any]:
    goal, view, key = threat
    at = (goal, view, name, key)
    held = key if at in worst and worst[at]["status"] != "skipped" else WITHOUT
    row: dict[str, Any] = {"defense": name, "held": held}
    utility, claim = use.get(name, {}), promised.get(name, {})
    row |= {"utility" + suffix: utility.get(column, NAN) for column, suffix in _SUFFIXES}
    row |= {what: float(claim.get(what, NAN)) for what in ("epsilon", "delta")}
    at = (goal, view, name, held)
    if at not in worst:
        empty = {"leakage": NAN, "leakage_low": NAN, "leakage_high": NAN, "leakage_n": 0}
        empty |= dict.fromkeys(BESIDE, NAN)
        return row | empty | {"attack": "", "attack_key": "", "n_attacks": 0, "note": NOT_ASKED, "silent": ""}
    case = worst[at]
    row |= {"leakage": case["leakage"], "leakage_low": case["low"], "leakage_high": case["high"], "leakage_n": case["n_seeds"]}
    row |= {"attack": case["attack"], "attack_key": case["attack_key"], "n_attacks": case["n_attacks"], "note": case["reason"]}
    row |= {column: case[column] for column in BESIDE}
    return row | {"silent": "" if case["low"] > 0 else why.get(at, "")}


def told(row: Any) -> str:
    """A worst case in words: with its interval, or as guessing beside what the best attack alone did."""
    if math.isfinite(row.best):
        return f"0, by guessing ({words.attack(row.attack)} alone: {words.interval(row.best, row.best_low, row.best_high, 2)})"
    return words.interval(row.leakage, row.leakage_low, row.leakage_high, 2)


def claims(results: pd.DataFrame) -> pd.DataFrame:
    """Defense, epsilon (maximum over sites and seeds), delta, per_site (tuple) and every other claimed number, a row a defense."""
    rows = results[(results["role"] == "claim") & (results["status"] == "ok")]
    found = []
    for name in ordered(rows["defense"]):
        own = rows[rows["defense"] == name]
        best = own.groupby("metric", sort=False)["value"].max()
        sites = {m: v for m, v in best.items() if str(m).startswith("epsilon:")}
        epsilon = max([best.get("epsilon", NAN), *sites.values()], default=NAN, key=lambda v: -math.inf if math.isnan(v) else v)
        others = {str(m): float(v) for m, v in best.items() if m not in sites and m not in {"epsilon", "delta"}}
        reason = next((r for r in own["reason"] if r), "")
        found.append(
            {
                "defense": name,
                "epsilon": float(epsilon),
                "delta": float(best.get("delta", NAN)),
                "per_site": tuple(sites.values()),
                "others": others,
                "words": reason,
            }
        )
    return pd.DataFrame(found, columns=["defense", "epsilon", "delta", "per_site", "others", "words"])


def grouped(table: pd.DataFrame) -> dict[str, list[str]]:
    """Why a number is missing, each with the defenses it holds for, named in words; of a note with several reasons the first."""
    found: dict[str, list[str]] = {}
    for row in each(table):
        reason = (row.note or "no utility was measured").split("; ")[0]
        found.setdefault(reason, []).append(words.defense(row.defense))
    return found


def cells(results: pd.DataFrame) -> list[Cell]:
    """Every attack × threat × defense that has a row, controls left out."""
    rows = results[results["goal"].isin(schema.GOALS) & (results["role"] == "score")]
    keys = ["goal", "attack", "view", "key", "defense"]
    scored = rows[(rows["status"] == "ok") & (rows["metric"] == "leakage")]
    table = _over_seeds(scored, keys)
    whole = table["goal"].isin(schema.CAPPED) & (table["value"] <= 1)
    table.loc[whole, "high"] = table.loc[whole, "high"].clip(upper=1)  # the truth is 1 by definition
    means: dict[Any, Any] = {tuple(row[:5]): row[5:] for row in table.itertuples(index=False, name=None)}
    asked = rows[(rows["status"] != "ok") | (rows["metric"] == "leakage")]
    asked = asked.assign(odd=(asked["status"] == "skipped") | schema.upper_bound(asked) | asked["value"].isna())
    groups: dict[tuple[str, ...], list[Any]] = {}
    for row in each(asked[[*keys, "seed", "status", "reason", "odd"]]):
        groups.setdefault(tuple(str(part) for part in row[:5]), []).append(row)
    found = []
    for at, own in groups.items():
        value, low, high, n = means.get(at, (NAN, NAN, NAN, 0))
        failed = [row for row in own if row.status == "failed"]
        if failed:
            reason = f"failed on {_seeds(failed)} of {_seeds(own)} seeds: {failed[0].reason}"
        else:
            reason = next((str(row.reason) for row in own if row.odd), "")
        status = "ok" if any(row.status == "ok" for row in own) else "failed" if failed else "skipped"
        goal, attack, view, key, defense = at
        found.append(Cell(goal, attack, view, key, defense, status, value, low, high, int(n), reason))
    return sorted(found, key=lambda c: (schema.GOALS.index(c.goal), c.attack, schema.VIEWS.index(c.view), key_order(c.key)))


def _seeds(rows: list[Any]) -> int:
    return len({row.seed for row in rows})


def openings(results: pd.DataFrame) -> pd.DataFrame:
    """Defense, key, value, low, high, n: the utility that each key opens. ``key`` is the one that was tried, whatever threat allowed it."""
    rows = results[
        (results["goal"] == "key") & (results["metric"] == "opened") & (results["status"] == "ok") & (results["role"] == "score")
    ]
    tried = [_tried(attack, key) for attack, key in zip(rows["attack"], rows["key"], strict=True)]
    rows = rows.assign(tried=tried, many=rows["attack"].eq(WRONG_KEYS) & pd.Series(tried, index=rows.index).eq("wrong"))
    rows = rows[rows["many"] | ~rows.groupby(["defense", "tried"])["many"].transform("any")]  # twenty wrong keys rather than one
    found = _over_seeds(rows, ["defense", "tried"]).rename(columns={"tried": "key"})
    return found[found["value"].notna()].reset_index(drop=True)


def _tried(attack: str, key: str) -> str:
    """An attack may open the model with less than the threat allows."""
    head = attack.partition(":")[0]
    if head == "open_without_key":
        return "none"
    return "wrong" if head == WRONG_KEYS or (head == "open_with_held_key" and key == "none") else key


def costs(results: pd.DataFrame) -> pd.DataFrame:
    """Defense, measure (a name of ``COSTS``, else the table's own), value, low, high, n."""
    rows = results[(results["role"] == "cost") & (results["attack"] == "") & (results["status"] == "ok")]
    return _over_seeds(rows.assign(measure=rows["metric"].replace(_COST_NAMES)), ["defense", "measure"])


def worst_profiles(results: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The record that each defense's worst reconstruction attack shows: what ``plots.reconstruction.reconstructions`` draws.

    Columns: defense, attack, view, key, feature, truth, guess. The first seed and target that
    have a drawing are taken, by number and not by outcome, the attack by the defense's worst case over all views without the key.
    """
    drawn = curves[curves["curve"].str.startswith("reconstruction:")]
    told = pd.Series(drawn["curve"].unique(), dtype=object)
    kinds = told.str.extract(r"^reconstruction:(?P<target>\d+):(?P<what>truth|guess)$").set_index(told)
    drawn = drawn.assign(target=drawn["curve"].map(kinds["target"]), what=drawn["curve"].map(kinds["what"]))
    drawn = drawn[drawn["what"].notna()]
    worst = worst_case(results[results["goal"] == "reconstruction"])
    worst = worst[(worst["key"] == WITHOUT) & worst["leakage"].notna()].sort_values("leakage", ascending=False, kind="stable")
    parts = []
    for case in each(worst.drop_duplicates("defense")):
        at = {"defense": case.defense, "attack": case.attack, "view": case.view, "key": case.attack_key}
        own = drawn[np.logical_and.reduce([drawn[name] == value for name, value in at.items()])]
        if own.empty:
            continue
        seed = own["seed"].min()
        own = own[(own["seed"] == seed) & (own["target"] == own.loc[own["seed"] == seed, "target"].min())]
        wide = own.pivot_table(index="x", columns="what", values="y", aggfunc="first")
        if {"truth", "guess"} <= set(wide.columns):
            parts.append(pd.DataFrame({**at, "feature": wide.index, "truth": wide["truth"], "guess": wide["guess"]}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[*_PROFILE])


def _over_seeds(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over seeds with its interval (``reports.intervals.over_seeds``); ``n`` counts seeds."""
    held = rows.groupby([*by, "seed"], sort=False)[["value", "low", "high"]].mean().reset_index()
    names, numbers = list(held[by].itertuples(index=False, name=None)), held[["value", "low", "high"]].to_numpy(float)
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    found = []
    for at, own in places.items():
        seeds = numbers[own]
        seeds = seeds[np.isfinite(seeds[:, 0])]
        low, high = over_seeds(seeds[:, 0], seeds[:, 1], seeds[:, 2])
        found.append((*at, float(seeds[:, 0].mean()) if len(seeds) else NAN, low, high, len(seeds)))
    return pd.DataFrame(found, columns=[*by, "value", "low", "high", "n"])


def key_order(key: str) -> tuple[float, str]:
    """No key, a wrong one, growing shares, the right one, a leaked one."""
    if key.startswith("partial:"):
        return (1 + float(key.removeprefix("partial:")), key)
    return ({WITHOUT: 0.0, "none": 0.0, "wrong": 0.5, "right": 3.0, "leaked": 4.0}.get(key, 5.0), key)
