"""Which share of a site's records has a public binary attribute (sex, treatment, batch), read off its updates (see ``shadow``).

The attribute is no input and no label of the model: what an update tells of it comes through the records themselves. The adversary knows it
for his auxiliary records alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from attacks.property.shadow import ShadowShares
from suites.contracts import Guess, Observation, Params, RoundView, Sees, Skip


class DonorAttribute(ShadowShares):
    """Share [S, 2] of records without and with the attribute at every site, by regression on simulated updates."""

    property: ClassVar[str] = "attribute"
    needs: ClassVar[frozenset[Sees]] = frozenset({"auxiliary", "simulate", "key", "broadcasts", "updates"})

    def kinds(self, seen: Observation) -> tuple[Tensor, int]:
        attribute = seen.auxiliary.attribute
        if attribute is None:
            raise Skip("nobody says which records have the attribute; name its column (data: {attribute: COLUMN})")
        return attribute, 2

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        value, notes = self.shares(seen, rng)
        return Guess(value, notes=notes)


class DonorAttributeOfSum(DonorAttribute):
    """The same of all sites together [1, 2], from the combined update."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"auxiliary", "simulate", "key", "broadcasts", "sums"})
    together: ClassVar[bool] = True

    def messages(self, view: RoundView) -> dict[int, Params]:
        return {} if view.combined is None else {0: view.combined}
