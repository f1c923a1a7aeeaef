"""The records behind a gradient, read off the first linear layer: dL/dW_i = g_i x and dL/db_i = g_i, so x = dW_i / db_i.

Sources: Phong et al. 2018 (one record), Geiping et al. 2020 (any dense layer). Three cases, told apart by what the adversary sees:

- *plain*: the rows agree; x comes back with scale and sign.
- *keyed rows*: a key scales row i by s_i, so dW is still of rank one and x its right singular vector, and dW_i x / (db_i |x|) = s_i |x|.
  The public client algorithm says s_i for a record of the adversary's own, under the held key (then x is exact) or one of its drawing;
  without such a record the sign is the majority of the rows' and the scale that of a typical one.
- *noise*: dW is a rank-one spike in noise. Its singular vector is shrunk by the cosine that the spiked model predicts from the spectrum
  (Benaych-Georges and Nadakuditi 2012), down to the prior mean 0 below the detection threshold.

For a batch each row is a weighted mean of records: the rows whose ratio looks most like one record (by its norm) are returned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.gradient_inversion.labels import label_list
from attacks.gradient_inversion.message import as_gradient, blocks, certified, first_linear, known_count, unlabelled, width
from attacks.gradient_inversion.regression import with_targets
from suites.contracts import Goal, Guess, Observation, Params, Sees, Target
from suites.room import by_rows

AGREE = 1e-3  # spread of the rows' scales up to which no key is suspected (1 - cosine)
NEARLY = 0.05  # and up to which their mean says more of the length than a typical record does
UNDECIDED = 0.5  # votes below this leave the sign to the auxiliary records
_OWN_RECORDS = 8  # of the adversary's own that are sent through the public client
_VAGUE = {"noise", "nothing", "batch"}  # cases whose records are too rough to read a residual from
CLEAN = 1e-3  # second over first singular value up to which a message counts as free of noise


class ClosedForm:
    """Records from the ratio of the first layer's weight and bias gradients: exact for one record, rows of a batch else."""

    goal: ClassVar[Goal] = "reconstruction"
    needs: ClassVar[frozenset[Sees]] = frozenset({"probes", "auxiliary", "simulate", "predict", "key"})

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        classes, key, public = known_count(seen.known, "classes"), seen.key, seen.auxiliary.x
        values, trust, proven, kinds = [], [], [], set()
        responses = OwnResponses(seen)
        for target in seen.targets:
            parts = [self._block(responses, target, columns) for columns in blocks(seen.known)]
            value = seen.restore(torch.cat([raw for raw, _, _ in parts], 1).float(), key)
            found = {kind for _, _, kind in parts}
            if unlabelled(seen.known):
                labels: Tensor | None = torch.zeros(target.batch, dtype=torch.int64)
                value = value if found & _VAGUE else with_targets(seen, target, value, key)
            else:
                outputs = seen.predict(target.params, public, key).detach() if len(public) else None
                labels = label_list(target, classes, outputs)
            values.append(value)
            trust.append(min(confidence for _, confidence, _ in parts))
            proven.append(labels is not None and certified(seen, target, value, labels, key))
            kinds |= found
        return Guess(values, torch.tensor(trust), torch.tensor(proven), {"cases": "+".join(sorted(kinds))})

    def _block(self, responses: OwnResponses, target: Target, columns: slice) -> tuple[Tensor, float, str]:
        """What one first layer gives away: the columns [B, F'] that it reads, the expected cosine, and which case it was."""
        public = responses.seen.auxiliary.x[:, columns]
        norm = float(public.norm(dim=1).median()) if len(public) else float(width(columns)) ** 0.5
        raw, confidence, kind = invert(target, width(columns), norm, public)
        return (responses.measured(target, raw, columns) if kind == "keyed rows" else raw), confidence, kind


class OwnResponses:
    """How the rows of a checkpoint's first layer answer the adversary's own records: worked out once for all messages of a checkpoint."""

    def __init__(self, seen: Observation) -> None:
        self.seen = seen
        self._known: list[tuple[Params, slice, tuple[Tensor, Tensor]]] = []

    def measured(self, target: Target, raw: Tensor, columns: slice) -> Tensor:
        """``raw`` [1, F'] with the length and sign that the same rows' response to own records gives, or as it is where there are none."""
        if not len(self.seen.auxiliary) or raw.shape[1] != width(columns):
            return raw
        rows, trust = _lengths(as_gradient(target), raw[0], width(columns))
        own, known = self._at(target, columns, len(rows))
        ratio, clear = rows / own, trust * known
        good = ratio.isfinite() & (clear >= clear[ratio.isfinite()].median()) if bool(ratio.isfinite().any()) else ratio.isfinite()
        return raw * ratio[good].median() if bool(good.any()) else raw

    def _at(self, target: Target, columns: slice, rows: int) -> tuple[Tensor, Tensor]:
        """Each row's scale [rows] and how clear it is [rows]; from the own record that shows it best."""
        for params, where, found in self._known:
            if where == columns and _same(params, target.params):
                return found
        seen, public = self.seen, self.seen.auxiliary
        key = seen.key if seen.key is not None else seen.draw_key(0)
        classes = known_count(seen.known, "classes")
        one_gradient = replace(target, optimiser="gradient", steps=1, batch=1)
        own: Tensor = torch.zeros(rows, dtype=torch.float64, device=public.x.device)
        known = own  # a row that is off for one record is on for another
        for i in range(min(_OWN_RECORDS, len(public))):
            label = torch.nn.functional.one_hot(public.y[i : i + 1], classes).to(public.x.dtype)
            gradient = seen.simulate(one_gradient, public.x[i : i + 1], label, key)
            said, clear = _lengths(gradient, public.x[i, columns], width(columns))
            own, known = torch.where(clear > known, said, own), torch.maximum(clear, known)
        self._known.append((target.params, columns, (own, known)))
        return own, known


