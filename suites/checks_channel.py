"""The contract's tests of a channel: what the server reads holds no counts that were promised hidden, and masks are worth their name.

Without a line about any particular channel. Counts: a number in the messages that is proportional to the sites' weights, or the field for
them. Masks: of updates that are zero everywhere a message is its mask alone, and words that repeat, or that differ by few values between
sites or rounds, come off by a subtraction; so do small ones, which an update shows through. A mask has to change with the round, the
context and the broadcast that it is made for. What only the channel can show it may offer (``suites.contracts.Channel``): its
mask ``stream``, of which each bit of the key is flipped, and its ``lies``, each a server's that its sites have to refuse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from suites.checks_result import CheckResult, judged
from suites.contracts import Channel, Exchange, Message, Params, RequestError
from suites.randomness import keys, stream

SITES, WIDTH = 5, 1200
WEIGHTS = (23.0, 71.0, 40.0, 97.0, 58.0)
KEY_BYTES, WORDS, ENOUGH = 32, 64, 128
_NO_COUNTS = re.compile(r"\b(no|not|nor|neither|without|never)\b[^.;:]*\bcounts?\b", re.IGNORECASE)
_COUNTS = re.compile(r"\bcounts?\b", re.IGNORECASE)
_LIES = re.compile(r"(?<!not )\b(lies?|lying|malicious)\b", re.IGNORECASE)


def check_channel(channel: Channel, said: str) -> Iterator[CheckResult]:
    """Each promise of a channel; ``said`` is what its defense's card and claim say that the server sees."""
    yield _counts(channel, said)
    messages = channel.run(_updates(), WEIGHTS, _exchange()).messages
    if any(message.kind != "masked" for message in messages):
        return
    yield _masks(channel)
    yield _bound(channel, said)
    yield _stream(channel)
    yield from _lies(channel, said)


def _updates(zero: bool = False) -> list[Params]:
    drawn: list[Params] = [{"w": torch.randn(WIDTH, generator=stream("check", "channel", "update", site))} for site in range(SITES)]
    return [{name: torch.zeros_like(value) for name, value in one.items()} for one in drawn] if zero else drawn


def _exchange(index: int = 0, *, draw: int = 0) -> Exchange:
    """One round, with key streams at their start; another ``draw`` has others, as each round of a federation has."""
    return Exchange(index, b"check", {"w": torch.zeros(WIDTH)}, tuple(keys("check", "channel", draw, site) for site in range(SITES)))


def _flat(message: Message) -> Tensor:
    return torch.cat([value.detach().cpu().reshape(-1).double() for value in message.payload.values()])


def _sent(channel: Channel, updates: Sequence[Params], exchange: Exchange) -> Tensor:
    """What the server reads, a row a site [S, words]."""
    return torch.stack([_flat(message) for message in channel.run(updates, WEIGHTS, exchange).messages])


def _counts(channel: Channel, said: str) -> CheckResult:
    """Whether anything that the server reads is a site's record count, up to one factor for all."""
    name, weights = "record counts", torch.tensor(WEIGHTS, dtype=torch.float64)
    messages = channel.run(_updates(), WEIGHTS, _exchange()).messages
    places = [f"{kind} messages" for kind in sorted({message.kind for message in messages} & {"count"})]
    if any(message.records is not None for message in messages):
        places.append("the messages' field for them")
    rows = [_flat(message) for message in messages]
    if len({len(row) for row in rows}) == 1 and len(rows) == SITES:
        ratio = torch.stack(rows) / weights[:, None]
        mean = ratio.mean(0)
        found = ((ratio - mean).abs() <= 1e-3 * mean.abs()).all(0) & (mean != 0)
        places += [f"number {place} of each message" for place in found.nonzero().flatten().tolist()[:2]]
    if not places:
        return CheckResult(name, "pass", "in nothing that the server reads")
    shown = f"the server reads each site's in {' and '.join(places)}"
    if _NO_COUNTS.search(said):
        return CheckResult(name, "fail", f"{shown}, and the card or claim says that it does not")
    mentioned = _COUNTS.search(said) is not None
    return CheckResult(name, "pass" if mentioned else "warn", f"{shown}, {'as' if mentioned else 'and neither'} card or claim says so")


