"""What the numbers say, in plain words: every sentence is made from the table, every number carries its interval and the number of seeds.

Nothing is called private. A defense whose interval reaches down to the controls is one from which these attacks took nothing that could be
told from guessing, at the budget they had.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from reports import schema, words
from reports.plots.plane import allowed, front
from reports.standing import headline, limits, openings, standing, threats, utilities
from reports.stats import paired_difference
from reports.worst import WITHOUT

REFERENCE = "fedavg"  # no defense at all


def verdict(results: pd.DataFrame) -> list[str]:
    """Sentences on utility, on each goal under each threat without the key, and on what stands out; empty without any result."""
    said = _utility(results)
    for goal, view, key in threats(results):
        if key == WITHOUT:
            said += _leakage(results, goal, view)
    return said + _keys(results) + _front(results)


def _utility(results: pd.DataFrame) -> list[str]:
    metric = headline(results)
    table = utilities(results, metric)
    if table.empty:
        return []
    _, _, floor, _ = limits(results)
    alone = f" The largest class alone gives {words.number(floor)}." if math.isfinite(floor) else ""
    if REFERENCE not in set(table["defense"]):
        best = table.sort_values("value", ascending=False, kind="stable").iloc[0]
        return [f"Most useful is {words.defense(best['defense'])} with {words.metric(metric)} {_with_seeds(best)}.{alone}"]
    base = table[table["defense"] == REFERENCE].iloc[0]
    gaps = paired(results, REFERENCE, metric)
    worse = [f"{words.defense(g.defense)} {_signed(g)}" for g in gaps.itertuples(index=False) if g.high < 0]
    better = [f"{words.defense(g.defense)} {_signed(g)}" for g in gaps.itertuples(index=False) if g.low > 0]
    level = [words.defense(g.defense) for g in gaps.itertuples(index=False) if not g.high < 0 and not g.low > 0]
    text = f"Utility: {words.defense(REFERENCE)} reaches {words.metric(metric)} {_with_seeds(base)}.{alone}"
    text += f" Against it, seed by seed: less with {', '.join(worse)}." if worse else ""
    text += f" More with {', '.join(better)}." if better else ""
    text += f" No difference beyond the interval with {', '.join(level)}." if level else ""
    return [text]


def paired(results: pd.DataFrame, reference: str, metric: str) -> pd.DataFrame:
    """Defense, difference, low, high, n of a utility metric against one defense on the same seeds."""
    rows = results[(results["metric"] == metric) & (results["role"] == "utility")]
    found = []
    for name in [n for n in utilities(results, metric)["defense"] if n != reference]:
        gap = paired_difference(rows, {"defense": name}, {"defense": reference}, metric)
        if len(gap):
            row = gap.iloc[0]
            found.append(
                {"defense": name, "difference": row["difference"], "low": row["low"], "high": row["high"], "n": int(row["n_seeds"])}
            )
    return pd.DataFrame(found, columns=["defense", "difference", "low", "high", "n"])


def _leakage(results: pd.DataFrame, goal: str, view: str) -> list[str]:
    table = standing(results, goal, view, WITHOUT)
    known = table[table["leakage"].notna()].sort_values("leakage", ascending=False, kind="stable")
    title = f"{words.GOALS.get(goal, goal)}, seen by {words.SEES.get(view, view)}, without the key"
    if known.empty:
        return [f"{title}: no attack applied to any defense."]
    leaks, quiet, unsure = [], [], []
    for row in known.itertuples(index=False):
        text = f"{words.defense(row.defense)} {_of(row)}"
        if not math.isfinite(row.leakage_low):
            unsure.append(text)
        elif row.leakage_low > 0:
            leaks.append(f"{text} through {words.attack(row.attack)}")
        else:
            quiet.append(text)
    sentences = [f"{title} (0 is guessing without looking, 1 is the truth)"]
    sentences += [f"the worst attack takes {'; '.join(leaks)}"] if leaks else []
    sentences += [f"nothing that can be told from guessing, with these attacks, from {'; '.join(quiet)}"] if quiet else []
    sentences += [f"without an interval, since one repeat gives none: {'; '.join(unsure)}"] if unsure else []
    missing = table[table["leakage"].isna() & (table["note"] != "no attack was asked for")]
    sentences += [f"not measured: {', '.join(words.defense(name) for name in missing['defense'])}"] if len(missing) else []
    return [f"{sentences[0]}: {'. '.join(s[0].upper() + s[1:] for s in sentences[1:])}."]


def _keys(results: pd.DataFrame) -> list[str]:
    said = []
    for name in dict.fromkeys(openings(results)["defense"]):
        said += [line for line in key_findings(results, name) if line]
    return said


def key_findings(results: pd.DataFrame, defense: str) -> list[str]:
    """What wrong keys, one update and the first layer give away of one keyed defense, each a sentence with its numbers."""
    own = results[(results["defense"] == defense) & (results["status"] == "ok")]
    name = words.defense(defense)
    said = []
    wrong = wrong_key(own)
    if wrong is not None:
        opens = "opens" if wrong["low"] <= 0 <= wrong["high"] or wrong["difference"] >= 0 else "does not fully open"
        said.append(
            f"{name}: a wrong key {opens} the model. Its utility minus the right key's, paired by seed, is "
            f"{words.interval(wrong['difference'], wrong['low'], wrong['high'])} (n = {_seeds(wrong['n'])}); "
            f"wrong keys open {words.number(wrong['wrong'])}, the right key {words.number(wrong['right'])}, the largest class alone {words.number(wrong['majority'])}."
        )
    errors = own[(own["goal"] == "key") & own["metric"].str.startswith("relative_error") & (own["key"].isin(schema.HEADLINE_KEYS))]
    for (attack, view, metric), part in errors.groupby(["attack", "view", "metric"], sort=False):
        what = "" if metric == "relative_error" else f" ({str(metric).removeprefix('relative_error:').replace('_', ' ')})"
        values = part.groupby("seed")["value"].mean()
        if values.notna().any():
            said.append(
                f"{name}: {words.attack(str(attack))}, seen by the {words.VIEWS.get(str(view), view)}, finds the secret-derived key tensors{what} with relative error "
                f"{_small(float(values.mean()))}, at most {_small(float(values.max()))} (n = {_seeds(len(values))}, no key held)."
            )
    inputs = own[(own["goal"] == "reconstruction") & (own["metric"] == "cosine") & (own["role"] == "score") & (own["key"] == "none")]
    for (attack, view), part in inputs.groupby(["attack", "view"], sort=False):
        values = part.groupby("seed")["value"].mean().dropna()
        if len(values) and str(attack).startswith("closed_form"):
            said.append(
                f"{name}: inputs come out of the first layer with no key: cosine to the true record {float(values.mean()):.5f}, at least "
                f"{float(values.min()):.5f} in every seed (n = {_seeds(len(values))}, {words.attack(str(attack))}, {words.VIEWS.get(str(view), view)})."
            )
    return said


def wrong_key(own: pd.DataFrame) -> dict[str, float] | None:
    """Utility opened by wrong keys minus that of the right key on the same seeds, of one defense's rows."""
    rows = own[(own["goal"] == "key") & (own["key"] == "wrong") & (own["status"] == "ok")]
    if not {"opened", "opened:right_key"} <= set(rows["metric"]):
        return None
    pair = rows[rows["metric"].isin(["opened", "opened:right_key"])].assign(role="score")
    pair = pair.assign(side=pair["metric"], metric="opened")
    gap = paired_difference(pair, {"side": "opened"}, {"side": "opened:right_key"}, "opened")
    if gap.empty:
        return None
    means = rows.groupby("metric")["value"].mean()
    row = gap.iloc[0]
    return {
        "difference": float(row["difference"]), "low": float(row["low"]), "high": float(row["high"]), "n": float(row["n_seeds"]),
        "wrong": float(means["opened"]), "right": float(means["opened:right_key"]), "majority": float(means.get("opened:majority", math.nan)),
    }  # fmt: skip


