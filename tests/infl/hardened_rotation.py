"""What a rotation of the key costs on pbmc68k: ``python -m tests.infl.hardened_rotation FILE`` writes a row a seed and defense (a minute).

Five sites of 70 records and ten rounds, as in the quickstart suite; then the key changes, and rounds are counted until the accuracy on the
test part is back within .034, about one standard error of 175 records. The control starts anew under the new key.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import pandas as pd

from infl.hardened import Hardened
from infl.key import Key
from infl.published import Published
from infl.rotation import RotationCost, rotation_cost
from suites.config import load
from suites.contracts import Defense, Local
from suites.prepared import prepare
from suites.randomness import keys
from suites.tasks.classification import Classification

DEFENSES: dict[str, Defense] = {"infl:published": Published(), "infl:hardened": Hardened(minimum=64)}  # sites are below what it asks for
ROUNDS, LIMIT, WITHIN = 10, 20, 0.034


def key(version: int) -> Key:
    return Key(keys("test rotation", version).bytes(32), "00" * 16, version)


def cost(name: str, seed: int) -> RotationCost:
    data = prepare({**load("quickstart")[0].model_dump(mode="json"), "seed": seed}, None)
    return rotation_cost(
        Classification(dropout=0.0),
        DEFENSES[name],
        data.pool,
        data.sites,
        data.test,
        old=key(1),
        new=key(2),
        local=Local(epochs=5, batch=100, lr=1e-3, weight_decay=1e-2),
        rounds=ROUNDS,
        limit=LIMIT,
        within=WITHIN,
        coordinates=("rotation", seed),
    )


def row(name: str, seed: int) -> dict[str, object]:
    """Accuracy before and right after the rotation, and rounds until it is back: from the old model, and from a new start."""
    found = cost(name, seed)
    return {
        "data": "pbmc68k",
        "defense": name,
        "seed": seed,
        "before": found.before,
        "right_after": found.after[0],
        "rounds": found.rounds,
        "rounds_anew": found.rounds_anew,
    }


def measured(seeds: Iterable[int] = range(5)) -> pd.DataFrame:
    rows = [row(name, seed) for name in DEFENSES for seed in seeds]
    return pd.DataFrame(rows).astype({"rounds": "Int64", "rounds_anew": "Int64"}).round(4)  # empty where the limit came first


def table(held: pd.DataFrame) -> str:
    """A row a defense: ranges over seeds, and each seed's rounds."""
    lines = ["| defense | accuracy before | right after | rounds from the old model | rounds anew |", "|---|---|---|---|---|"]
    for name, own in held.groupby("defense", sort=False):
        ends = [f"{own[column].min():.2f} to {own[column].max():.2f}" for column in ("before", "right_after")]
        rounds = [", ".join("-" if pd.isna(count) else f"{count:.0f}" for count in own[column]) for column in ("rounds", "rounds_anew")]
        lines.append(f"| {name} | {' | '.join([*ends, *rounds])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measured().to_csv(sys.argv[1], index=False, lineterminator="\n")
