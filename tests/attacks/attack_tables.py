"""The table of docs/attacks.md: what each installed attack needs, takes and reaches.

``python -m tests.attacks.attack_tables OUT`` runs docs/attacks.yaml in the folder OUT (a quarter of an hour; what is finished is not run
again), writes docs/attacks.csv and puts its table into docs/attacks.md. ``OUT --read`` takes the run as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from reports import words
from suites.api import run
from suites.config import load

DOCS = Path(__file__).parents[2] / "docs"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
COLUMNS = ("Goal", "attack", "needs", "seconds a cell", "on FedAvg", "strongest on", "as", "cannot look at")


def asked() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Attacks and defenses of docs/attacks.yaml."""
    suite, _ = load(DOCS / "attacks.yaml")
    return suite.attacks, suite.defenses


def table(rows: pd.DataFrame, attacks: Sequence[str], defenses: Sequence[str]) -> str:
    """Rows of docs/attacks.csv as Markdown, in the order of the suite."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- | --- | ---: | --- | --- | --- | --- |"]
    order = {name: place for place, name in enumerate(attacks)}
    with words.among(defenses, attacks):
        for row in sorted(rows[rows["leakage"].notna()].to_dict("records"), key=lambda row: (str(row["goal"]), order[str(row["attack"])])):
            hidden = [words.defense(name) for name in str(row["cannot_look_at"]).split("; ") if name not in ("", "nan")]
            cells = (
                words.GOALS.get(str(row["goal"]), str(row["goal"])),
                words.attack(str(row["attack"])),
                str(row["needs"]),
                words.number(float(row["seconds"]), 2),
                words.number(float(row["leakage_fedavg"]), 2),
                f"{words.defense(str(row['strongest_on']))} {words.interval(row['leakage'], row['low'], row['high'], 2)}",
                words.threat(str(row["view"]), str(row["key"])),
                ", ".join(hidden) or words.MISSING,
            )
            lines.append("| " + " | ".join(cells) + " |")
    silent = rows[rows["leakage"].isna()].set_index("attack")["reason"].to_dict()
    with words.among(defenses, attacks):
        said = [f"- {words.attack(name)}: {silent[name]}" for name in attacks if name in silent]
    return "\n".join([*lines, "", "Without a leakage here:", "", *said]) + "\n"


def silent(results: pd.DataFrame, attacks: Sequence[str], scored: set[str]) -> pd.DataFrame:
    """The attacks that gave no leakage, each with the reason that most of its cells give."""
    found = []
    for name in attacks:
        own = results[(results["attack"] == name) & ~results["reason"].isin(["", "the defense has no key"])]
        if name not in scored:
            reasons = own["reason"].value_counts()
            control = bool((results["attack"].eq(name) & results["role"].eq("control")).any())
            found.append({"attack": name, "reason": "a control" if control else str(reasons.index[0]) if len(reasons) else "asked nowhere"})
    return pd.DataFrame(found, columns=["attack", "reason"])


def main(out: Path, *, read: bool) -> None:
    """Run the suite (unless ``read``), and write docs/attacks.csv and the page's table."""
    if not read:
        run(DOCS / "attacks.yaml", out=out)
    rows = pd.read_csv(out / "report" / "tables" / "attacks.csv").round(4)
    asked_for, _ = asked()
    results = pd.read_parquet(out / "results.parquet")
    rows = pd.concat([rows, silent(results, asked_for, set(rows["attack"]))], ignore_index=True)
    rows.to_csv(DOCS / "attacks.csv", index=False)
    page = DOCS / "attacks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + BEGIN + table(rows, *asked()) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), read="--read" in sys.argv[2:])
