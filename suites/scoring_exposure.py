"""Reconstruction by how far the model had come: fresh models give away most, and one checkpoint says little of the others.

Checkpoints are set beside each other by exposure, the records that a site had trained on when it answered, and not by rounds, which mean
something else wherever epochs or sites differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from suites.scoring_measure import Measure, mean

NAME = "r2:exposure="


def exposure_measures(fit: NDArray[np.float64], rounds: Sequence[int], visits: float) -> list[Measure]:
    """R² at each checkpoint, where targets are of several; none where all are of one.

    Parameters
    ----------
    fit : [targets] R² of each target
    rounds : the round at whose start each target was made
    visits : records (each as often as it was used) that a site trains on in one round
    """
    held = np.asarray(rounds)
    if len(set(held.tolist())) < 2:
        return []
    return [mean(NAME + _figures(round_ * visits), fit[held == round_]) for round_ in sorted(set(held.tolist()))]


def _figures(exposure: float) -> str:
    """Two figures: seeds whose sites differ by a record or two are at one exposure."""
    return f"{float(f'{exposure:.2g}'):.0f}"
