"""What the numbers say, in plain words: every sentence is made from the table, every number carries its interval and the number of seeds.

Nothing is called private. A defense whose interval reaches down to the controls is one from which these attacks took nothing that could be
told from guessing, at the budget they had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports import schema, words
from reports.beside_table import beside_sentences
from reports.plots.plane import allowed, front
from reports.plots.style import ordered
from reports.standing import NOT_ASKED, WRONG_KEYS, Threat, each, grouped, headline, limits, openings, standings, told, utilities
from reports.stats import paired_difference
from reports.worst import WITHOUT

REFERENCE = "fedavg"  # no defense at all
FOUND, COME_OUT = 0.1, 0.99  # relative error below, cosine above which a secret or a record counts as taken
Said = tuple[str, list[str]]  # a title and its sentences


PROBED = (
    "Reconstructed are the records behind the suite's probe messages (often a single record's gradient, sent through the whole defense): "
    "the worst that a site can send, not what it sends after epochs over all its records."
)


def verdict(results: pd.DataFrame, stands: Mapping[Threat, pd.DataFrame] | None = None) -> list[Said]:
    """What there is to say on utility, on each goal under each threat without the key, and on each key; empty without any result."""
    stands = standings(results) if stands is None else stands
    said = _utility(results)
    for (goal, view, key), table in stands.items():
        if key == WITHOUT and (table["note"] != NOT_ASKED).any():
            said.append(_leakage(table, goal, view))
    for name in ordered(openings(results)["defense"]):
        if found := key_findings(results, name):
            said.append((f"The key of {words.defense(name)}", found))
    return said


def _utility(results: pd.DataFrame) -> list[Said]:
    metric = headline(results)
    table = utilities(results, metric)
    if table.empty:
        return []
    _, _, floor, _ = limits(results)
    alone = f"; {words.floor(metric)} gives {words.number(floor)}" if math.isfinite(floor) else ""
    if REFERENCE not in set(table["defense"]):
        best = table.sort_values("value", ascending=False, kind="stable").iloc[0]
        return [
            (
                "Utility",
                [
                    f"Most useful is {words.defense(best['defense'])}: {words.metric(metric)} {_with_seeds(best)}{alone}.",
                    *beside_sentences(results),
                ],
            )
        ]
    base = table[table["defense"] == REFERENCE].iloc[0]
    gaps = paired(results, REFERENCE, metric)
    known = gaps["low"].notna()
    lines = [f"{words.defense(REFERENCE)} (no defense) reaches {words.metric(metric)} {_with_seeds(base)}{alone}."]
    for title, part in (
        ("Less useful, seed by seed", gaps[known & (gaps["high"] < 0)]),
        ("More useful", gaps[known & (gaps["low"] > 0)]),
        ("No difference beyond the interval", gaps[known & (gaps["high"] >= 0) & (gaps["low"] <= 0)]),
        ("Difference on one seed, without an interval", gaps[~known]),
    ):
        lines += _listed(title, [(words.defense(g.defense), _signed(g), g.n) for g in each(part)])
    return [("Utility", [*lines, *beside_sentences(results)])]


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


def _leakage(table: pd.DataFrame, goal: str, view: str) -> Said:
    title = f"{words.GOALS.get(goal, goal)}: seen by {words.SEES.get(view, view)}, without the key"
    known = table[table["leakage"].notna()].sort_values("leakage", ascending=False, kind="stable")
    if known.empty:
        reasons = dict.fromkeys(note for note in table["note"] if note and note != NOT_ASKED)
        return title, [f"No attack applied to any defense ({'; '.join(reasons)})." if reasons else "No attack applied to any defense."]
    low, heard = known["leakage_low"], known["silent"] == ""
    lines = [PROBED] if goal == "reconstruction" else []
    for lead, part, named in (
        ("The worst attack takes more than guessing does", known[low > 0], True),
        ("Not told from guessing by these attacks", known[heard & (low <= 0) & known["best"].isna()], False),
        ("No attack does better than guessing", known[heard & known["best"].notna()], False),
        ("Without an interval", known[heard & low.isna()], True),
    ):
        rows = [(words.defense(r.defense), told(r) + (f" ({words.attack(r.attack)})" if named else ""), r.leakage_n) for r in each(part)]
        lines += _listed(lead, rows)
    lines += _unmeasured(table)
    placed = known[heard & known["utility"].notna()].reset_index(drop=True)
    if len(placed) > 2:
        best = [
            words.defense(str(placed.at[i, "defense"])) for i in front(placed["leakage"].to_numpy(float), placed["utility"].to_numpy(float))
        ]
        lines.append(
            f"By their means, no other defense beats these on utility and leakage at once: {', '.join(best)}; where intervals overlap, "
            "the order may be chance."
        )
    return title, lines


def _unmeasured(table: pd.DataFrame) -> list[str]:
    """Defenses on which no attack that works was tried: a number is there and means nothing, or there is none."""
    lines = []
    for why, part in table[table["silent"] != ""].groupby("silent", sort=False):
        named = "; ".join(f"{words.defense(r.defense)} {told(r)}" for r in each(part))
        lines.append(f"Not measured: {why}, so the silence means nothing: {named}.")
    missing = grouped(table[table["leakage"].isna() & (table["note"] != NOT_ASKED)])
    return [*lines, *(f"Not measured: {', '.join(names)}; {why}." for why, names in missing.items())]


def _listed(lead: str, rows: list[tuple[str, str, float]]) -> list[str]:
    """``lead: name number; …`` with the number of seeds once where all share it."""
    if not rows:
        return []
    counts = {int(n) for _, _, n in rows}
    if len(counts) == 1:
        each = "" if len(rows) == 1 else " each"
        return [f"{lead}: {'; '.join(f'{name} {text}' for name, text, _ in rows)}; n = {_seeds(counts.pop())}{each}."]
    return [f"{lead}: {'; '.join(f'{name} {text} (n = {_seeds(n)})' for name, text, n in rows)}."]


def key_findings(results: pd.DataFrame, defense: str) -> list[str]:
    """What wrong keys, one update and the first layer give away of one keyed defense, each a sentence with its numbers."""
    own = results[(results["defense"] == defense) & (results["status"] == "ok")]
    said = []
    wrong, nothing = wrong_key(own), words.floor(headline(results))
    if wrong is not None:
        said.append(
            f"A wrong key {_opens(wrong, nothing)}. Its utility minus the right key's, paired by seed, is "
            f"{words.interval(wrong['difference'], wrong['low'], wrong['high'])} (n = {_seeds(wrong['n'])}): "
            f"wrong keys open {words.number(wrong['wrong'])}, the right key {words.number(wrong['right'])}, "
            f"{nothing} {words.number(wrong['majority'])}."
        )
    errors = own[(own["goal"] == "key") & own["metric"].str.startswith("relative_error") & (own["key"].isin(schema.HEADLINE_KEYS))]
    single = errors.groupby(["attack", "view"])["metric"].transform("nunique") == 2  # the one tensor, and all of them: the same
    for (attack, view, metric), part in errors[~single | (errors["metric"] == "relative_error")].groupby(
        ["attack", "view", "metric"], sort=False
    ):
        what = "" if metric == "relative_error" else f" ({str(metric).removeprefix('relative_error:').replace('_', ' ')})"
        values = part.groupby("seed")["value"].mean()
        if values.notna().any():
            found = "finds" if float(values.max()) < FOUND else "does not find"
            said.append(
                f"{words.attack(str(attack))}, seen by the {words.VIEWS.get(str(view), view)}, {found} the secret-derived key "
                f"tensors{what}: relative error "
                f"{_small(float(values.mean()))}, at most {_small(float(values.max()))} (n = {_seeds(len(values))}, no key held)."
            )
    inputs = own[(own["goal"] == "reconstruction") & (own["metric"] == "cosine") & (own["role"] == "score") & (own["key"] == "none")]
    for (attack, view), part in inputs.groupby(["attack", "view"], sort=False):
        values = part.groupby("seed")["value"].mean().dropna()
        if len(values) and str(attack).startswith("closed_form"):
            come = "come" if float(values.min()) > COME_OUT else "do not come"
            said.append(
                f"Inputs {come} out of the first layer with no key: cosine to the true record {float(values.mean()):.5f}, at least "
                f"{float(values.min()):.5f} in every seed (n = {_seeds(len(values))}, {words.attack(str(attack))}, "
                f"{words.VIEWS.get(str(view), view)})."
            )
    return said


def _opens(wrong: dict[str, float], nothing: str) -> str:
    room = wrong["right"] - wrong["majority"]
    share = (wrong["wrong"] - wrong["majority"]) / room if room > 0 else math.nan
    within = ", within the interval as far as the right key" if wrong["low"] <= 0 <= wrong["high"] else ""
    if not math.isfinite(share):
        return f"cannot be judged: the right key itself opens no more than {nothing}"
    if share >= 0.95:
        return f"opens the model{within}"
    return f"opens {share:.0%} of what the right key opens above {nothing}{within}" if share >= 0.05 else "does not open the model"


def wrong_key(own: pd.DataFrame) -> dict[str, float] | None:
    """Utility opened by wrong keys minus that of the right key on the same seeds, of one defense's rows."""
    rows = own[(own["goal"] == "key") & own["key"].isin(schema.HEADLINE_KEYS) & (own["status"] == "ok")]
    many = rows["attack"].eq(WRONG_KEYS)
    rows = rows[many] if many.any() else rows[(rows["key"] == "wrong") & ~rows["attack"].str.startswith("open_without_key")]
    if not {"opened", "opened:right_key"} <= set(rows["metric"]):
        return None
    pair = rows[rows["metric"].isin(["opened", "opened:right_key"])].assign(role="score")
    pair = pair.assign(side=pair["metric"], metric="opened", key="wrong")
    gap = paired_difference(pair, {"side": "opened"}, {"side": "opened:right_key"}, "opened")
    if gap.empty:
        return None
    means = rows.groupby("metric")["value"].mean()
    row = gap.iloc[0]
    return {
        "difference": float(row["difference"]), "low": float(row["low"]), "high": float(row["high"]), "n": float(row["n_seeds"]),
        "wrong": float(means["opened"]), "right": float(means["opened:right_key"]),
        "majority": float(means.get("opened:majority", math.nan)),
    }  # fmt: skip


