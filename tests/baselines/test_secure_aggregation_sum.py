"""The masked sum is the plain sum of the quantised updates, bit for bit, whoever vanishes when; and the arithmetic beneath it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from masked_round import exchange, plain_sum, updates, weights

from baselines import shamir
from baselines.bonawitz import Aborted
from baselines.cohort_graph import neighbours, rules
from baselines.fixed_point import quantise, scale
from baselines.masking import fingerprint
from baselines.secure_aggregation import STAGES, MaskedSum, SecureAggregation
from baselines.skellam import Skellam
from baselines.transcript import load, save, total
from suites.contracts import Federation, RequestError, Shape
from suites.randomness import keys


def dropouts(sites: int, counts: dict[str, int]) -> dict[int, str]:
    """``counts`` sites vanish at each stage, spread over the federation."""
    stages = [stage for stage, count in counts.items() for _ in range(count)]
    return {(3 * place + 1) % sites: stage for place, stage in enumerate(stages)}


def assert_exact(channel: MaskedSum, sites: int, lost: dict[int, str]) -> None:
    sent, counts = updates(sites), weights(sites)
    delivery, transcript = channel.session(sent, counts, exchange(sites, dropouts=lost))
    expected = [s for s in range(sites) if lost.get(s) not in ("advertise", "share", "mask")]
    assert delivery.survivors == tuple(expected) == tuple(message.site for message in delivery.messages)
    words = total(transcript).view(np.int32).astype(np.int64)
    np.testing.assert_array_equal(words, plain_sum(sent, counts, expected))
    weight = sum(counts[s] for s in expected)
    for name, value in delivery.combined.items():
        mean = sum(counts[s] * sent[s][name].double() for s in expected) / weight
        assert value.dtype == sent[0][name].dtype
        error = 0.5 if name == "batches" else len(expected) / scale(sites, 64.0) * max(counts) / weight * 1.0001
        assert (value.double() - mean).abs().max() <= error + 1e-8


@pytest.mark.parametrize("sites", [2, 3, 5, 19, 20, 21, 50, 100])
def test_the_sum_is_exact(sites: int) -> None:
    assert_exact(MaskedSum(64.0), sites, {})


EVERY = list(itertools.product(range(4), range(4)))
DIAGONAL = [(0, 3), (1, 2), (2, 1), (3, 0), (3, 3)]  # each count at each stage, and the most at both


@pytest.mark.parametrize(
    ("sharing", "masking"), [pytest.param(*pair, marks=() if pair in DIAGONAL else pytest.mark.slow) for pair in EVERY]
)
@pytest.mark.parametrize("sites", [50, 100])
def test_the_sum_is_exact_with_dropouts(sites: int, sharing: int, masking: int) -> None:
    assert_exact(MaskedSum(64.0), sites, dropouts(sites, {"mask": sharing, "unmask": masking}))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("count", "channel"), [(1, MaskedSum(64.0)), (2, MaskedSum(64.0, threshold=3)), (3, MaskedSum(64.0, 0, 3, 2))])
def test_five_sites_lose_as_many_as_the_threshold_allows(stage: str, count: int, channel: MaskedSum) -> None:
    assert_exact(channel, 5, dropouts(5, {stage: count}))
    with pytest.raises(Aborted, match="round is void"):
        assert_exact(channel, 5, dropouts(5, {stage: count + 1}))


def test_dropouts_at_every_stage_at_once() -> None:
    assert_exact(MaskedSum(64.0, dropouts=15), 100, dropouts(100, dict.fromkeys(STAGES, 3)))


def test_the_weights_add_up_exactly() -> None:
    transcript = MaskedSum(64.0).session(updates(5), weights(5), exchange(5))[1]
    assert int(total(transcript)[-1]) * 128 / scale(5, 1.0) == sum(weights(5))


def test_a_transcript_replays_from_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lost = {3: "mask", 7: "unmask"}
    transcript = MaskedSum(64.0).session(updates(21), weights(21), exchange(21, dropouts=lost))[1]
    save(transcript, tmp_path / "round.safetensors")
    again = load(tmp_path / "round.safetensors")
    assert (again.rules, again.adverts, again.sealed, again.votes, again.reveals) == (
        transcript.rules,
        transcript.adverts,
        transcript.sealed,
        transcript.votes,
        transcript.reveals,
    )
    np.testing.assert_array_equal(total(again), total(transcript))
    assert again.survivors == transcript.survivors


def test_the_same_streams_give_the_same_bytes_and_a_used_stream_gives_others() -> None:
    first, second = (MaskedSum(64.0).run(updates(5), weights(5), exchange(5)).messages[2].payload["masked"] for _ in range(2))
    assert torch.equal(first, second)
    used = exchange(5)
    MaskedSum(64.0).run(updates(5), weights(5), used)
    assert not torch.equal(MaskedSum(64.0).run(updates(5), weights(5), used).messages[2].payload["masked"], first)


# ------------------------------------------------------------------------------------------------------------- fixed point


@given(st.lists(st.floats(-64, 64, width=32), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_quantising_is_rounding_to_even(values: list[float], weight: float) -> None:
    factor = weight * 2.0**22
    out = np.empty(len(values), dtype=np.uint32)
    assert quantise(np.array(values, dtype=np.float32), factor, 2.0**40, out)
    np.testing.assert_array_equal(
        out, np.rint(np.array(values, dtype=np.float32).astype(np.float64) * factor).astype(np.int64).astype(np.uint32)
    )


@pytest.mark.parametrize("sites", [2, 5, 50, 100, 1000])
@pytest.mark.parametrize("bound", [0.5, 1.0, 3.0, 64.0])
def test_the_scale_is_the_largest_that_cannot_wrap(sites: int, bound: float) -> None:
    step = scale(sites, bound)
    assert sites * (bound * step + 0.5) <= 2**31 - 1 < sites * (bound * 2 * step + 0.5)


@pytest.mark.parametrize("bad", [65.0, -65.0, math.inf, math.nan])
def test_what_does_not_fit_is_one_clear_sentence_without_the_value(bad: float) -> None:
    sent = updates(5)
    sent[3]["layer.weight"][100, 1] = bad
    with pytest.raises(RequestError, match=r"site 3's update: layer.weight .*\(bound=256\)") as error:
        MaskedSum(64.0).run(sent, [1.0] * 5, exchange(5))
    assert str(bad) not in str(error.value)


def test_the_bound_itself_fits_at_every_site() -> None:
    sent = [{"w": torch.full((4,), 64.0)} for _ in range(5)]
    assert torch.equal(MaskedSum(64.0).run(sent, [1.0] * 5, exchange(5)).combined["w"], sent[0]["w"])
    assert torch.equal(MaskedSum(64.0).run([{"w": -u["w"]} for u in sent], [1.0] * 5, exchange(5)).combined["w"], -sent[0]["w"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_type_of_numbers_adds_up_exactly(dtype: torch.dtype) -> None:
    """bfloat16 is a type that numpy lacks: its values are those of float32, bit for bit."""
    sent = [{name: tensor.to(dtype) for name, tensor in one.items() if name != "batches"} for one in updates(5)]
    given = exchange(5)
    given = dataclasses.replace(given, broadcast={name: tensor.to(dtype) for name, tensor in given.broadcast.items()})
    delivery, transcript = MaskedSum(64.0).session(sent, weights(5), given)
    np.testing.assert_array_equal(total(transcript).view(np.int32).astype(np.int64), plain_sum(sent, weights(5), range(5)))
    assert {value.dtype for value in delivery.combined.values()} == {dtype}


def test_complex_updates_are_refused_in_one_sentence() -> None:
    with pytest.raises(RequestError, match="cannot carry complex values"):
        MaskedSum(64.0).run([{"w": torch.ones(3, dtype=torch.complex64)}] * 3, [1.0] * 3, exchange(3))


@pytest.mark.parametrize(
    ("shares", "match"), [([1.0, -1.0], "weights"), ([0.0, 0.0], "weights"), ([math.nan, 1.0], "weights"), ([1.0], "each site")]
)
def test_weights_that_mean_nothing_are_refused(shares: list[float], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        MaskedSum(64.0).run(updates(2), shares, exchange(2))


def test_other_names_and_stages_are_refused() -> None:
    sent = updates(3)
    sent[2] = {"other": torch.zeros(3)}
    with pytest.raises(RequestError, match="other names"):
        MaskedSum(64.0).run(sent, weights(3), exchange(3))
    with pytest.raises(RequestError, match="stage 'never' is unknown"):
        MaskedSum(64.0).run(updates(3), weights(3), exchange(3, dropouts={1: "never"}))
    with pytest.raises(RequestError, match="at least 2 sites"):
        MaskedSum(64.0).run(updates(1), weights(1), exchange(1))
    with pytest.raises(RequestError, match="bound"):
        SecureAggregation(bound=0.0)


# ------------------------------------------------------------------------------------------------------- shares and graph


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_any_threshold_shares_open_a_secret_and_fewer_do_not(threshold: int) -> None:
    secret, randomness = bytes(range(224, 256)), keys("shares", threshold).bytes(48 * (threshold - 1))
    shares = shamir.split(secret, [1, 2, 5, 9, 10, 11], threshold, randomness)
    for chosen in itertools.combinations(shares.items(), threshold):
        assert shamir.join(dict(chosen)) == secret
    for count in range(1, threshold):
        for chosen in itertools.combinations(shares.items(), count):
            with contextlib.suppress(ValueError):  # a value that is no 32 bytes is not the secret either
                assert shamir.join(dict(chosen)) != secret
    for bad in (randomness[:-1], randomness + b"x"):
        with pytest.raises(ValueError, match="random bytes"):
            shamir.split(secret, [1, 2, 5, 9, 10, 11], threshold, bad)


def test_the_sharing_field_is_prime() -> None:
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 60):  # Miller-Rabin
        power = pow(base, odd, shamir.PRIME)
        assert power in (1, shamir.PRIME - 1) or any(pow(base, odd << k, shamir.PRIME) == shamir.PRIME - 1 for k in range(1, twos))


@pytest.mark.parametrize("sites", [2, 3, 4, 5, 10, 19, 20, 33, 50, 100, 500])
def test_the_rules_hold_against_a_lying_server(sites: int) -> None:
    public = rules(sites)
    assert public.active
    assert public.threshold >= public.colluders + 2 or sites == 2
    assert public.colluders + public.dropouts < public.degree + (sites < 20)
    assert public.dropouts >= (sites >= 4)
    if sites == 50:
        assert public.dropouts >= 6


def test_the_graph_is_regular_mutual_shuffled_and_survives_the_worst_removal() -> None:
    cohort, degree = list(range(30)), 6
    graph = neighbours(cohort, degree, b"one")
    assert all(len(around) == degree and site not in around for site, around in graph.items())
    assert all(site in graph[other] for site, around in graph.items() for other in around)
    assert graph != neighbours(cohort, degree, b"two")
    for victim in cohort:  # take degree - 1 of its neighbours: it must still reach everybody
        removed = set(graph[victim][:-1])
        reached, frontier = {victim}, [victim]
        while frontier:
            for other in graph[frontier.pop()]:
                if other not in removed | reached:
                    reached.add(other)
                    frontier.append(other)
        assert reached == set(cohort) - removed
    assert neighbours([0, 1, 2], 6, b"one") == {0: (1, 2), 1: (0, 2), 2: (0, 1)}


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(RequestError, match="colluders"):
        rules(5, colluders=4)
    with pytest.raises(RequestError, match="threshold of 2"):
        rules(5, threshold=2)
    with pytest.raises(RequestError, match="threshold of 6"):
        rules(5, threshold=6)


def test_the_fingerprint_tells_names_shapes_and_values_apart() -> None:
    base = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4), "c": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 1.0000001])},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
    ]
    assert len({fingerprint(p) for p in (base, *others)}) == 5
    assert fingerprint({"b": base["b"], "a": base["a"]}) == fingerprint(base)


def test_the_claim_promises_no_privacy_of_records() -> None:
    claim = SecureAggregation().claim(Federation(), Shape((70,) * 5, 10, 3))
    assert (claim.kind, claim.epsilon) == ("none", None)
    assert "at least 4 of 5 sites and" in claim.sentence
    assert "also if it lies" in claim.sentence
    assert "if it does not lie" in SecureAggregation(threshold=3).claim(Federation(), Shape((70,) * 5, 10, 3)).sentence


@pytest.mark.parametrize("make", [SecureAggregation, Skellam])
def test_the_sentence_counts_who_takes_part_in_a_round(make: type[SecureAggregation]) -> None:
    partly = Federation(participation=0.4)
    quiet = {"noise_multiplier": 0} if make is Skellam else {}
    claim = make(**quiet).claim(partly, Shape((70,) * 10, 10, 3))
    assert "at least 3 of 4 sites that take part in a round" in claim.sentence
    with pytest.raises(RequestError, match="at least 2 sites and got 1"):
        make(**quiet).claim(Federation(participation=0.1), Shape((70,) * 10, 10, 3))
