"""Imprint: records read off neighbouring rows, against the counting argument, the stored figures, and what it must not be able to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from observations import FakeObservation, mlp, normal, probe
from torch import Tensor

from attacks.gradient_inversion.carrier import Carrier
from attacks.gradient_inversion.imprint import Imprint, ImprintOfSum
from suites import api
from suites.contracts import Records, Skip
from suites.errors import RequestError
from suites.lanes import wire
from suites.tasks.networks import ResidualMLP

STORED = {(64, 8): 0.92, (64, 32): 0.56, (64, 128): 0.11, (256, 8): 0.92, (256, 32): 0.83, (256, 128): 0.60, (256, 512): 0.14}
PUBLIC = normal(2000, 1000, seed=999)


def attacked(hidden: int, batch: int, seed: int, attack: Imprint | None = None, noise: Any = None) -> tuple[float, float, bool]:
    """The shares of a batch that are exact and that the attack says it read, and its certificate."""
    net, attack = mlp([1000, hidden, hidden, 14], seed), Imprint() if attack is None else attack
    x, y = normal(batch, 1000, seed=100 + seed), torch.from_numpy(np.random.default_rng(seed).integers(0, 14, batch))
    seen: Any = FakeObservation(net, 1000, 14, auxiliary=Records(PUBLIC, torch.zeros(len(PUBLIC), dtype=torch.int64)))
    net.load_state_dict(attack.craft(seen, probe(net, x, y), torch.Generator().manual_seed(seed)))
    seen.targets = [probe(net, x, y, noise=noise)]
    guess = attack.run(seen, torch.Generator())
    assert guess.certified is not None
    return exact(guess.value[0], x), float(guess.notes["read_alone"]), bool(guess.certified[0])


def exact(guess: Tensor, x: Tensor) -> float:
    assert guess.shape == x.shape
    return float((torch.cdist(guess.double(), x.double()).min(0).values < 1e-3 * x.double().norm(dim=1)).double().mean())


@pytest.mark.parametrize(("units", "batch"), list(STORED))
def test_the_stored_figures_are_beaten(units: int, batch: int) -> None:
    found = [attacked(units, batch, seed) for seed in range(2 if batch > 100 else 4)]
    assert np.mean([one[0] for one in found]) > STORED[units, batch]
    assert all(abs(share - said) <= 0.02 for share, said, _ in found)  # it knows which it has
    if batch <= 8:
        assert all(one == (1.0, 1.0, True) for one in found)


def test_beyond_peeling_it_does_as_well_as_the_best_single_direction() -> None:
    """B records of which n are binned, one a bin on average: n / e of them are alone."""
    assert np.mean([attacked(64, 128, seed)[0] for seed in range(12)]) == pytest.approx(64 / np.e / 128, abs=0.04)


def test_records_in_noise_are_not_said_to_be_read() -> None:
    draw = torch.Generator().manual_seed(3)
    share, said, proven = attacked(64, 8, 0, noise=lambda t: t + t.abs().max() * torch.randn(t.shape, generator=draw))
    assert (share, proven) == (0.0, False)
    assert said <= 0.125


def test_the_residual_network_keeps_its_slopes_alive() -> None:
    """Past two layer norms a record's rows are its own up to rounding: equal ratios, and the rows above its threshold alone."""
    net = ResidualMLP(40, 5, hidden=32, head=16)
    honest = wire(net)
    carrier = Carrier.found(honest, 40, 5)
    assert carrier.units == 16
    one = torch.nn.functional.normalize(normal(1, 40, seed=1)).double()
    cuts = torch.linspace(-2, 1.5, 16, dtype=torch.float64)
    x, y = normal(1, 40, seed=2), torch.tensor([3])
    net.load_state_dict(carrier.params(honest, one.expand(16, -1), cuts))
    torch.nn.functional.cross_entropy(net.eval()(x), y).backward()
    gradient = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    weight = carrier.cleaned(gradient["embedding.weight"].double())
    bias = carrier.cleaned(gradient["embedding.bias"].double())
    on = (one @ x[0].double()) > cuts
    assert 0 < int(on.sum()) < 16
    assert bool((bias[~on].abs() < 1e-4 * bias[on].abs().min()).all())
    steps = weight[:-1] - weight[1:]
    at = int(on.sum()) - 1
    assert torch.allclose(steps[at] / (bias[at] - bias[at + 1]), x[0].double(), atol=1e-3)
    assert float(torch.cat([steps[:at], steps[at + 1 :]]).abs().max()) < 1e-3 * float(steps[at].abs().max())


