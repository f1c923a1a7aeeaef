"""What a site reads of a mean: the others' part of it, since it knows what it put in; of two sites, the other one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.compression import Compression
from baselines.dp_fedavg import DPFedAvg
from baselines.secure_aggregation import SecureAggregation
from suites import api, registry, transcript
from suites.contracts import Defense, Federation, Guess, Local, Params, Probe, Records, Shape, Threat
from suites.federation import Assignment, Pool, Trained, train
from suites.observation import Evidence, Guarded, Scene, Seen
from suites.randomness import keys, stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES = 24, 3
TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0, network="mlp")
X = torch.randn(120, FEATURES, generator=stream("site view", "x"))
POOL = Pool(X, torch.arange(120) % CLASSES, CLASSES)
SIZES = (30, 10, 20)  # so that weights matter


def sites(count: int) -> tuple[torch.Tensor, ...]:
    return torch.split(torch.arange(sum(SIZES[:count])), list(SIZES[:count]))


def federation(count: int, **changes: Any) -> Federation:
    return replace(Federation(sites=count, rounds=3, local=Local(epochs=1, batch=5)), **changes)


def run(*layers: Defense, count: int = 2, batch: int = 1, given: Federation | None = None) -> tuple[Trained, Stack]:
    own = federation(count) if given is None else given
    probes = [Probe("g", 0, tuple(tuple(site[:batch].tolist()) for site in sites(count)))]
    probes += [Probe("s", 1, tuple(tuple(site[1:2].tolist()) for site in sites(count)), "sgd", 2, 0.1)]
    stack = Stack(layers).plan(own, Shape(SIZES[:count], FEATURES, CLASSES))
    assignment = Assignment(sites(count), ("site view",), ("site view", "defense"))
    return train(TASK, stack, own, POOL, [assignment], probes=probes)[0], stack


def seen(trained: Trained, stack: Stack, view: Any, count: int = 2) -> Seen:
    rest = torch.arange(60, 120)
    scene = Scene(
        TASK,
        stack,
        federation(count),
        CLASSES,
        FEATURES,
        trained.secret,
        Records(X[:60], POOL.y[:60]),
        Records(X[rest], POOL.y[rest]),
        30,
        keys("site view", "adversary"),
        lambda _: [],
        lambda: None,
    )
    return Seen(scene, Evidence(trained.rounds, trained.finals), Threat(view=view))


def near(one: Params, other: Params, atol: float = 1e-6) -> bool:
    return set(one) == set(other) and all(torch.allclose(one[name], other[name], rtol=1e-4, atol=atol) for name in one)


def test_of_two_sites_a_site_reads_the_other_as_the_server_does() -> None:
    trained, stack = run()
    server, site = seen(trained, stack, "server"), seen(trained, stack, "site")
    for above, inside in zip(server.rounds, site.rounds, strict=True):
        assert inside.combined is not None
        assert near(inside.combined, above.updates[1])
        assert not near(inside.combined, above.combined or {})
        assert not inside.updates
    other = [target for target in server.targets if target.site == 1]
    assert len(site.target_sums) == len(other) == 2
    for own, theirs in zip(site.target_sums, other):
        assert (own.batch, own.contributors, own.optimiser) == (theirs.batch, 1, theirs.optimiser)
        assert near(own.update, theirs.update)


@pytest.mark.parametrize(
    "layers",
    [
        (),
        (SecureAggregation(),),
        (Compression(),),
        (DPFedAvg(noise_multiplier=0.5),),
        (DPFedAvg(noise_multiplier=0.5), SecureAggregation()),
    ],
    ids=["fedavg", "masked", "compressed", "noised", "noised and masked"],
)
@pytest.mark.parametrize("count", [2, 3])
def test_what_a_site_reads_and_its_own_part_make_the_servers_sum(layers: tuple[Defense, ...], count: int) -> None:
    trained, stack = run(*layers, count=count)
    weights = torch.ones(count) if stack.equal_weights else torch.tensor(SIZES[:count], dtype=torch.float32)
    open_run = trained if stack.channel is None else run(*layers[:-1], count=count)[0]  # where the site's own message is in the clear
    alone = {m.site: m.payload for m in open_run.rounds[0].messages}
    server, site = (seen(trained, stack, view, count).rounds[0].combined or {} for view in ("server", "site"))
    whole = {name: (weights[0] * alone[0][name] + (weights.sum() - weights[0]) * site[name]) / weights.sum() for name in site}
    assert near(whole, server, atol=2e-6)  # of the fixed point's step


def test_under_masks_the_difference_is_the_others_rounded_update_to_the_last_bits() -> None:
    """A site takes out what the sum holds of it, so only the other's rounding stays."""
    masked, stack = run(SecureAggregation(bound=2.0**14))  # a step so coarse that rounding shows
    other = run()[0].rounds[0].messages[1].payload
    rounded = SecureAggregation(bound=2.0**14).sum.part(other, [30.0, 10.0], 1)
    assert not near(rounded, other, atol=1e-7)
    assert near(seen(masked, stack, "site").rounds[0].combined or {}, rounded, atol=1e-7)


