"""Defenses with a linear secret in front of the network, written for tests alone: a pure rotation, and one with a spectrum between two."""

from __future__ import annotations

import torch
from torch import Tensor

from suites.contracts import Defense, KeySource, Secret


class Rotated(Defense):
    """x -> Q x with a Haar rotation Q."""

    def secret(self, rng: KeySource) -> Secret:
        return Secret(seed=rng.normal(4))

    def matrix(self, secret: Secret, width: int) -> Tensor:
        first, second = (self._rotation(secret, width, part) for part in (1, 2))
        return first @ (self.spectrum(secret, width)[:, None] * second)

    def _rotation(self, secret: Secret, width: int, part: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(secret["seed"][part].abs() * 1e9))
        q, r = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
        return q * r.diagonal().sign()

    def spectrum(self, secret: Secret, width: int) -> Tensor:
        return torch.ones(width, dtype=torch.float64)

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else (x.double() @ self.matrix(secret, x.shape[1]).T).to(x.dtype)

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        return x if secret is None else torch.linalg.solve(self.matrix(secret, x.shape[1]), x.double().T).T.to(x.dtype)


class Stretched(Rotated):
    """x -> Q S P x with singular values log-uniform in [1/spread, spread]."""

    spread = 2.0

    def spectrum(self, secret: Secret, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(secret["seed"][3].abs() * 1e9))
        return torch.as_tensor(self.spread) ** (2 * torch.rand(width, generator=generator, dtype=torch.float64) - 1)
