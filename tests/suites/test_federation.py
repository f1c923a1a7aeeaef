"""The engine against a bare loop, against itself in other stacks, and against what a transcript must and must not hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.gradient_inversion.message import as_gradient
from baselines.centralized import Centralized
from baselines.dp_sgd import DPSGD
from baselines.local_only import LocalOnly
from baselines.secure_aggregation import SecureAggregation
from infl.published import Published
from suites.clipping import ClippedSum
from suites.contracts import Defense, Federation, Local, Probe, RequestError, Target
from suites.federation import Assignment, Pool, train
from suites.lanes import Lane, expected_batch, schedule
from suites.modules import build, call
from suites.randomness import stream
from suites.simulation import simulate
from suites.stack import Stack
from suites.tasks.classification import Classification

TASK = Classification(hidden=8, blocks=1, head=6, dropout=0.0)
SGD = Local(epochs=2, batch=16, optimiser="sgd", lr=0.05)


@pytest.fixture
def pool() -> Pool:
    draw = stream("test pool")
    return Pool(torch.randn(240, 12, generator=draw), torch.randint(0, 4, (240,), generator=draw), 4)


def assignment(index: int = 0, sizes: tuple[int, ...] = (40, 23, 31)) -> Assignment:
    order = torch.randperm(240, generator=stream("test assignment", index))
    sites, at = [], 0
    for size in sizes:
        sites.append(order[at : at + size])
        at += size
    return Assignment(tuple(sites), ("test", index), ("test", "defense", index))


def largest_gap(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_fedavg_equals_a_bare_loop_on_the_same_batches(pool: Pool) -> None:
    given, local = assignment(), Local(epochs=2, batch=16, optimiser="adam", lr=1e-3, weight_decay=1e-3)
    ours = train(TASK, Stack(), Federation(rounds=3, local=local), pool, [given], chunk=1)[0].finals[0]

    net = build(TASK, Stack(), 12, 4, None, stream(*given.coordinates, "initialisation"))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    draws = [stream(*given.coordinates, "batches", site) for site in range(3)]
    for _ in range(3):
        results = []
        for site, draw in zip(given.sites, draws):
            net.load_state_dict(state)
            optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-3)
            for _ in range(2):
                for batch in torch.split(site[torch.randperm(len(site), generator=draw)], 16):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(net(pool.x[batch]), pool.y[batch]).backward()
                    optimiser.step()
            results.append({name: tensor.detach().clone() for name, tensor in net.state_dict().items()})
        sizes = [len(site) for site in given.sites]
        state = {name: sum(r[name] * n for r, n in zip(results, sizes)) / sum(sizes) for name in state}
    assert largest_gap(ours, state) < 2e-6


@pytest.mark.parametrize("layers", [[], [Published(strength=5.0)]], ids=["fedavg", "infl"])
def test_a_federation_in_a_stack_agrees_with_the_same_alone(pool: Pool, layers: list[Defense]) -> None:
    """Ragged sites, other members in the stack: plain SGD agrees to 1e-5 (Adam would amplify the order of a sum)."""
    many = [assignment(0), assignment(1, (17, 50, 9)), assignment(2, (64, 5, 30))]
    federation = Federation(rounds=2, local=Local(epochs=2, batch=16, optimiser="sgd", lr=2e-3 if layers else 0.05))
    together = train(TASK, Stack(layers), federation, pool, many, chunk=9)
    for index, one in enumerate(many):
        alone = train(TASK, Stack(layers), federation, pool, [one], chunk=1)[0]
        assert largest_gap(together[index].finals[0], alone.finals[0]) < 1e-5
        assert largest_gap(together[index].finals[0], together[(index + 1) % 3].finals[0]) > 1e-2


def test_the_same_stack_gives_the_same_bytes(pool: Pool) -> None:
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.3)
    runs = [train(task, Stack(), Federation(rounds=2), pool, [assignment(0), assignment(1)], chunk=4) for _ in range(2)]
    for a, b in zip(*runs):
        assert all(torch.equal(a.finals[0][name], b.finals[0][name]) for name in a.finals[0])


def test_the_transcript_adds_up(pool: Pool) -> None:
    trained = train(TASK, Stack(), Federation(rounds=3, local=SGD), pool, [assignment()])[0]
    sizes = torch.tensor([40.0, 23.0, 31.0])
    assert [record.index for record in trained.rounds] == [0, 1, 2]
    for record, after in zip(trained.rounds, [r.broadcast for r in trained.rounds[1:]] + trained.finals):
        mean = {n: sum(m.payload[n] * w for m, w in zip(record.messages, sizes / sizes.sum())) for n in record.broadcast}
        assert largest_gap(mean, record.combined) < 1e-7
        assert largest_gap({n: record.broadcast[n] + record.combined[n] for n in after}, after) == 0
    assert [m.records for m in trained.rounds[0].messages] == [40, 23, 31]


def test_only_kept_and_probed_rounds_are_recorded(pool: Pool) -> None:
    probe = Probe("one", 1, ((0,), (), ()))
    trained = train(TASK, Stack(), Federation(rounds=4, local=SGD), pool, [assignment()], probes=[probe], keep=lambda r: r == 3)[0]
    assert [record.index for record in trained.rounds] == [1, 3]


def test_probes_do_not_move_the_federation(pool: Pool) -> None:
    given = assignment()
    probes = [
        Probe("gradient", 1, tuple((int(site[0]),) for site in given.sites)),
        Probe("sgd", 1, tuple((int(site[1]),) for site in given.sites), "sgd", 2, 0.1),
    ]
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.2)
    stack = Stack([DPSGD(noise_multiplier=0.5)])
    with_probes = train(task, stack, Federation(rounds=3), pool, [given], probes=probes)[0]
    without = train(task, stack, Federation(rounds=3), pool, [given])[0]
    assert all(torch.equal(with_probes.finals[0][n], without.finals[0][n]) for n in without.finals[0])


def test_a_probe_is_the_gradient_of_its_records(pool: Pool) -> None:
    given = assignment()
    records = tuple(tuple(site[:2].tolist()) for site in given.sites)
    trained = train(TASK, Stack(), Federation(rounds=2, local=SGD), pool, [given], probes=[Probe("pair", 1, records)])[0]
    record = trained.rounds[1]
    net = build(TASK, Stack(), 12, 4, None, stream("any"))
    for message, chosen in zip(record.probes[0].messages, records):
        net.load_state_dict(record.broadcast)
        net.zero_grad()
        nn.functional.cross_entropy(net(pool.x[list(chosen)]), pool.y[list(chosen)]).backward()
        truth = {name: p.grad for name, p in net.named_parameters()}
        assert message.kind == "gradient"
        assert largest_gap(dict(message.payload), truth) < 1e-6  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_probe_of_several_steps_is_torchs_own_optimiser_and_simulated_as_such(pool: Pool, momentum: float) -> None:
    given = assignment()
    chosen = given.sites[0][:6]
    probe = Probe("steps", 0, (tuple(chosen.tolist()), (), ()), "sgd", 4, 0.1, momentum)
    record = train(TASK, Stack(), Federation(rounds=1, local=SGD), pool, [given], probes=[probe])[0].rounds[0]
    net = build(TASK, Stack(), 12, 4, None, stream("any"))
    net.load_state_dict(record.broadcast)
    stepper = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    for _ in range(4):
        stepper.zero_grad()
        nn.functional.cross_entropy(net(pool.x[chosen]), pool.y[chosen]).backward()
        stepper.step()
    truth = {name: value.detach() - record.broadcast[name] for name, value in net.named_parameters()}
    sent = dict(record.probes[0].messages[0].payload)
    assert largest_gap(sent, truth) < 1e-6
    target = Target(record.broadcast, sent, 6, "sgd", 4, 0.1, 0, 1, 0, momentum)
    assert largest_gap(simulate(net, TASK.loss, target, pool.x[chosen], pool.y[chosen], None), truth) < 1e-6
    mean = as_gradient(Target(record.broadcast, sent, 6, "sgd", 4, 0.1, 0, 1, 0, momentum))
    first = simulate(net, TASK.loss, Target(record.broadcast, {}, 6, "gradient", 1, 0.0, 0, 1, 0), pool.x[chosen], pool.y[chosen], None)
    bias = list(mean)[-1]
    assert float((mean[bias] - first[bias]).norm() / first[bias].norm()) < 0.3  # of the size of a gradient, however long the steps grew


def test_poisson_sampling_is_executed(pool: Pool) -> None:
    """Batch sizes vary like a binomial: mean q n and variance n q (1 - q), and every step draws anew."""
    lane = Lane(nn.Linear(1, 1), pool.x, pool.y, torch.arange(100), stream("a"), stream("b"), stream("c"))
    steps = [batch for _ in range(200) for batch in schedule(lane, Local(batch=25), poisson=True)]
    sizes = torch.tensor([len(batch) for batch in steps], dtype=torch.float64)
    assert len(steps) == 800
    assert sizes.mean() == pytest.approx(25, abs=0.7)
    assert sizes.var() == pytest.approx(100 * 0.25 * 0.75, rel=0.25)
    assert all(len(batch.unique()) == len(batch) for batch in steps)
    assert expected_batch(Local(batch=25), 10) == 10


def test_shuffled_epochs_use_every_record_once(pool: Pool) -> None:
    lane = Lane(nn.Linear(1, 1), pool.x, pool.y, torch.arange(7, 60), stream("a"), stream("b"), stream("c"))
    steps = schedule(lane, Local(epochs=3, batch=20), poisson=False)
    assert [len(batch) for batch in steps] == [20, 20, 13] * 3
    assert torch.equal(torch.cat(steps[:3]).sort().values, torch.arange(7, 60))


def test_noise_of_a_dp_step_has_its_declared_deviation(pool: Pool) -> None:
    given = assignment(sizes=(40,))
    records = (tuple(given.sites[0][:4].tolist()),)
    probes = [Probe(str(i), 0, records) for i in range(30)]
    noisy = train(TASK, Stack([DPSGD(noise_multiplier=2.0, clip=0.5)]), Federation(rounds=1), pool, [given], probes=probes)[0]
    clean = train(TASK, Stack([DPSGD(noise_multiplier=0.0, clip=0.5)]), Federation(rounds=1), pool, [given], probes=probes)[0]
    drawn = torch.cat(
        [
            (a.messages[0].payload[n] - b.messages[0].payload[n]).flatten()
            for a, b in zip(noisy.rounds[0].probes, clean.rounds[0].probes)
            for n in a.messages[0].payload
        ]
    )
    assert drawn.std() * 4 == pytest.approx(2.0 * 0.5, rel=0.02)
    assert drawn.mean().abs() < 0.01


@pytest.mark.parametrize("chunk", [1, 9])
def test_clipping_takes_one_pass_in_every_chunk(pool: Pool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact path is right too, but many times slower; nothing else would show that the engine fell back to it."""
    used: list[bool] = []
    plain = ClippedSum.__call__

    def watched(self: ClippedSum, *arguments: object) -> object:
        result = plain(self, *arguments)  # type: ignore[arg-type]
        used.append(self.ghost)
        return result

    monkeypatch.setattr(ClippedSum, "__call__", watched)
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.2)
    train(task, Stack([DPSGD(noise_multiplier=1.0)]), Federation(rounds=1), pool, [assignment()], chunk=chunk)
    assert used
    assert all(used)


