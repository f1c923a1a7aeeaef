"""``infl:hardened``: a secret mixing of the input in front of the first layer, drawn from a 256-bit key.

Not part of the published method. Records are brought to one length, rotated, stretched along secret axes and rotated again, once, before
training; a step costs what FedAvg's costs. A wrong key then feeds the model noise, and what falls out of the first layer is mixed.
It is a *linear* secret: it holds only while single records are not visible (see ``Card.does_not_protect``).
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache

import torch
from torch import Tensor

from infl.mixing import Mixing
from suites.contracts import Card, Claim, Defense, Federation, KeySource, RequestError, Secret, Shape
from suites.randomness import KeyStream

KEY_BYTES = 32
LEAST = 128  # records behind an update: the N of docs/hardened.md
SPREAD = 1.7  # from which on that N was enough
_BLOCK = 1 << 18  # values mixed at a time
PER_UNIT = 2  # the same N per unit of the first layer it was measured with


class Hardened(Defense):
    """Sites train on mixed records; only key holders can mix. Lengths of records are dropped, for good.

    Parameters
    ----------
    spread : float
        The spectrum's half width c: singular values lie in [1/c, c]. 1 is a pure rotation. What protects is the minimum; 2 and more cost
        accuracy on small cohorts (docs/hardened.md).
    minimum : int, optional
        Records that must stand behind every visible update: a federation with a smaller site, or a probe of fewer records, is refused.
        By default 128, or twice the units of the network's first layer where that is more. It was measured with 64 units
        (docs/hardened.md): without key or plaintext all records are named where single ones or batches of 8 are in sight, 82 % where
        overlapping batches of 64 are, and at the default spread at most 5 % above chance (a mean over seeds) at 128. Up to the layer's
        width a gradient's row space holds every mixed record exactly, and batches that overlap isolate them. Batches that answer at K
        checkpoints show K times the layer's rows, so K times the minimum is asked of them: at two, batches of 128 that overlap name all
        whom they isolate. A number given here replaces the default, whatever the width, and where it is lower nothing of this is claimed.
    """

    keeps_lengths = False
    card = Card(
        server="Every site's plain update, in mixed coordinates: labels and hidden layers are as visible as under FedAvg, inputs are not. "
        "From updates of many steps over many records it can neither test membership by the span of the first layer nor undo the mixing.",
        site="The key, the model and the sum: for a key holder this is plain FedAvg.",
        outsider="The released model, which guesses when it is used without the key or with another one.",
        does_not_protect="Records in sight singly or in batches no larger than the first layer is wide: inner products survive any linear "
        "secret, and a search over candidate records names them without key or plaintext, at every spread tried where single records are "
        "seen. It claims nothing for updates of fewer records than its minimum (128, measured with 64 hidden units; more where the first "
        "layer is wider), as often as there are checkpoints at which the same batch answers beside others that overlap it: batches of 128 "
        "that answer at two are as open as smaller ones that answer at one. That minimum rests on few messages in sight, and more of them "
        "open larger batches: of 16 records, at a spread of 2, four messages gave up a tenth of theirs and ten all. Nor does it where the "
        "records behind an update change by a few between rounds. Known plaintexts give the mixing away: three name all others. Any site, "
        "or any leak of the one shared key, opens everything, and to a key holder the model leaks membership as FedAvg's does. A model "
        "trained without labels on few features may serve whoever mixes with another key, or not at all: regions of tissue from 31 "
        "proteins came out .7 as well (suite spatial).",
    )

    def __init__(self, *, spread: float = SPREAD, minimum: int | None = None) -> None:
        if not 1 <= spread < float("inf"):  # not a number is neither
            raise RequestError(
                f"infl:hardened needs a finite spread >= 1 but got {spread:g}: singular values lie in [1/c, c] for this c; 1 is a rotation"
            )
        if minimum is not None and minimum < 1:
            raise RequestError(f"infl:hardened needs minimum >= 1 but got {minimum}: it counts the records behind a visible update")
        self.spread = float(spread)
        self.minimum, self.per_unit = (LEAST, PER_UNIT) if minimum is None else (int(minimum), 0)

    def plan(self, federation: Federation, shape: Shape) -> Hardened:
        planned = copy(self)
        planned.minimum = max(self.minimum, self.per_unit * shape.width)
        smallest = min(shape.site_sizes)
        if smallest < planned.minimum:
            why = f" (its first layer has {shape.width} units)" if planned.minimum > self.minimum else ""
            raise RequestError(
                f"infl:hardened claims nothing for updates with fewer than {planned.minimum} records behind them{why}, and a site has "
                f"{smallest}: merge sites, or set infl:hardened:minimum lower and read its card first"
            )
        return planned

    def secret(self, rng: KeySource) -> Secret:
        return Secret(key=torch.frombuffer(bytearray(rng.bytes(KEY_BYTES)), dtype=torch.uint8))

    def weaken(self, secret: Secret, fraction: float, rng: KeySource) -> Secret:
        """Keeps the first ``fraction`` of the key's bytes; whatever is missing must be searched."""
        drawn = torch.frombuffer(bytearray(rng.bytes(KEY_BYTES)), dtype=torch.uint8)
        known = torch.arange(KEY_BYTES) < int(fraction * KEY_BYTES)
        return Secret(key=torch.where(known, secret["key"].cpu(), drawn))

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        """Records [n, F] -> mixed records [n, F], each of length sqrt(F) before the mixing; without a key unmixed."""
        mixing = None if secret is None else self.mixing(secret, x.shape[-1])

        def own(rows: Tensor) -> Tensor:
            return (normalised(rows) if mixing is None else mixing(normalised(rows))).to(x.dtype)

        step = max(1, _BLOCK // max(1, x.shape[-1]))
        if x.dim() != 2 or len(x) <= step or x.requires_grad:
            return own(x)
        out = torch.empty_like(x)
        for first in range(0, len(x), step):  # in double precision a transform holds several copies of what it is given
            out[first : first + step] = own(x[first : first + step])
        return out

    def restore(self, x: Tensor, secret: Secret | None) -> Tensor:
        """Mixed records -> records of length sqrt(F): the direction comes back, the length is lost by design."""
        return x if secret is None else self.mixing(secret, x.shape[-1]).inverse(x.double()).to(x.dtype)

    def mixing(self, secret: Secret, width: int) -> Mixing:
        """The secret linear map of records of this width."""
        return _mixing(bytes(secret["key"].tolist()), width, self.spread)

    def claim(self, federation: Federation, shape: Shape) -> Claim:
        least, measured = max(self.minimum, self.per_unit * shape.width), max(LEAST, PER_UNIT * shape.width)
        short = [f"its minimum is {least} where {measured} was measured"] if least < measured else []
        short += [f"its spread is {self.spread:g} where {SPREAD:g} was"] if self.spread < SPREAD else []
        hidden = (
            f"Without the key the model guesses, and updates of at least {least} records do not show whose they are, "
            "unless overlapping batches come back at another checkpoint; nothing is claimed for smaller ones, for known plaintexts or "
            "against a colluding site."
        )
        open_ = (
            f"Without the key the model guesses. Updates are not claimed to hide whose they are, since {' and '.join(short)}: single "
            "records and those in batches of 8 were all named without key or plaintext, 82 % of those in overlapping batches of 64, and at "
            "a spread of 1.4 7 % of one cohort's in batches of 128. Nothing is claimed for known plaintexts or against a colluding site."
        )
        return Claim(kind="keyed", server_sees="every site's update, in mixed coordinates", sentence=open_ if short else hidden)


@lru_cache(maxsize=4)  # drawing takes longer than mixing a batch; keys stay in memory as long as the process
def _mixing(key: bytes, width: int, spread: float) -> Mixing:
    return Mixing.draw(KeyStream(key).child("infl:hardened", width), width, spread)


def normalised(x: Tensor) -> Tensor:
    """Records [..., F] in double precision, each of length sqrt(F)."""
    length = x.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
    scaled: Tensor = x.double() / length * x.shape[-1] ** 0.5
    return scaled
