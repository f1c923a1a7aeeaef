"""Compression, mixup, early stopping and clipping alone: what each does to an update, against independent formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.clipping import Clipping
from baselines.compression import Compression
from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from baselines.early_stopping import EarlyStopping
from baselines.fedavg import FedAvg
from baselines.mixup import Mixup
from baselines.secure_aggregation import SecureAggregation
from infl.hardened import Hardened
from suites import catalog_view
from suites.checks_defense import check_defense
from suites.contracts import Defense, Federation, Local, Params, Probe, RequestError, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.lanes import Lane, Trainer, wire
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification

FEATURES, CLASSES, SITES, EACH = 20, 3, 3, 20
TASK = Classification(hidden=12, blocks=1, head=8, dropout=0.0)


def rng(name: object = 0) -> torch.Generator:
    return stream("cheap", name)


def update(count: int = 1000) -> Params:
    return {"w": torch.randn(count // 10, 9, generator=rng("w")), "b": torch.randn(count // 10, generator=rng("b"))}


def flat(params: Params) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def trained(
    *layers: Defense, rounds: int = 3, chunk: int = 1, data: Pool | None = None, probes: int = 0, optimiser: str = "adam", epochs: int = 2
) -> Trained:
    x = torch.randn(SITES * EACH + 40, FEATURES, generator=rng("x"))
    data = data or Pool(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long(), CLASSES)
    stack = Stack(layers)
    local = Local(epochs=epochs, batch=8, optimiser="sgd" if optimiser == "sgd" else "adam", lr=0.1 if optimiser == "sgd" else 5e-3)
    federation = stack.protocol(Federation(sites=SITES, rounds=rounds, local=local))
    sites = tuple(torch.arange(SITES * EACH).chunk(SITES))
    stack = stack.plan(federation, Shape((EACH,) * SITES, FEATURES, CLASSES))
    asked = [Probe(f"p{k}", 1, tuple((int(site[k]),) for site in sites)) for k in range(probes)]
    where = Assignment(sites, ("cheap",), ("cheap", "d"))
    validation = torch.arange(SITES * EACH, len(data.x))
    return train(TASK, stack, federation, data, [where], validation=validation, probes=asked, chunk=chunk)[0]


def equal(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize("share", [0.001, 0.1, 1.0])
def test_top_sends_the_largest_coordinates_of_the_whole_update(share: float) -> None:
    sent, given = flat(Compression(share=share).encode(update(), rng())), flat(update())
    count = max(1, round(share * 1000))
    expected = torch.zeros(1000)
    for index in sorted(range(1000), key=lambda i: -abs(float(given[i])))[:count]:
        expected[index] = given[index]
    assert torch.equal(sent, expected)


def test_sign_sends_one_size() -> None:
    sent, given = flat(Compression(method="sign").encode(update(), rng())), flat(update())
    assert torch.allclose(sent, torch.where(given > 0, 1.0, -1.0) * given.abs().mean())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_has_few_levels_and_is_right_on_average(bits: int) -> None:
    given, compression = flat(update()), Compression(method="quantised", bits=bits)
    step = float(given.abs().max()) / (2 ** (bits - 1) - 1)
    sent = torch.stack([flat(compression.encode(update(), rng(("round", k)))) for k in range(400)])
    levels = sent[0] / step
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    assert float(levels.abs().max()) <= 2 ** (bits - 1) - 1 + 1e-4
    assert float((sent[0] - given).abs().max()) <= step * 1.001
    # The mean of 400 roundings, each off by at most a step, has a standard error of at most step / 40.
    assert float((sent.mean(0) - given).abs().max()) < 5 * step / 40


@pytest.mark.parametrize("method", ["top", "sign", "quantised"])
def test_what_is_not_sent_is_sent_later(method: str) -> None:
    """Error feedback: after T rounds, what was sent and what is left add up to all that was moved (Karimireddy et al. 2019)."""
    compression, kept, sum_sent, sum_moved = Compression(method=method, share=0.05), {}, torch.zeros(1000), torch.zeros(1000)
    for k in range(30):
        moved = {"w": torch.randn(100, 9, generator=rng((k, "w"))), "b": torch.randn(100, generator=rng((k, "b")))}
        sent, kept = compression.encode_kept(moved, kept, rng(k))
        sum_sent, sum_moved = sum_sent + flat(sent), sum_moved + flat(moved)
        assert torch.allclose(sum_sent + kept["left"], sum_moved, atol=1e-3)
    without = Compression(method=method, share=0.05, feedback=False)
    assert without.encode_kept(update(), {"left": torch.ones(1000)}, rng())[1] == {}


def test_counters_are_left_alone_and_zero_updates_too() -> None:
    moved = {"w": torch.zeros(4), "n": torch.tensor(7)}
    for method in ("top", "sign", "quantised"):
        sent = Compression(method=method).encode(moved, rng())
        assert equal(sent, moved)
    assert equal(Compression().encode({"n": torch.tensor(7)}, rng()), {"n": torch.tensor(7)})


@pytest.mark.parametrize("layer", [Compression(share=0.05), Compression(method="quantised"), Mixup(), DPFedAvg(noise_multiplier=0.5)])
def test_a_probe_moves_nothing(layer: Defense) -> None:
    assert equal(trained(layer).finals[0], trained(layer, probes=2).finals[0])


def test_each_site_keeps_its_own() -> None:
    plain = trained(Compression(share=0.05))
    assert not equal(plain.finals[0], trained(Compression(share=0.05, feedback=False)).finals[0])
    for message in plain.rounds[2].messages:
        nonzero = int((flat(message.payload) != 0).sum())
        assert nonzero <= round(0.05 * flat(message.payload).numel())
    # Sites that keep nothing of another: all sent, all left and all moved add up site by site, so the first round's are plain top-k.
    bare = trained().rounds[0].messages
    for message, own in zip(plain.rounds[0].messages, bare):
        assert equal(message.payload, Compression(share=0.05).encode(own.payload, rng()))


# --------------------------------------------------------------------------------------------------------------------- mixup


def test_shares_follow_the_beta_law_and_partners_are_a_permutation() -> None:
    for alpha in (0.2, 1.0, 4.0):
        partner, share = Mixup(alpha=alpha).blend(20_000, rng(alpha))
        assert torch.equal(partner.sort().values, torch.arange(20_000))
        assert 0 <= float(share.min()) <= float(share.max()) <= 1
        assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)  # of Beta(a, a)


def test_a_gradient_of_blends_by_another_road() -> None:
    """The engine's gradient equals that of the mean cross-entropy on blended inputs with soft labels."""
    x, y = torch.randn(8, FEATURES, generator=rng("gx")), torch.arange(8) % CLASSES
    module = TASK.net(FEATURES, CLASSES)
    trainer = Trainer([Lane(module, x, y, torch.arange(8), rng("b"), rng("d"), rng("noise"))], TASK.loss, Stack([Mixup()]))
    start = {name: tensor[None] for name, tensor in wire(module).items()}
    found = trainer.gradient(start, [torch.arange(8)])
    partner, share = Mixup().blend(8, rng("noise"))
    soft = share[:, None] * F.one_hot(y, CLASSES) + (1 - share)[:, None] * F.one_hot(y[partner], CLASSES)
    blended = share[:, None] * x + (1 - share)[:, None] * x[partner]
    module.zero_grad()
    F.cross_entropy(module(blended), soft).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[name][0], parameter.grad, atol=1e-6), name


