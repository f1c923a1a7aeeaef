"""A construction that was tried and does not hold: keyed random features in front of the network (docs/hardened.md, "Other constructions").

phi(x) = sqrt(2 / D) cos(W x + b) with W ~ N(0, 1 / l^2) and b ~ U(0, 2 pi) from the key (Rahimi, Recht 2007): not linear, so no regression
on known records undoes it, and D may exceed F. But phi(x)'phi(y) is k(x, y) = exp(-|x - y|^2 / 2 l^2) up to 1 / sqrt(D), whatever the key:
``names`` matches inner products of what single gradients give up to the kernel of candidates. ``l`` is in units of sqrt(2 F), about the
distance of two records in public units; it is public, and could be read off the inner products if it were not. Not installed as a defense.

``python -m tests.infl.keyed_features OUT`` measures the page's table (some minutes on one core).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attacks.gradient_inversion.message import as_gradient
from attacks.key.matching import search
from attacks.key.mixed import one_label
from reports.intervals import clopper_pearson
from suites.api import run
from suites.contracts import Defense, KeySource, Records, Secret, Threat
from suites.observation import Seen
from suites.randomness import KeyStream, keys, stream
from suites.tasks.classification import Classification
from tests.attacks.visible import look
from tests.infl.hardened_limits import cohort
from tests.infl.hardened_tables import interval

DOCS = Path(__file__).parents[2] / "docs"
LENGTHS = (1.0, 0.7, 0.5, 0.35, 0.25)
IN_SIGHT = 64


class KeyedFeatures(Defense):
    """phi in front of the network; ``features`` is D, ``length`` is l."""

    def __init__(self, *, features: int = 2048, length: float = 1.0) -> None:
        self.features, self.length = features, length

    def secret(self, rng: KeySource) -> Secret:
        return Secret(key=torch.frombuffer(bytearray(rng.bytes(32)), dtype=torch.uint8))

    def prepare(self, x: Tensor, secret: Secret | None) -> Tensor:
        """Records [n, F] -> features [n, D] of mean square one; without a key, of a public one."""
        rng = KeyStream(bytes(secret["key"].tolist()) if secret else bytes(32)).child("keyed features", x.shape[-1])
        weight = rng.child("weight").normal(x.shape[-1], self.features) / (self.length * (2 * x.shape[-1]) ** 0.5)
        phase = rng.child("phase").uniform(self.features, high=2 * math.pi)
        return (2**0.5 * torch.cos(x.double() @ weight.double() + phase.double())).to(x.dtype)


def kernel(x: Tensor, length: float) -> Tensor:
    """k among records [n, F] -> [n, n]."""
    return torch.exp(-torch.cdist(x.double(), x.double()).square() / (2 * length**2 * 2 * x.shape[1]))


def embedded(gram: Tensor) -> Tensor:
    """Rows whose inner products are ``gram`` [n, n]: what a search over candidates reads."""
    values, vectors = torch.linalg.eigh(gram)
    rows: Tensor = vectors * values.clamp_min(0).sqrt()
    return rows


def names(data: tuple[Records, Tensor, Tensor], length: float, features: int = 2048, seed: int = 0, starts: int = 4) -> dict[str, Any]:
    """How many of single records in sight a server without key or plaintext names, by inner products alone."""
    records, asked, own = data
    order = asked[torch.randperm(len(asked), generator=stream("keyed features", "sent", seed))].tolist()[:IN_SIGHT]
    classes = int(records.y.max()) + 1
    sight = look(
        [KeyedFeatures(features=features, length=length)],
        records,
        [[index] for index in order],
        asked,
        own,
        classes=classes,
        task=Classification(dropout=0.0, network="mlp"),
        secret=keys("keyed features", "secret", seed),
        start=seed,
    )
    targets = Seen(sight.scene, sight.evidence, Threat()).targets
    received = [as_gradient(target) for target in targets]
    first = next(name for name, value in received[0].items() if value.ndim == 2 and value.shape[1] == features)
    bias = first.replace("weight", "bias")
    z = torch.stack([one[bias].double() @ one[first].double() / one[bias].double().square().sum() for one in received])  # phi, exactly
    labels = torch.tensor([one_label(target, classes) for target in targets])
    x = embedded(kernel(sight.pool.x, length))
    placed = search(z, x, labels[:, None] == sight.pool.y[None], stream("keyed features", "search", seed, length), starts=starts)[0]
    truth = torch.cat(sight.truth)
    gram, upper = kernel(truth, length), torch.triu(torch.ones(len(order), len(order), dtype=torch.bool), 1)
    agreement = torch.corrcoef(torch.stack([(z @ z.T / features)[upper], gram[upper]]))[0, 1]
    found = int((sight.pool.x[placed] == truth).all(1).sum())
    return {"length": length, "features": features, "seed": seed, "named": found, "of": len(order), "agreement": float(agreement)}


def named(data: tuple[Records, Tensor, Tensor], seeds: int = 3, lengths: tuple[float, ...] = LENGTHS) -> pd.DataFrame:
    """Records named by length, of all seeds together, with the Clopper-Pearson interval of their share."""
    table = pd.DataFrame([names(data, length, seed=seed) for length in lengths for seed in range(seeds)])
    rows = []
    for length, own in table.groupby("length", sort=False):
        found, of = int(own["named"].sum()), int(own["of"].sum())
        low, high = clopper_pearson(found, of)
        share = {"share": found / of, "low": low, "high": high, "agreement": own["agreement"].mean()}
        rows.append({"length": length, "features": own["features"].iloc[0], "federations": len(own), "named": found, "of": of, **share})
    return pd.DataFrame(rows)


def reference(length: float) -> str:
    """How a suite names the construction."""
    return f"{Path(__file__)}:KeyedFeatures:length={length:g}"


def costs(out: Path, seeds: int = 5, lengths: tuple[float, ...] = LENGTHS) -> pd.DataFrame:
    """Accuracy beside FedAvg's, paired over seeds, a row a length; settings are those of docs/hardened_utility.yaml."""
    defenses = ["fedavg", *map(reference, lengths)]
    table = run(
        DOCS / "hardened_utility.yaml", out=out, workers=1, report=False, seeds=seeds, defenses=defenses, attacks=["blind"], device="cpu"
    )
    each = table[(table["role"] == "utility") & (table["metric"] == "accuracy")].pivot(index="seed", columns="defense", values="value")
    rows = []
    for length in lengths:
        column = next(name for name in each.columns if str(name).endswith(f"length={length:g}"))
        mean, low, high = interval(each[column] - each["fedavg"])
        rows.append(
            {"length": length, "seeds": len(each), "accuracy": each[column].mean(), "cost": mean, "cost_low": low, "cost_high": high}
        )
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> str:
    """The page's table in Markdown."""
    lines = ["| l | single records named | agreement of inner products | accuracy | beside FedAvg, points |", "|---|---|---|---|---|"]
    for row in found.to_dict("records"):
        share = f"{row['named']} of {row['of']}: {row['share']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        cost = f"{100 * row['cost']:+.1f} [{100 * row['cost_low']:+.1f}, {100 * row['cost_high']:+.1f}]"
        lines.append(f"| {row['length']:g} | {share} | {row['agreement']:.2f} | {row['accuracy']:.3f} | {cost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    found = named(cohort("pbmc68k")).merge(costs(Path(sys.argv[1])), on="length")
    found.round(4).to_csv(DOCS / "hardened_features.csv", index=False)
