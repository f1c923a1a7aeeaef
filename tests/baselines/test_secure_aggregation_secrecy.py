"""What crosses the wire says nothing of one site: uniform, uncorrelated, fresh masks; and what a site refuses to answer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from masked_round import exchange, plain_words, updates, weights
from numpy.typing import NDArray
from scipy import stats

from baselines import bonawitz, shamir, transcript
from baselines.bonawitz import Refusal, Site, Vote
from baselines.fixed_point import FixedPoint, Layout
from baselines.masking import add_masks, derive, sign
from baselines.secure_aggregation import MaskedSum, converse
from suites.contracts import Exchange, RequestError

LEVEL = 1e-4  # of each whole family; inputs are fixed, so a pass stays a pass


def uniformity(vectors: Sequence[NDArray[np.uint32]]) -> dict[str, float]:
    """p-values: chi-square of each byte position, balance of each bit, and of each bit against the next word's, for each vector."""
    found = {}
    for number, words in enumerate(vectors):
        octets = words.astype("<u4").view(np.uint8).reshape(-1, 4)
        for place in range(4):
            counts = np.bincount(octets[:, place], minlength=256)
            found[f"{number}: byte {place}"] = float(stats.chisquare(counts).pvalue)
        bits = np.unpackbits(octets, axis=1)  # [n, 32]
        changes = bits[1:] ^ bits[:-1]
        for name, table in (("bit", bits), ("change of bit", changes)):
            excess = np.abs(table.sum(0, dtype=np.int64) - len(table) / 2) / math.sqrt(len(table) / 4)
            found.update({f"{number}: {name} {place}": float(2 * stats.norm.sf(z)) for place, z in enumerate(excess)})
    return found


def rejected(p: dict[str, float]) -> list[str]:
    """Holm's step-down over the whole family."""
    ordered = sorted(p.items(), key=lambda item: item[1])
    stop = next((rank for rank, (_, value) in enumerate(ordered) if value > LEVEL / (len(p) - rank)), len(p))
    return [name for name, _ in ordered[:stop]]


def sent_words(given: Exchange, *, width: int = 20_000, channel: MaskedSum | None = None) -> list[NDArray[np.uint32]]:
    delivery = (channel or MaskedSum(64.0)).run(updates(5, width), weights(5), given)
    assert all(message.kind == "masked" and message.records is None for message in delivery.messages)
    return [message.payload["masked"].numpy().view(np.uint32) for message in delivery.messages]


def test_masked_messages_are_uniform() -> None:
    vectors = sent_words(exchange(5))
    assert rejected(uniformity(vectors)) == []


def test_the_uniformity_test_sees_what_is_not_masked() -> None:
    plain = [plain_words(u, w, 5, 128.0).astype(np.uint32) for u, w in zip(updates(5, 20_000), weights(5), strict=True)]
    assert len(rejected(uniformity(plain))) >= 10  # the high bytes of every site
    slight = sent_words(exchange(5))
    slight[3][:: len(slight[3]) // 400] &= 0xFFFFFFFE  # too little to be seen
    assert rejected(uniformity(slight)) == []
    slight[2][::10] &= 0x7FFFFFFF  # one bit lost in every tenth word
    assert rejected(uniformity(slight)) != []


def test_masked_messages_do_not_follow_the_updates_nor_one_another() -> None:
    vectors, sent = sent_words(exchange(5)), updates(5, 20_000)
    plain = [torch.cat([t.reshape(-1).double() for t in u.values()]).numpy() for u in sent]
    masked = [v[:-1].view(np.int32).astype(np.float64) for v in vectors]
    pairs = [(m, p) for m in masked for p in plain] + [(a, b) for i, a in enumerate(masked) for b in masked[:i]]
    p = {str(number): float(2 * stats.norm.sf(abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)))) for number, (a, b) in enumerate(pairs)}
    assert rejected(p) == []
    followed = masked[0] + 2.0**31 * plain[0]  # a message that leaks a little of its update is seen
    assert 2 * stats.norm.sf(abs(np.corrcoef(followed, plain[0])[0, 1]) * math.sqrt(len(plain[0]))) < LEVEL / len(p)


