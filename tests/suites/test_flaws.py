"""The deliberate faults of a published evaluation: each acts from the suite's file to the report, and its effect can be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.as_published import AsPublished
from baselines.dp_sgd import DPSGD
from baselines.early_stopping import EarlyStopping
from infl.published import Published
from suites.api import carry_out, request
from suites.bench import Bench
from suites.config import load
from suites.contracts import Federation, Local, Probe, RequestError, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.modules import call
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES, SITES, EACH, TEST = 20, 4, 4, 24, 120
TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0)


def pool(*, labels: str, seed: int = 0) -> Pool:
    x = torch.randn(SITES * EACH + TEST, FEATURES, generator=stream("flaws", "x", seed))
    y = torch.randint(0, CLASSES, (len(x),), generator=stream("flaws", "y", seed))
    if labels == "learnable":
        x = x + 1.2 * torch.eye(CLASSES, FEATURES)[y]
    return Pool(x, y, CLASSES)


def trained(
    data: Pool, *flaws: str, layers: Any = (), sites: tuple[Tensor, ...] | None = None, seed: int = 0, rounds: int = 6, chunk: int = 8
) -> Trained:
    federation = Federation(sites=SITES, rounds=rounds, local=Local(epochs=3, batch=12, lr=5e-3), flaws=frozenset(flaws))
    sites = sites or tuple(torch.arange(SITES * EACH).chunk(SITES))
    stack = Stack(layers).plan(federation, Shape((EACH,) * SITES, FEATURES, CLASSES))
    probes = [Probe("p", 0, tuple((int(site[0]),) for site in sites))]
    assignment = Assignment(sites, ("flaws", seed), ("flaws", seed, "d"))
    return train(TASK, stack, federation, data, [assignment], validation=TEST_ROWS, probes=probes, chunk=chunk)[0]


TEST_ROWS = torch.arange(SITES * EACH, SITES * EACH + TEST)


def accuracy(data: Pool, result: Trained) -> float:
    outputs = call(result.module, result.finals[0], data.x[TEST_ROWS])
    return float((outputs.argmax(1) == data.y[TEST_ROWS]).float().mean())


def test_a_pooled_client_is_one_more_site_that_counts_as_much_as_each() -> None:
    data = pool(labels="learnable")
    sound, flawed = trained(data), trained(data, "pooled_client")
    assert [m.site for m in sound.rounds[0].messages] == [0, 1, 2, 3]
    messages = flawed.rounds[0].messages
    assert [m.site for m in messages] == [0, 1, 2, 3, 4]
    for name, mean in flawed.rounds[0].combined.items():
        assert torch.allclose(mean, torch.stack([m.payload[name] for m in messages]).mean(0), atol=1e-6)
    for name, own in sound.rounds[0].messages[2].payload.items():  # the honest sites train as they did
        assert torch.allclose(messages[2].payload[name], own, atol=1e-5)
    assert [m.site for m in flawed.rounds[0].probes[0].messages] == [0, 1, 2, 3]  # targets are the sites' own


def test_what_the_pooled_client_adds_to_a_result() -> None:
    """Sites that hold one class each: averaging them learns little, and one pooled member hides that."""
    gain = []
    for seed in range(3):
        data = pool(labels="learnable", seed=seed)
        rows = torch.arange(SITES * EACH)
        sites = tuple(rows[data.y[rows] == k] for k in range(CLASSES))
        gain.append(
            accuracy(data, trained(data, "pooled_client", sites=sites, seed=seed)) - accuracy(data, trained(data, sites=sites, seed=seed))
        )
    assert min(gain) > 0.05, gain


def test_a_choice_on_test_records_finds_skill_in_pure_noise() -> None:
    """Labels drawn by a coin: nothing can be learnt, so whatever the choice adds to chance is the fault alone."""
    honest, chosen = [], []
    for seed in range(6):
        data = pool(labels="none", seed=seed)
        honest.append(accuracy(data, trained(data, seed=seed, rounds=15)))
        chosen.append(accuracy(data, trained(data, "test_set_choice", seed=seed, rounds=15)))
    chance, error = 1 / CLASSES, (0.25 * 0.75 / TEST / 6) ** 0.5
    assert abs(sum(honest) / 6 - chance) < 3 * error
    assert sum(chosen) / 6 > chance + 3 * error
    assert sum(chosen) > sum(honest) + 6 * 0.03, (honest, chosen)


def test_the_choice_of_an_epoch_is_each_sites_own_best() -> None:
    data = pool(labels="none")
    result = trained(data, "test_set_choice", rounds=1)
    start = result.rounds[0].broadcast
    for message in result.rounds[0].messages:
        sent = {name: start[name] + moved for name, moved in message.payload.items()}
        best = max(accuracy(data, replace(result, finals=[after])) for after in epochs_alone(data, message.site, start))
        assert accuracy(data, replace(result, finals=[sent])) == pytest.approx(best)


def epochs_alone(data: Pool, site: int, start: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The states after one, two and three epochs: three honest runs of different length, which share their batches."""
    found = []
    for epochs in (1, 2, 3):
        federation = Federation(sites=SITES, rounds=1, local=Local(epochs=epochs, batch=12, lr=5e-3))
        sites = tuple(torch.arange(SITES * EACH).chunk(SITES))
        one = train(TASK, Stack(), federation, data, [Assignment(sites, ("flaws", 0), ("flaws", 0, "d"))], chunk=1)[0]
        found.append({name: start[name] + moved for name, moved in one.rounds[0].messages[site].payload.items()})
    return found


