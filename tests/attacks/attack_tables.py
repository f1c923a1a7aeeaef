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
        for row in sorted(rows.to_dict("records"), key=lambda row: (str(row["goal"]), order[str(row["attack"])])):
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
    return "\n".join(lines) + "\n"


def main(out: Path, *, read: bool) -> None:
    """Run the suite (unless ``read``), and write docs/attacks.csv and the page's table."""
    if not read:
        run(DOCS / "attacks.yaml", out=out)
    rows = pd.read_csv(out / "report" / "tables" / "attacks.csv").round(4)
    rows.to_csv(DOCS / "attacks.csv", index=False)
    page = DOCS / "attacks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + BEGIN + table(rows, *asked()) + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), read="--read" in sys.argv[2:])
