"""Probes whose steps take a few records each: the site's order is drawn anew each epoch, and no wire, transcript or target says it."""

import json
from dataclasses import asdict, fields
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from baselines.dp_sgd import DPSGD
from suites import transcript
from suites.config import SuiteSpec, parse
from suites.contracts import Clip, Federation, Local, Params, Probe, Records, Target, Threat
from suites.errors import RequestError
from suites.federation import Assignment, Pool, train
from suites.modules import build
from suites.observation import Evidence, Seen
from suites.randomness import stream
from suites.simulation import simulate
from suites.stack import Stack
from suites.tasks.classification import Classification
from tests.attacks.visible import look

TASK = Classification(hidden=8, blocks=1, head=6, dropout=0.0)
X = torch.randn(40, 12, generator=stream("test_minibatch", "x"))
POOL = Pool(X, torch.randint(0, 4, (40,), generator=stream("test_minibatch", "y")), 4)
GIVEN = Assignment((torch.arange(0, 20), torch.arange(20, 40)), ("test", 0), ("test", 0, "d"))
ROWS, LR = (3, 8, 5, 11), 0.1


def sent(probes: list[Probe], stack: Stack | None = None) -> list[Params]:
    federation = Federation(sites=2, rounds=1, local=Local(optimiser="sgd", lr=0.05))
    round0 = train(TASK, stack or Stack(), federation, POOL, [GIVEN], probes=probes)[0].rounds[0]
    return [round0.broadcast, *(dict(record.messages[0].payload) for record in round0.probes)]


def orders(records: int, size: int, epochs: int) -> list[Tensor]:
    """Every order [steps, B] of two mini-batches an epoch."""
    one = []
    for first in combinations(range(records), size):
        taken = torch.zeros(2, records)
        taken[0, list(first)] = 1
        taken[1] = 1 - taken[0]
        one.append(taken)
    return [torch.cat(parts) for parts in product(one, repeat=epochs)]


def by_hand(params: Params, order: Tensor) -> Params:
    """Plain torch: one optimiser, one step a row of ``order``."""
    net = build(TASK, Stack(), 12, 4, None, stream("any"))
    net.load_state_dict(params)
    optimiser = torch.optim.SGD(net.parameters(), lr=LR)
    for taken in order:
        rows = torch.tensor(ROWS)[taken.bool()]
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(POOL.x[rows]), POOL.y[rows]).backward()
        optimiser.step()
    return {name: tensor.detach() - params[name] for name, tensor in net.state_dict().items()}


def gap(a: Params, b: Params) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_message_is_that_of_one_order_and_the_order_is_drawn_anew(epochs: int) -> None:
    probes = [Probe(f"{k}", 0, (ROWS, ()), "sgd", 2 * epochs, LR, minibatch=2) for k in range(8)]
    broadcast, *messages = sent(probes)
    possible = [by_hand(broadcast, order) for order in orders(4, 2, epochs)]
    found = []
    for message in messages:
        near = torch.tensor([gap(message, other) for other in possible]).sort()
        assert float(near.values[0]) < 1e-6
        assert float(near.values[1]) > 1e-5
        found.append(int(near.indices[0]))
    assert len(set(found)) > 2
    assert max(gap(messages[0], message) for message in sent(probes)[1:2]) == 0  # the same seed, the same order


def test_without_minibatches_every_step_takes_all_records() -> None:
    broadcast, message = sent([Probe("all", 0, (ROWS, ()), "sgd", 2, LR)])
    assert gap(message, by_hand(broadcast, torch.ones(2, 4))) < 1e-6
    many = sent([Probe("all", 0, (ROWS, ()), "sgd", 2, LR, minibatch=9)])[1]
    assert gap(message, many) < 1e-6


def test_a_last_minibatch_may_be_smaller() -> None:
    broadcast, message = sent([Probe("odd", 0, (ROWS, ()), "sgd", 2, LR, minibatch=3)])
    possible = [by_hand(broadcast, order) for order in orders(4, 3, 1)]
    assert min(gap(message, other) for other in possible) < 1e-6


