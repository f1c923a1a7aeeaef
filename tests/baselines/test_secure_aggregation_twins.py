"""Each faulty twin falls to an attack that a server (with at most one colluding site) can run; the sound protocol does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from faulty_twins import GOLDEN, AnyBroadcast, BothShares, CountsInClear, ScalarMask, SmallSeed, WeakGenerator, mix
from masked_round import exchange, updates, weights
from numpy.typing import NDArray

from baselines import shamir
from baselines.bonawitz import Refusal, Site, cohort_hash
from baselines.fixed_point import FixedPoint, Layout, scale
from baselines.masking import add_masks, derive, fingerprint, pair_key, sign
from baselines.secure_aggregation import MaskedSum, SecureAggregation, converse
from baselines.transcript import Transcript, total
from suites import contracts
from suites.checks import main
from suites.checks_channel import check_channel
from suites.contracts import Params, Shape
from suites.randomness import stream

SOUND = MaskedSum(64.0)
DEAD = 10  # the first coordinates belong to features that are zero at every site, so their update is zero: public knowledge


class Federation:
    """Sites in one session, with the server's relay at hand."""

    def __init__(self, channel: MaskedSum, sites: int, broadcasts: list[Params] | None = None) -> None:
        self.channel, self.sent, self.counts = channel, updates(sites, 400), weights(sites)
        for update in self.sent:
            update["layer.weight"].view(-1)[:DEAD] = 0
        self.layout = Layout.of(self.sent[0])
        self.fixed, public, given = FixedPoint.agreed(self.counts, 64.0), channel.rules(sites), exchange(sites)
        own = [dataclasses.replace(given, broadcast=b) for b in broadcasts or [given.broadcast] * sites]
        self.sites: list[Site] = [
            channel.site(i, public, channel.agreed(own[i], public, self.fixed, self.layout), self.layout.length, given.keys[i])
            for i in range(sites)
        ]

    def words(self, index: int) -> NDArray[np.uint32]:
        return self.fixed.encode(self.sent[index], self.counts[index], self.layout, index)

    def converse(self) -> Transcript:
        return converse(self.sites, self.words, {})


def likeness(guess: NDArray[np.uint32], truth: NDArray[np.uint32]) -> float:
    """Correlation of two vectors' signed readings, the weight left out."""
    return float(np.corrcoef(guess[:-1].view(np.int32), truth[:-1].view(np.int32))[0, 1])


def seed_of(seen: Transcript, site: int) -> bytes:
    """A survivor's self-mask seed, which the protocol opens."""
    return shamir.join({reveal.site + 1: reveal.seeds[site] for reveal in seen.reveals})


