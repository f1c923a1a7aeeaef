"""Secret orthogonal mixing of any length in n log n operations, from a 256-bit key.

A round is signs, permutation, Hartley transform; two rounds and closing signs make a rotation (the structure D H P D H P D of fast
Johnson-Lindenstrauss transforms: Ailon and Chazelle 2009). The Hartley transform is real, orthogonal, its own inverse and exists at
every length, so nothing is padded to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn, Self

import torch
from torch import Tensor

from suites.contracts import KeySource

ROUNDS = 2


class Drawn:
    """Tensors that open every record: they print nothing and are never pickled; nothing changes them, so a copy is the same object."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<withheld>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is never pickled: draw it again from its key where it is needed")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self


def hartley(x: Tensor) -> Tensor:
    """Orthonormal discrete Hartley transform along the last axis; applied twice it is the identity."""
    if not x.numel():  # an empty batch, which the transform's libraries refuse
        return x
    half, width = torch.fft.rfft(x, norm="ortho"), x.shape[-1]
    rest = (half.real + half.imag)[..., 1 : (width + 1) // 2].flip(-1)  # the other half of a real signal's spectrum is its mirror image
    return torch.cat([half.real - half.imag, rest], dim=-1)


@dataclass(frozen=True, slots=True, repr=False)
class Rotation(Drawn):
    """x -> D_r (H P_r D_{r-1}) ... x, orthogonal; ``signs`` [ROUNDS + 1, F], ``orders`` [ROUNDS, F]."""

    signs: Tensor
    orders: Tensor

    @classmethod
    def draw(cls, rng: KeySource, width: int) -> Rotation:
        signs = torch.stack([rng.signs(width) for _ in range(ROUNDS + 1)])
        return cls(signs, torch.stack([rng.permutation(width) for _ in range(ROUNDS)]))

    def __call__(self, x: Tensor) -> Tensor:
        for sign, order in zip(self.signs.to(x), self.orders.to(x.device)):
            x = hartley((x * sign)[..., order])
        return x * self.signs[-1].to(x)

    def inverse(self, z: Tensor) -> Tensor:
        z = z * self.signs[-1].to(z)
        for sign, order in zip(self.signs[:-1].to(z).flip(0), self.orders.to(z.device).flip(0)):
            z = hartley(z)[..., order.argsort()] * sign
        return z


@dataclass(frozen=True, slots=True, repr=False)
class Mixing(Drawn):
    """x -> B S A x with secret rotations A, B and a secret spectrum S, log-uniform in [1/c, c] and of mean square one."""

    first: Rotation
    spectrum: Tensor  # [F]
    second: Rotation

    @classmethod
    def draw(cls, rng: KeySource, width: int, spread: float) -> Mixing:
        first, second = Rotation.draw(rng.child("first"), width), Rotation.draw(rng.child("second"), width)
        spectrum = torch.as_tensor(spread, dtype=torch.float64) ** rng.child("spectrum").uniform(width, low=-1.0, high=1.0)
        return cls(first, spectrum / spectrum.square().mean().sqrt(), second)

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * self.spectrum.to(x))

    def inverse(self, z: Tensor) -> Tensor:
        return self.first.inverse(self.second.inverse(z) / self.spectrum.to(z))
