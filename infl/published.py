"""``infl:published``: the keyed layers as their authors published them, measured as any other defense.

Zhang et al., "Key-Embedded Privacy for Decentralized AI in Biomedical Omics", arXiv 2603.28334 (2026), and RoyZry98/INFL-Pytorch
(August 2026): every linear layer keyed, activation FiLM after each but the last, key strength 20 (proteomics), 5 or 1.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from infl.keyed import encoders, key_layers
from suites.contracts import Card, Claim, Defense, Federation, KeySource, Params, RequestError, Secret, Shape


class Published(Defense):
    """INFL's keyed layers; the key is ``points`` coordinates, uniform in (-1, 1), one for the federation.

    Unlike the reference, the key is drawn from a cryptographic stream and stays out of ``state_dict``. The federation's flaws
    ``key_in_state`` and ``integer_seed`` bring either fault back.
    """

    card = Card(
        server="Every site's plain update. One update gives the key vector in closed form, and the first layer's update gives the input "
        "of a one-record batch with no key at all.",
        site="The key, the model and the sum: for a key holder this is plain FedAvg.",
        outsider="The released model. Without the keyed parts it predicts poorly; with a key of the outsider's own drawing it opens.",
        does_not_protect="Wrong keys open the model, since the mean over 128 random points is nearly the same for every key. Nothing hides "
        "single records from the server, and nothing protects the released model from membership inference. One shared key: any site, "
        "or any leak, opens everything.",
    )

    def __init__(self, *, strength: float = 20.0, points: int = 128, per_layer: bool = False) -> None:
        if not 0 <= strength < float("inf") or points < 1:  # not a number is neither
            raise RequestError(
                f"infl:published needs a finite strength >= 0 and points >= 1 but got {strength:g} and {points}: "
                "strength scales the key's effect and points counts the key's coordinates, as in infl:published:strength=20"
            )
        self.strength, self.points, self.per_layer = float(strength), int(points), per_layer
        self.flaws: frozenset[str] = frozenset()

    def plan(self, federation: Federation, shape: Shape) -> Published:
        planned = copy.copy(self)
        planned.flaws = federation.flaws
        return planned

    def secret(self, rng: KeySource) -> Secret:
        if "integer_seed" in self.flaws:  # the reference's fault: 2^16 keys can be tried one by one
            weak = torch.Generator().manual_seed(int.from_bytes(rng.bytes(2), "little"))
            return Secret(coordinates=2 * torch.rand(self.points, 2, generator=weak, dtype=torch.float64) - 1)
        return Secret(coordinates=rng.uniform(self.points, 2, low=-1.0, high=1.0))

    def weaken(self, secret: Secret, fraction: float, rng: KeySource) -> Secret:
        """Keeps the first ``fraction`` of the points and draws the others anew."""
        true = secret["coordinates"]
        drawn = rng.uniform(*true.shape, low=-1.0, high=1.0).to(true)
        known = torch.arange(len(true), device=true.device) < round(fraction * len(true))
        return Secret(coordinates=torch.where(known[:, None], true, drawn))

    def model(self, net: nn.Module, secret: Secret | None) -> nn.Module:
        """``net`` with keyed layers; without a secret the coordinates are zeros, to be swapped by a holder of a key."""
        coordinates = torch.zeros(self.points, 2) if secret is None else secret["coordinates"]
        return key_layers(net, coordinates, strength=self.strength, per_layer=self.per_layer, persistent="key_in_state" in self.flaws)

    def without_key(self, module: nn.Module) -> nn.Module:
        """Base weights only and no FiLM."""
        module = copy.deepcopy(module)
        for encoder in encoders(module):
            encoder.enabled = False
        return module

    def derived(self, module: nn.Module) -> Params:
        """The key vector [16] at the module's present parameters (one a layer with ``per_layer``)."""
        found: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            if part in encoders(module):
                key = part()
                if key is not None:
                    found["key_vector" if not self.per_layer else f"{name}.key_vector"] = key.detach()
        return found

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        return Claim(
            kind="keyed",
            server_sees="every site's update in the clear",
            sentence="The method's authors claim that the model is of use only to holders of the key "
            f"({self.points} points, strength {self.strength:g}).",
        )