def test_networks_that_it_cannot_use_are_skipped_with_a_reason() -> None:
    with pytest.raises(Skip, match="BatchNorm"):
        Carrier.found(wire(ResidualMLP(10, 3, hidden=8, head=4, norm="batch")), 10, 3)
    with pytest.raises(Skip, match="no way through"):
        Carrier.found(wire(mlp([10, 8, 8, 3], norm=True)), 10, 3)
    with pytest.raises(Skip, match="too few units"):
        Carrier.found(wire(ResidualMLP(10, 3, hidden=4, head=4)), 10, 3)


@pytest.mark.parametrize("units", [2, 3, 5])
def test_few_units_make_few_bins(units: int) -> None:
    assert attacked(units, 1, 0) == (1.0, 1.0, True)


SUITE = """
suite: active
data: {name: synthetic}
partition: {kind: iid, sites: 3}
federation: {rounds: 1, local: {epochs: 1, lr: 0.005}}
seeds: 1
probes: [{gradients: 1, batch: 4}]
defenses: [fedavg, secure_aggregation, "infl:published", "dp_sgd:epsilon=8", "infl:hardened:minimum=5"]
attacks: [imprint, imprint_of_sum, closed_form]
threats: [{view: server}, {view: site}, {view: server, active: true}]
"""


def test_rows_of_a_suite_say_active_and_every_layer_of_the_defense_acts(tmp_path: Path) -> None:
    (tmp_path / "active.yaml").write_text(SUITE)
    table = api.run(tmp_path / "active.yaml", out=tmp_path / "out", report=True, device="cpu")
    found = table[(table["metric"] == "exact") & (table["status"] == "ok")].set_index(["defense", "attack", "view"])["value"]
    assert found["fedavg", "imprint", "active_server"] > found["fedavg", "closed_form", "server"]
    for defense in ("fedavg", "secure_aggregation", "infl:published"):  # a sum of 12 records; a key that zeros switch off
        assert found[defense, "imprint_of_sum", "active_server"] >= 0.75
    assert found["dp_sgd:epsilon=8", "imprint", "active_server"] == 0  # its clipping and noise act on the answer
    assert ("fedavg", "closed_form", "active_server") not in found.index  # the passive attack is told once
    skipped = table[table["status"] == "skipped"].set_index(["defense", "attack", "view"])["reason"]
    assert "active: true" in skipped["fedavg", "imprint", "server"]
    assert "sends no model" in skipped["fedavg", "imprint", "site"]
    assert "single sites" in skipped["secure_aggregation", "imprint", "active_server"]
    assert "fewer than 5 records" in skipped["infl:hardened:minimum=5", "imprint", "active_server"]
    assert not (table["view"].isin(["server", "site"]) & table["attack"].str.startswith("imprint") & (table["status"] == "ok")).any()
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "active server" in page


@pytest.mark.parametrize(
    ("threat", "said"), [("{view: site, active: true}", "only a server chooses"), ("{view: outsider, active: true}", "only")]
)
def test_only_a_server_is_active(tmp_path: Path, threat: str, said: str) -> None:
    (tmp_path / "active.yaml").write_text(SUITE.replace("{view: site}", threat))
    with pytest.raises(RequestError, match=said):
        api.request(tmp_path / "active.yaml")


def test_what_is_sent_must_be_a_model(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from attacks.gradient_inversion.imprint import Imprint\n\n\n"
        "class Bad(Imprint):\n    active = True\n    goal = 'reconstruction'\n"
        "    needs = frozenset({'probes', 'auxiliary', 'simulate', 'key'})\n\n"
        "    def craft(self, seen, target, rng):\n        return {name: t / 0 for name, t in target.params.items()}\n"
    )
    (tmp_path / "active.yaml").write_text(SUITE.replace("attacks: [imprint, imprint_of_sum, closed_form]", "attacks: ['bad.py:Bad']"))
    table = api.run(tmp_path / "active.yaml", out=tmp_path / "out", report=False, device="cpu", defenses=["fedavg"])
    row = table[(table["attack"] == "bad.py:Bad") & (table["view"] == "active_server")].iloc[0]
    assert row["status"] == "failed"  # a fault of the attack's own: a skip would say that it could not look
    assert "finite tensors" in row["reason"]


def test_the_attack_for_sums_counts_all_sites_records() -> None:
    batch = 6
    net = mlp([50, 16, 16, 4])
    target = probe(net, normal(batch, 50, seed=0), torch.zeros(batch, dtype=torch.int64), contributors=3)
    assert (Imprint().behind(target), ImprintOfSum().behind(target)) == (2, 6)
