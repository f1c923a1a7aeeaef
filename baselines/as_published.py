"""The questionable choices of a published evaluation, each a switch, so that one report shows how much of a result was the choice.

As read in the INFL authors' public code (RoyZry98/INFL-Pytorch, August 2026): six models are averaged where the text has five sites, the
sixth trained on all records; each site's best epoch and the best round are picked on the test set; the key is a buffer of the model's
state, and it is drawn from an integer seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from suites.contracts import Card, Defense, Federation


class AsPublished(Defense):
    """Adds the faults to whatever it is stacked with: ``as_published`` alone is FedAvg, ``as_published+infl:published`` INFL as evaluated.

    Parameters
    ----------
    pooled_client : bool
        One more site that holds all records; every site counts the same.
    test_set_choice : bool
        The best local epoch and the best round are chosen on the test records.
    key_in_state, integer_seed : bool
        The key is sent with the model, and drawn from a seed of 16 bits; both act on ``infl:published``.
    """

    card: ClassVar[Card | None] = Card(
        server="what the other layers show it; with key_in_state also the key; with pooled_client also an update of all records together",
        site="what the other layers show it",
        outsider="what the other layers show it; with key_in_state the released model holds the key",
        does_not_protect="anything: it is no protection but the faults of a published evaluation, and utility measured with it is too high "
        "by what the choice on test records and the pooled site add",
    )

    def __init__(
        self, *, pooled_client: bool = True, test_set_choice: bool = True, key_in_state: bool = True, integer_seed: bool = True
    ) -> None:
        switches = {
            "pooled_client": pooled_client,
            "test_set_choice": test_set_choice,
            "key_in_state": key_in_state,
            "integer_seed": integer_seed,
        }
        self.flaws = frozenset(name for name, on in switches.items() if on)

    def protocol(self, federation: Federation) -> Federation:
        return replace(federation, flaws=federation.flaws | self.flaws)
