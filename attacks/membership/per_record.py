"""One number a record from a model's outputs, of many wide records a part at a time: a task may hand a record's own values on in them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from suites.contracts import Observation, Records
from suites.room import by_rows

Predict = Callable[[Tensor], Tensor]
COPIES = 6  # of the records: outputs that hand them on beside what was predicted, and what is made of both


def losses(seen: Observation, predict: Predict, records: Records) -> Tensor:
    """The loss of each record [n]."""
    return by_rows(lambda x, y: seen.loss(predict(x), y), records.x, records.y, copies=COPIES)


def signals(seen: Observation, predict: Predict, records: Records) -> Tensor:
    """The task's signal of each record [n]; higher where the model fits it better."""
    return by_rows(lambda x, y: seen.signal(predict(x), y), records.x, records.y, copies=COPIES)
