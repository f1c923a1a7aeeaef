"""The table of docs/published.md: what ``infl:published`` leaks under attacks that know how it works, beside FedAvg on the same seeds.

``python -m tests.infl.published_tables OUT`` runs the quickstart suite with these two defenses and the attacks below (ten minutes on one
core; what is finished is not run again), writes docs/published.csv and puts its table into docs/published.md. Both defenses share data,
split, initialisation and batches of a seed, so their difference is paired. Intervals are Student's t over seeds.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd

from suites.api import run
from tests.infl.hardened_tables import interval

DOCS = Path(__file__).parents[2] / "docs"
PLAIN, OURS, DIFFERENCE = "fedavg", "infl:published", "difference"
SEEDS = 10
TITLES = {
    "closed_form": "reconstruction: closed form",
    "ladder": "reconstruction: ladder",
    "loss_threshold": "membership: loss",
    "lira": "membership: LiRA",
    "round_cosine": "membership: round cosine",
    "span": "membership: span",
    "matched_span": "membership: matched span",
    "blind": "membership: blind (control)",
    "key_vector": "key: its vector from one gradient",
    "key_vector:optimiser=sgd": "key: its vector from one SGD step",
    "open_without_key": "key: model opened without one",
    "open_with_wrong_keys": "key: model opened with wrong ones",
    "open_with_held_key": "key: model opened with the right one",
}
HELD = {"none": "", "leaked": ", key leaked"}
METRICS = {"leakage": "", "exact": ": exact", "reidentified": ": named"}  # the last two are shares of the records behind the messages
START, END = "<!-- leakage -->\n", "<!-- end of leakage -->"


def measure(out: Path, seeds: int = SEEDS) -> pd.DataFrame:
    """The table, out of a run of its own."""
    return tabulated(run("quickstart", out=out, workers=1, report=False, seeds=seeds, defenses=[PLAIN, OURS], attacks=[*TITLES]))


def tabulated(results: pd.DataFrame) -> pd.DataFrame:
    """One row an attack, key held, metric and defense (or their difference), from a run's results: mean over seeds with its interval."""
    ok = results[(results["status"] == "ok") & results["value"].notna()]
    scored = ok[ok["attack"].isin(TITLES) & ok["metric"].isin(METRICS) & ok["role"].isin(["score", "control"])]
    accuracy = ok[(ok["role"] == "utility") & (ok["metric"] == "accuracy")].assign(attack="", key="none", goal="utility")
    rows = []
    both = pd.concat([scored, accuracy])
    for (goal, attack, held, metric), own in both.groupby(["goal", "attack", "key", "metric"]):
        if held not in HELD:
            continue
        plain = both[(both["attack"] == attack) & (both["metric"] == metric) & (both["defense"] == PLAIN) & (both["key"] == "none")]
        sides = {PLAIN: plain.set_index("seed")["value"], OURS: own[own["defense"] == OURS].set_index("seed")["value"]}
        sides[DIFFERENCE] = (sides[OURS] - sides[PLAIN]).dropna()
        for defense, values in sides.items():
            if len(values):
                mean, low, high = interval(values)
                if metric != "leakage":  # of a share
                    low, high = max(low, -1.0 if defense == DIFFERENCE else 0.0), min(high, 1.0)
                place = {"goal": goal, "attack": attack, "key": held, "metric": metric, "defense": defense}
                rows.append({**place, "seeds": len(values), "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> str:
    """The page's table in Markdown."""
    lines = ["| attack | FedAvg | infl:published | difference |", "|---|---|---|---|"]
    rows = [(attack, held, metric) for attack in TITLES for held in HELD for metric in METRICS]
    for attack, held, metric in [*rows, ("", "none", "accuracy")]:
        own = found[(found["attack"].fillna("") == attack) & (found["key"] == held) & (found["metric"] == metric)].set_index("defense")
        if own.empty:
            continue
        title = f"{TITLES[attack]}{HELD[held]}{METRICS[metric]}" if attack else "accuracy of the model"
        lines.append(f"| {title} | {' | '.join(_said(own, defense) for defense in (PLAIN, OURS, DIFFERENCE))} |")
    return "\n".join(lines)


def _said(own: pd.DataFrame, defense: str) -> str:
    if defense not in own.index:
        return "no key" if defense == PLAIN else "-"
    mean, low, high = (float(own.loc[defense, name]) for name in ("mean", "low", "high"))
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000") if math.isfinite(mean) else "not resolvable"


def put(page: str, made: str) -> str:
    """The page with its table where its comments mark the place."""
    before, _, rest = page.partition(START)
    return f"{before}{START}{made}\n{END}{rest.partition(END)[2]}"


def write(found: pd.DataFrame) -> None:
    """docs/published.csv, and its table in docs/published.md."""
    found.round(5).to_csv(DOCS / "published.csv", index=False)
    page = DOCS / "published.md"
    page.write_text(put(page.read_text(encoding="utf-8"), table(pd.read_csv(DOCS / "published.csv"))), encoding="utf-8")


if __name__ == "__main__":
    write(measure(Path(sys.argv[1])))
