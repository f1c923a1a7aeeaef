"""Two things timed in turns in one run, so that a busy machine slows both: the ratio is what is quoted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int = 5) -> tuple[float, float, float]:
    """Median CPU seconds of each (after one warm-up) and the median of the per-turn ratios first / second."""
    first(), second()
    a, b = [], []
    for _ in range(repeats):
        for call, times in ((first, a), (second, b)):
            start = time.process_time()
            call()
            times.append(time.process_time() - start)
    return statistics.median(a), statistics.median(b), statistics.median(x / y for x, y in zip(a, b))
