"""The scanner finds a key wherever it is planted, and does not cry over millions of innocent numbers."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from suites.contracts import Delivery, Message, Secret
from suites.randomness import keys, stream
from tests.secret_scan import find_secret

KEY = keys("planted").uniform(128, 2, low=-1.0, high=1.0)
SECRET = Secret(coordinates=KEY)


def noise(*shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=stream("innocent", *shape)) - 1


class Keyed(nn.Module):
    def __init__(self, *, persistent: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(30, 7)
        self.register_buffer("key", KEY.float(), persistent=persistent)


def npz(path: Path) -> None:
    np.savez_compressed(path.with_suffix(".npz"), weights=noise(50).numpy(), key=KEY.numpy())


def parquet(path: Path) -> None:
    pd.DataFrame({"metric": ["auc"] * 128, "value": KEY[:, 0].numpy()}).to_parquet(path.with_suffix(".parquet"))


def figure(kind: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        mpl.use("Agg")
        import matplotlib.pyplot as plt

        plt.figure().text(0, 0, f"key {KEY[3, 0]:.6f} {KEY[3, 1]:.6f}")
        with mpl.rc_context({"svg.fonttype": "none"}):
            plt.savefig(path.with_suffix(kind))
        plt.close("all")

    return write


PLANTS: dict[str, Callable[[Path], object]] = {
    "state_dict": lambda p: save_file(Keyed(persistent=True).state_dict(), p.with_suffix(".safetensors")),
    "one float64 word": lambda p: p.write_bytes(b"odd" + noise(1001).numpy().tobytes() + KEY[77, 1:].numpy().tobytes()),
    "two float32 words": lambda p: p.write_bytes(b"x" + KEY[50].float().numpy().tobytes() + noise(99).numpy().tobytes()),
    "a float32 column": lambda p: p.write_bytes(KEY[:, 1].float().contiguous().numpy().tobytes()),
    "a float32 transpose": lambda p: save_file({"w": torch.cat([noise(9, 128), KEY.T.float()])}, p.with_suffix(".safetensors")),
    "shuffled rows": lambda p: p.write_bytes(KEY[torch.randperm(128, generator=stream("rows"))].float().numpy().tobytes()),
    "torch.save": lambda p: torch.save({"coords": KEY}, p.with_suffix(".pt")),
    "npz": npz,
    "parquet": parquet,
    "parquet text": lambda p: pd.DataFrame({"reason": [f"key {KEY[0].tolist()}"]}).to_parquet(p.with_suffix(".parquet")),
    "json": lambda p: p.with_suffix(".json").write_text(json.dumps({"rows": noise(99).tolist(), "key": KEY[:2].tolist()})),
    "six digits": lambda p: p.with_suffix(".log").write_text(f"epoch 3 loss 0.123456\ncoords {KEY[9, 0]:.6f}, {KEY[9, 1]:.6f}"),
    "cut, not rounded": lambda p: p.with_suffix(".log").write_text(" ".join(f"{v:.12f}"[:9] for v in KEY[9].tolist())),
    "scientific": lambda p: p.with_suffix(".log").write_text(" ".join(f"{v:.5e}" for v in KEY[9].tolist())),
    "one full decimal": lambda p: p.with_suffix(".html").write_text(f"<td>{KEY[9, 0].item()!r}</td>"),
    "csv with other columns": lambda p: pd.DataFrame({"i": range(128), "c": KEY[:, 0].numpy().round(6)}).to_csv(p.with_suffix(".csv")),
    "base64 in html": lambda p: p.with_suffix(".html").write_text(
        f"<img src='data:x;base64,{base64.b64encode(b'ab' + KEY.numpy().tobytes()).decode()}'>"
    ),
    "hex": lambda p: p.with_suffix(".json").write_text(json.dumps({"k": KEY[4:9].numpy().tobytes().hex()})),
    "gzip": lambda p: p.with_suffix(".gz").write_bytes(gzip.compress(KEY.numpy().tobytes())),
    "svg": figure(".svg"),
    "pdf": figure(".pdf"),
    "safetensors metadata": lambda p: save_file({"w": noise(9)}, p.with_suffix(".safetensors"), {"key": str(KEY[7].tolist())}),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_key_is_found_and_named(tmp_path: Path, plant: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "innocent.json").write_text(json.dumps(noise(200).tolist()))
    PLANTS[plant](tmp_path / "deep" / "file")
    found = find_secret(tmp_path, SECRET)
    assert found
    assert all(line.startswith("deep/file") and ": coordinates as " in line for line in found)
    other = Secret(coordinates=keys("another").uniform(128, 2, low=-1.0, high=1.0))
    assert find_secret(tmp_path, other) == []


def test_a_key_in_an_object_is_found() -> None:
    message = Message(0, "update", {"w": noise(30), "coords": KEY.float()})
    assert "messages[0]/payload/coords: coordinates as float32" in find_secret(Delivery((message,), {}, (0,)), SECRET)
    assert "key: coordinates as float32" in find_secret(Keyed(persistent=True), SECRET)
    assert find_secret(Keyed(persistent=False), SECRET) == []
    assert find_secret([{"a": [float(KEY[0, 0])]}, f"said {KEY[1, 0].item()}"], SECRET) == [
        "[0]/a: coordinates as float64",
        "[1]: coordinates as decimal text",
    ]
    assert find_secret(SECRET, SECRET) == []


def test_signs_and_permutations_are_found_as_runs(tmp_path: Path) -> None:
    held = Secret(signs=keys("s").signs(500), order=keys("o").permutation(300))
    (tmp_path / "a").write_bytes(b"1" + held["signs"].to(torch.int8).numpy().tobytes())
    (tmp_path / "b").write_bytes(held["order"].int().numpy().tobytes())
    (tmp_path / "c").write_bytes(torch.ones(10_000).numpy().tobytes() + torch.arange(5000).numpy().tobytes())
    assert find_secret(tmp_path, held) == ["a: signs as a run of values", "b: order as a run of values"]


def test_millions_of_innocent_numbers_are_not_called_a_key(tmp_path: Path) -> None:
    save_file({"w": noise(3_000_000), "m": noise(1000, 300)}, tmp_path / "w.safetensors")
    (tmp_path / "six.txt").write_text(" ".join(f"{v:.6f}" for v in noise(200_000).tolist()))
    start = time.thread_time()
    assert find_secret(tmp_path, SECRET) == []
    assert time.thread_time() - start < 60  # a hang, not a speed bar