@pytest.mark.parametrize("flaw", ["pooled_client", "test_set_choice"])
def test_no_epsilon_beside_a_fault_that_it_does_not_cover(flaw: str) -> None:
    with pytest.raises(RequestError, match="epsilon does not cover"):
        trained(pool(labels="none"), flaw, layers=[DPSGD(noise_multiplier=1.0)])


def test_a_key_from_an_integer_seed_is_found_from_one_message() -> None:
    """2^16 seeds, each tried against the key vector that one gradient gives away; a sound key is none of them."""
    data = pool(labels="learnable")
    for flaws, found, tried in ((("integer_seed",), 1, 2**16), ((), 0, 2**12)):
        result = trained(data, *flaws, layers=[Published(strength=5.0)], rounds=1, chunk=1)
        round_, probe = result.rounds[0], result.rounds[0].probes[0].messages[0].payload
        prefix = "embedding.key_to_mod.0."
        weight, bias = probe[prefix + "weight"].double(), probe[prefix + "bias"].double()
        key = weight[bias.abs().argmax()] / bias[bias.abs().argmax()]
        hits = sorted(near(round_.broadcast, key, tried))
        assert len(hits) == found
        if found:
            assert result.secret is not None
            assert torch.equal(drawn(hits[0]), result.secret["0/coordinates"])


def drawn(seed: int) -> Tensor:
    return 2 * torch.rand(128, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def near(broadcast: dict[str, Tensor], key: Tensor, tried: int) -> set[int]:
    """Seeds below ``tried`` whose coordinates the broadcast encoder turns into this key vector."""
    encoder = Published().model(torch.nn.Linear(2, 2), None).get_submodule("key_encoder").double()
    encoder.load_state_dict({name.partition("key_encoder.")[2]: t.double() for name, t in broadcast.items() if "key_encoder" in name})
    hits: set[int] = set()
    with torch.no_grad():
        for start in range(0, tried, 1024):
            points = torch.stack([drawn(seed) for seed in range(start, start + 1024)])
            vectors = encoder.net(points).mean(1)  # type: ignore[operator,union-attr]
            error = (vectors - key).norm(dim=1) / key.norm()
            hits |= {start + int(i) for i in (error < 1e-5).nonzero()}
    return hits


# ------------------------------------------------------------------------------------------------- from the file to the report

SUITE = """suite: faults
title: Faults on purpose
task: classification
data: {{name: synthetic}}
split: {{unit: record, train: 0.5, validation: 0.1, test: 0.2, auxiliary: 0.2}}
partition: {{kind: iid, sites: 3}}
federation: {{rounds: 2, flaws: [{flaws}], local: {{epochs: 2, batch: 50}}}}
seeds: 1
probes: [{{gradients: 1, batch: 1, round: 0}}]
defenses: [{defenses}]
attacks: [{attacks}]
threats: [{{view: server, key: none}}]
"""
ALL = ("pooled_client", "test_set_choice", "key_in_state", "integer_seed")


def written(folder: Path, flaws: str, defenses: str, attacks: str = "") -> Path:
    path = folder / "faults.yaml"
    path.write_text(SUITE.format(flaws=flaws, defenses=defenses, attacks=attacks))
    return path


def test_a_fault_that_nobody_knows_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"line 7.*'pooled_client'"):
        load(written(tmp_path, "pooled_clients", "fedavg"))


@pytest.mark.parametrize(
    ("flaws", "defense"), [(", ".join(ALL), "infl:published"), ("", "as_published+infl:published"), ("key_in_state", "as_published")]
)
def test_from_the_file_to_the_protocol(tmp_path: Path, flaws: str, defense: str) -> None:
    asked = request(written(tmp_path, flaws, f'"{defense}"'), out=tmp_path / "out")
    bench = Bench(asked.plan.cells[0].spec, None)
    assert bench.federation.flaws == set(ALL)
    assert bench.federation.sites == len(bench.shape.site_sizes) == 4
    assert bench.shape.site_sizes[3] == sum(bench.shape.site_sizes[:3])


def test_one_switch_at_a_time() -> None:
    one = AsPublished(pooled_client=False, key_in_state=False, integer_seed=False).protocol(Federation())
    assert one.flaws == {"test_set_choice"}
    assert Stack([AsPublished(), EarlyStopping(patience=3)]).protocol(Federation()).patience == 3


def test_the_report_names_the_faults_and_runs_them(tmp_path: Path) -> None:
    path = written(tmp_path, "pooled_client, test_set_choice", '"fedavg", "as_published+infl:published"', "closed_form, loss_threshold")
    table = carry_out(request(path, out=tmp_path / "out"), workers=1)
    assert (table["status"] == "ok").any()
    assert not (table["status"] == "failed").any(), table.loc[table["status"] == "failed", "reason"].unique()
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "Deliberate faults" in page
    assert "pooled_client, test_set_choice" in page
    assert "as_published+infl:published" in page
