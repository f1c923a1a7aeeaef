"""A network to audit where one has no ``fit`` at hand, and the fast one for many references: its fits share each tensor operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from suites.contracts import Federation, Local, Params
from suites.federation import Assignment, Pool, train
from suites.modules import build, call
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification


@dataclass(frozen=True)
class Fitted:
    """A trained network: ``fitted(X)`` gives logits [n, K], columns in the order of ``classes_``."""

    network: Network
    params: Params
    classes_: NDArray[np.generic]

    def __call__(self, x: ArrayLike) -> NDArray[np.float32]:
        records = torch.as_tensor(np.asarray(x, dtype=np.float32))
        module = build(self.network.task, Stack(), records.shape[1], len(self.classes_), None, stream("audit", "skeleton"))
        with torch.no_grad():
            logits: NDArray[np.float32] = call(module, self.params, records).numpy()
        return logits


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron with Adam, as a ``fit`` for ``audit``.

    ``hidden`` units in each of ``blocks`` layers, ``epochs`` of batches of ``batch`` records; ``chunk`` fits are made at a time.
    """

    hidden: int = 64
    blocks: int = 2
    epochs: int = 20
    batch: int = 100
    lr: float = 1e-3
    chunk: int = 16

    @property
    def task(self) -> Classification:
        return Classification(network="mlp", hidden=self.hidden, blocks=self.blocks, dropout=0.0)

    def __call__(self, x: ArrayLike, y: ArrayLike, seed: int = 0) -> Fitted:
        """One fit on all records given."""
        return self.many(x, y, np.ones((1, len(np.asarray(y))), dtype=bool), [seed])[0]

    def many(self, x: ArrayLike, y: ArrayLike, included: NDArray[np.bool_], seeds: Sequence[int]) -> list[Fitted]:
        """One fit for each row of ``included`` [R, n], on the records it marks; the k-th does not depend on the others but for rounding."""
        classes, labels = np.unique(np.asarray(y), return_inverse=True)
        pool = Pool(torch.as_tensor(np.asarray(x, dtype=np.float32)), torch.as_tensor(labels.reshape(-1), dtype=torch.int64), len(classes))
        rows = [torch.as_tensor(np.flatnonzero(row)) for row in included]
        made = [Assignment((row,), ("audit", "fit", seed), ("audit", "fit", seed, "defense")) for row, seed in zip(rows, seeds)]
        protocol = Federation("centralized", 1, 1, Local(self.epochs, self.batch, "adam", self.lr))
        trained = train(self.task, Stack(), protocol, pool, made, chunk=self.chunk)
        return [Fitted(self, one.finals[0], classes) for one in trained]
