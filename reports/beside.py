"""Where a trained network does not stand out beside what costs nothing: its own untrained start, or the field's simple method.

Both stand in the table as controls, with the difference on the same seed (``METRIC:above_NAME``; positive: the network is better), so that
the interval over the seeds is a paired one. Only the headline metric is told: the others are in the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from reports.insensitive import OPEN, clear, shown
from reports.schema import CELL
from reports.standing import headline

ABOVE: Final = ":above_"
UNTRAINED: Final = "untrained_network"


def beside(df: pd.DataFrame) -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """(cell, flag, sentence) for each defense that does no better than its untrained start, and each network behind a simple method.

    FedAvg beside its untrained start is ``reports.insensitive``'s: there it is the metric that says little. A simple method that is
    reached within nothing of a difference is not told; one that is ahead on average is, with the interval that says how surely.
    """
    for _, own in df.groupby(["suite", "task", "data"], sort=False):
        metric = headline(own)
        gains = own[(own["status"] == "ok") & own["metric"].str.startswith(metric + ABOVE)] if metric else own.iloc[:0]
        for key, part in gains.groupby([*CELL, "metric"], sort=False):
            row, name = dict(zip(CELL, key)), str(key[-1]).removeprefix(metric + ABOVE)
            gain = part["value"].to_numpy(dtype=np.float64)
            if name == UNTRAINED:
                if row["defense"] != OPEN and not clear(gain):
                    told = f"{metric}: {row['defense']} gains {shown(gain)} over its untrained start, so no use of training it is shown"
                    yield row, f"untrained_is_as_good:{metric}", told
            elif gain.mean() < 0:
                surely = "is behind" if clear(-gain) else "is behind on average, not beyond what seeds differ by,"
                told = f"{metric}: {row['defense']} {surely} beside {name}, by {shown(gain)}: the simple method does at least as well"
                yield row, f"simple_is_as_good:{metric}:{name}", told