def test_ragged_lanes_blend_their_own_records_only() -> None:
    sizes, x = (5, 8), torch.randn(13, FEATURES, generator=rng("rx"))
    y = torch.arange(13) % CLASSES
    module = TASK.net(FEATURES, CLASSES)
    records = torch.arange(13).split(sizes)

    def gradients(chosen: list[int]) -> Params:
        lanes = [Lane(module, x, y, records[i], rng("b"), rng("d"), rng(("noise", i))) for i in chosen]
        trainer = Trainer(lanes, TASK.loss, Stack([Mixup()]))
        start = {name: torch.stack([tensor] * len(chosen)) for name, tensor in wire(module).items()}
        return trainer.gradient(start, [records[i] for i in chosen])

    together = gradients([0, 1])
    for i in (0, 1):
        alone = gradients([i])
        assert all(torch.allclose(together[name][i], alone[name][0], atol=1e-5) for name in alone)


def test_a_batch_of_one_is_not_blended() -> None:
    messages = [trained(*layers, probes=1, rounds=2).rounds[1].probes[0].messages for layers in ((), (Mixup(),))]
    first = [m[0].payload["embedding.weight"] for m in messages]
    second = [m[0].payload["embedding.bias"] for m in messages]
    recovered = [w[b.abs().argmax()] / b[b.abs().argmax()] for w, b in zip(first, second)]
    assert torch.allclose(recovered[0], recovered[1], rtol=1e-3, atol=1e-3)  # the same record, whatever the defense


@pytest.mark.parametrize("other", [DPSGD(noise_multiplier=1.0), Clipping(), Mixup()])
def test_no_bound_on_a_record_that_is_part_of_two_gradients(other: Defense) -> None:
    with pytest.raises(RequestError, match="two gradients"):
        Stack([Mixup(), other])


# ------------------------------------------------------------------------------------------------ early stopping and clipping


def test_training_ends_when_the_validation_loss_rises_and_the_best_round_is_released() -> None:
    noise = Pool(torch.randn(100, FEATURES, generator=rng("n")), torch.randint(0, CLASSES, (100,), generator=rng("ny")), CLASSES)
    stopped = trained(EarlyStopping(patience=2), rounds=15, data=noise, epochs=6)
    best = min(range(len(stopped.validation)), key=stopped.validation.__getitem__)
    assert len(stopped.validation) == best + 3 < 15  # two rounds without a better one
    assert stopped.chosen_round == best
    assert len(stopped.rounds) == best + 3  # and what was never sent is not on record
    whole = trained(rounds=best + 1, data=noise, epochs=6)
    assert equal(stopped.finals[0], whole.finals[0])


