"""Gradient compression: a site sends little of its update, and keeps what it did not send for the next round (error feedback).

Top-k (Aji and Heafield 2017, arXiv 1704.05021; memory: Stich et al. 2018, arXiv 1809.07599), sign with one scale (Bernstein et al. 2018,
arXiv 1802.04434; error feedback: Karimireddy et al. 2019, arXiv 1901.09847), unbiased random rounding (QSGD: Alistarh et al. 2017, arXiv
1610.02132). Proposed against inversion (Zhu et al. 2019), since part of each update is missing; the memory sends it later.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from suites.contracts import Card, Defense, Params, RequestError

METHODS = ("top", "sign", "quantised")


class Compression(Defense):
    """Compresses an update as one vector. Counters (BatchNorm) are sent as they are; bytes are counted as if the vector were sent whole.

    Parameters
    ----------
    method : str
        ``top`` sends the largest coordinates, ``sign`` each one's sign times their mean size, ``quantised`` random rounding.
    share : float
        Of the coordinates, for ``top``.
    bits : int
        A coordinate's, sign included, for ``quantised``; 2 to 16.
    feedback : bool
        Whether a site adds what it did not send to its next update.
    """

    card: ClassVar[Card | None] = Card(
        server="every site's compressed update in the clear: the largest coordinates, signs, or rounded values",
        site="the broadcast model",
        outsider="the released model",
        does_not_protect="what the sent coordinates say: the largest ones say most about unusual records, and with feedback the rest "
        "follows in later rounds. Nothing is promised",
    )

    def __init__(self, *, method: str = "top", share: float = 0.1, bits: int = 4, feedback: bool = True) -> None:
        if method not in METHODS:
            raise RequestError(f"compression got method={method}, but it knows {', '.join(METHODS)}; give one of these")
        if not 0 < share <= 1:
            raise RequestError(f"compression got share={share:g}, but it is the share of coordinates that are sent; give 0.1, say")
        if not 2 <= bits <= 16:
            raise RequestError(f"compression got bits={bits}, but a coordinate has a sign and a size; give 2 to 16")
        self.method, self.share, self.bits, self.feedback = method, float(share), int(bits), feedback

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        return self.encode_kept(update, {}, rng)[0]

    def encode_kept(self, update: Params, kept: Params, rng: torch.Generator) -> tuple[Params, Params]:
        real = {name: tensor for name, tensor in update.items() if tensor.is_floating_point()}
        if not real:
            return update, kept
        flat = torch.cat([tensor.reshape(-1) for tensor in real.values()])
        if "left" in kept:
            flat = flat + kept["left"]
        sent = self._compressed(flat, rng)
        parts = torch.split(sent, [tensor.numel() for tensor in real.values()])
        out = {name: part.view(tensor.shape) for (name, tensor), part in zip(real.items(), parts, strict=True)}
        return {name: out.get(name, tensor) for name, tensor in update.items()}, {"left": flat - sent} if self.feedback else {}

    def _compressed(self, flat: Tensor, rng: torch.Generator) -> Tensor:
        if self.method == "sign":
            return flat.sign() * flat.abs().mean()
        if self.method == "quantised":
            levels = 2 ** (self.bits - 1) - 1
            step = (flat.abs().max() / levels).clamp_min(torch.finfo(flat.dtype).tiny)
            coin = torch.rand(flat.shape, dtype=flat.dtype, device=rng.device, generator=rng).to(flat.device)
            rounded: Tensor = (flat / step + coin).floor() * step  # up with the probability that makes it right on average
            return rounded
        largest = flat.abs().topk(max(1, round(self.share * flat.numel()))).indices
        return torch.zeros_like(flat).index_copy(0, largest, flat[largest])
