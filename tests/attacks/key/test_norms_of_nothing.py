"""Messages that are all noise give records of length zero: their guesses are blind, and no error."""

import torch

from attacks.key.matching import search
from attacks.key.norms import match_lengths


def test_records_without_a_length_are_placed_all_the_same() -> None:
    among = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    placed, gap = match_lengths(torch.tensor([0.0, 0.0, 3.0], dtype=torch.float64), among, torch.ones(3, 4, dtype=torch.bool))
    assert len(set(placed.tolist())) == 3
    assert placed[2] == 2
    assert bool(gap.isfinite().all())


def test_records_of_length_zero_end_no_search() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(12, 6, generator=draw)
    z = torch.zeros(6, 6)
    for held in (z, torch.cat([x[:3] @ torch.linalg.qr(torch.randn(6, 6, generator=draw))[0], z[:3]])):
        found, margins = search(held, x, torch.ones(6, 12, dtype=torch.bool), draw, starts=2, depth=4, tries=3)
        assert found.shape == margins.shape == (6,)
        assert margins.isfinite().all()
