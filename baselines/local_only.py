"""Every site trains alone and nothing is sent: the lower end of the utility scale, and the private end."""

from __future__ import annotations

from typing import ClassVar

from suites.contracts import Card, Defense, Topology


class LocalOnly(Defense):
    """Each site keeps its own model, trained for as long as a federation would; utility is the mean over sites."""

    topology: Topology = "local_only"
    card: ClassVar[Card | None] = Card(
        server="nothing: there is no server",
        site="its own model only",
        outsider="nothing, unless a site releases its model",
        does_not_protect="membership from whoever is given a site's model: small sites overfit more",
    )
