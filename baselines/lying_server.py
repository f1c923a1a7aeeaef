"""What a server of secure aggregation may try beyond reading; each function plays one lie on honest sites, who have to refuse it.

``infl-bench check`` tells them (``MaskedSum.lies``). That the sums really fall to them where sites do not refuse is shown by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baselines.bonawitz import Site
from baselines.fixed_point import Words

Encode = Callable[[int], Words]


def ask_for_both_shares(sites: Sequence[Site], words: Encode) -> None:
    """The last site both survived and vanished: the shares of its seed and of its mask key together open its update."""
    victim = len(sites) - 1
    directory = {site.index: site.identity for site in sites}
    for site in sites:
        site.directory = directory
    adverts = [site.advertise() for site in sites]
    boxes = [box for site in sites for box in site.share(adverts)]
    for site in sites:
        site.mask(words(site.index), [box for box in boxes if box.recipient == site.index])
    votes = [site.vote(range(len(sites))) for site in sites]
    for site in sites[:victim]:
        site.unmask(range(len(sites)), [victim], votes)
