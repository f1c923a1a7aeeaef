"""All records in one place: the upper end of the utility scale, and the end that federated learning exists to avoid."""

from __future__ import annotations

from typing import ClassVar

from suites.contracts import Card, Defense, Topology


class Centralized(Defense):
    """One pooled site trains alone, with the same rounds, epochs and batch as each site of the federation."""

    topology: Topology = "centralized"
    card: ClassVar[Card | None] = Card(
        server="every record: the sites hand their data over",
        site="the released model",
        outsider="the released model",
        does_not_protect="records from whoever pools them, nor their membership from whoever holds the released model",
    )
