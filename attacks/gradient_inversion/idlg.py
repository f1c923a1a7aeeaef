"""Improved deep leakage (Zhao, Mopuri and Bilen 2020, arXiv 2001.02610): the label first, then the record.

Under cross-entropy the output bias' gradient is p - 1 at the true class and p elsewhere: its one negative entry is the label, and only the
records are left to search. For a batch, where the paper is silent, the same rule gives counts (``labels.label_counts``, under uniform
outputs); which record has which label does not matter to the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.dlg import DLG
from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.message import unlabelled
from suites.contracts import Observation, Sees, Skip, Target


class IDLG(DLG):
    """Labels from the sign of the output bias' gradient, then records by L-BFGS on the squared distance."""

    def labels(self, seen: Observation, target: Target, classes: int) -> Tensor | None:
        if unlabelled(seen.known):
            raise Skip("structured records have no label to be read first; use dlg")
        labels = label_list(target, classes)
        if labels is None:
            raise Skip("the message holds no output bias, whose sign would say the label; use dlg")
        return torch.nn.functional.one_hot(labels, classes)


class IDLGOfSum(IDLG):
    """The same against the sum of all sites' messages, which is all that secure aggregation shows."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums", "simulate", "key"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums
