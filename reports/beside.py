"""Where a trained network is not shown to stand out beside what costs nothing: the best guess without features, its own untrained start,
or the field's simple method.

All three stand in the table as controls, on the same seed and test records, so that the interval of a difference over the seeds is a paired
one. A difference is told wherever its interval reaches down to nought; on one seed, which has no interval, where it is none or a loss. A
simple method is run once a seed, on all training records: every defense is set beside it, as whoever would pool the records could have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from reports.insensitive import OPEN, clear, shown
from reports.intervals import mean_interval
from reports.schema import CELL
from reports.standing import FLOOR, headline

ABOVE: Final = ":above_"
UNTRAINED: Final = "untrained_network"
GUESS: Final = "floor"
AHEAD: Final = "ahead"
_KIND: Final = {GUESS: "floor", UNTRAINED: "untrained"}
_WORDS: Final = {GUESS: "the best guess without features", UNTRAINED: "its untrained start"}
COLUMNS: Final = (*CELL, "measure", "control", "gain", "low", "high", "n", "standing", "said", "elsewhere")
_SCENE: Final = ["suite", "task", "data", "seed", "measure"]  # what a simple method and a network must share to be compared


def control_in_words(name: str) -> str:
    return _WORDS.get(name, name.replace("_", " "))


def gains(df: pd.DataFrame) -> pd.DataFrame:
    """One row a cell, utility metric (``measure``) and control: the mean paired gain with its interval (positive: better), ``n`` seeds.

    ``standing`` is "ahead" where the interval lies above nought (on one seed: where the gain does), else "behind" where it lies below,
    "behind on average", or "not shown to be ahead"; ``said`` is the gain in words. ``elsewhere``: the control is of another defense's cell.
    """
    ok = df[(df["status"] == "ok") & (df["attack"] == "")]
    told = ok[ok["metric"].str.contains(ABOVE, regex=False)]
    split = told["metric"].str.split(ABOVE, n=1, expand=True) if len(told) else pd.DataFrame(columns=[0, 1], dtype=object)
    own = ok[ok["role"] == "utility"]
    floor = ok[(ok["role"] == "control") & ok["metric"].str.endswith(FLOOR)]
    floor = floor.assign(metric=floor["metric"].str.removesuffix(FLOOR))[[*CELL, "seed", "metric", "value"]]
    both = own.merge(floor, on=[*CELL, "seed", "metric"], suffixes=("", "_floor"))
    sign = both["direction"].map({"lower": -1.0}).fillna(1.0)
    both = both.assign(measure=both["metric"], control=GUESS, value=sign * (both["value"] - both["value_floor"]))
    told = told.assign(measure=split[0], control=split[1])
    borrowed = _borrowed(told, ok)
    held = pd.concat([told.assign(elsewhere=False), borrowed.assign(elsewhere=True), both.assign(elsewhere=False)])
    held = held[[*CELL, "measure", "control", "seed", "value", "elsewhere"]].dropna()
    rows = []
    for key, part in held.groupby([*CELL, "measure", "control"], sort=False):
        gain = part["value"].to_numpy(dtype=np.float64)
        low, high = mean_interval(gain) if len(gain) > 1 else (np.nan, np.nan)
        elsewhere = bool(part["elsewhere"].any())
        rows.append((*key, float(gain.mean()), low, high, len(gain), _standing(gain), shown(gain), elsewhere))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _borrowed(told: pd.DataFrame, ok: pd.DataFrame) -> pd.DataFrame:
    """Gains of every other defense over the simple methods that some defense's cells were ``told`` of, seed by seed."""
    simple = told[told["control"] != UNTRAINED][["suite", "task", "data", "seed", "measure", "control"]].drop_duplicates()
    simple = simple.assign(metric=simple["measure"] + ":" + simple["control"])
    run = ok[ok["role"] == "control"].sort_values("defense", key=lambda name: name != "centralized", kind="stable")  # whose, where several
    run = run.drop_duplicates(["suite", "task", "data", "seed", "metric"])
    simple = simple.merge(run[["suite", "task", "data", "seed", "metric", "value"]], on=["suite", "task", "data", "seed", "metric"])
    own = ok[ok["role"] == "utility"].assign(measure=lambda rows: rows["metric"])
    found = own.merge(simple[[*_SCENE, "control", "value"]], on=_SCENE, suffixes=("", "_simple"))
    sign = found["direction"].map({"lower": -1.0}).fillna(1.0)
    found = found.assign(value=sign * (found["value"] - found["value_simple"]))
    at = ["defense", *_SCENE, "control"]
    return found[~pd.MultiIndex.from_frame(found[at]).isin(pd.MultiIndex.from_frame(told[at]))]


def _standing(gain: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    if clear(gain):
        return AHEAD
    if clear(-gain):
        return "behind"
    return "behind on average" if gain.mean() < 0 else "not shown to be ahead"


def divided(df: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``gains`` in the headline metric of each task and cohort, and in the other metrics, FedAvg's over its untrained start left out.

    That one is ``reports.insensitive``'s: there it is the metric that says little.
    """
    found = gains(df)
    found = found[~((found["defense"] == OPEN) & (found["control"] == UNTRAINED))]
    heads = {key: headline(own) for key, own in df.groupby(["suite", "task", "data"], sort=False)}
    at = zip(found["suite"], found["task"], found["data"], found["measure"], strict=True)
    first = np.array([heads.get((suite, task, data)) == measure for suite, task, data, measure in at], dtype=bool)
    return found[first], found[~first]


def beside(df: pd.DataFrame) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """(cell, flag, sentence) for each defense and control of its own cells that its headline metric is not ahead of.

    The others are in a table, and those beside a control of another defense's cells in the verdict too.
    """
    heads, _ = divided(df)
    for row in heads[(heads["standing"] != AHEAD) & ~heads["elsewhere"].astype(bool)].to_dict("records"):
        control = str(row["control"])
        joined = "beside" if str(row["standing"]).startswith("behind") else "of"
        stands = f"is {row['standing']} {joined} {control_in_words(control)}, paired over seeds: {row['said']}"
        name = "" if control in _KIND else f":{control}"
        flag = f"{_KIND.get(control, 'simple')}_is_as_good:{row['measure']}{name}"
        yield {str(column): value for column, value in row.items()}, flag, f"{row['measure']}: {row['defense']} {stands}"
