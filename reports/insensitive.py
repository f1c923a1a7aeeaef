"""Metrics that cannot tell trained networks from untrained ones, or a federation from its sites alone: they judge no defense.

A graph autoencoder's clusters may agree with the annotation as well before training as after it: then no defense can look bad there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from reports.intervals import mean_interval
from reports.schema import CELL

OPEN: Final = "fedavg"
ALONE: Final = "local_only"
_GAIN: Final = ":above_untrained_network"


def insensitive(df: pd.DataFrame) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """(cell, flag, sentence) for each metric with an untrained-network control on which FedAvg does not stand out, paired over seeds.

    The sign of a difference is that of doing better. One seed gives no interval, so that there only a loss is told.
    """
    gains = df[(df["defense"] == OPEN) & (df["status"] == "ok") & df["metric"].str.endswith(_GAIN)]
    for key, part in gains.groupby([*CELL, "metric"], sort=False):
        row = dict(zip(CELL, key))
        metric = str(key[-1]).removesuffix(_GAIN)
        gain = part["value"].to_numpy(dtype=np.float64)
        if not clear(gain):
            yield row, f"insensitive:{metric}", f"{metric}: training gains {shown(gain)} over the untrained network, so it says little"
            continue
        same = [name for name in CELL if name != "defense"]
        own = df[(df["metric"] == metric) & (df["role"] == "utility") & (df["status"] == "ok")]
        own = own[np.logical_and.reduce([own[name] == row[name] for name in same])]
        by = own.pivot_table(index="seed", columns="defense", values="value")
        if OPEN in by and ALONE in by:
            sign = -1.0 if (own["direction"] == "lower").any() else 1.0
            gap = sign * (by[OPEN] - by[ALONE]).dropna().to_numpy(dtype=np.float64)
            if len(gap) and not clear(gap):
                told = f"{metric}: federating gains {shown(gap)} over sites alone, so it says little about what a federation is worth"
                yield row, f"insensitive:{metric}", told


def clear(gain: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether a paired gain is above nought over the seeds; of one seed, whether it is at all."""
    low = mean_interval(gain)[0] if len(gain) > 1 else float(gain[0])
    return bool(low > 0)


def shown(gain: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Mean and interval over the seeds."""
    if len(gain) < 2:
        return f"{gain[0]:+.3f} (one seed)"
    low, high = mean_interval(gain)
    return f"{gain.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
