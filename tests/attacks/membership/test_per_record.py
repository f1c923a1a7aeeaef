"""Numbers a record that are said a part of the records at a time are those that all records together give."""

from __future__ import annotations

import pytest
import torch
from observations import FakeObservation, mlp, normal, wire

from attacks.membership.loss import released
from attacks.membership.per_record import losses, signals
from suites.contracts import Records


@pytest.mark.parametrize("say", [losses, signals])
def test_wide_records_are_said_in_parts_and_give_what_all_at_once_give(say, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mlp([12, 16, 3], 0)
    records = Records(normal(50, 12, seed=1), torch.arange(50) % 3)
    seen = FakeObservation(module, 12, 3, released=wire(module), candidates=records)
    model, rows = released(seen), []

    def predict(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return model(x)

    with torch.no_grad():
        whole = say(seen, predict, records)
        monkeypatch.setattr("suites.room.BLOCK", 8 * 12 * 4)
        assert torch.allclose(say(seen, predict, records), whole, rtol=1e-6)
    assert rows == [50, *[4] * 12, 2]
