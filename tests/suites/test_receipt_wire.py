"""Receipts fail closed on what crossed the wire: whatever is no noised tensor of the model is named and refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from baselines.dp_fedavg import DPFedAvg
from baselines.dp_sgd import DPSGD
from baselines.secure_aggregation import MaskedSum, SecureAggregation
from suites.contracts import Claim, Defense, Delivery, Exchange, Federation, Message, Params, Probe, ProbeRecord, Shape
from suites.receipt import receipt
from tests.suites.test_receipt import FEDERATION, of, ran

QUICK = replace(FEDERATION, rounds=1, local=replace(FEDERATION.local, epochs=1))  # enough for what crosses the wire


def length(update: Params) -> torch.Tensor:
    whole: torch.Tensor = torch.linalg.vector_norm(torch.cat([tensor.flatten() for tensor in update.values()]))
    return whole.reshape(1)


class TellsItsNorm(DPFedAvg):
    """Beside the noised update, how long it was without noise."""

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        return {**super().encode(update, rng), "norm": length(update)}


class TellsItsLoss(DPSGD):
    def encode(self, update: Params, rng: torch.Generator) -> Params:
        return {**update, "train_loss": torch.tensor([0.123])}


class Finer(DPSGD):
    """Of twice the digits, which have room for something else."""

    def encode(self, update: Params, rng: torch.Generator) -> Params:
        return {name: tensor.double() for name, tensor in update.items()}


class OneOfAKind(Defense):
    """A channel that sends each update under the kind that it is given."""

    def __init__(self, kind: str, *, named: str = "") -> None:
        self.kind, self.named, self.channel = kind, named, self

    def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
        combined = {name: torch.stack([u[name] * w for u, w in zip(updates, weights)]).sum(0) / sum(weights) for name in updates[0]}
        sent = [{self.named: torch.zeros(4, dtype=torch.int32)} if self.named else update for update in updates]
        messages = tuple(Message(i, self.kind, payload) for i, payload in enumerate(sent))  # type: ignore[arg-type]
        return Delivery(messages, combined, tuple(range(len(updates))))


def shared() -> DPFedAvg:
    return DPFedAvg(epsilon=20, shared=True, colluders=1)


FAULTS: Mapping[str, tuple[Callable[[], tuple[Defense, ...]], str]] = {
    "a norm beside the update": (lambda: (TellsItsNorm(epsilon=20),), "'norm' crossed the wire in a site's message"),
    "a norm beside masked updates": (
        lambda: (TellsItsNorm(epsilon=20, shared=True), SecureAggregation()), "'norm' crossed the wire in a sum of messages"
    ),
    "a loss beside the update": (lambda: (TellsItsLoss(epsilon=8),), "'train_loss' crossed the wire in a site's message"),
    "digits more": (lambda: (Finer(epsilon=8),), "as torch.float64"),
    "shared noise on bare updates": (lambda: (shared(), OneOfAKind("update")), "about a sum, and single messages crossed"),
    "updates said to be masked": (lambda: (shared(), OneOfAKind("masked")), "of torch.float32 crossed the wire beside what was masked"),
    "numbers beside masked ones": (lambda: (shared(), OneOfAKind("masked", named="loss")), "'loss' of torch.int32 crossed the wire beside"),
    "a kind of its own": (lambda: (shared(), OneOfAKind("metric")), "of the unknown kind 'metric'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_tensor_of_the_model_is_named_and_refused(fault: str) -> None:
    make, said = FAULTS[fault]
    witness, stack, shape, claim, trained = ran(*make(), federation=QUICK)
    found = receipt(witness, stack, QUICK, shape, claim, trained)
    assert any(said in reason for reason in found.reasons), found.reasons
    trained.rounds.clear()  # and where no round is kept, by what the witness saw
    assert any(said in reason for reason in receipt(witness, stack, QUICK, shape, claim, trained).reasons)


def test_channels_that_hide_single_updates_are_accepted() -> None:
    for channel in (SecureAggregation(), OneOfAKind("masked", named="masked"), OneOfAKind("ciphertext", named="ciphertext")):
        assert of(shared(), channel, federation=QUICK).reasons == ()
    assert of(DPSGD(epsilon=8), SecureAggregation(), federation=QUICK).reasons == ()
    assert of(DPSGD(epsilon=8), OneOfAKind("update"), federation=QUICK).reasons == ()  # whose claim is about each message


class ByItself(DPFedAvg):
    """Claims that the noise of two messages adds up, and asks for no channel that would keep them together."""

    def claim(self, federation: Federation, shape: Shape) -> Claim | None:
        claim = super().claim(federation, shape)
        return None if claim is None else replace(claim, shares=2)


def test_shares_that_add_up_need_a_channel_whatever_the_layer_says_of_itself() -> None:
    found = of(ByItself(epsilon=20))
    assert any("about a sum, and single messages crossed" in reason for reason in found.reasons), found.reasons


def test_an_answer_to_a_probe_is_looked_at_too() -> None:
    witness, stack, shape, claim, trained = ran(DPSGD(epsilon=8))
    first = trained.rounds[0]
    hits, longer = {**first.combined, "hits": torch.ones(1)}, {"fc2.bias": torch.ones(5)}
    for messages, combined, said in (
        ((Message(0, "gradient", hits),), first.combined, "'hits' crossed the wire in a site's answer"),
        ((Message(0, "gradient", longer),), first.combined, "as torch.float32 [5], which is not what the model has"),
        ((), hits, "'hits' crossed the wire in a sum"),
        ((Message(0, "count", {}),), first.combined, "a count crossed the wire in the clear"),
    ):
        trained.rounds[0] = replace(first, probes=(ProbeRecord(Probe("p", 0, ((0,), (90,), (180,))), messages, combined),))
        found = receipt(witness, stack, FEDERATION, shape, claim, trained)
        assert any(said in reason for reason in found.reasons), found.reasons
    trained.rounds[0] = first
    assert receipt(witness, stack, FEDERATION, shape, claim, trained).accepted


def test_a_masked_sum_of_its_own_words_is_all_that_a_site_sends() -> None:
    """The names and types that receipts take as hidden are those of the channel itself."""
    witness, *_ = ran(shared(), SecureAggregation(), federation=QUICK)
    assert {(one.kind, one.name, one.dtype) for one in witness.crossed if one.kind != "sum"} == {("masked", "masked", "torch.int32")}
    assert issubclass(type(SecureAggregation().sum), MaskedSum)
