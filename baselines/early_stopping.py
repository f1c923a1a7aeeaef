"""Early stopping: fewer rounds, and with them less that the model remembers of single records. A cheap defense without any promise.

Training ends once the loss on validation records has not fallen for ``patience`` rounds, and the best round's model is released (Prechelt
1998). Overfitting is what most membership inference feeds on (Yeom et al. 2018, arXiv 1709.01604); what a server reads from single
updates in the first rounds is not touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from suites.contracts import Card, Defense, Federation, RequestError


class EarlyStopping(Defense):
    """Stops by validation loss.

    Parameters
    ----------
    patience : int
        Rounds without a lower validation loss after which training ends.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's update in the clear, in as many rounds as were trained",
        site="the broadcast model of those rounds",
        outsider="the model of the round with the lowest validation loss",
        does_not_protect="anything that can be read from an update, which is most in the first rounds; records that the model remembers "
        "before its validation loss rises",
    )

    def __init__(self, *, patience: int = 1) -> None:
        if patience < 1:
            raise RequestError(f"early_stopping got patience={patience}, but it counts rounds without improvement; give 1 or more")
        self.patience = int(patience)

    def protocol(self, federation: Federation) -> Federation:
        return replace(federation, selection="validation", patience=self.patience)
