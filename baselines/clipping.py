"""Clipping alone: each record's gradient is bounded, and no noise is added. The control that tells DP-SGD's clipping from its noise."""

from __future__ import annotations

from typing import ClassVar

from baselines.dp_sgd import DPSGD
from suites.contracts import Card


class Clipping(DPSGD):
    """``dp_sgd`` with a noise multiplier of 0, and so without any ε.

    Parameters
    ----------
    clip : float
        L2 bound on one record's gradient, over all parameters together.
    epochs, lr : optional
        As for ``dp_sgd``.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update, made of clipped gradient sums without noise; sizes of sites in the clear",
        site="the broadcast model",
        outsider="the released model",
        does_not_protect="directions: a clipped gradient points where it pointed before, so a record still falls out of its own update; "
        "only how much one unusual record can move the model is bounded",
    )

    def __init__(self, *, clip: float = 1.0, epochs: int | None = None, lr: float | None = None) -> None:
        super().__init__(noise_multiplier=0.0, clip=clip, epochs=epochs, lr=lr)
