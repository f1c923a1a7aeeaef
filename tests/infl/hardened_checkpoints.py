"""``infl:hardened`` where a batch answers at several checkpoints: what counts is rows in sight of a batch, not units of a message.

A gradient of a first layer of H units shows H rows of the span of its batch. Those of the same batch at K checkpoints, stacked, show
K H, as one gradient of a layer of K H units would. So batches larger than the layer is wide come apart like smaller ones
(``attacks.key.overlap``) as soon as they come back, and overlap others that do. The adversary knows which messages are of one batch, and
neither key nor plaintext.

    python -m tests.infl.hardened_checkpoints OUT      # docs/hardened_checkpoints.csv
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attacks.gradient_inversion.message import first_linear
from attacks.key.matching import search
from attacks.key.overlap import isolated
from infl.hardened import LEAST, Hardened
from reports.intervals import clopper_pearson
from suites.contracts import Records, Target, Threat
from suites.observation import Seen
from suites.randomness import keys, stream
from suites.tasks.classification import Classification
from tests.attacks.visible import look
from tests.infl.hardened_limits import cohort

BATCHES, CHAINS, STEPS = 24, 250, 12


def measure(data: tuple[Records, Tensor, Tensor], checkpoints: int, trained: bool, seed: int, *, chains: int = CHAINS) -> dict[str, Any]:
    """24 batches of ``LEAST`` records out of a site of twice as many, each at so many checkpoints of 64 units: answered and right.

    ``trained``: checkpoints of one run of Adam, ``STEPS`` steps apart, and else fresh networks. ``answered`` counts names given to places
    of batches, ``right`` those whose record was in that batch; a blind draw among the candidates would be right for ``chance``.
    """
    records, asked, own = data
    site = asked[torch.randperm(len(asked), generator=stream("hardened limits", "sent", seed))].tolist()[: 2 * LEAST]
    draws = [torch.randperm(len(site), generator=stream("hardened checkpoints", seed, k))[:LEAST].tolist() for k in range(BATCHES)]
    batches = [[site[i] for i in draw] for draw in draws]
    sights = [
        look(
            [Hardened(minimum=1)],
            records,
            batches,
            asked,
            own,
            classes=int(records.y.max()) + 1,
            task=Classification(dropout=0.0, network="mlp"),
            secret=keys("hardened limits", "secret", seed),
            start=seed if trained else (seed, number),
            settle=(site, STEPS * number) if trained else None,
        )
        for number in range(checkpoints)
    ]
    stacked = _stacked([Seen(sight.scene, sight.evidence, Threat()).targets for sight in sights], records.x.shape[1])
    lines, within = isolated(stacked, records.x.shape[1], chains, stream("hardened checkpoints", seed, "chains"))
    answered = right = 0
    if len(lines) > 2:
        pool = sights[0].pool.x
        names = search(lines, pool, torch.ones(len(lines), len(pool), dtype=torch.bool), stream("hardened checkpoints", seed), starts=1)[0]
        for chosen, batch in zip(within, batches):
            given = set(asked[names[chosen[:LEAST]]].tolist()) if chosen else set()
            answered, right = answered + len(given), right + len(given & set(batch))
    low, high = clopper_pearson(right, answered) if answered else (float("nan"), float("nan"))
    said = {"checkpoints": checkpoints, "of": "one run" if trained else "fresh networks", "seed": seed, "chains": chains}
    return {**said, "isolated": len(lines), "answered": answered, "right": right, "low": low, "high": high, "chance": LEAST / len(asked)}


def _stacked(seen: Sequence[Sequence[Target]], features: int) -> list[Target]:
    """Each batch's messages as one of a layer of as many units as all have together."""
    layer = first_linear(seen[0][0].update, features)
    assert layer.bias is not None
    names = (layer.weight, layer.bias)
    return [
        replace(same[0], update={name: torch.cat([one.update[name].double() for one in same]) for name in names}) for same in zip(*seen)
    ]


def table(seeds: Sequence[int] = (0, 1, 2)) -> pd.DataFrame:
    """pbmc68k: one checkpoint, two and three fresh networks, two and three checkpoints of one run."""
    data = cohort("pbmc68k")
    asked = [(1, False), (2, False), (3, False), (2, True), (3, True)]
    return pd.DataFrame([measure(data, count, trained, seed) for count, trained in asked for seed in seeds])


if __name__ == "__main__":
    table().round(4).to_csv(Path(sys.argv[1]), index=False)