def _front(results: pd.DataFrame) -> list[str]:
    said = []
    for goal, view, key in threats(results):
        table = standing(results, goal, view, key)
        table = table[table["leakage"].notna() & table["utility"].notna()].reset_index(drop=True)
        if key != WITHOUT or len(table) < 3:
            continue
        best = [words.defense(table.at[i, "defense"]) for i in front(table["leakage"].to_numpy(float), table["utility"].to_numpy(float))]
        said.append(
            f"{words.GOALS.get(goal, goal)}, {words.threat(view, key)}: by their means, no other defense beats {', '.join(best)} on utility and leakage at once."
        )
    return said


def contradictions(results: pd.DataFrame) -> list[str]:
    """Measurements that a claim does not allow: either the claim or the measurement is wrong."""
    said = []
    for goal, view, key in threats(results):
        if goal != "membership" or key != WITHOUT:
            continue
        for row in standing(results, goal, view, key).itertuples(index=False):
            if not math.isfinite(row.epsilon) or not math.isfinite(row.leakage_low):
                continue
            ceiling = allowed(row.epsilon, row.delta if math.isfinite(row.delta) else 0.0)
            if row.leakage_low > ceiling:
                said.append(
                    f"{words.defense(row.defense)} claims ε {row.epsilon:.3g}, which allows a membership leakage of {words.number(ceiling)} at most, but {_of(row)} "
                    f"was measured ({words.attack(row.attack)}, {words.threat(view, key)}): the claim or the measurement is wrong."
                )
    return said


def _of(row: Any) -> str:
    return f"{words.interval(row.leakage, row.leakage_low, row.leakage_high, 2)} (n = {_seeds(row.leakage_n)})"


def _with_seeds(row: pd.Series[Any]) -> str:
    return f"{words.interval(row['value'], row['low'], row['high'])} (n = {_seeds(row['n'])})"


def _signed(gap: Any) -> str:
    text = words.interval(gap.difference, gap.low, gap.high)
    return f"{'+' if gap.difference > 0 else ''}{text} (n = {_seeds(gap.n)})"


def _seeds(count: float) -> str:
    return f"{int(count)} seed{'' if int(count) == 1 else 's'}"


def _small(value: float) -> str:
    return words.scientific(value) if abs(value) < 0.01 else words.number(value)
