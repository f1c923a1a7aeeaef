"""The report's tables: each one as numbers (CSV), as a reader sees it (HTML) and for a paper (TeX)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from reports import words
from reports.calibration import AREA, ERROR, SCORE
from reports.plots.plane import allowed
from reports.plots.style import ordered
from reports.standing import COSTS, NAN, Threat, claims, costs, each, told, utilities
from reports.worst import WITHOUT

_TEX: Final = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_TEX_SIGNS: Final = {
    "\\": r"\textbackslash{}", "ε": r"$\varepsilon$", "δ": r"$\delta$", "σ": r"$\sigma$", "≤": r"$\leq$",
    "\N{MINUS SIGN}": "$-$", "–": "--", "²": "$^2$", "·": r"$\cdot$",
    "\N{NO-BREAK SPACE}": "~",     "×": r"$\times$", "µ": r"$\mu$", "₀": "$_0$",
} | {sign: f"$^{{{plain}}}$" for sign, plain in zip("⁻⁰¹³⁴⁵⁶⁷⁸⁹", "-013456789", strict=True)}  # fmt: skip


_WORKS: Final = "shown to work on FedAvg"
_MEANS_NOTHING: Final = "silence that means nothing"


@dataclass(frozen=True, slots=True)
class Table:
    """``data`` holds numbers, ``shown`` the same in words; ``numeric`` names the columns of ``shown`` that are set to the right."""

    name: str
    caption: str
    data: pd.DataFrame
    shown: pd.DataFrame
    numeric: tuple[str, ...] = ()


def save(table: Table, folder: Path) -> None:
    """``table`` as CSV (UTF-8, all digits), as a booktabs table in TeX and as Markdown."""
    table.data.to_csv(folder / f"{table.name}.csv", index=False, lineterminator="\n")
    (folder / f"{table.name}.tex").write_text(tex(table), encoding="utf-8")
    (folder / f"{table.name}.md").write_text(markdown(table), encoding="utf-8")


def markdown(table: Table) -> str:
    """A pipe table, as GitHub and pandoc read it."""
    lines = [list(map(str, table.shown.columns)), ["---:" if c in table.numeric else "---" for c in table.shown.columns]]
    lines += [[str(value) for value in row] for row in table.shown.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) + " |" for line in lines) + "\n"


def tex(table: Table) -> str:
    """A ``table`` environment for LaTeX with the package booktabs."""
    spec = "".join("r" if column in table.numeric else "l" for column in table.shown.columns)
    lines = [_tex_row(table.shown.columns), r"\midrule", *(_tex_row(row) for row in table.shown.itertuples(index=False, name=None))]
    body = "\n".join(lines)
    head = f"\\begin{{table}}\n\\caption{{{_tex(table.caption)}}}\n\\begin{{tabular}}{{{spec}}}\n\\toprule\n"
    return f"{head}{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"


def _tex_row(values: Iterable[Any]) -> str:
    return " & ".join(_tex(str(value)) for value in values) + r" \\"


def _tex(text: str) -> str:
    signs = _TEX | _TEX_SIGNS
    return "".join(signs.get(letter, letter) for letter in text).replace("\n", " ")


def utility_table(results: pd.DataFrame, name: str) -> Table:
    """Every utility metric of every defense, mean over seeds with its interval."""
    data = utilities(results)
    metrics = list(dict.fromkeys(data["metric"]))
    floors = {str(m): float(v) for m, v in results[results["metric"].str.endswith(":floor")].groupby("metric")["value"].mean().items()}
    rows = []
    for defense in _in_order(data):
        own = data[data["defense"] == defense].set_index("metric")
        rows.append(
            {"Defense": words.defense(defense)} | {words.metric(m): _stated(own, m) for m in metrics} | {"seeds": str(int(own["n"].max()))}
        )
    if floors:
        rows.append(
            {"Defense": words.floor(metrics[0] if metrics else "").removeprefix("the ")}
            | {words.metric(m): words.number(floors.get(f"{m}:floor", NAN)) for m in metrics}
            | {"seeds": words.MISSING}
        )
    shown = pd.DataFrame(rows, columns=["Defense", *(words.metric(m) for m in metrics), "seeds"])
    return Table(name, "Utility on test records, mean over seeds with 95 % intervals", data, shown, tuple(shown.columns[1:]))


def leakage_table(stands: Mapping[Threat, pd.DataFrame], name: str) -> Table:
    """Worst-case leakage of every defense under every threat that was asked for."""
    parts, columns = [], {}
    silent: dict[str, dict[str, None]] = {}
    for (goal, view, key), part in stands.items():
        parts.append(part.assign(goal=goal, view=view, key=key))
        for row in each(part[part["silent"] != ""]):
            silent.setdefault(row.defense, {})[f"{words.GOALS.get(goal, goal)}, {words.VIEWS.get(view, view)}: {row.silent}"] = None
        columns[f"{words.GOALS.get(goal, goal)}: {words.threat(view, key)}"] = {row.defense: _leak(row) for row in each(part)}
    data = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    names = list(dict.fromkeys(data["defense"])) if len(data) else []
    shown = pd.DataFrame(
        [
            {"Defense": words.defense(n)}
            | {title: column.get(n, words.MISSING) for title, column in columns.items()}
            | ({_MEANS_NOTHING: "; ".join(silent.get(n, {})) or words.MISSING} if silent else {})
            for n in names
        ]
    )
    caption = "Worst-case leakage, 95 % intervals over seeds, and the attack behind it: 0 is what the controls reach, 1 is the truth"
    return Table(name, caption, data, shown)


def claims_table(results: pd.DataFrame, stands: Mapping[Threat, pd.DataFrame], name: str) -> Table | None:
    """What a defense promises beside what was measured; None where nobody promises a number."""
    held = claims(results)
    if held.empty:
        return None
    measured = {
        goal: [table.set_index("defense") for (what, _, key), table in stands.items() if what == goal and key == WITHOUT]
        for goal in ("membership", "reconstruction")
    }
    audited = _audited(results)
    rows, shown = [], []
    for row in each(held):
        ceiling = allowed(row.epsilon, row.delta if math.isfinite(row.delta) else 0.0) if math.isfinite(row.epsilon) else NAN
        sites = " ".join(f"{value:.6g}" for value in row.per_site)
        found = {"defense": row.defense, "epsilon": row.epsilon, "delta": row.delta, "per_site": sites, "allowed_leakage": ceiling}
        seen = {"Defense": words.defense(row.defense), "claimed ε (maximum)": words.number(row.epsilon, 2)}
        seen["at each site"] = ", ".join(words.number(value, 2) for value in row.per_site) or words.MISSING
        if audited:
            found["audited_epsilon"] = audited.get(row.defense, NAN)
            seen["audited ε at least"] = words.number(found["audited_epsilon"], 2)
        seen["allows membership leakage"] = "≤ " + words.number(ceiling) if math.isfinite(ceiling) else words.MISSING
        for goal, views in measured.items():
            cases: list[Any] = [table.loc[row.defense] for table in views]
            known = [case for case in cases if math.isfinite(case["leakage"])]
            heard = [case for case in known if not case["silent"]]
            worst = max(heard, key=lambda case: float(case["leakage"]), default=None)
            ends = (NAN, NAN, NAN) if worst is None else (worst["leakage"], worst["leakage_low"], worst["leakage_high"])
            found |= dict(zip((f"{goal}_leakage", f"{goal}_leakage_low", f"{goal}_leakage_high"), ends, strict=True))
            seen[f"measured {goal} leakage"] = "not measured" if known and not heard else words.interval(*ends)
        rows.append(found | {"words": row.words})
        shown.append(seen)
    caption = "Claims beside measurements. A claim bounds every attack there could be; a measurement is what these attacks did reach"
    frame = pd.DataFrame(shown)
    return Table(name, caption, pd.DataFrame(rows), frame, tuple(c for c in frame.columns if c != "Defense"))


def _audited(results: pd.DataFrame) -> dict[str, float]:
    """For each defense the lower bound on epsilon of the audit that finds most, mean over seeds; no ceiling, as an attack is none."""
    bounds = results[(results["metric"] == "epsilon_lower") & (results["role"] == "score") & results["value"].notna()]
    means = bounds.groupby(["defense", "attack", "view", "key"])["value"].mean()
    return {str(name): float(value) for name, value in means.groupby(level="defense").max().items()}


def claim_sentences(results: pd.DataFrame) -> list[str]:
    """What each defense promises, in its own words."""
    return [f"{words.defense(row.defense)}: {row.words}" for row in each(claims(results)) if row.words]


def cost_table(results: pd.DataFrame, name: str) -> Table:
    """Seconds, memory, arithmetic and traffic, and whatever else was measured as a cost."""
    data = costs(results)
    measures = [m for m in COSTS if m in set(data["measure"])] + [m for m in dict.fromkeys(data["measure"]) if m not in COSTS]
    rows = []
    for defense in _in_order(data):
        own = data[data["defense"] == defense].set_index("measure")
        rows.append({"Defense": words.defense(defense)} | {_cost_title(m): _amount(own, m) for m in measures})
    shown = pd.DataFrame(rows, columns=["Defense", *(_cost_title(m) for m in measures)])
    return Table(name, "Cost of training one federation, mean over seeds", data, shown, tuple(shown.columns[1:]))


def scores_table(summary: pd.DataFrame, name: str) -> Table:
    """All means over seeds (``reports.stats.summarise``), one row a defense, attack, threat and metric: the long form."""
    columns = ["defense", "attack", "goal", "view", "key", "metric", "value", "low", "high", "n", "n_seeds", "role", "reason"]
    data = summary.loc[summary["status"] == "ok", columns].reset_index(drop=True)
    shown = data.drop(columns="reason").assign(**{c: [words.number(v, 4) for v in data[c]] for c in ("value", "low", "high")})
    return Table(name, "Every metric of every attack, mean over seeds", data, shown.astype(str), ("value", "low", "high", "n", "n_seeds"))


EXPOSURE = "r2:exposure="


def attack_table(
    summary: pd.DataFrame, goal: str, metrics: tuple[str, ...], name: str, power: Mapping[tuple[str, str, str], bool] | None = None
) -> Table | None:
    """Some metrics of every attack and control of one goal, a row a defense, attack and threat.

    With ``power`` (``reports.power.powers``) a column says whether the attack takes anything on FedAvg, where nothing protects.
    """
    data = summary[(summary["goal"] == goal) & summary["metric"].isin(metrics) & (summary["status"] == "ok")]
    if data.empty:
        return None
    present = [m for m in metrics if m in set(data["metric"])]
    shown = []
    for (defense, attack, view, key), own in data.groupby(["defense", "attack", "view", "key"], sort=False):
        line = {"Defense": words.defense(str(defense)), "attack": words.attack(str(attack)), "threat": words.threat(str(view), str(key))}
        if power is not None:
            works = power.get((goal, str(view), str(attack))) if "score" in set(own["role"]) else None
            line[_WORKS] = words.MISSING if works is None else "yes" if works else "no"
        held = own.drop_duplicates("metric").set_index("metric")
        shown.append(line | {words.metric(m): _reasoned(held, m) for m in present})
    frame = pd.DataFrame(shown)
    caption = f"{words.GOALS.get(goal, goal)}: every attack and control, mean over seeds with 95 % intervals"
    return Table(name, caption, data, frame, tuple(c for c in frame.columns[3:] if c != _WORKS))


def confidence_table(summary: pd.DataFrame, name: str) -> Table | None:
    """Whether an attack knows which of its reconstructions are right (``reports.calibration``); None where no cell could tell."""
    metrics = (AREA, ERROR, f"{ERROR}:perfect", SCORE, f"{SCORE}:share_alone")
    if not (summary["metric"].isin(metrics) & summary["value"].notna()).any():
        return None
    table = attack_table(summary, "reconstruction", metrics, name)
    return table and replace(table, caption="Confidence of reconstructions, calibrated on the other seeds, with 95 % intervals over seeds")


def exposure_table(summary: pd.DataFrame, name: str) -> Table | None:
    """R² of reconstructions at each checkpoint that was attacked, by the records that a site had trained on; None where it was one."""
    asked = [str(metric) for metric in dict.fromkeys(summary["metric"]) if str(metric).startswith(EXPOSURE)]
    metrics = tuple(sorted(asked, key=lambda metric: float(metric.removeprefix(EXPOSURE))))
    table = attack_table(summary, "reconstruction", metrics, name) if metrics else None
    return table and replace(table, caption="Reconstruction (R²) by exposure: the records that a site had trained on when it answered")


def missing_table(results: pd.DataFrame, name: str) -> Table | None:
    """Cells that were skipped or failed, gathered by reason."""
    rows = results[results["status"] != "ok"]
    if rows.empty:
        return None
    found = []
    for (status, reason), own in rows.groupby(["status", "reason"], sort=False):
        attacks = ", ".join(words.attack(a) for a in dict.fromkeys(own["attack"]) if a) or "training"
        defenses = ", ".join(words.defense(d) for d in dict.fromkeys(own["defense"]))
        held = own[["view", "key"]].drop_duplicates()
        where = "; ".join(words.threat(v, k) for v, k in each(held) if v)
        found.append({"status": status, "attack": attacks, "threat": where, "defense": defenses, "reason": reason, "cells": len(own)})
    data = pd.DataFrame(found)
    return Table(name, "Skipped and failed cells, by reason", data, data.astype(str), ("cells",))


def _in_order(data: pd.DataFrame) -> list[str]:
    return ordered(data["defense"])


def _stated(own: pd.DataFrame, metric: str) -> str:
    return words.interval(*own.loc[metric, ["value", "low", "high"]]) if metric in own.index else words.MISSING


def _reasoned(own: pd.DataFrame, metric: str) -> str:
    if metric in own.index and pd.isna(own["value"][metric]) and "not resolvable" in str(own.at[metric, "reason"]):
        return "not resolvable"
    return _stated(own, metric)


def _leak(row: Any) -> str:
    if not math.isfinite(row.leakage):
        return words.MISSING
    text = told(row) + ("" if math.isfinite(row.best) else f" {words.attack(row.attack)}")
    return f"not measured ({text})" if row.silent else text


def _cost_title(measure: str) -> str:
    return COSTS[measure][0].replace("\n", " ").lower() if measure in COSTS else words.metric(measure)


def _amount(own: pd.DataFrame, measure: str) -> str:
    if measure not in own.index:
        return words.MISSING
    unit = COSTS[measure][1] if measure in COSTS else ""
    value, low, high = (float(own[column][measure]) for column in ("value", "low", "high"))
    exact = not (math.isfinite(low) and high > low)
    return words.amount(value, unit) + ("" if exact else f" [{words.amount(max(low, 0.0), unit)}, {words.amount(high, unit)}]")