def _same(left: Params, right: Params) -> bool:
    return left is right or (left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items()))


def invert(target: Target, features: int, norm: float, public: Tensor) -> tuple[Tensor, float, str]:
    """Model-input records [B, F'], the expected cosine, and which case it was."""
    gradient = as_gradient(target)
    layer = first_linear(gradient, features)
    weight = gradient[layer.weight].double()  # [H, F']
    bias = gradient[layer.bias].double() if layer.bias else None
    if target.batch > 1 and bias is not None:
        return _rows(weight, bias, target.batch, norm), 0.0, "batch"
    left, direction, spike, cosine = _spike(weight)
    if spike == 0 or cosine == 0:
        return torch.zeros(target.batch, weight.shape[1], dtype=weight.dtype, device=weight.device), 0.0, "nothing"
    if bias is None:
        return _signed(direction, 0.0, public).mul(norm * cosine).expand(target.batch, -1), cosine, "no bias"
    vote = float((left * bias).sum() / (left.norm() * bias.norm()).clamp_min(1e-300))  # 1 where all rows agree
    noisy = cosine < 1 - CLEAN**2
    plain = abs(vote) > 1 - AGREE
    mean = direction * (spike * (left @ bias) / (bias @ bias).clamp_min(1e-300))
    if plain and not noisy:
        return mean[None], cosine, "plain"
    if abs(vote) > 1 - NEARLY and not noisy:
        return mean[None], cosine, "keyed rows"
    signs = (left * bias).sign()
    majority = vote * len(left) ** 0.5 if noisy else float(signs.sum() / signs.abs().sum().sqrt())  # in standard deviations of a coin's
    return (_signed(direction, majority, public) * norm * cosine)[None], cosine, "noise" if noisy else "keyed rows"


def _lengths(gradient: Params, x: Tensor, features: int) -> tuple[Tensor, Tensor]:
    """dW_i x / (db_i |x|^2) [H]: row i's scale times the true record's length along ``x`` in units of ``x``; and how clear that is."""
    layer = first_linear(gradient, features)
    assert layer.bias is not None  # as in every "keyed rows" case
    weight, bias, x = gradient[layer.weight].detach().double(), gradient[layer.bias].detach().double(), x.double()
    return weight @ x / (bias * x.square().sum()), bias.abs() / bias.abs().max().clamp_min(1e-300)


def _spike(weight: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Leading left [H] and right [F'] singular vectors, the noise-free singular value, and the cosine to expect of the right one."""
    values, vectors = torch.linalg.eigh(weight @ weight.T)
    values = values.clamp_min(0).flip(0)
    left = vectors[:, -1]
    top = float(values[0].sqrt())
    if top == 0:
        return left, weight.new_zeros(weight.shape[1]), 0.0, 0.0
    right = (left @ weight) / top
    rows, columns = weight.shape
    noise = float(values[1:].mean()) / columns if rows > 1 else 0.0  # the variance of one entry
    if values[min(1, rows - 1)].sqrt() <= CLEAN * top or noise == 0:
        return left, right, top, 1.0
    aspect, energy = rows / columns, float(values[0]) / (columns * noise)
    # energy = (1 + t)(aspect + t) / t with t the squared strength of the spike: the larger root, if it is real
    half = (energy - 1 - aspect) / 2
    root = half**2 - aspect
    strength = half + root**0.5 if root > 0 and half > 0 else 0.0
    if strength <= aspect**0.5:
        return left, right, 0.0, 0.0
    cosine = max(1 - (aspect + strength) / (strength * (strength + 1)), 0.0) ** 0.5
    return left, right, (strength * columns * noise) ** 0.5, cosine


def _signed(direction: Tensor, vote: float, public: Tensor) -> Tensor:
    """The direction [F'] with its sign: by the rows' vote, or where that is split by likeness to the auxiliary records."""
    if abs(vote) < UNDECIDED and len(public) and public.shape[1] == len(direction):
        likeness = by_rows(lambda rows: torch.nn.functional.normalize(rows.double(), dim=1) @ direction, public)
        top = min(5, len(likeness))
        vote = float(likeness.topk(top).values.mean() + likeness.topk(top, largest=False).values.mean())
    return direction if vote >= 0 else -direction


def _rows(weight: Tensor, bias: Tensor, batch: int, norm: float) -> Tensor:
    """``batch`` ratios dW_i / db_i [batch, F']: those of a typical record's norm first, then the one least like those taken."""
    ratio = torch.where(bias == 0, 0.0, weight.T / bias).T  # a row whose slope a compression left out says nothing
    sizes = ratio.norm(dim=1)
    plausible = (sizes.clamp_min(1e-30).log() - torch.log(torch.tensor(norm, dtype=sizes.dtype))).abs()
    order = plausible.argsort()[: max(4 * batch, batch)]
    unit = torch.nn.functional.normalize(ratio[order], dim=1)
    chosen = [0]
    while len(chosen) < min(batch, len(order)):
        closest = (unit @ unit[chosen].T).max(1).values
        closest[chosen] = torch.inf
        chosen.append(int(closest.argmin()))
    picked = ratio[order[chosen]]
    return torch.cat([picked, picked.new_zeros(batch - len(picked), picked.shape[1])])
