"""Closed-form recovery of a vector that several layers share as their input, from one message and without any key.

A linear layer on one vector k has dL/dW = u k^T and dL/db = u, so k = (dL/dW)^T u / |u|^2, whatever the batch. The modulators of keyed
layers are such layers, and all read the same k. A delta of several SGD steps, with momentum or without, points to the mean of the steps'
vectors; Adam leaves a direction. Nothing here knows about keys: every weight and bias of an update is tried.
(The division is that of Phong et al. 2018; that it gives INFL's key vector is in the project's notes on the published method.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from suites.contracts import Goal, Guess, Observation, Params, RequestError, Sees, Skip, Target

_SAME = 1e-2  # layers whose exact inputs differ by less belong together; rounding of a small step stays below
_ALIKE = 0.7  # cosine that suffices where the optimiser (Adam, many steps) has left only a direction
_CERTAIN = 1e-5
_STEPS = 5


@dataclass(frozen=True, slots=True)
class Shared:
    """An input vector [width] that the named layers have in common; ``residual`` is what rank one leaves over, relative."""

    vector: Tensor
    layers: tuple[str, ...]
    residual: float
    certain: bool


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's update in float64 and the variances of its rounding."""

    name: str
    weight: Tensor  # [o, i]
    bias: Tensor  # [o]
    weight_noise: Tensor
    bias_noise: Tensor

    @property
    def input(self) -> Tensor:
        """The input [i] that this layer alone points to; exact if it was the same for all records."""
        return self.bias @ self.weight / self.bias.square().sum()

    @property
    def residual(self) -> float:
        return float((self.weight - torch.outer(self.bias, self.input)).norm() / self.weight.norm().clamp_min(1e-300))


def shared_inputs(update: Params, params: Params | None = None, *, blurred: bool = False) -> list[Shared]:
    """Vectors that two or more linear layers read as their input, or as part of it, best first.

    Parameters
    ----------
    update : a gradient, or ``after - before`` of one step or several.
    params : the parameters before the step, where ``update`` is a difference: they say how much each entry lost by rounding.
    blurred : an optimiser (Adam, several steps) has left no more than the direction; then nothing is certain.
    """
    layers = []
    for name, weight in update.items():
        bias = update.get(f"{name.removesuffix('weight')}bias")
        if name.endswith(".weight") and weight.ndim == 2 and bias is not None and bias.shape == weight.shape[:1] and bias.any():
            layers.append(_read(name.removesuffix(".weight"), weight, bias, params))
    found = []
    for group in _alike(layers) if blurred else _equal(layers):
        shared = _combine(group, blurred=blurred)
        if not blurred:  # then look for the same vector inside longer inputs, and count those rows too
            group += [part for layer in layers for part in _parts(layer, shared.vector)]
            shared = _combine(group)
        found.append(shared)
    return sorted(found, key=lambda shared: (not shared.certain, -len(shared.layers), shared.residual))


def _read(name: str, weight: Tensor, bias: Tensor, params: Params | None) -> _Layer:
    before = {} if params is None else params
    noise = [_rounding(tensor, before.get(f"{name}.{part}")) for part, tensor in (("weight", weight), ("bias", bias))]
    return _Layer(name, weight.double(), bias.double(), *noise)


def _rounding(update: Tensor, before: Tensor | None) -> Tensor:
    """Variance of an entry's rounding: its own, and that of the parameter ``before + update`` it was subtracted from."""
    eps = torch.finfo(update.dtype).eps
    size = update.double().abs()
    variance = (eps * size).square() + (1e-3 * eps * size.mean()).square() + 1e-300
    if before is not None:
        spacing = eps * torch.exp2((before.double() + update.double()).abs().clamp_min(1e-30).log2().floor())
        variance = variance + spacing.square()
    return variance / 12


def _equal(layers: list[_Layer]) -> list[list[_Layer]]:
    """Layers of rank one that agree on their input up to rounding."""
    groups: list[list[_Layer]] = []
    for layer in (layer for layer in layers if layer.residual < _SAME):
        for group in groups:
            if _close(layer.input, group[0].input):
                group.append(layer)
                break
        else:
            groups.append([layer])
    return [group for group in groups if len(group) > 1]


