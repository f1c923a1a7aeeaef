"""How well an embedding's clusters tell known groups apart, whether spatial neighbours agree, how well two embeddings match."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from suites.tasks.layout import blocks

STARTS = 10
NEIGHBOURS = 6  # of a spot on a hexagonal grid


def clusterings(z: Tensor, count: int) -> list[NDArray[np.int64]]:
    """``STARTS`` k-means labellings [n] of embeddings [n, d] with ``count`` clusters, each from a start of its own.

    One cluster where all embeddings are alike or not finite. Metrics are averaged over the starts: the best of several jumps between
    local optima, so that embeddings equal to six digits differed by .09 in ARI.
    """
    from sklearn.cluster import KMeans

    held = z.detach().double().cpu()
    if not bool(held.isfinite().all()) or float(held.std(0).max()) < 1e-12:
        return [np.zeros(len(held), dtype=np.int64)]
    x = held.numpy()
    return [KMeans(count, n_init=1, random_state=start).fit_predict(x).astype(np.int64) for start in range(STARTS)]


def agreement(found: list[NDArray[np.int64]], truth: NDArray[np.int64]) -> dict[str, float]:
    """Adjusted Rand index (Hubert & Arabie 1985) and normalised mutual information (arithmetic mean), averaged over labellings."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        "ari": float(np.mean([adjusted_rand_score(truth, one) for one in found])),
        "nmi": float(np.mean([normalized_mutual_info_score(truth, one) for one in found])),
    }


def nearest(place: NDArray[np.float64], count: int = NEIGHBOURS) -> NDArray[np.int64]:
    """Indices [n, k] of each point's nearest others; k is ``count`` or as many as there are."""
    from scipy.spatial import cKDTree

    k = min(count, len(place) - 1)
    if k < 1:
        return np.zeros((len(place), 0), dtype=np.int64)
    found: NDArray[np.int64] = np.asarray(cKDTree(place).query(place, k=k + 1)[1], dtype=np.int64)
    # A point is its own nearest neighbour, except among doubles, where it may come later or not at all.
    rows = np.arange(len(place))
    own = found == rows[:, None]
    own[~own.any(1), -1] = True
    others: NDArray[np.int64] = found[~own].reshape(len(place), k)
    return others


def coherence(labels: NDArray[np.int64], place: NDArray[np.float64]) -> float:
    """Share of nearest neighbours in space with the same label, on a scale from what labels at random places give (0) to 1.

    The join count of spatial statistics (Cliff & Ord 1981), corrected for chance as Cohen's kappa is. One label for all says nothing: 0.
    """
    near = nearest(place)
    share = np.bincount(labels) / len(labels)
    chance = float((share**2).sum())
    if chance > 1 - 1e-12 or near.shape[1] == 0:
        return 0.0
    return (float((labels[near] == labels[:, None]).mean()) - chance) / (1 - chance)


def foscttm(a: Tensor, b: Tensor) -> float:
    """Fraction of samples closer than the true match (Liu et al. 2019, WABI, MMD-MA), both ways; 0 is a perfect match, 0.5 chance."""
    x, other = a.detach().double().cpu(), b.detach().double().cpu()
    n = len(x)
    if n < 2 or not bool(x.isfinite().all() and other.isfinite().all()):
        return 0.5
    parts = list(blocks(n, n))  # the distances of all to all would outgrow many a table

    def gaps(some: slice) -> Tensor:
        return torch.cdist(x[some], other)

    own = torch.cat([gaps(some).diagonal(offset=some.start) for some in parts])
    total = -float(n)
    for some in parts:
        gap = gaps(some)
        # Ties count half, so that embeddings that are all alike are at chance and not at a perfect match.
        for right in (own[some, None], own):
            total += float((gap < right).sum()) + 0.5 * float((gap == right).sum())
    return total / (2 * n * (n - 1))


def mixing(z: Tensor, batch: NDArray[np.int64], count: int = 15) -> float:
    """How well batches mix: mean entropy of the batches among each record's nearest, over that of all records (1: wholly mixed).

    After the entropy of batch mixing of Haghverdi et al. 2018, Nat. Biotechnol. 36, 421. 1 where there is one batch; NaN where some
    embeddings are not finite or all are alike: nobody is nearest there, and which ties were taken would depend on the records' order.
    """
    codes, index = np.unique(batch, return_inverse=True)
    if len(codes) < 2:
        return 1.0
    held = z.detach().double().cpu().numpy()
    if not np.isfinite(held).all() or float(held.std(0).max()) < 1e-12:
        return float("nan")
    near = index[nearest(held, count)]
    share = np.stack([(near == code).mean(1) for code in range(len(codes))], 1)
    whole = np.bincount(index) / len(index)

    def entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
        out: NDArray[np.float64] = -(p * np.log(np.maximum(p, 1e-300))).sum(-1)
        return out

    return float(entropy(share).mean() / entropy(whole))
