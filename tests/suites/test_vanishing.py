"""Sites that vanish within a round: the engine draws them, a channel carries on without them or says that it cannot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines.bonawitz import Aborted
from baselines.dp_fedavg import DPFedAvg
from baselines.secure_aggregation import SecureAggregation
from suites.config import parse
from suites.contracts import Channel, Defense, Delivery, Exchange, Federation, Local, Params, RequestError, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.randomness import stream
from suites.stack import Stack
from suites.tasks.classification import Classification

SITES, EACH, FEATURES, CLASSES = 6, 12, 10, 3
TASK = Classification(hidden=8, blocks=1, head=6, dropout=0.0)
FEDERATION = Federation(sites=SITES, rounds=8, local=Local(epochs=1, batch=6), vanishing=1)
SHAPE = Shape((EACH,) * SITES, FEATURES, CLASSES)
POOL = Pool(torch.randn(SITES * EACH, FEATURES, generator=stream("vanishing", "x")), torch.arange(SITES * EACH) % CLASSES, CLASSES)
GIVEN = Assignment(tuple(torch.arange(SITES * EACH).chunk(SITES)), ("vanishing",), ("vanishing", "d"))


def trained(*layers: Defense, federation: Federation = FEDERATION, chunk: int = 8) -> Trained:
    return train(TASK, Stack(layers).plan(federation, SHAPE), federation, POOL, [GIVEN], chunk=chunk)[0]


def senders(result: Trained) -> list[set[int]]:
    return [{message.site for message in record.messages} for record in result.rounds]


def test_one_site_a_round_is_missing_and_not_always_the_same() -> None:
    seen = senders(trained())
    assert all(len(sites) == SITES - 1 for sites in seen)
    assert len({frozenset(sites) for sites in seen}) >= 3
    assert all(len(sites) == SITES for sites in senders(trained(federation=replace(FEDERATION, vanishing=0))))


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_sum_that_lost_a_site_is_the_mean_over_the_others(chunk: int) -> None:
    plain = trained(federation=replace(FEDERATION, rounds=1), chunk=chunk)
    masked = trained(SecureAggregation(), federation=replace(FEDERATION, rounds=1), chunk=chunk)
    gone = set(range(SITES)) - senders(plain)[0]
    arrived = senders(masked)[0]
    assert arrived in ({*range(SITES)} - gone, {*range(SITES)})  # lost before its masked words came, or after
    everybody = trained(federation=replace(FEDERATION, rounds=1, vanishing=0), chunk=chunk).rounds[0]
    own = {message.site: message.payload for message in everybody.messages}
    for name, value in masked.rounds[0].combined.items():
        wanted = torch.stack([own[site][name] for site in sorted(arrived)]).mean(0)
        assert torch.allclose(value, wanted, atol=1e-5), name


def test_under_secure_aggregation_sites_are_lost_at_every_stage() -> None:
    lost: list[tuple[int, str]] = []

    class Noted:
        stages = SecureAggregation().sum.stages

        def run(self, updates: list[Params], weights: list[float], exchange: Exchange) -> Delivery:
            lost.extend(exchange.dropouts.items())
            return SecureAggregation().sum.run(updates, weights, exchange)

    channel: Channel = Noted()  # type: ignore[assignment]
    defense = SecureAggregation()
    defense.channel = channel
    result = trained(defense, federation=replace(FEDERATION, rounds=30))
    assert len(lost) == 30
    assert {stage for _, stage in lost} == set(Noted.stages)
    for sites, (who, stage) in zip(senders(result), lost):
        assert (who in sites) == (stage in ("vote", "unmask"))
    assert torch.isfinite(torch.cat([t.flatten() for t in result.finals[0].values()])).all()


class NoRecovery:
    def run(self, updates: list[Params], weights: list[float], exchange: Exchange) -> Delivery:
        if exchange.dropouts:
            raise RequestError("no recovery")
        raise AssertionError("nobody vanished")


def test_a_colluding_site_knows_how_much_stands_behind_a_sum_that_lost_others() -> None:
    owns = [record.own for record in trained(SecureAggregation(), federation=replace(FEDERATION, vanishing=2)).rounds]
    totals = [own.total for own in owns if own is not None]
    assert all(own is None or own.weight == EACH for own in owns)
    assert set(totals) <= {EACH * n for n in (SITES - 2, SITES - 1, SITES)}  # who sent what was masked counts, even if it left later
    assert min(totals) < EACH * SITES


def test_what_cannot_go_on_says_so() -> None:
    with pytest.raises(RequestError, match="goes on without"):
        trained(SecureAggregation(), federation=replace(FEDERATION, vanishing=3))
    with pytest.raises(RequestError, match="leaves nobody"):
        trained(federation=replace(FEDERATION, vanishing=SITES))
    with pytest.raises(RequestError, match="colluders=2"):
        trained(DPFedAvg(shared=True, colluders=1), SecureAggregation(threshold=4), federation=replace(FEDERATION, vanishing=2))
    bare = SecureAggregation()
    bare.channel = NoRecovery()  # type: ignore[assignment]
    with pytest.raises(RequestError, match="no recovery"):
        trained(bare)
    with pytest.raises(Aborted):  # the channel's own word, were the plan passed by
        train(TASK, Stack([SecureAggregation()]), replace(FEDERATION, vanishing=4, rounds=9), POOL, [GIVEN])


def test_a_suite_says_how_many() -> None:
    text = "suite: s\ndata: {name: synthetic}\nfederation: {vanishing: 2}\ndefenses: [fedavg]\n"
    assert parse(text, Path("s.yaml")).federation.vanishing == 2
    with pytest.raises(RequestError, match="vanishing"):
        parse(text.replace("2", "-1"), Path("s.yaml"))