def contradictions(stands: Mapping[Threat, pd.DataFrame]) -> list[str]:
    """Measurements that a claim does not allow: either the claim or the measurement is wrong."""
    said = []
    for (goal, view, key), table in stands.items():
        if goal != "membership" or key != WITHOUT:
            continue
        for row in each(table):
            if not math.isfinite(row.epsilon) or not math.isfinite(row.leakage_low):
                continue
            ceiling = allowed(row.epsilon, row.delta if math.isfinite(row.delta) else 0.0)
            if row.leakage_low > ceiling:
                said.append(
                    f"{words.defense(row.defense)} claims ε {row.epsilon:.3g}, which allows a membership leakage of "
                    f"{words.number(ceiling)} at most, but {told(row)} "
                    f"was measured ({words.attack(row.attack)}, {words.threat(view, key)}): the claim or the measurement is wrong."
                )
    return said


def _with_seeds(row: pd.Series[Any]) -> str:
    return f"{words.interval(row['value'], row['low'], row['high'])} (n = {_seeds(row['n'])})"


def _signed(gap: Any) -> str:
    text = words.interval(gap.difference, gap.low, gap.high)
    return f"{'+' if gap.difference > 0 else ''}{text}"


def _seeds(count: float) -> str:
    return f"{int(count)} seed{'' if int(count) == 1 else 's'}"


def _small(value: float) -> str:
    return words.scientific(value) if abs(value) < 0.01 else words.number(value)
