"""The check of a channel on small ones with one fault each, none of them secure aggregation: it knows no defense by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from suites.checks_channel import SITES, check_channel
from suites.contracts import Delivery, Exchange, Message, Params
from suites.randomness import KeyStream, digest

HIDES = "Sums alone, and no record counts."


@dataclass
class OneTimePads:
    """A trusted dealer's masks: each site adds words of its own stream to its update in fixed point, and the sum is given."""

    extra: str = ""  # what is sent besides
    bound: bool = True  # whether pads change with the round, the context and the broadcast

    def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
        terms = (exchange.round, exchange.context.hex(), float(exchange.broadcast["w"].sum())) if self.bound else ()
        source = KeyStream(digest(exchange.keys[site].bytes(32).hex(), *terms))
        return torch.frombuffer(bytearray(source.bytes(4 * words)), dtype=torch.int32)

    def masked(self, update: Tensor, site: int, exchange: Exchange) -> Tensor:
        return (update.double() * 2**16).round().to(torch.int64).to(torch.int32) + self.pad(site, len(update), exchange)

    def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
        messages = []
        for site, (update, weight) in enumerate(zip(updates, weights)):
            payload = {"words": self.masked(update["w"], site, exchange)}
            if self.extra == "share":
                payload["a"] = torch.tensor([weight / sum(weights)])
            messages.append(Message(site, "masked", payload, records=int(weight) if self.extra == "field" else None))
        mean = torch.stack([w * u["w"] for u, w in zip(updates, weights)]).sum(0) / sum(weights)
        return Delivery(tuple(messages), {"w": mean}, tuple(range(len(updates))))

    def stream(self, key: bytes, words: int) -> Tensor:
        return torch.frombuffer(bytearray(KeyStream(key).bytes(4 * words)), dtype=torch.int32)


class SmallNoise(OneTimePads):
    """A mask of a few bits, through which the update shows."""

    def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
        return super().pad(site, words, exchange) >> 12


class OnePad(OneTimePads):
    """Every site adds the same words."""

    def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
        return super().pad(0, words, Exchange(exchange.round, exchange.context, exchange.broadcast, (KeyStream(bytes(32)),) * SITES))


class StandingPad(OneTimePads):
    """Words that are drawn once and used in every round."""

    def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
        return torch.frombuffer(bytearray(KeyStream(bytes(31) + bytes([site])).bytes(4 * words)), dtype=torch.int32)


class Counting(OneTimePads):
    """The same word for a site's all coordinates but for a counter of few values."""

    def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
        return super().pad(site, 1, exchange) + torch.arange(words, dtype=torch.int32) % 4


class ShortKeyed(OneTimePads):
    """A stream that reads eight bytes of its key."""

    def stream(self, key: bytes, words: int) -> Tensor:
        return super().stream(key[:8] * 4, words)


class Liar(OneTimePads):
    """Sites that answer anything."""

    lies = {"a lie": lambda updates, weights, exchange: None}


class Broken(OneTimePads):
    """A lie that ends in a mistake of its own and not in a refusal."""

    lies = {"a lie": lambda updates, weights, exchange: updates["w"]}


def verdicts(channel: OneTimePads, said: str = HIDES) -> dict[str, str]:
    return {result.name: result.verdict for result in check_channel(channel, said) if result.verdict != "pass"}


def test_a_sound_channel_holds() -> None:
    assert verdicts(OneTimePads()) == {}
    assert {result.name for result in check_channel(OneTimePads(), HIDES)} == {
        "record counts",
        "masks",
        "masks are bound to the round and the broadcast",
        "mask stream",
    }


@pytest.mark.parametrize(
    ("channel", "name", "said"),
    [
        (OneTimePads("field"), "record counts", "the messages' field"),
        (OneTimePads("share"), "record counts", "number 1200 of each message"),
        (SmallNoise(), "masks", "follows its update"),
        (OnePad(), "masks", "between two sites 1200 masks have 1 different"),
        (StandingPad(), "masks", "between two rounds 1200 masks have 1 different"),
        (Counting(), "masks", "within a message 1200 masks have 4 different"),
        (OneTimePads(bound=False), "masks are bound to the round and the broadcast", "round or context or broadcast"),
        (ShortKeyed(), "mask stream", "64 of 256 bits"),
        (Liar(), "refuses a lie", "answer"),
    ],
)
def test_each_fault_is_named(channel: OneTimePads, name: str, said: str) -> None:
    found = {result.name: result for result in check_channel(channel, HIDES) if result.verdict == "fail"}
    assert set(found) - {"masks are bound to the round and the broadcast"} <= {name}  # a pad used twice is bound to nothing
    assert said in found[name].detail


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("The server learns no update. Record counts are sent.", "pass"),
        ("Each site's record count", "pass"),
        ("Sums alone.", "warn"),
        ("No single update and no record count", "fail"),
        ("never an update, nor a count", "fail"),
    ],
)
def test_counts_in_sight_are_held_against_what_is_said_of_them(said: str, verdict: str) -> None:
    found = next(result for result in check_channel(OneTimePads("field"), said) if result.name == "record counts")
    assert found.verdict == verdict


def test_what_was_claimed_and_not_offered_is_told() -> None:
    class Plain(OneTimePads):
        stream = None  # type: ignore[assignment]

    assert verdicts(Plain()) == {"mask stream": "warn"}
    assert verdicts(OneTimePads(), f"{HIDES} Also if it lies.") == {"lies": "warn"}
    assert verdicts(OneTimePads(), f"{HIDES} If it does not lie.") == {}


def test_only_the_broadcast_left_out_is_grave_where_the_server_may_lie() -> None:
    class Blind(OneTimePads):
        def pad(self, site: int, words: int, exchange: Exchange) -> Tensor:
            return super().pad(site, words, Exchange(exchange.round, exchange.context, {"w": torch.zeros(1)}, exchange.keys))

    name = "masks are bound to the round and the broadcast"
    assert verdicts(Blind()) == {name: "warn"}
    assert verdicts(Blind(), f"{HIDES} Also if it lies.")[name] == "fail"


def test_a_mistake_is_no_refusal() -> None:
    with pytest.raises(TypeError):
        list(check_channel(Broken(), HIDES))


def test_of_ciphertexts_only_counts_are_looked_for() -> None:
    class Sealed(OneTimePads):
        def run(self, updates: Sequence[Params], weights: Sequence[float], exchange: Exchange) -> Delivery:
            given = super().run(updates, weights, exchange)
            return Delivery(
                tuple(Message(m.site, "ciphertext", {"c": torch.zeros(9)}) for m in given.messages), given.combined, (0, 1, 2, 3, 4)
            )

    assert [result.name for result in check_channel(Sealed(), HIDES)] == ["record counts"]