def test_of_many_federations_each_stops_by_itself() -> None:
    x = torch.randn(200, FEATURES, generator=rng("many"))
    pool = Pool(x, (x[:, 0] + torch.randn(200, generator=rng("many y")) > 0).long(), CLASSES)
    stack = Stack([EarlyStopping(patience=1)])
    federation = stack.protocol(Federation(sites=2, rounds=12, local=Local(epochs=1, batch=10, optimiser="sgd", lr=0.2)))
    asked = [Assignment(tuple((torch.arange(40) + 20 * r).chunk(2)), ("m", r), ("m", r, "d")) for r in range(4)]
    rows = torch.arange(150, 200)
    together = train(TASK, stack, federation, pool, asked, validation=rows, chunk=8)
    alone = [train(TASK, stack, federation, pool, [one], validation=rows, chunk=2)[0] for one in asked]
    assert [t.chosen_round for t in together] == [t.chosen_round for t in alone]
    assert [len(t.rounds) for t in together] == [len(t.rounds) for t in alone]
    assert len({len(t.rounds) for t in together}) > 1
    for one, other in zip(together, alone):
        assert all(torch.allclose(one.finals[0][n], other.finals[0][n], atol=1e-5) for n in one.finals[0])


def test_early_stopping_refuses_an_epsilon_that_does_not_cover_the_choice() -> None:
    with pytest.raises(RequestError, match="epsilon does not cover"):
        trained(EarlyStopping(), DPSGD(noise_multiplier=1.0))


def test_clipping_alone_is_dp_sgd_without_noise() -> None:
    assert equal(trained(Clipping(clip=0.5)).finals[0], trained(DPSGD(noise_multiplier=0.0, clip=0.5)).finals[0])
    claim = Clipping().claim(Federation(), Shape((EACH,) * SITES, FEATURES, CLASSES))
    assert claim is not None
    assert claim.kind == "none"


# ------------------------------------------------------------------------------------------------------------------ together


def test_layers_that_do_nothing_change_no_byte() -> None:
    class Identity(Defense):
        pass

    assert equal(trained().finals[0], trained(FedAvg(), Identity()).finals[0])
    assert equal(trained(chunk=3).finals[0], trained(FedAvg(), Identity(), chunk=3).finals[0])


@pytest.mark.parametrize("layer", [Compression(), Compression(method="quantised"), Mixup(), EarlyStopping(patience=2), Clipping()])
def test_behind_secure_aggregation_the_mean_is_the_same_up_to_rounding(layer: Defense) -> None:
    plain, masked = trained(layer, optimiser="sgd"), trained(layer, SecureAggregation(), optimiser="sgd")
    assert {m.kind for round_ in masked.rounds for m in round_.messages} == {"masked"}
    for name, value in plain.finals[0].items():
        assert torch.allclose(masked.finals[0][name], value, atol=2e-3 if isinstance(layer, Compression) else 1e-4)


@pytest.mark.parametrize("layer", [Compression(), Mixup(), EarlyStopping(), Clipping()])
def test_beside_a_key(layer: Defense) -> None:
    assert equal(trained(Hardened(minimum=8), layer).finals[0], trained(Hardened(minimum=8), layer).finals[0])


@pytest.mark.parametrize(
    "ref",
    ["compression", "compression:method=sign+secure_aggregation", "mixup+secure_aggregation", "early_stopping+infl:published", "clipping"],
)
def test_the_contract(ref: str) -> None:
    assert [result for result in check_defense(ref) if result.verdict == "fail"] == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compression(method="tpo"), "method=tpo"),
        (lambda: Compression(share=0.0), "share=0"),
        (lambda: Compression(bits=1), "bits=1"),
        (lambda: Mixup(alpha=0.0), "alpha=0"),
        (lambda: EarlyStopping(patience=0), "patience=0"),
        (lambda: Clipping(clip=0.0), "clip"),
    ],
)
def test_settings_that_mean_nothing(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(RequestError, match=words):
        make()


def test_the_protocol_is_public() -> None:
    assert EarlyStopping(patience=4).protocol(Federation()) == replace(Federation(), selection="validation", patience=4)


def test_a_stack_is_checked_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalog_view.check("compression+secure_aggregation") == 0
    assert catalog_view.check("as_published+infl:published") == 1  # its key crosses the wire, and that is found
    assert "the key itself crosses the wire" in capsys.readouterr().out
    with pytest.raises(RequestError, match="did you mean 'mixup'"):
        catalog_view.check("mixpu+secure_aggregation")