@pytest.mark.parametrize(
    "other",
    [
        lambda e: dataclasses.replace(e, round=1),
        lambda e: dataclasses.replace(e, context=b"a probing it"),
        lambda e: dataclasses.replace(e, broadcast={**e.broadcast, "layer.bias": torch.full((3,), 1e-7)}),
        lambda e: dataclasses.replace(e, keys=exchange(5, draw=1).keys),
    ],
    ids=["round", "context", "broadcast", "keys"],
)
def test_another_round_context_broadcast_or_stream_gives_unrelated_masks(other: Callable[[Exchange], Exchange]) -> None:
    first, second = sent_words(exchange(5)), sent_words(other(exchange(5)))
    # The updates are equal, so the difference of two messages is the difference of their masks: uniform if these are unrelated.
    assert rejected(uniformity([a - b for a, b in zip(first, second, strict=True)])) == []
    assert rejected(uniformity([a - b for a, b in zip(first, sent_words(exchange(5)), strict=True)])) != []


# ----------------------------------------------------------------------------------------------------------- broadcasts


def seats(count: int, broadcasts: Sequence[float], channel: MaskedSum | None = None) -> tuple[list[Site], FixedPoint, Layout]:
    """Sites that each received a broadcast of their own."""
    channel, sent = channel or MaskedSum(64.0), updates(count)
    public, fixed, layout = channel.rules(count), FixedPoint.agreed(weights(count), 64.0), Layout.of(sent[0])
    given = exchange(count)
    agreed = [
        channel.agreed(dataclasses.replace(given, broadcast={"w": torch.tensor([value])}), public, fixed, layout) for value in broadcasts
    ]
    return [channel.site(i, public, agreed[i], layout.length, given.keys[i]) for i in range(count)], fixed, layout


def words_of(fixed: FixedPoint, layout: Layout, count: int) -> Callable[[int], NDArray[np.uint32]]:
    return lambda index: fixed.encode(updates(count)[index], weights(count)[index], layout, index)


def test_sites_that_saw_another_broadcast_are_found_before_anything_is_sent() -> None:
    sites, fixed, layout = seats(5, [1.0, 1.0, 1.0 + 1e-7, 1.0, 1.0])
    with pytest.raises(Refusal, match="keys of site 2: they are not signed by it for this broadcast"):
        converse(sites, words_of(fixed, layout, 5), {})


def test_masks_of_different_broadcasts_do_not_cancel() -> None:
    shared = bytes(range(32))
    residue = []
    for session in (b"one" * 11, b"two" * 11):
        words = np.zeros(40_000, dtype=np.uint32)
        add_masks(words, [(derive(shared, b"one" * 11, "pair mask", 0, 1), sign(0, 1))])
        add_masks(words, [(derive(shared, session, "pair mask", 0, 1), sign(1, 0))])
        residue.append(words)
    assert not residue[0].any()
    assert rejected(uniformity([residue[1]])) == []


# ------------------------------------------------------------------------------------------------------- nothing secret


