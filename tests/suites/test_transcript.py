"""A transcript on disk: what was written comes back, and writing it holds no second copy of what lies apart already."""

from __future__ import annotations

from pathlib import Path

import torch

from suites import transcript
from suites.contracts import Message, Round
from suites.observation import Evidence


def test_parts_of_one_memory_and_the_same_tensor_twice_come_back(tmp_path: Path) -> None:
    """The engine trains sites stacked, so that messages are slices of one tensor; a sum is the next round's broadcast itself."""
    stacked = torch.arange(24.0).reshape(2, 3, 4)
    together = stacked.sum(0)
    first = {"w": torch.zeros(3, 4), "turned": stacked[0].T}
    rounds = [
        Round(0, first, tuple(Message(i, "update", {"w": stacked[i]}, 5) for i in range(2)), {"w": together}),
        Round(1, {"w": together}, (Message(0, "update", {"w": stacked[1, 1:]}, 5),), {"w": torch.tensor(2.0)}),
    ]
    transcript.save(tmp_path, Evidence(rounds, [{"w": together}], 7))
    back = transcript.load(tmp_path)
    assert back.samples == 7
    assert torch.equal(back.finals[0]["w"], together)
    for given, found in zip(rounds, back.rounds, strict=True):
        assert set(given.broadcast) == set(found.broadcast)
        assert all(torch.equal(given.broadcast[name], found.broadcast[name]) for name in given.broadcast)
        assert torch.equal(given.combined["w"], found.combined["w"])
        assert [m.site for m in given.messages] == [m.site for m in found.messages]
        assert all(torch.equal(a.payload["w"], b.payload["w"]) for a, b in zip(given.messages, found.messages, strict=True))


def test_what_lies_apart_is_not_copied() -> None:
    stacked = torch.arange(24.0).reshape(2, 3, 4)
    given = {"b": stacked[1], "a": stacked[0], "again": stacked[0], "whole": torch.ones(5)}
    found = transcript.apart(given)
    assert list(found) == list(given)  # the order is that of the file
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert {name: found[name].data_ptr() == given[name].data_ptr() for name in given} == {
        "b": True,
        "a": True,
        "again": False,
        "whole": True,
    }
