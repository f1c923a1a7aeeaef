"""How well members are told from non-members without any model: what it finds comes from how the records were split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
REPEATS = 4  # one way of cutting folds moves an AUC by more than its interval
_PENALTY = 1.0  # of ridge regression, in mean eigenvalues of the kernel


def blind_scores(x: NDArray[np.float32], y: NDArray[np.int64], member: NDArray[np.bool_], seed: int) -> NDArray[np.float64]:
    """Out-of-fold scores [n] of a ridge regression of membership on records and labels (after Das, Zhang and Tramèr 2024, "Blind baselines
    beat membership inference attacks for foundation models").

    It is given the membership of four fifths of the records, so it is a ceiling of what the split gives away to a linear rule.
    """
    centred = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    label = np.eye(int(y.max()) + 1)[y]
    kernel = (centred @ centred.T / x.shape[1] + label @ label.T).astype(np.float64)
    hat = np.linalg.solve(kernel + _PENALTY * np.trace(kernel) / len(x) * np.eye(len(x)), kernel).T
    wanted = member - member.mean()
    fitted = hat @ wanted
    rng, scores = np.random.default_rng([seed, 5]), np.zeros(len(x))
    for _ in range(REPEATS):
        for part in np.array_split(rng.permutation(len(x)), FOLDS):
            # What a fit without this fold says about it follows from the fit with it.
            left = np.linalg.solve(np.eye(len(part)) - hat[np.ix_(part, part)], wanted[part] - fitted[part])
            scores[part] += wanted[part] - left
    return scores / REPEATS
