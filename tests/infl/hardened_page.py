"""The tables and the picture of docs/hardened.md, out of the CSV files beside it: ``python -m tests.infl.hardened_page`` (seconds).

The files are made by ``hardened_limits`` (hardened.csv, hardened_known.csv) and ``hardened_tables`` (the others), whose commands the page
names.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from infl.hardened import Hardened
from tests.infl import hardened_rotation, keyed_features
from tests.infl.hardened_limits import ALONE
from tests.infl.hardened_tables import OURS, PLAIN, interval

DOCS = Path(__file__).parents[2] / "docs"
FIRST = "pbmc68k"
ATTACKS = {
    "norms": "lengths",
    "gram_search": "inner products",
    "overlap": "redrawn batches",
    "known_plaintext": "20 known records",
}
LIFTED = "infl:hardened:minimum=1"  # as the collusion suite has it
BEHIND = f"{LIFTED}+secure_aggregation"
NAMES = {PLAIN: "FedAvg", LIFTED: "infl:hardened, minimum lifted", BEHIND: "the same behind secure aggregation"}
MESSAGES = {"ladder": "each site's message", "ladder_of_sum": "the sum"}
TICKS = (1, 4, 16, 64, 256)
DRAWN = ("hardened", "hardened_known", "hardened_collusion")
STYLES = {1: "-", 2: "-", 16: "--", 32: "-.", 64: "-.", 128: ":"}  # of N, in the panel of known plaintexts


def cells(limits: pd.DataFrame) -> pd.DataFrame:
    """One row a cohort, spread, N and attack: the share above chance, and its interval: binomial of one seed, Student's t of several."""
    rows = []
    for (data, spread, size, attack), own in limits.groupby(["data", "spread", "records_behind", "attack"]):
        mean, low, high = interval(own["share"])
        if len(own) == 1:
            low, high = float(own["low"].iloc[0]), float(own["high"].iloc[0])
        place = {"data": data, "spread": spread, "records_behind": size, "attack": attack, "seeds": len(own)}
        rows.append({**place, "share": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def by_known(line: pd.DataFrame) -> pd.DataFrame:
    """One row a count of known records: the mean over seeds with Student's interval, or the one seed's own."""
    rows = []
    for count, own in line.groupby("known"):
        ends = interval(own["share"]) if len(own) > 1 else tuple(float(own[name].iloc[0]) for name in ("share", "low", "high"))
        rows.append({"known": count, "seeds": len(own), **dict(zip(("share", "low", "high"), ends))})
    return pd.DataFrame(rows)


def said(row: Mapping[Hashable, Any]) -> str:
    """A share with its interval, and the number of seeds where there are several."""
    seeds = f" ({row['seeds']})" if row["seeds"] > 1 else ""
    return f"{row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]{seeds}"


def limits_table(limits: pd.DataFrame) -> str:
    """Share named above chance by cohort, spread and N."""
    lines = [f"| cohort | c | N | {' | '.join(ATTACKS.values())} |", f"|{'---|' * (3 + len(ATTACKS))}"]
    for (data, spread, size), own in cells(limits).groupby(["data", "spread", "records_behind"]):
        rows = {row["attack"]: row for row in own.to_dict("records")}
        shown = [said(rows[attack]) if attack in rows else "-" for attack in ATTACKS]
        lines.append(f"| {data} | {spread:g} | {size} | {' | '.join(shown)} |")
    return "\n".join(lines)


def membership_table(standard: pd.DataFrame) -> str:
    """Leakage by membership attack, two columns a cohort; those worst on the first cohort's FedAvg come first."""
    own = standard[standard["goal"] == "membership"]
    cohorts = sorted(set(own["data"]), key=lambda data: (data != FIRST, data))
    rows = {(row["data"], row["attack"], row["defense"]): row for row in own.to_dict("records")}
    plain = own[(own["data"] == cohorts[0]) & (own["defense"] == PLAIN)].sort_values("leakage", ascending=False)
    head = [f"{data}, {name}" for data in cohorts for name in ("FedAvg", OURS)]
    lines = [f"| attack | {' | '.join(head)} |", f"|{'---|' * (1 + len(head))}"]
    for attack in plain["attack"]:
        cells_of = [rows.get((data, attack, defense)) for data in cohorts for defense in (PLAIN, OURS)]
        shown = [f"{row['leakage']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" if row else "-" for row in cells_of]
        lines.append(f"| {attack} | {' | '.join(shown)} |")
    return "\n".join(lines)


def collusion_table(collusion: pd.DataFrame) -> str:
    """Records named, by who looks at what."""
    lines = ["| defense | who looks | at | named | share | cosine |", "|---|---|---|---|---|---|"]
    for row in collusion.to_dict("records"):
        who = "the other site, with the key" if row["view"] == "site" else "the server, no key"
        share = f"{row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        named = f"{row['named']} of {row['of']}"
        lines.append(f"| {NAMES[row['defense']]} | {who} | {MESSAGES[row['attack']]} | {named} | {share} | {row['cosine']:.3f} |")
    return "\n".join(lines)


def checkpoints_table(checkpoints: pd.DataFrame) -> str:
    """Names given to places of batches, and how many were right, by what the batches answered at."""
    lines = ["| each batch answers at | seed | records isolated | names given | of them right | chance |", "|---|---|---|---|---|---|"]
    for row in checkpoints.to_dict("records"):
        at = f"{row['checkpoints']} checkpoints of one run" if row["of"] == "one run" else f"{row['checkpoints']} fresh networks"
        at = "1 fresh network" if row["checkpoints"] == 1 else at
        right = f"{row['right'] / row['answered']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" if row["answered"] else "-"
        lines.append(f"| {at} | {row['seed']} | {row['isolated']} | {row['answered']} | {right} | {row['chance']:.2f} |")
    return "\n".join(lines)


def _curve(panel: Axes, own: pd.DataFrame, colour: dict[float, str]) -> None:
    for place, spread in enumerate(sorted(set(own["spread"]))):
        line = own[own["spread"] == spread].sort_values("records_behind")
        x = line["records_behind"] * 1.05 ** (place - 2)  # side by side, so that intervals can be told apart
        ends = [list(line["share"] - line["low"]), list(line["high"] - line["share"])]
        panel.errorbar(x, line["share"], yerr=ends, fmt="o-", markersize=3, capsize=2, linewidth=1, color=colour[spread])
    panel.axvline(Hardened().minimum, color="0.6", linestyle=":")
    panel.set_xscale("log", base=2)
    panel.set_xticks(TICKS, labels=[f"{size}" for size in TICKS])
    panel.set_xlim(0.8, 330)
    panel.set_ylim(-0.35, 1.05)


def draw(limits: pd.DataFrame, known: pd.DataFrame, collusion: pd.DataFrame) -> Figure:
    """Share named above chance against N, a row a cohort and a column an attack, a line a spread; below, the limits broken on purpose."""
    cohorts, spreads = list(dict.fromkeys(limits["data"])), sorted(limits["spread"].unique())
    colour = {spread: f"C{place}" for place, spread in enumerate(spreads)}
    grid = [[f"{data} {attack}" for attack in ATTACKS] for data in cohorts]
    figure = Figure(figsize=(13, 3 * (len(cohorts) + 1)), layout="constrained")
    panels: dict[str, Axes] = figure.subplot_mosaic([*grid, ["known", "known", "site", "site"]])
    found = cells(limits)
    for data in cohorts:
        for attack, title in ATTACKS.items():
            panel = panels[f"{data} {attack}"]
            _curve(panel, found[(found["data"] == data) & (found["attack"] == attack)], colour)
            panel.set_title(f"{data}: {title}", fontsize=10)
        panels[f"{data} norms"].set_ylabel("share named above chance")
    for attack in ATTACKS:
        panels[f"{cohorts[-1]} {attack}"].set_xlabel("N, records behind an update")
    for spread in spreads:
        panels[f"{cohorts[0]} norms"].plot([], [], "o-", color=colour[spread], label=f"c = {spread:g}")
    panels[f"{cohorts[0]} norms"].legend(fontsize=7)
    panel = panels["known"]
    for defense, spread, size in sorted(set(zip(known["defense"], known["spread"], known["records_behind"]))):
        own = by_known(known[(known["defense"] == defense) & (known["spread"] == spread) & (known["records_behind"] == size)])
        ends = [list(own["share"] - own["low"]), list(own["high"] - own["share"])]
        alone = defense == ALONE
        label = f"c = {spread:g}, N = {size}" if alone else f"c = {spread:g}, sums of {size}"
        marker, tint = ("o", colour[spread]) if alone else ("s", "0.3")
        panel.errorbar(own["known"], own["share"], yerr=ends, fmt=f"{marker}{STYLES[size]}", markersize=3, color=tint, label=label)
    panel.set_xscale("symlog", linthresh=3)
    panel.set_xticks([0, 3, 10, 30, 100], labels=["0", "3", "10", "30", "100"])
    panel.set_xlabel("records that the adversary knows")
    panel.set_ylabel("share named above chance")
    panel.set_title("pbmc68k: known plaintexts, alone and (squares) behind secure aggregation", fontsize=10)
    panel.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(0.0, 0.56))
    _collusion(panels["site"], collusion)
    return figure


def _collusion(panel: Axes, collusion: pd.DataFrame) -> None:
    rows = collusion.iloc[::-1]
    ends = [list(rows["share"] - rows["low"]), list(rows["high"] - rows["share"])]
    colours = ["C3" if view == "site" else "C7" for view in rows["view"]]
    who = {"site": "a site with the key", "server": "the server"}
    panel.barh(range(len(rows)), rows["share"], xerr=ends, color=colours, capsize=2, alpha=0.5)
    for place, row in enumerate(rows.to_dict("records")):
        name = f"{NAMES[row['defense']]}: {who[row['view']]}, {MESSAGES[row['attack']]}"
        panel.text(0.02 if row["share"] > 0.5 else row["high"] + 0.02, place, name, fontsize=7, verticalalignment="center")
    panel.set_yticks([])
    panel.set_xlabel("share named")
    panel.set_title("pbmc68k: a colluding site, messages of two records", fontsize=10)


def put(page: str, tables: dict[str, str]) -> str:
    """The page with its tables in the places that its comments mark."""
    for name, table in tables.items():
        before, found, rest = page.partition(f"<!-- {name} -->\n")
        _, ended, after = rest.partition(f"<!-- end of {name} -->")
        if not found or not ended:
            raise ValueError(f"the page has no place for the table {name}: mark it with <!-- {name} --> and <!-- end of {name} -->")
        page = f"{before}{found}{table}\n{ended}{after}"
    return page


def made() -> dict[str, str]:
    """The page's tables, by the name of their place, out of the committed files."""
    return {
        "limits": limits_table(pd.read_csv(DOCS / "hardened.csv")),
        "membership": membership_table(pd.read_csv(DOCS / "hardened_standard.csv")),
        "collusion": collusion_table(pd.read_csv(DOCS / "hardened_collusion.csv")),
        "checkpoints": checkpoints_table(pd.read_csv(DOCS / "hardened_checkpoints.csv")),
        "rotation": hardened_rotation.table(pd.read_csv(DOCS / "hardened_rotation.csv")),
        "features": keyed_features.table(pd.read_csv(DOCS / "hardened_features.csv")),
    }


def source() -> str:
    """A digest of the files that the picture is drawn from; the picture carries it, so that a stale one is told."""
    return sha256(b"".join((DOCS / f"{name}.csv").read_bytes().replace(b"\r\n", b"\n") for name in DRAWN)).hexdigest()


def write() -> None:
    """docs/hardened.png, and the tables of docs/hardened.md."""
    place = DOCS / "hardened.md"
    place.write_text(put(place.read_text(encoding="utf-8"), made()), encoding="utf-8")
    limits, known, collusion = (pd.read_csv(DOCS / f"{name}.csv") for name in DRAWN)
    draw(limits, known, collusion).savefig(DOCS / "hardened.png", dpi=90, metadata={"Source": source()})


if __name__ == "__main__":
    write()
