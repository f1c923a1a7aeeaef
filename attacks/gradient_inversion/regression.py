"""What a network was asked to predict, read off its output layer: the loss is a mean squared error, so its slope is the residual.

With outputs o_b and targets t_b of T numbers, dL/do_b = 2 (o_b - t_b) / (T B). For one record that is the gradient of the output bias.
For a batch the output layer's weight gradient is the sum of dL/do_b h_b^T over records, with inputs h_b that follow from the records
that were recovered: least squares gives every dL/do_b. No search, no label. The model's own outputs come from the public model function,
under the held key or one of the adversary's drawing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient
from attacks.membership.loss import key_to_use
from suites.contracts import Observation, Params, Secret, Skip, Target
from suites.tasks.layout import Layout

_RIDGE = 1e-12  # of the trace: two records with the same inputs share what their sum says


def with_targets(seen: Observation, target: Target, x: Tensor, key: Secret | None) -> Tensor:
    """Records ``x`` [..., B, F] with their target columns filled in; unchanged where the task predicts no numbers.

    Differentiable in ``x``. Raises ``Skip`` where the message does not hold the layer that predicts them.
    """
    layout: Layout | None = seen.known["layout"].value if "layout" in seen.known else None
    if layout is None or layout.target == 0:
        return x
    gradient = as_gradient(target)
    weight, bias = output_layer(gradient, layout.target)
    own = key if key is not None else key_to_use(seen)
    # A key's buffers are single precision, and so is what the model says under it.
    params = target.params if own is None else {n: t.float() if t.is_floating_point() else t for n, t in target.params.items()}
    read = x if own is None else x.float()
    outputs = seen.predict(params, read, own)[..., : layout.target].to(x)
    if target.batch == 1:
        slopes = gradient[bias]
    else:
        inside = _inputs(seen, params, weight, bias, read, own).to(x)  # [B, H]
        gram = inside @ inside.mT
        gram = gram + (_RIDGE * gram.diagonal(dim1=-2, dim2=-1).sum(-1) + 1e-30)[..., None, None] * torch.eye(x.shape[-2]).to(gram)
        slopes = torch.linalg.solve(gram, inside @ gradient[weight].to(inside).mT)  # [B, T]
    found = outputs - slopes.to(outputs) * (layout.target * target.batch / 2)
    rest = x[..., layout.fed + layout.target :]
    return torch.cat([x[..., : layout.fed], found, rest], -1)


def output_layer(gradient: Params, count: int) -> tuple[str, str]:
    """Names of weight and bias of the last layer with ``count`` outputs."""
    for name in reversed(list(gradient)):
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("weight") and gradient[name].ndim == 2 and len(gradient[name]) == count and bias in gradient:
            return name, bias
    raise Skip(f"the message holds no layer of {count} outputs, so what was predicted cannot be read off it")


def _inputs(seen: Observation, params: Params, weight: str, bias: str, x: Tensor, key: Secret | None) -> Tensor:
    """What the output layer reads [B, H]: the public model with an output layer that passes its input on, some at a time."""
    outputs, width = params[weight].shape
    parts = []
    for first in range(0, width, outputs):
        passing = torch.zeros_like(params[weight])
        count = min(outputs, width - first)
        passing[torch.arange(count), torch.arange(first, first + count)] = 1
        parts.append(seen.predict({**params, weight: passing, bias: torch.zeros_like(params[bias])}, x, key)[..., :count])
    return torch.cat(parts, -1)