@contextlib.contextmanager
def overheard(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Collect every secret that is derived or split while the protocol runs."""
    heard: list[bytes] = []
    real_derive, real_split, real_agree = bonawitz.derive, bonawitz.shamir.split, bonawitz.agree

    def listening_derive(secret: bytes, session: bytes, purpose: str, *sites: int) -> bytes:
        heard.extend([secret, derived := real_derive(secret, session, purpose, *sites)])
        return derived

    def listening_split(*arguments: object) -> dict[int, int]:
        shares = real_split(*arguments)  # type: ignore[arg-type]
        heard.extend(share.to_bytes(33, "little") for share in shares.values())
        return shares

    def listening_agree(*arguments: object) -> bytes:
        heard.append(real_agree(*arguments))  # type: ignore[arg-type]
        return heard[-1]

    with monkeypatch.context() as patch:
        patch.setattr(bonawitz, "derive", listening_derive)
        patch.setattr(bonawitz.shamir, "split", listening_split)
        patch.setattr(bonawitz, "agree", listening_agree)
        yield heard


def spellings(secret: bytes) -> list[bytes]:
    little, big = int.from_bytes(secret, "little"), int.from_bytes(secret, "big")
    return [secret, secret[::-1], secret.hex().encode(), str(little).encode(), str(big).encode(), repr(secret).encode()]


def test_no_key_share_or_mask_is_in_what_is_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    with overheard(monkeypatch) as heard:
        delivery, seen = MaskedSum(64.0).session(updates(5), weights(5), exchange(5, dropouts={1: "mask"}))
    assert len(heard) > 100
    visible = b"".join(t.numpy().tobytes() for m in delivery.messages for t in m.payload.values())
    visible += b"".join(t.numpy().tobytes() for t in delivery.combined.values()) + repr((delivery, seen)).encode()
    assert not [secret for secret in heard for text in spellings(secret) if text in visible]
    planted = dataclasses.replace(delivery.messages[0], payload={"masked": torch.frombuffer(bytearray(heard[7] * 2), dtype=torch.int32)})
    assert heard[7] in planted.payload["masked"].numpy().tobytes()  # the search would find one


def test_a_transcript_file_holds_no_secret_but_the_shares_that_the_protocol_reveals(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with overheard(monkeypatch) as heard:
        seen = MaskedSum(64.0).session(updates(5), weights(5), exchange(5, dropouts={1: "mask"}))[1]
    transcript.save(seen, tmp_path / "round.safetensors")
    stored = (tmp_path / "round.safetensors").read_bytes()
    revealed = {share for reveal in seen.reveals for share in (*reveal.seeds.values(), *reveal.keys.values())}
    kept = [secret for secret in heard if not (len(secret) == 33 and int.from_bytes(secret, "little") in revealed)]
    assert not [secret for secret in kept for text in spellings(secret) if text in stored]
    assert all(str(share).encode() in stored for share in revealed)
    assert len(heard) - len(kept) == len(revealed) == 4 * 4 + 4  # survivors' seeds and the vanished site's key, at four holders


def test_no_secret_is_in_a_repr_a_pickle_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = updates(5)
    spoilt[3]["layer.weight"][0, 0] = 1e9
    with overheard(monkeypatch) as heard:
        site = seats(5, [1.0] * 5)[0][0]
        with pytest.raises(RequestError) as overflow:
            MaskedSum(64.0).run(spoilt, weights(5), exchange(5))
        sites, fixed, layout = seats(5, [1.0, 1.0, 2.0, 1.0, 1.0])
        with pytest.raises(Refusal) as refusal:
            converse(sites, words_of(fixed, layout, 5), {})
    text = " ".join(map(repr, (site, overflow.value, refusal.value, overflow.value.__context__, refusal.value.__context__))).encode()
    assert heard
    assert not [secret for secret in heard for spelling in spellings(secret) if spelling in text]
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(site)


# ----------------------------------------------------------------------------------------------------------- refusals


def at_masks(count: int = 5) -> tuple[list[Site], list[bonawitz.Sealed], Callable[[int], NDArray[np.uint32]]]:
    """Sites that have shared their keys, ready to mask."""
    sites, fixed, layout = seats(count, [1.0] * count)
    for site in sites:
        site.directory = {other.index: other.identity for other in sites}
    adverts = [site.advertise() for site in sites]
    return sites, [box for site in sites for box in site.share(adverts)], words_of(fixed, layout, count)


def at_votes(count: int = 5) -> list[Site]:
    sites, boxes, words = at_masks(count)
    for site in sites:
        site.mask(words(site.index), [box for box in boxes if box.recipient == site.index])
    return sites


def test_a_site_gives_never_both_shares_of_one_site() -> None:
    sites = at_votes()
    votes = [site.vote(range(5)) for site in sites]
    with pytest.raises(Refusal, match="both shares of site 2"):
        sites[0].unmask(range(5), [2], votes)


def test_a_site_answers_each_stage_once() -> None:
    sites = at_votes()
    votes = [site.vote(range(5)) for site in sites]
    given = sites[0].unmask(range(5), [], votes)
    assert set(given.seeds) == set(range(5))
    assert not given.keys
    with pytest.raises(Refusal, match="out of turn"):
        sites[0].unmask([0, 1, 3, 4], [2], votes)
    with pytest.raises(Refusal, match="out of turn"):
        sites[1].vote([0, 1, 3, 4])
    with pytest.raises(Refusal, match="out of turn"):
        sites[1].mask(np.zeros(3, dtype=np.uint32), [])


def test_a_site_opens_only_what_enough_others_voted_on() -> None:
    sites = at_votes()
    votes = [site.vote(range(5) if site.index < 3 else [0, 2, 3, 4]) for site in sites]
    with pytest.raises(Refusal, match="3 matching votes and needs 4"):
        sites[0].unmask(range(5), [], votes)
    with pytest.raises(Refusal, match="voted on another list of survivors"):
        sites[1].unmask([0, 2, 3, 4], [1], votes)
    forged = [Vote(site, votes[0].signature) for site in range(5)]
    with pytest.raises(Refusal, match="2 matching votes"):
        sites[2].unmask(range(5), [], forged)


@pytest.mark.parametrize("asked", [[0, 1, 2], [1, 2, 3, 4], [0, 1, 2, 3, 9]], ids=["small", "without it", "unknown site"])
def test_a_site_does_not_help_to_open_a_small_or_foreign_sum(asked: list[int]) -> None:
    with pytest.raises(Refusal, match="will not open a sum"):
        at_votes()[0].vote(asked)


def test_a_site_does_not_open_changed_boxes_nor_take_others_keys() -> None:
    sites, boxes, words = at_masks()
    mine = [box for box in boxes if box.recipient == 0]
    changed = [dataclasses.replace(mine[0], box=bytes([mine[0].box[0] ^ 1]) + mine[0].box[1:]), *mine[1:]]
    with pytest.raises(Refusal, match="cannot open site 1's shares"):
        sites[0].mask(words(0), changed)
    with pytest.raises(Refusal, match="not for it"):
        sites[1].mask(words(1), mine)
    with pytest.raises(Refusal, match="fewer than the threshold"):
        sites[2].mask(words(2), [box for box in boxes if box.recipient == 2][:2])

    swapped, _, _ = seats(5, [1.0] * 5)
    for site in swapped:
        site.directory = {other.index: other.identity for other in swapped}
    adverts = [site.advertise() for site in swapped]
    adverts[3] = dataclasses.replace(adverts[3], mask_key=adverts[4].mask_key)  # the server puts a key of its own in place
    with pytest.raises(Refusal, match="keys of site 3"):
        swapped[0].share(adverts)
    with pytest.raises(Refusal, match="was shown 3 keys"):
        swapped[1].share(adverts[:3])


def test_a_cohort_shown_differently_to_two_sites_does_not_get_to_masks() -> None:
    sites, fixed, layout = seats(6, [1.0] * 6)
    for site in sites:
        site.directory = {other.index: other.identity for other in sites}
    adverts = [site.advertise() for site in sites]
    boxes = [box for site in sites for box in site.share(adverts if site.index else adverts[:5])]
    with pytest.raises(Refusal, match="different broadcasts, cohorts or rounds"):
        sites[1].mask(words_of(fixed, layout, 6)(1), [box for box in boxes if box.recipient == 1])


@pytest.mark.parametrize("lie", [lambda share: share + 1, lambda share: share ^ (1 << 200), lambda share: 0])
@pytest.mark.parametrize(("liar", "owner"), [(0, 0), (1, 3)])
def test_one_false_share_of_a_survivors_seed_voids_the_round(lie: Callable[[int], int], liar: int, owner: int) -> None:
    seen = MaskedSum(64.0).session(updates(5), weights(5), exchange(5))[1]
    false = dataclasses.replace(seen.reveals[liar], seeds={**seen.reveals[liar].seeds, owner: lie(seen.reveals[liar].seeds[owner])})
    reveals = [false if reveal.site == liar else reveal for reveal in seen.reveals]
    with pytest.raises(bonawitz.Aborted, match=f"the round is void: the shares of site {owner}'s seed .* at least one is false"):
        transcript.total(dataclasses.replace(seen, reveals=tuple(reveals)))


def test_a_commitment_is_bound_to_its_site_and_session_and_signed() -> None:
    """It tells nothing of the mask: the hash of another value expanded from the seed, under a purpose of its own."""
    seen = MaskedSum(64.0).session(updates(5), weights(5), exchange(5))[1]
    again = MaskedSum(64.0).session(updates(5), weights(5), exchange(5, index=1))[1]
    commitments = [advert.commitment for advert in (*seen.adverts, *again.adverts)]
    assert len(set(commitments)) == 10
    session = bonawitz.cohort_hash(seen.agreed, seen.adverts)
    seed = shamir.join({reveal.site + 1: reveal.seeds[2] for reveal in seen.reveals})
    assert bonawitz.committed(seed, seen.agreed, 2) == seen.adverts[2].commitment
    assert derive(seed, session, "self mask", 2) != seen.adverts[2].commitment
    sites, _, _ = seats(5, [1.0] * 5)
    for site in sites:
        site.directory = {other.index: other.identity for other in sites}
    adverts = [site.advertise() for site in sites]
    adverts[3] = dataclasses.replace(adverts[3], commitment=adverts[4].commitment)
    with pytest.raises(Refusal, match="keys of site 3"):
        sites[0].share(adverts)


def test_false_shares_of_a_vanished_site_void_the_round() -> None:
    seen = MaskedSum(64.0).session(updates(5), weights(5), exchange(5, dropouts={1: "mask"}))[1]
    false = dataclasses.replace(seen.reveals[0], keys={owner: share ^ 1 for owner, share in seen.reveals[0].keys.items()})
    with pytest.raises(bonawitz.Aborted, match="at least one is false"):
        transcript.total(dataclasses.replace(seen, reveals=(false, *seen.reveals[1:])))
    with pytest.raises(bonawitz.Aborted, match="3 shares of site"):
        transcript.total(dataclasses.replace(seen, reveals=seen.reveals[1:]))
