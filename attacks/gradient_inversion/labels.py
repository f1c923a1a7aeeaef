"""How often each class occurs in a batch, from the gradient of the output layer's bias.

For the mean cross-entropy of B records that gradient is ``mean(p) - counts / B`` with softmax outputs p (Zhao et al. 2020, "iDLG",
use its sign at B = 1). Near a fresh model ``mean(p)`` hardly depends on the records, so the model's mean output on the adversary's own
records stands for it: ``counts = B (p_aux - gradient)``, rounded to whole numbers that sum to B.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient, output_bias
from suites.contracts import Observation, Secret, Target


def label_counts(target: Target, classes: int, outputs: Tensor | None = None) -> Tensor | None:
    """Counts per class [K] int64, or None where the message holds no output bias.

    ``outputs`` [n, K] are the model's at ``target.params`` on public records (auxiliary ones, or draws from the prior); without
    them the mean softmax output is taken as uniform.
    """
    gradient = as_gradient(target)
    name = output_bias(gradient, classes)
    if name is None:
        return None
    slope = gradient[name].double()
    if target.optimiser == "adam":  # only signs survive Adam's first steps
        slope = slope.clamp(-1, 1) / classes
    mean = torch.full_like(slope, 1 / classes) if outputs is None else outputs.double().softmax(-1).mean(0)
    return whole(target.batch * (mean - slope), target.batch)


def whole(share: Tensor, total: int) -> Tensor:
    """Non-negative whole numbers that sum to ``total`` and lie nearest to ``share`` [K] (largest remainder, in both directions)."""
    counts = share.clamp_min(0).round()
    while (excess := int(counts.sum().item()) - total) != 0:
        step = 1 if excess < 0 else -1
        gap = (share - counts) * step
        if step < 0:
            gap = gap.masked_fill(counts == 0, -torch.inf)
        counts[gap.argmax()] += step
    return counts.long()


def label_list(target: Target, classes: int, outputs: Tensor | None = None) -> Tensor | None:
    """The same as a sorted list of labels [B] int64."""
    counts = label_counts(target, classes, outputs)
    return None if counts is None else torch.repeat_interleave(torch.arange(classes, device=counts.device), counts)


def labels_by_slope(seen: Observation, target: Target, x: Tensor, slopes: Tensor, bias: str, classes: int, key: Secret | None) -> Tensor:
    """Each record's label [B]: the class under which its own gradient of the tensor ``bias`` [H] points most like its row of ``slopes``.

    ``x`` [B, F] are records and ``slopes`` [B, H] their shares of that gradient, up to scale and sign.
    """
    alone = replace(target, optimiser="gradient", steps=1, batch=1)
    each = torch.eye(classes, dtype=x.dtype, device=x.device)
    chosen = []
    for record, slope in zip(x, slopes):
        sent = torch.stack([seen.simulate(alone, record[None], one[None], key)[bias] for one in each]).double()  # [K, H]
        chosen.append(torch.cosine_similarity(sent, slope.double()[None], dim=1).argmax())
    return torch.stack(chosen)
