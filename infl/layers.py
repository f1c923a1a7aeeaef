"""The keyed layers of INFL: a linear layer whose rows are scaled and shifted by the key, and activation FiLM.

Zhang et al., arXiv 2603.28334 (2026), as in the authors' public code of August 2026. Both write the key's effect as
``S * tanh(...)`` around the identity, S being the key strength; with no key both are the plain layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from infl.encoder import KEY_WIDTH, Encoder, NearIdentity, reset
from infl.graft import of_base
from suites.stacked import linear

HIDDEN = 8


class FiLM(nn.Module):
    """h [..., F] -> h (1 + S tanh g) + S tanh t, where (g, t) come from the activation h and the key vector k.

    a = LayerNorm(SiLU(Linear(h))) in R^16; j = [a, k, a*k]; (g, t) = Linear(SiLU(Linear(j))).
    """

    def __init__(self, width: int, strength: float) -> None:
        super().__init__()
        self.strength = strength
        self.act_proj = nn.Sequential(nn.Linear(width, KEY_WIDTH), nn.SiLU(), nn.LayerNorm(KEY_WIDTH))
        self.film = nn.Sequential(nn.Linear(3 * KEY_WIDTH, HIDDEN), nn.SiLU(), NearIdentity(HIDDEN, 2 * width))

    def forward(self, h: Tensor, key: Tensor) -> Tensor:
        joint, act, last = self.film
        assert isinstance(joint, nn.Linear)
        a = self.act_proj(h)
        lanes = joint.weight.dim() == 3
        if key.dim() > 1 and not lanes:  # a key vector a record, as per-record clipping needs
            hidden = joint(torch.cat([a, key, a * key], dim=-1))
        else:
            # Linear([a, k, a*k]) = (W_a + W_ak diag(k)) a + (W_k k + b): the record-free half is formed once a batch.
            on_a, on_k, on_product = joint.weight.chunk(3, dim=-1)
            across = key.unsqueeze(1) if lanes else key
            hidden = linear(a, on_a + on_product * across, (on_k * across).sum(-1) + joint.bias)
        scale, shift = (self.strength * torch.tanh(last(act(hidden)))).chunk(2, dim=-1)
        return h + h * scale + shift

    def initialise(self, generator: torch.Generator | None) -> None:
        reset(self, generator)


class KeyedLinear(nn.Module):
    """y = diag(s) W x + b + S tanh q with s = 1 + S tanh r, (r, q) = modulator(k) [2 out]; then FiLM if ``film``.

    The encoder belongs to the whole model; this layer refers to it without owning it. Without a key: y = W x + b.
    """

    lane_axis = True  # suites.stacked
    bias: nn.Parameter | None

    def __init__(self, base: nn.Linear, encoder: Encoder, strength: float, *, film: bool, own_encoder: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.strength = base.in_features, base.out_features, strength
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.key_to_mod = nn.Sequential(
            nn.Linear(KEY_WIDTH, HIDDEN), nn.SiLU(), nn.LayerNorm(HIDDEN), NearIdentity(HIDDEN, 2 * base.out_features)
        )
        self.film = FiLM(base.out_features, strength) if film else None
        if own_encoder:
            self.key_encoder = encoder
        self._shared = (encoder,)  # in a tuple, so that torch does not register it under every layer's name
        self._base = (base,)  # for strip(), and not registered either

    def modulation(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Row scale s [out] and the shift added to the bias [out]."""
        scale, shift = (self.strength * torch.tanh(self.key_to_mod(key))).chunk(2, dim=-1)
        return 1 + scale, shift

    def effective(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that the layer's linear part stands for under its present key."""
        key = self._shared[0]()
        if key is None:
            return self.weight, self.bias
        scale, shift = self.modulation(key)
        return scale[:, None] * self.weight, shift if self.bias is None else self.bias + shift

    def plain(self) -> nn.Linear:
        """The linear layer that this one was put around, with the base weights, which it shares."""
        return of_base(self, *self._base)

    def forward(self, x: Tensor) -> Tensor:
        key = self._shared[0]()
        if key is None:
            return linear(x, self.weight, self.bias)
        if self.weight.dim() == 3:  # lanes: everything that all records share is [L, 1, out]
            scale, shift = self.modulation(key.unsqueeze(1))
            bias = None if self.bias is None else self.bias.unsqueeze(1)
        else:
            (scale, shift), bias = self.modulation(key), self.bias
        # Scaling the output costs batch x out, scaling the weight in x out.
        y = linear(x, self.weight) * scale + (shift if bias is None else bias + shift)
        return y if self.film is None else self.film(y, key)

    def initialise(self, generator: torch.Generator | None) -> None:
        """Base weights as torch's default for a linear layer, modulators close to the identity."""
        bound = self.in_features**-0.5
        with torch.no_grad():
            self.weight.uniform_(-bound, bound, generator=generator)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound, generator=generator)
        self.initialise_key_parts(generator)

    def initialise_key_parts(self, generator: torch.Generator | None) -> None:
        """Only what the key added (with an encoder of this layer's own); the base weights keep their values."""
        for part in self.children():
            reset(part, generator)