def test_ends_of_the_scale_put_nothing_on_the_wire(pool: Pool) -> None:
    given = assignment()
    probe = Probe("one", 0, ((0,), (1,), (2,)))
    central = train(TASK, Stack([Centralized()]), Federation(rounds=2, local=SGD), pool, [given], probes=[probe])[0]
    alone = train(TASK, Stack([LocalOnly()]), Federation(rounds=2, local=SGD), pool, [given], probes=[probe])[0]
    assert central.rounds == []
    assert len(central.finals) == 1
    assert alone.rounds == []
    assert len(alone.finals) == 3
    assert largest_gap(alone.finals[0], alone.finals[1]) > 1e-3


def test_secure_aggregation_gives_the_mean_and_hides_the_updates(pool: Pool) -> None:
    plain = train(TASK, Stack(), Federation(rounds=2, local=SGD), pool, [assignment()])[0]
    masked = train(TASK, Stack([SecureAggregation()]), Federation(rounds=2, local=SGD), pool, [assignment()])[0]
    assert largest_gap(plain.finals[0], masked.finals[0]) < 1e-4
    assert {m.kind for record in masked.rounds for m in record.messages} == {"masked"}
    assert all(m.records is None for record in masked.rounds for m in record.messages)


def test_a_key_is_never_on_the_wire(pool: Pool) -> None:
    trained = train(TASK, Stack([Published()]), Federation(rounds=1, local=SGD), pool, [assignment()])[0]
    assert trained.secret is not None
    assert not [name for name in trained.finals[0] if "coordinates" in name]
    private = [name for name, _ in trained.module.named_buffers() if name not in trained.finals[0]]
    assert any("coordinates" in name for name in private)


