"""INFL as published without its keyed parts: how much is right, and which class the network then says most.

python -m tests.infl.published_keyless quickstart infl:published 19 OUT.csv
python -m tests.infl.published_keyless published as_published+infl:published:strength=20 4 OUT.csv      # 90 CPU seconds a seed
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from suites.bench import Bench
from suites.config import load
from suites.plan import plan


def measure(suite: str, defense: str, seed: int) -> dict[str, Any]:
    """One federation of a suite's seed: accuracy with the key and without keyed parts, and the class said most (rank 1: the largest)."""
    asked = load(suite)[0].model_copy(update={"defenses": (defense,), "seeds": 1, "attacks": (), "parts": ()})
    bench = Bench({**plan(asked, "cpu").cells[0].spec, "seed": seed}, None)
    trained, held = bench.train([bench.assignment()], target=False)[0], bench.prepared
    y, classes = held.pool.y, held.pool.classes
    members, test = y[torch.cat(held.sites)], y[held.test]
    sizes = torch.bincount(members, minlength=classes)
    x = held.pool.x[held.test]
    right = bench.predict(trained.secret)(trained.finals[0], x).argmax(1)
    without = bench.predict(None, keyless=True)(trained.finals[0], x).argmax(1)
    said = torch.bincount(without, minlength=classes)
    top = int(said.argmax())
    return {
        "suite": suite,
        "seed": seed,
        "right": round(float((right == test).float().mean()), 3),
        "keyless": round(float((without == test).float().mean()), 3),
        "majority": round(float((test == sizes.argmax()).float().mean()), 3),
        "share_of_top": round(float(said[top]) / len(test), 3),
        "rank_of_top": int((sizes > sizes[top]).sum()) + 1,
        "size_of_top": int(sizes[top]),
        "classes_said": int((said > 0).sum()),
    }


def table(suite: str, defense: str, seeds: Iterable[int]) -> pd.DataFrame:
    return pd.DataFrame([measure(suite, defense, seed) for seed in seeds])


if __name__ == "__main__":
    table(sys.argv[1], sys.argv[2], range(int(sys.argv[3]))).to_csv(Path(sys.argv[4]), index=False)
