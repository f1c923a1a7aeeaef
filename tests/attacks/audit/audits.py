"""One audit through the referee: a federation trained with canaries, and an attack that looks for them."""

import json
import tempfile
from pathlib import Path
from typing import Any

from suites.referee import attack_cell, train_cell

UNDER_NOISED = '''"""A defense that adds a tenth of the noise that its claim rests on."""

from baselines.dp_sgd import DPSGD


class UnderNoised(DPSGD):
    """DP-SGD with a tenth of the noise."""

    def noise(self, clipped_sum, rng):
        noisy = super().noise(clipped_sum, rng)
        return {name: mean + 0.1 * (noisy[name] - mean) for name, mean in clipped_sum.items()}
'''


def plant(folder: Path) -> str:
    """The reference of a defense that is under-noised."""
    path = folder / "planted.py"
    path.write_text(UNDER_NOISED)
    return f"{path}:UnderNoised:epsilon=2"


def spec(defense: str, attack: str, seed: int, **federation: Any) -> dict[str, Any]:
    """Two sites of 300 records in 400 features; the canary site takes one full batch a round, where accounting is tight."""
    return {
        "suite": "audit",
        "task": "classification:network=mlp:hidden=32:blocks=1:dropout=0",
        "data": {"name": "synthetic", "params": {"records": 1200, "features": 400, "classes": 4, "sites": 2}},
        "split": {"unit": "record", "train": 0.5, "validation": 0.1, "test": 0.2, "auxiliary": 0.2},
        "partition": {"kind": "iid", "sites": 2},
        "federation": {"rounds": 10, "local": {"epochs": 1, "batch": 2000, "optimiser": "sgd", "lr": 0.1, **federation}},
        "probes": [],
        "engine": {"chunk": 1},
        "defense": defense,
        "seed": seed,
        "inserts": attack,
    }


def audit(
    defense: str, attack: str, seed: int, *, view: str = "server", **federation: Any
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Values by metric, and the rows, of one audit; nothing is left on disk."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / "cells" / name for name in ("train", "attack")]
        for folder in folders:
            folder.mkdir(parents=True)
        given = spec(defense, attack, seed, **federation)
        train_cell(given, folders[0])
        assert json.loads((folders[0] / "rows.json").read_text()) == []  # no utility of a model trained on canaries
        attack_cell({**given, "attack": attack, "threat": {"view": view, "key": "none"}}, folders[1], {"train": folders[0]})
        rows = json.loads((folders[1] / "rows.json").read_text())
    return {row["metric"]: row["value"] for row in rows}, rows
