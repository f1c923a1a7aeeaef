"""Principal components of some records, also where these are many and wide: by their Gram or covariance matrix, summed up in parts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from suites.room import Rows

_SMALL = 1 << 21  # values that are decomposed as they are
_LEAST = 128  # rows or columns that are summed up together: each time the whole matrix is gone through


def components(x: Rows, width: int, weight: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Fitted to records ``x`` of F columns, each multiplied by ``weight`` [F]: what puts records [n, F] on the first components.

    The result is [n, width], padded with zeros where there are fewer. An axis is an eigenvector of the covariance matrix; where there are
    fewer records than columns, it is made of one of the Gram matrix (Turk & Pentland 1991, J. Cogn. Neurosci. 3, 71). In doubles this gives
    the leading axes of a singular value decomposition, which would hold the records four times more.
    """
    if len(x) * x.table.shape[1] <= _SMALL:
        held = x.whole() if weight is None else x.whole() * weight
        centre = held.mean(0)
        axes = torch.linalg.svd((held - centre).double(), full_matrices=False)[2][:width].T
        del held
    else:
        centre, axes = _of_many(x, width, weight)
    axes = _upright(axes)

    def outputs(asked: Tensor) -> Tensor:
        z = (((asked if weight is None else asked * weight) - centre).double() @ axes).float()
        return torch.nn.functional.pad(z, (0, width - z.shape[1]))

    return outputs


def _of_many(x: Rows, width: int, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean [F] and the first axes [F, k] of many records."""
    n, features = len(x), x.table.shape[1]
    weight = torch.ones(features) if weight is None else weight
    centre = torch.empty(features)  # written into, as the axes are: small pieces kept between large ones break up the heap
    for cut, block in x.by_columns(_LEAST):
        centre[cut] = block.mul_(weight[cut]).mean(0)
    if features <= n:
        covariance = torch.zeros(features, features, dtype=torch.float64)
        for block in x.by_rows(_LEAST):
            held = block.mul_(weight).sub_(centre).double()
            covariance.addmm_(held.T, held)
        return centre, _leading(covariance, width)[1]
    gram = torch.zeros(n, n, dtype=torch.float64)
    for cut, block in x.by_columns(_LEAST):
        held = block.mul_(weight[cut]).sub_(centre[cut]).double()
        gram.addmm_(held, held.T)
    squares, vectors = _leading(gram, width)
    del gram
    vectors = vectors / squares.sqrt()
    axes = torch.empty(features, vectors.shape[1], dtype=torch.float64)
    for cut, block in x.by_columns(_LEAST):
        torch.mm(block.mul_(weight[cut]).sub_(centre[cut]).double().T, vectors, out=axes[cut])
    return centre, axes


def _upright(axes: Tensor) -> Tensor:
    """Axes [F, k] whose largest loading is positive: an eigenvector has no sign, and different programs give different ones."""
    return axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()


def _leading(matrix: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues [k] of a symmetric ``matrix``, which is lost, and their vectors [n, k]; those that are 0 are left out."""
    from scipy.linalg import eigh

    n = len(matrix)
    if not bool(matrix.diagonal().isfinite().all()):
        raise ValueError("records with missing or infinite values have no principal components; fill them first")
    # A symmetric matrix is its own transpose, and that LAPACK takes without a copy.
    values, vectors = eigh(matrix.numpy().T, subset_by_index=[max(0, n - width), n - 1], overwrite_a=True, check_finite=False)
    largest = torch.from_numpy(values[::-1].copy())
    kept = largest > n * torch.finfo(torch.float64).eps * largest.max()
    return largest[kept], torch.from_numpy(vectors[:, ::-1].copy())[:, kept]