def _alike(layers: list[_Layer]) -> list[list[_Layer]]:
    """Three or more layers that agree on their input's direction with one of them."""
    groups: dict[tuple[str, ...], list[_Layer]] = {}
    for seed in layers:
        same = [layer for layer in layers if layer.input.shape == seed.input.shape]
        group = [layer for layer in same if torch.cosine_similarity(seed.input, layer.input, dim=0) > _ALIKE]
        groups[tuple(layer.name for layer in group)] = group
    return [group for group in groups.values() if len(group) > 2]


def _parts(layer: _Layer, vector: Tensor) -> list[_Layer]:
    """The column blocks of a wider layer whose input is ``vector``."""
    width = len(vector)
    starts = range(layer.input.shape[0] - width + 1) if layer.input.shape[0] > width else range(0)
    blocks = [slice(start, start + width) for start in starts if _close(layer.input[start : start + width], vector)]
    return [replace(layer, weight=layer.weight[:, block], weight_noise=layer.weight_noise[:, block]) for block in blocks]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).norm() < _SAME * b.norm())


def _combine(layers: list[_Layer], *, blurred: bool = False) -> Shared:
    """Weighted least squares for dW = u k^T and db = u over all rows of all layers; each entry weighs by its own rounding.

    Gauss-Newton: u has one entry a row and is eliminated, which leaves a system as large as k.
    """
    w, b = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    w_weight = 1 / torch.cat([layer.weight_noise for layer in layers])
    b_weight = 1 / torch.cat([layer.bias_noise for layer in layers])
    u, k = b, layers[0].input
    for _ in range(_STEPS):
        left = w_weight * (w - torch.outer(u, k))
        u_curve, cross = w_weight @ k.square() + b_weight, w_weight * torch.outer(u, k)
        u_slope, k_slope = left @ k + b_weight * (b - u), u @ left
        k_curve = torch.diag(u.square() @ w_weight) - cross.T @ (cross / u_curve[:, None])
        step = torch.linalg.lstsq(k_curve, k_slope - cross.T @ (u_slope / u_curve)).solution
        u, k = u + (u_slope - cross @ step) / u_curve, k + step
    residual = float((w - torch.outer(u, k)).norm() / w.norm())
    rounding = float((w_weight.reciprocal().sum() / w.square().sum()).sqrt())
    certain = not blurred and residual < max(_CERTAIN, min(2 * rounding, _SAME))
    return Shared(k, tuple(layer.name for layer in layers), residual, certain)


class KeyVector:
    """The input that a defense's modulators share, from one message at the first probed round.

    Parameters
    ----------
    optimiser : "any", "gradient", "sgd" or "adam"
        Which kind of message to use. Of several, the one with the smallest residual is taken, which needs no truth to know.
    """

    goal: ClassVar[Goal] = "key"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes"})

    def __init__(self, *, optimiser: Literal["any", "gradient", "sgd", "adam"] = "any") -> None:
        if optimiser not in ("any", "gradient", "sgd", "adam"):
            raise RequestError(
                f"key_vector knows optimiser any, gradient, sgd and adam, not {optimiser!r}: name the kind of message to use"
            )
        self.optimiser = optimiser

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        targets = [target for target in self.messages(seen) if self.optimiser in ("any", target.optimiser)]
        if not targets:
            raise Skip(f"no probe message of kind {self.optimiser} is in sight; add one to the suite's probes")
        first = min(target.round for target in targets)  # the vector moves as the encoder is trained
        found = [shared for target in targets if target.round == first for shared in _of(target)[:1]]
        if not found:
            raise Skip("no two linear layers of this update share an input vector, so there is no key vector to recover")
        best = min(found, key=lambda shared: (not shared.certain, shared.residual))
        notes = {"layers": float(len(best.layers)), "residual": best.residual, "messages": float(len(targets))}
        name = f"shared_input:{len(best.vector)}"
        return Guess({name: best.vector}, certified=torch.tensor([best.certain]), notes=notes)

    def messages(self, seen: Observation) -> Sequence[Target]:
        """What is read: single sites' messages."""
        return seen.targets


class KeyVectorOfSum(KeyVector):
    """The same from a sum over sites: all sites share one key vector, so secure aggregation does not hide it."""

    needs: ClassVar[frozenset[Sees]] = frozenset({"probe_sums"})

    def messages(self, seen: Observation) -> Sequence[Target]:
        return seen.target_sums


def _of(target: Target) -> list[Shared]:
    if target.optimiser == "gradient":
        return shared_inputs(target.update)
    return shared_inputs(target.update, target.params, blurred=target.optimiser == "adam" or target.steps > 1)