def test_the_server_reads_no_part_of_its_own_and_the_wire_does_not_hold_it(tmp_path: Path) -> None:
    trained, stack = run(SecureAggregation())
    evidence = Evidence(trained.rounds, trained.finals)
    transcript.save(tmp_path, evidence)
    back = transcript.load(tmp_path)
    own = trained.rounds[0].own
    assert own is not None
    assert (own.weight, own.total) == (30, 40)
    for record, read in zip(evidence.rounds, back.rounds, strict=True):
        assert record.own is not None
        assert read.own is not None
        assert near(record.own.update, read.own.update, atol=0.0)
        assert (read.own.weight, read.own.total) == (record.own.weight, record.own.total)
    wire = b"".join(path.read_bytes() for path in sorted(tmp_path.glob(transcript.TENSORS.format("*"))))
    part = own.update[max(own.update, key=lambda name: own.update[name].numel())]
    assert part.numpy().tobytes()[:32] not in wire
    assert part.numpy().tobytes()[:32] in (tmp_path / transcript.SITE.format(0)).read_bytes()
    server = seen(trained, stack, "server")
    assert near(server.rounds[0].combined or {}, trained.rounds[0].combined, atol=0.0)
    clear = run()[0]
    transcript.save(tmp_path / ".", Evidence(clear.rounds, clear.finals))
    assert all(record.own is None for record in clear.rounds)  # it stands in the message


def test_a_round_without_the_site_is_read_whole_and_one_without_others_says_nothing() -> None:
    trained, stack = run(count=3, given=federation(3, participation=0.34, rounds=6))
    took = [{m.site for m in record.messages} for record in trained.rounds]
    assert {0} in took
    for who, record, view in zip(took, trained.rounds, seen(trained, stack, "site", 3).rounds):
        assert (view.combined is None) == (who == {0})
        assert view.combined is None or near(view.combined, record.combined, atol=0.0)


@pytest.mark.parametrize("layers", [(), (SecureAggregation(),)], ids=["fedavg", "masked"])
def test_a_site_inverts_the_other_sites_record(layers: tuple[Defense, ...]) -> None:
    trained, stack = run(*layers)
    attack = registry.find("attacks", "ladder_of_sum:limit=1").make()
    guess: Guess = attack.run(Guarded(seen(trained, stack, "site"), attack.needs), stream("site view", "attack"))
    truth = X[sites(2)[1][0]]
    error = float((guess.value[0][0] - truth).norm() / truth.norm())
    assert guess.value[0].shape == (1, FEATURES)
    assert error < 1e-3
    everybody: Guess = attack.run(Guarded(seen(trained, stack, "server"), attack.needs), stream("site view", "attack"))
    assert everybody.value[0].shape == (2, FEATURES)


ROWS = "row_space_of_sum:budget=20:limit=2"
SUITE = """
suite: colluding
data: {name: synthetic}
partition: {kind: iid, sites: 2}
federation: {rounds: 2, local: {epochs: 2, lr: 0.005}}
seeds: 1
probes: {gradients: 2}
defenses: [secure_aggregation]
attacks: [closed_form, "row_space_of_sum:budget=20:limit=2", span_of_sum]
threats: [{view: server}, {view: site}]
"""


def test_a_suite_has_a_row_for_the_site_that_looks_at_the_other(tmp_path: Path) -> None:
    (tmp_path / "colluding.yaml").write_text(SUITE)
    table = api.run(tmp_path / "colluding.yaml", out=tmp_path / "out", report=False, device="cpu")
    exact = table[table["metric"] == "exact"].set_index(["attack", "view"])
    one = exact.loc[(ROWS, "site")]
    assert (one["value"], one["n"]) == (1.0, 2)  # one record of the other site behind each of two messages
    assert exact.loc[(ROWS, "server")]["n"] == 4
    skipped = table[(table["attack"] == "closed_form") & (table["view"] == "site")]
    assert list(skipped["status"]) == ["skipped"]
    found = table[(table["metric"] == "auc") & (table["attack"] == "span_of_sum")].set_index("view")["value"]
    assert found["site"] >= found["server"] - 0.02  # half as many records stand behind what it reads
