"""The shared membership workload and a bare trainer for reference models: no engine, so that attacks are judged alone."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from observations import mlp
from torch import Tensor
from torch.nn import functional


def shared_workload() -> tuple[Tensor, Tensor, Tensor]:
    """x [1200, 1000], y [1200], member [1200] bool; skips where the file is not at hand."""
    folder = os.environ.get("INFL_BENCH_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden"
    path = Path(folder) / "mia_workload.npz"
    if not path.is_file():
        pytest.skip("mia_workload.npz is not here: set INFL_BENCH_GOLDEN to the folder that holds it")
    data = np.load(path, allow_pickle=False)
    return torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long(), torch.from_numpy(data["member"]).bool()


def train(widths: list[int], x: Tensor, y: Tensor, seed: int, epochs: int = 20, batch: int = 100, lr: float = 1e-3) -> dict[str, Tensor]:
    """Adam on shuffled batches; returns the state."""
    module = mlp(widths, seed)
    order = torch.Generator().manual_seed(seed + 7)
    optimiser = torch.optim.Adam(module.parameters(), lr=lr, fused=True)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(batch):
            optimiser.zero_grad()
            functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimiser.step()
    return {name: t.detach() for name, t in module.state_dict().items()}
