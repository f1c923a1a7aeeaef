"""Classification of omics profiles: cancer subtypes, cell types, any label column."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suites.errors import RequestError
from suites.room import Rows
from suites.tasks.networks import MLP, Norm, ResidualMLP


class Classification:
    """Cross-entropy on the ProCanFDL-like residual network (or a plain MLP); outputs are logits [B, K].

    Parameters
    ----------
    network : "residual" or "mlp"
    hidden, blocks, head : widths; an MLP has ``blocks`` hidden layers of width ``hidden`` and no head
    dropout : share of units left out in a training step
    norm : "layer" (default, for every defense alike), "batch" (as published; DP refuses it), "none"; the MLP has none
    """

    name: ClassVar[str] = "classification"

    def __init__(
        self,
        *,
        hidden: int = 64,
        blocks: int = 2,
        head: int = 32,
        dropout: float = 0.2,
        norm: Norm = "layer",
        network: Literal["residual", "mlp"] = "residual",
    ) -> None:
        if network not in {"residual", "mlp"}:
            raise RequestError(f"unknown network {network!r}: classification has network=residual or network=mlp")
        if norm not in {"layer", "batch", "none"}:
            raise RequestError(f"unknown norm {norm!r}: classification has norm=layer, batch or none")
        if min(hidden, head) < 1 or blocks < 0:
            raise RequestError("hidden and head need at least 1 unit and blocks cannot be negative, since no network has such a shape")
        self.hidden, self.blocks, self.head = hidden, blocks, head
        self.dropout, self.norm, self.network = dropout, norm, network

    def net(self, features: int, outputs: int) -> nn.Module:
        if self.network == "mlp":
            return MLP(features, outputs, (self.hidden,) * self.blocks, self.dropout)
        return ResidualMLP(features, outputs, hidden=self.hidden, blocks=self.blocks, head=self.head, dropout=self.dropout, norm=self.norm)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy per record: outputs [..., B, K], ``y`` labels [..., B] or probabilities [..., B, K] -> [..., B]."""
        log_p = outputs - outputs.logsumexp(-1, keepdim=True)  # four times faster than log_softmax over a few classes on a CPU
        if y.is_floating_point():
            return -(y * log_p).sum(-1)
        return -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)

    def signal(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p/(1-p) of the true class (Carlini et al. 2022, LiRA, eq. 5), [..., B, K] -> [..., B].

        Computed as z_y - logsumexp of the other logits, which stays finite where p rounds to one.
        """
        labels = (y.argmax(-1) if y.is_floating_point() else y).unsqueeze(-1)
        own = torch.arange(outputs.shape[-1], device=outputs.device) == labels
        others = torch.logsumexp(outputs.masked_fill(own, -torch.inf), dim=-1)
        return outputs.gather(-1, labels).squeeze(-1) - others

    def utility(self, outputs: Tensor, y: Tensor, classes: int) -> dict[str, float]:
        """Accuracy (the headline), balanced accuracy, macro and weighted F1, weighted one-vs-rest AUC.

        Outputs [n, K] that are not finite (a model that diverged) count as all equal. Classes absent from ``y`` are left out of balanced
        accuracy and AUC; F1 follows scikit-learn, which averages over classes that are true or predicted.
        """
        logits = outputs.detach().double().cpu()
        logits = torch.where(torch.isfinite(logits).all(-1, keepdim=True), logits, 0.0)
        truth: NDArray[np.int64] = y.detach().cpu().numpy()
        guess = logits.argmax(-1).numpy()
        table = np.zeros((classes, classes), dtype=np.int64)  # true x guessed
        np.add.at(table, (truth, guess), 1)
        hits, support, guessed = np.diag(table), table.sum(1), table.sum(0)
        seen, named = support > 0, support + guessed > 0
        f1 = 2 * hits / np.maximum(support + guessed, 1)
        return {
            "accuracy": float(hits.sum() / support.sum()),
            "balanced_accuracy": float((hits[seen] / support[seen]).mean()),
            "f1_macro": float(f1[named].mean()),
            "f1_weighted": float((f1 * support).sum() / support.sum()),
            "auc_weighted": _weighted_auc(torch.softmax(logits, -1).numpy(), truth, support),
        }

    def baselines(self, x: Rows, y: Tensor, classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Multinomial logistic regression with scikit-learn's default ridge, on the same public units."""
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 200 steps are enough for a yardstick
            fitted = LogisticRegression(max_iter=200).fit(x.whole().numpy(), y.numpy())

        def outputs(asked: Tensor) -> Tensor:
            found = torch.full((len(asked), classes), -1e9)
            p = torch.from_numpy(fitted.predict_proba(asked.numpy())).double()
            found[:, torch.from_numpy(fitted.classes_)] = p.clamp_min(1e-300).log().float()  # a share of zero is no missing answer
            return found

        return {"logistic_regression": outputs}

    def floor(self, y_train: Tensor, y_test: Tensor, classes: int) -> dict[str, float]:
        """The same metrics for always saying the majority class of the training records."""
        majority = torch.bincount(y_train, minlength=classes).argmax()
        outputs = torch.zeros(len(y_test), classes)
        outputs[:, majority] = 1.0
        return self.utility(outputs, y_test, classes)


def _weighted_auc(p: NDArray[Any], truth: NDArray[np.int64], support: NDArray[np.int64]) -> float:
    """Area under the one-vs-rest ROC, averaged by support over the classes that have records on both sides; NaN if none has."""
    total, weight = 0.0, 0
    for k in np.flatnonzero((support > 0) & (support < len(truth))):
        _, tie, count = np.unique(p[:, k], return_inverse=True, return_counts=True)
        rank = (np.cumsum(count) - (count - 1) / 2)[tie]  # mean rank of ties
        own = int(support[k])
        auc = (rank[truth == k].sum() - own * (own + 1) / 2) / (own * (len(truth) - own))
        total, weight = total + auc * own, weight + own
    return total / weight if weight else float("nan")