def invert_mix(word: int) -> int:
    """The inverse of ``mix``: undo each xor-shift and each odd factor."""
    for shift, factor in ((16, 0xC2B2AE35), (13, 0x85EBCA6B), (16, None)):
        undone = word
        for _ in range(32 // shift + 1):
            undone = word ^ (undone >> shift)
        word = undone if factor is None else undone * pow(factor, -1, 2**32) % 2**32
    return word


def find_the_weak_seed(channel: MaskedSum) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Three sites; site 0 colludes. What masks site 1 from the server is then one stream, known where features are dead."""
    federation = Federation(channel, 3)
    seen = federation.converse()
    session, generator = cohort_hash(seen.agreed, seen.adverts), channel.site.generator
    left = seen.masked[1].words.copy()
    add_masks(left, [(derive(seed_of(seen, 1), session, "self mask", 1), -1)], generator)
    add_masks(left, [(pair_key(federation.sites[0]._mask_secret, seen.adverts[1].mask_key, session, 0, 1), -sign(1, 0))], generator)
    # left = update + stream(seed of 1 and 2); the stream's first word is mix(seed) and the update's is zero.
    seed = invert_mix(int(left[0]))
    assert np.array_equal(mix(np.array([seed], dtype=np.uint32)), left[:1])
    counter = (np.arange(len(left), dtype=np.uint64) * GOLDEN + seed).astype(np.uint32)
    return left - mix(counter), federation.words(1)


def test_a_weak_generator_is_found_from_one_known_coordinate() -> None:
    guess, truth = find_the_weak_seed(WeakGenerator(64.0))
    np.testing.assert_array_equal(guess, truth)
    guess, truth = find_the_weak_seed(SOUND)
    assert guess[1:DEAD].any()  # the attacker sees at once that it failed: a dead coordinate is not zero
    assert abs(likeness(guess, truth)) < 0.15


def test_the_weak_stream_is_one_stream_whatever_the_blocks() -> None:
    whole, parts, buffer = bytearray(4000), bytearray(), bytearray(4000)
    SmallSeed(7).update_into(memoryview(bytes(4000)), whole)
    stepping = SmallSeed(7)
    for _ in range(4):
        stepping.update_into(memoryview(bytes(1000)), buffer)
        parts += buffer[:1000]
    assert whole == parts


def take_off_one_word(channel: MaskedSum) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    federation = Federation(channel, 5)
    words = federation.converse().masked[2].words
    return words - words[0], federation.words(2)  # the first coordinate is dead


def test_one_scalar_mask_falls_to_a_subtraction() -> None:
    guess, truth = take_off_one_word(ScalarMask(64.0))
    np.testing.assert_array_equal(guess, truth)
    guess, truth = take_off_one_word(SOUND)
    assert abs(likeness(guess, truth)) < 0.15


def ask_for_both_shares(channel: MaskedSum, victim: int = 2) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The server says that site 2 both survived and vanished, and strips every mask from its words."""
    federation = Federation(channel, 5)
    for site in federation.sites:
        site.directory = {other.index: other.identity for other in federation.sites}
    adverts = [site.advertise() for site in federation.sites]
    boxes = [box for site in federation.sites for box in site.share(adverts)]
    masked = [site.mask(federation.words(site.index), [b for b in boxes if b.recipient == site.index]) for site in federation.sites]
    votes = [site.vote(range(5)) for site in federation.sites]
    reveals = [site.unmask(range(5), [victim], votes) for site in federation.sites if site.index != victim]
    session = cohort_hash(federation.sites[0].agreed, adverts)
    seed = shamir.join({reveal.site + 1: reveal.seeds[victim] for reveal in reveals})
    secret = X25519PrivateKey.from_private_bytes(shamir.join({r.site + 1: r.keys[victim] for r in reveals}))
    masks = [(derive(seed, session, "self mask", victim), -1)]
    masks += [(pair_key(secret, adverts[o].mask_key, session, victim, o), -sign(victim, o)) for o in range(5) if o != victim]
    words = masked[victim].words.copy()
    add_masks(words, masks)
    return words, federation.words(victim)


def test_both_shares_open_one_site_and_a_sound_site_refuses_them() -> None:
    guess, truth = ask_for_both_shares(BothShares(64.0))
    np.testing.assert_array_equal(guess, truth)
    with pytest.raises(Refusal, match="both shares of site 2"):
        ask_for_both_shares(SOUND)


def local_update(broadcast: Params, site: int) -> Params:
    """One full-batch gradient step of a small ReLU network on the site's own records."""
    rng = stream("twin records", site)
    x, y = torch.randn(30, 400, generator=rng), torch.randn(30, generator=rng)
    leaves = {name: value.clone().requires_grad_() for name, value in broadcast.items()}
    loss = ((torch.relu(x @ leaves["layer.weight"] + leaves["layer.bias"]).sum(1) - y) ** 2).mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {name: -0.01 * gradient for name, gradient in zip(leaves, gradients, strict=True)}


def single_out(channel: MaskedSum, victim: int = 3) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Pasquini et al. 2022: all but the victim receive a model whose units are dead, so their updates are zero."""
    rng = stream("twin broadcast")
    real = {"layer.weight": 0.05 * torch.randn(400, 3, generator=rng), "layer.bias": torch.zeros(3)}
    dead = {**real, "layer.bias": torch.full((3,), -1e6)}
    broadcasts = [real if site == victim else dead for site in range(5)]
    assert fingerprint(real) != fingerprint(dead)
    federation = Federation(channel, 5, broadcasts)
    federation.sent = [local_update(broadcast, site) for site, broadcast in enumerate(broadcasts)]
    assert not any(value.any() for site in range(5) if site != victim for value in federation.sent[site].values())
    federation.layout = Layout.of(federation.sent[0])
    for site in federation.sites:
        site.length = federation.layout.length
    return total(federation.converse()), federation.words(victim)


def test_an_inconsistent_broadcast_singles_out_one_site_unless_masks_are_bound_to_it() -> None:
    guess, truth = single_out(AnyBroadcast(64.0))
    np.testing.assert_array_equal(guess[:-1], truth[:-1])
    with pytest.raises(Refusal, match="not signed by it for this broadcast"):
        single_out(SOUND)


def read_counts(channel: MaskedSum) -> list[int]:
    """The counts in the messages, or what their last words would say unmasked."""
    delivery = channel.run(updates(5), weights(5), exchange(5))
    heaviest = FixedPoint.agreed(weights(5), 64.0).heaviest
    unmasked: Callable[[torch.Tensor], int] = lambda words: round(int(words[-1]) * heaviest / scale(5, 1.0))  # noqa: E731
    return [unmasked(m.payload["masked"]) if m.records is None else m.records for m in delivery.messages]


def test_counts_in_clear_are_read_and_masked_ones_are_not() -> None:
    assert read_counts(CountsInClear(64.0)) == weights(5)
    assert not set(read_counts(SOUND)) & set(weights(5))


@pytest.mark.parametrize(
    ("twin", "named"),
    [
        (MaskedSum, set()),
        (WeakGenerator, {"mask stream"}),
        (ScalarMask, {"masks", "mask stream"}),
        (BothShares, {"refuses a demand for both shares of a site"}),
        (AnyBroadcast, {"masks are bound to the round and the broadcast", "refuses another broadcast for one site"}),
        (CountsInClear, {"record counts"}),
    ],
)
def test_the_check_of_a_plug_in_names_each_twins_fault_and_none_of_the_sound_one(twin: type[MaskedSum], named: set[str]) -> None:
    said = f"{SecureAggregation.card.server} {SecureAggregation().claim(contracts.Federation(), Shape((20,) * 5, 4, 2)).sentence}"
    found = list(check_channel(twin(64.0), said))
    assert {result.name for result in found if result.verdict == "fail"} == named
    assert {result.name for result in found if result.verdict != "pass"} == named
    assert len(found) == 6


def test_the_command_fails_a_plug_in_that_sends_counts_in_clear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import torch\nimport numpy as np\nfrom baselines.secure_aggregation import MaskedSum, SecureAggregation\n"
        "from suites.contracts import Message\n\n\n"
        "class Clear(MaskedSum):\n    def message(self, site, words, weight):\n"
        '        return Message(site, "masked", {"masked": torch.from_numpy(words.view(np.int32))}, records=int(weight))\n\n\n'
        "class Mine(SecureAggregation):\n    def __init__(self):\n        super().__init__()\n"
        "        self.sum = self.channel = Clear(64.0)\n"
    )
    assert main("defenses", f"{plugin}:Mine") == 1
    assert "FAIL  record counts: the server reads each site's in the messages' field" in capsys.readouterr().out
