"""Messages that are all noise give records of length zero: their guesses are blind, and no error."""

import torch

from attacks.key.norms import match_lengths


def test_records_without_a_length_are_placed_all_the_same() -> None:
    among = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    placed, gap = match_lengths(torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64), among, torch.ones(3, 4, dtype=torch.bool))
    assert len(set(placed.tolist())) == 3
    assert placed[2] == 2
    assert bool(gap.isfinite().all())
