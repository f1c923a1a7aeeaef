"""Utility beside its controls, as the verdict's sentences and as a table."""

from __future__ import annotations

import pandas as pd

from reports import words
from reports.beside import AHEAD, control_in_words, divided, gains
from reports.plots.style import ordered
from reports.standing import each
from reports.tables import Table


def beside_sentences(results: pd.DataFrame) -> list[str]:
    """Of the headline metric: which defenses are ahead of every control by a paired difference, and of each control which are not."""
    found, others = divided(results)
    several = found[found["n"] > 1]
    said = []
    behind = set(found.loc[found["standing"] != AHEAD, "defense"])
    if ahead := [words.defense(name) for name in ordered(several["defense"]) if name not in behind]:
        said.append(f"Ahead of every control beside it, by a difference paired over seeds whose interval lies above 0: {', '.join(ahead)}.")
    for control, part in found[found["standing"] != AHEAD].groupby("control", sort=False):
        listed = "; ".join(f"{words.defense(row.defense)} {row.said} ({row.standing})" for row in each(part))
        said.append(f"Not shown to do better than {control_in_words(str(control))}, seed by seed: {listed}.")
    if late := int((others["standing"] != AHEAD).sum()):
        said.append(
            f"In the other metrics {late} of {len(others)} differences from a control are not shown to be above 0: the table has each."
        )
    return said


def beside_table(results: pd.DataFrame, name: str) -> Table | None:
    """Every utility metric of every defense minus each of its controls, paired by seed; None where there is no control."""
    data = gains(results)[["defense", "measure", "control", "gain", "low", "high", "n", "standing"]]
    if data.empty:
        return None
    shown = pd.DataFrame(
        [
            {
                "Defense": words.defense(row.defense),
                "metric": words.metric(row.measure),
                "control": control_in_words(row.control),
                "gain": words.interval(row.gain, row.low, row.high),
                "seeds": str(row.n),
                "so it is": row.standing,
            }
            for row in each(data)
        ]
    )
    caption = "Utility minus that of each control on the same seed and test records (positive: better), mean over seeds with 95 % intervals"
    return Table(name, caption, data, shown, ("gain", "seeds"))
