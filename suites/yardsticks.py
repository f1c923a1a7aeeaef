"""Simple methods beside the network, in the same metrics on the same test records: what a trained model has to beat.

They stand in the table as controls. Beside each stands the difference, network minus yardstick, on the same seed, so that its interval over
the seeds is a paired one (Demšar 2006, J. Mach. Learn. Res. 7, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from suites.room import Rows
from suites.scoring_measure import Measure

ABOVE = ":above_"
OPEN = "fedavg"  # in a run without a centralised network, the defense in whose cells they stand


@runtime_checkable
class Compared(Protocol):
    """A task with yardsticks of its own; they are given all training records, as a centralised network is."""

    def baselines(self, x: Rows, y: Tensor, classes: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """By name, methods fitted to records ``x`` with classes ``y``: of others [n, F] each makes outputs of the network's shape, by row.

        ``x.whole()`` or its parts are the records to fit to; ``x.table`` has test records too. No method holds ``x`` any longer.
        """
        ...


def measures(
    network: Mapping[str, float], yardsticks: Mapping[str, Mapping[str, float]], n: int, lower: frozenset[str] = frozenset()
) -> list[Measure]:
    """Controls ``metric:name``, and ``metric:above_name``: how much better the network is on this seed (positive: better).

    ``lower`` names the metrics of which less is better.
    """
    found = []
    for name, metrics in yardsticks.items():
        for metric, value in metrics.items():
            if not (metric in network and math.isfinite(value)):
                continue
            direction: Literal["higher", "lower"] = "lower" if metric in lower else "higher"
            found.append(Measure(f"{metric}:{name}", value, math.nan, math.nan, n, direction, "control"))
            if math.isfinite(network[metric]):
                gain = (network[metric] - value) * (-1 if metric in lower else 1)
                said = "paired: both on the same seed and test records"
                found.append(Measure(f"{metric}{ABOVE}{name}", gain, math.nan, math.nan, n, "higher", "control", said))
    return found