@pytest.mark.parametrize("clip", [None, Clip(0.3)])
@pytest.mark.parametrize("size", [2, 3])
def test_the_simulated_client_takes_an_order_and_agrees_with_the_sites(clip: Clip | None, size: int) -> None:
    stack = Stack([DPSGD(noise_multiplier=0.0, clip=clip.norm)] if clip else [])
    broadcast, message = sent([Probe("p", 0, (ROWS, ()), "sgd", 4, LR, minibatch=size)], stack)
    module = build(TASK, Stack(), 12, 4, None, stream("any")).eval()
    target = Target(broadcast, message, 4, "sgd", 4, LR, 0, 1, 0, minibatch=size)

    def made(order: Tensor | None) -> Params:
        return simulate(module, TASK.loss, target, POOL.x[list(ROWS)], POOL.y[list(ROWS)], clip, order)

    assert min(gap(message, made(order)) for order in orders(4, size, 2)) < 1e-6
    assert gap(message, made(None)) > 1e-5  # all at each step: what who knows no order can say
    assert gap(made(None), made(torch.ones(4, 4))) < 1e-6 or clip is not None


def test_nothing_that_is_seen_or_stored_says_the_order(tmp_path: Path) -> None:
    probes = [Probe("p", 0, (ROWS, ()), "sgd", 2, LR, minibatch=2)]
    trained = train(TASK, Stack(), Federation(sites=2, rounds=1, local=Local(optimiser="sgd", lr=0.05)), POOL, [GIVEN], probes=probes)[0]
    transcript.save(tmp_path, Evidence(trained.rounds, trained.finals))
    index = json.loads((tmp_path / transcript.INDEX).read_text())
    assert index["rounds"][0]["probes"][0]["probe"] == json.loads(json.dumps(asdict(probes[0])))
    assert transcript.load(tmp_path).rounds[0].probes[0].probe == probes[0]
    drawn = {"name", "round", "records", "optimiser", "steps", "lr", "minibatch"} | {"momentum"}
    assert {part.name for part in fields(Probe)} <= drawn
    step = {"optimiser": "sgd", "steps": 2, "lr": LR, "minibatch": 2}
    sight = look([], Records(POOL.x, POOL.y), [list(ROWS)], torch.arange(20), torch.arange(20, 40), classes=4, **step)
    (target,) = Seen(sight.scene, sight.evidence, Threat()).targets
    assert target.minibatch == 2
    assert {part.name for part in fields(Target)} - {"momentum"} == {
        *("params", "update", "batch", "optimiser", "steps", "lr", "site", "contributors", "round", "minibatch")
    }


SUITE = """suite: small
data: {name: pbmc68k}
federation: {rounds: 2}
probes: {gradients: 1, batch: 8, optimiser: sgd, steps: 2, lr: 0.05}
defenses: [fedavg]
"""


def read(probe: str = "lr: 0.05}") -> SuiteSpec:
    return parse(SUITE.replace("lr: 0.05}", probe), Path("small.yaml"))


def test_a_suite_says_so_and_others_keep_their_ids() -> None:
    assert read("lr: 0.05, minibatch: 4}").probes[0].minibatch == 4
    assert read("lr: 0.05, minibatch: 4}").model_dump(mode="json")["probes"][0]["minibatch"] == 4
    assert "minibatch" not in read().model_dump(mode="json")["probes"][0]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("lr: 0.05, minibatch: 3}", "give at least steps: 3"),
        ("lr: 0.05, minibatch: 0}", "minibatch"),
        ("lr: 0.05, optimiser: gradient, minibatch: 4}", "leave minibatch out"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(probe: str, words: str) -> None:
    text = SUITE.replace("optimiser: sgd, ", "") if "optimiser" in probe else SUITE
    with pytest.raises(RequestError, match=words):
        parse(text.replace("lr: 0.05}", probe), Path("small.yaml"))