def _masks(channel: Channel) -> CheckResult:
    """Of zero updates: no word twice, nor any difference between two sites or rounds; of others: nothing that follows the update."""
    name = "masks"
    first, second = (_sent(channel, _updates(zero=True), _exchange(index, draw=index)) for index in (0, 1))
    pairs = [(i, j) for i in range(SITES) for j in range(i)]
    tried: Mapping[str, list[Tensor]] = {
        "within a message": [*first],
        "between two sites": [first[i] + sign * first[j] for i, j in pairs for sign in (1, -1)],
        "between two rounds": [a - b for a, b in zip(first, second)],
    }
    for where, vectors in tried.items():
        fewest = min(vectors, key=lambda vector: len(torch.unique(vector)))
        distinct = len(torch.unique(fewest))
        if distinct < 0.99 * len(fewest):
            return CheckResult(
                name, "fail", f"{where} {len(fewest)} masks have {distinct} different values: they come off by a subtraction"
            )
    updates = _updates()
    sent = _sent(channel, updates, _exchange())[:, :WIDTH]
    likeness = max(float(torch.corrcoef(torch.stack([row, update["w"].double()]))[0, 1].abs()) for row, update in zip(sent, updates))
    return judged(
        name,
        likeness < 6 / WIDTH**0.5,
        f"none of {first.shape[1]} words repeats, in a message or between sites or rounds",
        f"a message follows its update through the mask (correlation {likeness:.2f})",
    )


def _bound(channel: Channel, said: str) -> CheckResult:
    """Whether equal keys give other masks for another round, context and broadcast."""
    name, zero = "masks are bound to the round and the broadcast", _updates(zero=True)
    base, again = (_sent(channel, zero, _exchange()) for _ in range(2))
    if not torch.equal(base, again):
        return CheckResult(name, "skip", "equal keys give other masks each time, so what they are bound to cannot be seen")
    plain = _exchange()
    others = {
        "round": replace(_exchange(), round=plain.round + 1),
        "context": replace(_exchange(), context=b"another check"),
        "broadcast": replace(_exchange(), broadcast={"w": torch.ones(WIDTH)}),
    }
    loose = [what for what, exchange in others.items() if float((_sent(channel, zero, exchange) == base).double().mean()) > 0.01]
    if not loose:
        return CheckResult(name, "pass", "another round, context or broadcast gives other masks")
    why = "a server that shows each site another model still opens the sum" if loose == ["broadcast"] else "masks are used twice"
    grave = loose != ["broadcast"] or _LIES.search(said) is not None
    return CheckResult(name, "fail" if grave else "warn", f"another {' or '.join(loose)} gives the same masks: {why}")


def _stream(channel: Channel) -> CheckResult:
    """How many bits of a mask's key its stream depends on, and whether its words repeat."""
    name, draw = "mask stream", getattr(channel, "stream", None)
    if draw is None:
        return CheckResult(name, "warn", "the channel has no stream(key, words), so how strong its masks' generator is was not tried")
    key = keys("check", "channel", "stream").bytes(KEY_BYTES)
    base: Tensor = draw(key, WORDS)
    flipped = (
        bytes(byte ^ (1 << bit % 8) if place == bit // 8 else byte for place, byte in enumerate(key)) for bit in range(8 * KEY_BYTES)
    )
    bits = sum(int(float((draw(other, WORDS) == base).double().mean()) < 0.1) for other in flipped)
    if len(torch.unique(base)) < 0.9 * WORDS:
        return CheckResult(name, "fail", f"{WORDS} words of the stream have {len(torch.unique(base))} different values")
    return judged(
        name,
        bits >= ENOUGH,
        f"depends on {bits} bits of its key",
        f"depends on {bits} of {8 * KEY_BYTES} bits of its key, and so few can be searched",
    )


def _lies(channel: Channel, said: str) -> Iterator[CheckResult]:
    lies: Mapping[str, Callable[[Sequence[Params], Sequence[float], Exchange], object]] = getattr(channel, "lies", {})
    if not lies and _LIES.search(said):
        yield CheckResult("lies", "warn", "it claims to stand a server that lies and offers no lies, so none was tried")
    for what, tell in lies.items():
        try:
            tell(_updates(), WEIGHTS, _exchange())
        except (RuntimeError, RequestError) as refusal:
            yield CheckResult(f"refuses {what}", "pass", str(refusal))
        else:
            yield CheckResult(f"refuses {what}", "fail", "the sites answer a server that does this")
