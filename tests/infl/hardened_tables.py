"""The tables behind docs/hardened.md, out of finished runs of docs/hardened_utility.yaml and docs/hardened_standard.yaml.

``utility`` sets ``infl:hardened`` beside FedAvg, paired over seeds: what it costs, what wrong keys open, and what the span of the first
layer tells. ``standard`` has the worst attacks of the standard ensembles. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from infl.hardened import Hardened
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


ATTACKS = {"norms": "lengths", "gram_search": "inner products", "overlap": "redrawn batches", "known_plaintext": "20 known records"}


def page(limits: pd.DataFrame) -> str:
    """The first table of docs/hardened.md: share above chance by cohort, spread and N, with its binomial interval or that over seeds."""
    lines = [f"| cohort | c | N | {' | '.join(ATTACKS.values())} |", f"|{'---|' * (3 + len(ATTACKS))}"]
    for (name, spread, size), own in limits.groupby(["data", "spread", "records_behind"]):
        cells = []
        for attack in ATTACKS:
            runs = own[own["attack"] == attack]
            mean, low, high = interval(runs["share"])
            if len(runs) == 1:
                low, high = float(runs["low"].iloc[0]), float(runs["high"].iloc[0])
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]{f' ({len(runs)})' if len(runs) > 1 else ''}" if len(runs) else "-")
        lines.append(f"| {name} | {spread:g} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(limits: pd.DataFrame, known: pd.DataFrame, path: Path) -> None:
    """Share of records named above chance against N, a panel for each cohort, and against known records; worst attack without plaintext."""
    cohorts = list(dict.fromkeys(limits["data"]))
    figure = Figure(figsize=(4 * (len(cohorts) + 1), 3.4), layout="constrained")
    panels = figure.subplots(1, len(cohorts) + 1, sharey=True)
    spreads = sorted(limits["spread"].unique())
    colour = {spread: f"C{place}" for place, spread in enumerate(spreads)}
    keyless = limits[limits["attack"] != "known_plaintext"]
    for panel, name in zip(panels, cohorts):
        cells = keyless[keyless["data"] == name].groupby(["spread", "records_behind", "attack"])["share"].mean()
        for spread, own in cells.groupby(level=["spread", "records_behind"]).max().groupby(level="spread"):
            line = own.droplevel("spread").sort_index()
            panel.plot(line.index, line.to_numpy(), "o-", color=colour[spread], label=f"c = {spread:g}")
        panel.axvline(Hardened().minimum, color="0.6", linestyle=":")
        panel.set_xscale("log", base=2)
        panel.set_xlabel("N, records behind the smallest update")
        panel.set_title(f"{name}: no plaintext")
    for (spread, size), own in known.groupby(["spread", "records_behind"]):
        style = {1: "-", 16: "--"}.get(int(size), ":")
        panels[-1].plot(own["known"], own["share"], f"o{style}", color=colour[spread], label=f"c = {spread:g}, N = {size}")
    panels[-1].set_xlabel("records that the adversary knows")
    panels[-1].set_title("pbmc68k: known plaintexts")
    panels[0].set_ylabel("share named above chance")
    for panel in panels:
        panel.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
