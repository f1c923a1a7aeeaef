"""Federated averaging without any protection (McMahan et al. 2017, arXiv 1602.05629): the engine with an empty list of layers."""

from __future__ import annotations

from typing import ClassVar

from suites.contracts import Card, Defense


class FedAvg(Defense):
    """Every hook is the identity: what leaks here is what a defense has to stop."""

    card: ClassVar[Card | None] = Card(
        server="every site's update in the clear, each round, and how many records stand behind it",
        site="the broadcast model each round, from which it can subtract what it sent itself",
        outsider="the released model",
        does_not_protect="anything: inputs, membership and properties of a site can be read from its updates",
    )
