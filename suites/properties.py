"""The truth behind property attacks, and what can be guessed of it without any model."""

from __future__ import annotations

import torch
from torch import Tensor

from suites.bench import Bench
from suites.contracts import Attack, Guess, Skip
from suites.federation import POOLED
from suites.scoring_measure import Measure
from suites.scoring_property import Floats, imputed_kinds, score_origin, score_shares, shares_of


class Properties:
    """One federation's properties; ``attack.property`` names the one that is asked. A site that looks asks about the others."""

    def __init__(self, bench: Bench, looker: int | None = None) -> None:
        self.bench, self.prepared = bench, bench.prepared
        self.sites = [site for index, site in enumerate(bench.prepared.sites) if index != looker]
        own = [] if looker is None else [bench.prepared.sites[looker]]
        self.public = torch.cat([bench.prepared.auxiliary, *own])  # what is known without a message: a site knows its own records
        if POOLED in bench.federation.flaws:
            raise Skip("one site of this federation holds all records (pooled_client), so that no property is a single site's")

    def truth(self, attack: Attack) -> Tensor:
        """[n_candidates] the site of each member and -1 for the others, or shares [S, kinds]."""
        asked = self.asked(attack)
        if asked == "site_of_origin":
            return self._home()
        kind, count = self._kinds(asked)
        return torch.stack([shares_of(kind[site], count) for site in self.sites])

    def score(self, attack: Attack, guess: Guess) -> list[Measure]:
        asked, prepared = self.asked(attack), self.prepared
        if asked == "site_of_origin":
            person = None if prepared.person is None else prepared.person[prepared.candidates].numpy()
            return score_origin(guess.value.detach().cpu().numpy(), self._home().numpy(), imputed=self._imputed(), groups=person)
        kind, count = self._kinds(asked)
        truth = self.truth(attack)
        if len(guess.value) == 1 and len(truth) > 1:  # of all sites together
            truth = shares_of(kind[torch.cat(self.sites)], count)[None]
        return score_shares(guess.value.detach().cpu().numpy(), truth.numpy(), shares_of(kind[self.public], count).numpy())

    @staticmethod
    def asked(attack: Attack) -> str:
        return str(getattr(attack, "property", ""))

    def _home(self) -> Tensor:
        home = self.prepared.home
        if home is None:
            raise Skip("nobody wrote down which site each record went to")
        return torch.where(self.prepared.member, home, -1)

    def _imputed(self) -> Floats | None:
        """Where sites are a column, which site records like these come from; drawn sites have nothing of their own to tell."""
        prepared = self.prepared
        if prepared.site_of is None:
            return None
        present = [int(prepared.site_of[site[0]]) for site in prepared.sites]  # the column's code of each site that takes part
        codes = prepared.site_of[prepared.auxiliary]
        known = prepared.auxiliary[torch.isin(codes, torch.tensor(present))]
        if len(known) < 8:
            return None
        place = {code: index for index, code in enumerate(present)}
        kinds = torch.tensor([place[int(code)] for code in prepared.site_of[known]])
        x = prepared.pool.x
        return imputed_kinds(x[known].numpy(), kinds.numpy(), x[prepared.candidates].numpy(), len(present))

    def _kinds(self, asked: str) -> tuple[Tensor, int]:
        """The kind of every record of the pool, -1 for unknown, and how many there are."""
        pool = self.prepared.pool
        if asked == "class_mix":
            if pool.y.is_floating_point():
                raise Skip("a class mix needs class labels, and this task has none")
            return pool.y, pool.classes
        if asked == "attribute":
            if self.prepared.attribute is None:
                raise Skip("nobody says which records have the attribute; name its column (data: {attribute: COLUMN})")
            return self.prepared.attribute, 2
        raise Skip(f"there is no property '{asked}' to score; an attack's property is site_of_origin, class_mix or attribute")