def test_dropout_acts_in_training_only(pool: Pool) -> None:
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.5)
    with_dropout = train(task, Stack(), Federation(rounds=1, local=SGD), pool, [assignment()])[0]
    without = train(TASK, Stack(), Federation(rounds=1, local=SGD), pool, [assignment()])[0]
    assert largest_gap(with_dropout.finals[0], without.finals[0]) > 1e-4
    outputs = [call(with_dropout.module, without.finals[0], pool.x) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.allclose(outputs[0], call(without.module, without.finals[0], pool.x))


def test_batchnorm_is_trained_alone_and_refused_by_dp(pool: Pool) -> None:
    task = Classification(hidden=8, blocks=1, head=6, dropout=0.0, norm="batch")
    trained = train(task, Stack(), Federation(rounds=2, local=SGD), pool, [assignment()], chunk=8)[0]
    running = [name for name in trained.finals[0] if name.endswith("running_mean")]
    assert running
    assert any(float(trained.finals[0][name].abs().max()) > 0 for name in running)
    with pytest.raises(RequestError, match="BatchNorm"):
        train(task, Stack([DPSGD(noise_multiplier=1.0)]), Federation(rounds=1), pool, [assignment()])


def test_validation_chooses_a_round_but_never_under_dp(pool: Pool) -> None:
    federation = Federation(rounds=8, local=Local(epochs=8, batch=16, lr=0.03), selection="validation")
    trained = train(TASK, Stack(), federation, pool, [assignment()], validation=torch.arange(200, 240))[0]
    assert trained.chosen_round == min(range(8), key=trained.validation.__getitem__)
    with pytest.raises(RequestError, match="epsilon"):
        train(TASK, Stack([DPSGD(epsilon=8.0)]).plan(federation, _shape()), federation, pool, [assignment()], validation=torch.arange(5))
    with pytest.raises(RequestError, match="validation records"):
        train(TASK, Stack(), federation, pool, [assignment()])


def _shape():  # type: ignore[no-untyped-def]
    from suites.contracts import Shape

    return Shape((40, 23, 31), 12, 4)


def test_partial_participation_is_drawn_and_recorded(pool: Pool) -> None:
    trained = train(TASK, Stack(), Federation(rounds=12, participation=0.67, local=SGD), pool, [assignment()])[0]
    present = [tuple(m.site for m in record.messages) for record in trained.rounds]
    assert {len(sites) for sites in present} == {2}
    assert len(set(present)) > 1


def test_masked_messages_keep_their_sites_under_partial_participation(pool: Pool) -> None:
    federation = Federation(rounds=6, participation=0.67, local=SGD)
    masked = train(TASK, Stack([SecureAggregation()]), federation, pool, [assignment()])[0]
    plain = train(TASK, Stack(), federation, pool, [assignment()])[0]
    sites = [tuple(m.site for m in record.messages) for record in masked.rounds]
    assert sites == [tuple(m.site for m in record.messages) for record in plain.rounds]
    assert any(2 in present for present in sites)


def test_streams_that_share_a_32_bit_seed_differ() -> None:
    """torch keeps 32 bits of a CPU seed; two streams set to seeds that agree there still differ, since the whole state is filled."""
    a, b = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5 + 2**32)
    assert torch.equal(torch.rand(4, generator=a), torch.rand(4, generator=b)), "torch now keeps more: simplify suites.randomness"
    first = {tuple(torch.rand(2, generator=stream("collision", i)).tolist()) for i in range(2000)}
    assert len(first) == 2000
    assert not torch.equal(torch.rand(4, generator=stream("1")), torch.rand(4, generator=stream(1)))


def test_stacks_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RequestError, match="last"):
        Stack([SecureAggregation(), Published()])
    with pytest.raises(RequestError, match="clip"):
        Stack([DPSGD(noise_multiplier=1.0), DPSGD(noise_multiplier=1.0)])
    with pytest.raises(RequestError, match="centralized"):
        Stack([Centralized(), Published()])


@pytest.mark.parametrize("layers", [[], [Published(strength=5.0)]], ids=["fedavg", "infl"])
def test_what_is_kept_moves_no_number(pool: Pool, layers: list[Defense]) -> None:
    federation = Federation(rounds=3, local=Local(epochs=2, batch=16, lr=5e-3))
    some, none = (
        train(TASK, Stack(layers), federation, pool, [assignment()], keep=keep, chunk=3)[0] for keep in (lambda r: r != 1, lambda _: False)
    )
    assert len(some.rounds) == 2
    assert not none.rounds
    assert all(torch.equal(some.finals[0][name], none.finals[0][name]) for name in some.finals[0])
