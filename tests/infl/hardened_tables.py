"""The CSV files behind docs/hardened.md, out of finished runs of docs/hardened_utility.yaml, _standard.yaml and _collusion.yaml.

``utility`` sets ``infl:hardened`` beside FedAvg, paired over seeds: what it costs, what wrong keys open, and what the span of the first
layer tells. ``standard`` has the worst attacks of the standard ensembles, ``collusion`` what a site reads of the other's records. Intervals
are Student's t over seeds unless said. ``hardened_page`` makes the page's tables and picture of these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy import stats

from reports.intervals import clopper_pearson
from suites import transcript
from suites.bench import Bench
from suites.contracts import Threat
from suites.trial import Trial

PLAIN, OURS = "fedavg", "infl:hardened"
WRONG_KEYS = 20


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean and its 95 % interval; one value has none."""
    held = pd.Series(list(values), dtype=float)
    if len(held) < 2:
        return float(held.mean()), float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(held) - 1) * held.std(ddof=1) / len(held) ** 0.5)
    return float(held.mean()), float(held.mean()) - half, float(held.mean()) + half


def utility(folders: Iterable[Path]) -> pd.DataFrame:
    """One row a cohort and quantity, from the folders of runs."""
    rows: list[dict[str, Any]] = []
    for folder in folders:
        table = pd.read_parquet(folder / "results.parquet")
        table = table[table["status"] == "ok"]
        data, seeds = str(table["data"].iloc[0]), int(table["seed"].nunique())

        def add(quantity: str, defense: str, values: Iterable[float]) -> None:
            mean, low, high = interval(values)
            rows.append({"data": data, "seeds": seeds, "quantity": quantity, "defense": defense, "mean": mean, "low": low, "high": high})  # noqa: B023

        for metric in ("accuracy", "balanced_accuracy"):
            each = table[(table["role"] == "utility") & (table["metric"] == metric)].pivot(index="seed", columns="defense", values="value")
            add(metric, PLAIN, each[PLAIN])
            add(metric, OURS, each[OURS])
            add(f"{metric}: difference", f"{OURS} - {PLAIN}", each[OURS] - each[PLAIN])
        keys = table[(table["defense"] == OURS) & (table["attack"] == "open_with_wrong_keys")]
        add("accuracy with wrong keys", OURS, keys[keys["metric"] == "opened"]["value"])
        add("largest class", OURS, keys[keys["metric"] == "opened:majority"]["value"])
        add("balanced accuracy with wrong keys", OURS, balanced(folder))
        add("one over the classes", OURS, [1 / classes(folder)] * seeds)
        span = table[(table["attack"] == "span") & (table["metric"] == "auc")]
        for defense in (PLAIN, OURS):
            add("membership by the span, AUC", defense, span[span["defense"] == defense]["value"])
    return pd.DataFrame(rows)


def standard(results: Path, goal: str) -> pd.DataFrame:
    """Leakage by attack and defense; of a reconstruction also the share of records named, beside chance."""
    table = pd.read_parquet(results)
    data = str(table["data"].iloc[0])
    table = table[(table["status"] == "ok") & (table["goal"] == goal) & (table["role"].isin(["score", "control"]))]
    rows = []
    for (attack, defense), own in table.groupby(["attack", "defense"]):
        leakage = own[own["metric"] == "leakage"]
        mean, low, high = interval(leakage["value"])
        if len(leakage) == 1:  # of one seed: over its targets, where it has several
            low, high = (float(leakage[end].iloc[0]) for end in ("low", "high"))
        named = {name: float(own[own["metric"] == name]["value"].mean()) for name in ("reidentified", "chance_reidentified")}
        rows.append({"attack": attack, "defense": defense, "seeds": len(leakage), "leakage": mean, "low": low, "high": high, **named})
    return pd.DataFrame([{"data": data, "goal": goal, **row} for row in rows])


def _trained(folder: Path) -> Iterable[tuple[Bench, Path]]:
    for manifest in sorted((folder / "store" / "train").glob("*/cell.json")):
        spec = json.loads(manifest.read_text())["spec"]
        if spec["defense"] == OURS:
            yield Bench(spec, folder / "store" / "prepared"), manifest.parent


def classes(folder: Path) -> int:
    return next(iter(_trained(folder)))[0].prepared.pool.classes


def balanced(folder: Path) -> list[float]:
    """Balanced accuracy that twenty wrong keys open, a mean for each seed."""
    found = []
    for bench, place in _trained(folder):
        seen = Trial(bench, Threat(), place, []).seen
        final = transcript.load(place).finals[0]
        opened = [bench.utilities(bench.predict(seen.draw_key(index)), final)["balanced_accuracy"] for index in range(WRONG_KEYS)]
        found.append(float(torch.tensor(opened).mean()))
    return found


def collusion(results: Path) -> pd.DataFrame:
    """Records named by who looks at which defense, out of a run of docs/hardened_collusion.yaml.

    Records of all seeds are counted together, with the Clopper-Pearson interval of their share; ``cosine`` [-1, 1] is the guess's with the
    true record, a mean over seeds, since a key holder gets directions and not lengths.
    """
    table = pd.read_parquet(results)
    rows = []
    for (defense, attack, view, key), own in table[table["goal"] == "reconstruction"].groupby(["defense", "attack", "view", "key"]):
        named = own[(own["status"] == "ok") & (own["metric"] == "reidentified")]
        if named.empty:
            continue
        found, of = round(float((named["value"] * named["n"]).sum())), int(named["n"].sum())
        low, high = clopper_pearson(found, of)
        means = {name: float(own[own["metric"] == name]["value"].mean()) for name in ("chance_reidentified", "cosine")}
        place = {"data": own["data"].iloc[0], "defense": defense, "attack": attack, "view": view, "key": key, "seeds": len(named)}
        rows.append({**place, "named": found, "of": of, "share": found / of, "low": low, "high": high, **means})
    return pd.DataFrame(rows)
