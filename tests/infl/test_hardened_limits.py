"""The minimum of ``infl:hardened`` is what was measured: the committed table says it, and single cells can be measured again."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from attacks.key.known_plaintext import KnownPlaintext
from baselines.secure_aggregation import SecureAggregation
from infl.hardened import Hardened
from suites.contracts import Federation, Shape, Threat
from suites.observation import Seen
from suites.sight import skip_reason
from tests.attacks.visible import look
from tests.infl import hardened_checkpoints
from tests.infl.hardened_limits import STACKED, UNITS, cohort, masked, measure, needed, plaintexts

TABLE = Path(__file__).parents[2] / "docs" / "hardened.csv"


def test_the_default_minimum_is_the_measured_one() -> None:
    table = pd.read_csv(TABLE)
    assert set(table["data"]) == {"pbmc68k", "kang", "cptac"}
    assert set(table[table["spread"] == Hardened().spread]["data"]) == {"pbmc68k", "kang", "cptac"}
    assert needed(table, spread=Hardened().spread) == Hardened().minimum


def test_a_smaller_spread_is_not_enough_at_that_minimum() -> None:
    """Why the default spread is what it is: on CPTAC the search still names some at 1.4."""
    table = pd.read_csv(TABLE)
    runs = table[(table["data"] == "cptac") & (table["spread"] == 1.4) & (table["records_behind"] == Hardened().minimum)]
    assert runs[runs["attack"] == "gram_search"]["share"].mean() > 0.05
    assert bool((table["low"] <= table["share"]).all() and (table["share"] <= table["high"]).all())


def test_twenty_known_records_name_hardly_more_at_that_minimum() -> None:
    """Seeded matching is left out of what the minimum rests on, and meets its bar all the same; of single records it names all."""
    table = pd.read_csv(TABLE)
    seeded = table[(table["attack"] == "known_plaintext") & (table["spread"] == Hardened().spread)]
    found = seeded.groupby(["records_behind", "data"])["share"].agg(["mean", "count"])
    assert (found.loc[1]["mean"] == 1.0).all()
    behind = found.loc[Hardened().minimum]
    assert set(behind.index) == {"pbmc68k", "kang", "cptac"}
    assert (behind["count"] >= 3).all()
    assert behind["mean"].between(0.0, 0.05).all()


def claimed(layer: Hardened, width: int = UNITS) -> str:
    shape = Shape((400, 400), 50, 3, width=width)
    before, planned = layer.claim(Federation(), shape).sentence, layer.plan(Federation(), shape).claim(Federation(), shape).sentence
    assert before == planned
    return planned


def test_only_what_was_measured_is_claimed() -> None:
    """Below the measured minimum or spread the sentence says what is named instead."""
    wide = 2 * UNITS
    for layer, width, least in (
        (Hardened(), UNITS, 128),
        (Hardened(), wide, 256),
        (Hardened(minimum=300, spread=4.0), wide, 300),
        (Hardened(minimum=128), UNITS, 128),
    ):
        assert f"updates of at least {least} records do not show whose they are" in claimed(layer, width)
        assert "not claimed" not in claimed(layer, width)
    for layer, width, why in (
        (Hardened(minimum=1), UNITS, "its minimum is 1 where 128 was measured:"),
        (Hardened(minimum=127), UNITS, "its minimum is 127 where 128 was measured:"),
        (Hardened(minimum=128), wide, "its minimum is 128 where 256 was measured:"),
        (Hardened(spread=1.0), UNITS, "its spread is 1 where 1.7 was:"),
        (Hardened(spread=1.4, minimum=8), UNITS, "its minimum is 8 where 128 was measured and its spread is 1.4 where 1.7 was:"),
    ):
        said = claimed(layer, width)
        assert f"not claimed to hide whose they are, since {why}" in said
        assert "do not show" not in said
        assert "single records and those in batches of 8 were all named" in said


def test_what_the_claim_says_is_named_is_what_the_table_holds() -> None:
    said, table = claimed(Hardened(minimum=1)), pd.read_csv(TABLE)
    own = table[table["spread"] == Hardened().spread]
    small = own[(own["attack"] == "gram_search") & own["records_behind"].isin([1, 8])]
    assert (len(small), small["share"].min()) == (6, 1.0)
    overlapping = own[(own["attack"] == "overlap") & (own["records_behind"] == 64)]["share"].max()
    assert f"{100 * overlapping:.0f} % of those in overlapping batches of 64" in said
    narrow = table[(table["spread"] == 1.4) & (table["records_behind"] == 128) & (table["attack"] == "gram_search")]
    assert f"at a spread of 1.4 {100 * narrow.groupby('data')['share'].mean().max():.0f} % of one cohort's in batches of 128" in said


def test_the_card_says_that_more_messages_open_larger_batches() -> None:
    few = pd.read_csv(TABLE).query("data == 'pbmc68k' and spread == 2 and records_behind == 16 and attack == 'gram_search'")
    many = pd.read_csv(TABLE.with_name("hardened_known.csv")).query("spread == 2 and records_behind == 16 and known == 0")
    assert (few["of"].item() // 16, many["of"].item() // 16) == (4, 10)
    assert few["share"].item() == pytest.approx(0.1, abs=0.01)
    assert many["share"].item() == 1.0
    words = "of 16 records, at a spread of 2, four messages gave up a tenth of theirs and ten all"
    assert words in Hardened.card.does_not_protect


def test_needed_takes_the_worst_attack_without_plaintext() -> None:
    rows = [(1, "gram_search", 1.0), (64, "overlap", 0.8), (64, "norms", 0.0), (128, "norms", 0.04), (128, "known_plaintext", 0.9)]
    table = pd.DataFrame(rows, columns=["records_behind", "attack", "share"]).assign(data="one", spread=2.0)
    assert needed(table) == 128
    assert needed(table, spread=2.0) == 128
    with_less = pd.concat([table, table.assign(spread=1.0, share=0.06)])
    assert needed(with_less, spread=1.5) == 128
    with pytest.raises(ValueError, match="NaN"):
        needed(with_less)


def test_overlapping_batches_are_measured_up_to_the_width_alone() -> None:
    """Above it the attack declines, and its draw would be no measurement."""
    table = pd.read_csv(TABLE)
    assert table[table["attack"] == "overlap"]["records_behind"].max() == UNITS


def test_batches_that_come_back_are_open_as_the_page_says() -> None:
    table = pd.read_csv(TABLE.with_name("hardened_checkpoints.csv"))
    assert not table[table["checkpoints"] == 1]["isolated"].any()
    more = table[table["checkpoints"] > 1]
    wrong = more[more["right"] < more["answered"]]
    assert (len(more), len(wrong)) == (12, 1)
    assert (more["answered"] >= 800).all()
    assert (more.drop(wrong.index)["low"] > 0.99).all()


def test_behind_secure_aggregation_sums_are_all_that_is_measured() -> None:
    """Messages are masked words, sums are opened to rounding, and four records at two sites stand behind a sum of two."""
    data = cohort("pbmc68k")
    order = data[1][:4].tolist()
    layers = [Hardened(minimum=1), SecureAggregation()]
    sight = look(layers, data[0], [[row] for row in order], data[1], data[2], classes=int(data[0].y.max()) + 1, sites=2)
    behind = masked(sight, 0)
    for plain, hidden in zip(sight.evidence.rounds[0].probes, behind.rounds[0].probes, strict=True):
        assert {message.kind for message in hidden.messages} == {"masked"}
        assert all(set(message.payload) == {"masked"} for message in hidden.messages)
        for name, value in plain.combined.items():
            assert (hidden.combined[name] - value).abs().max() < 1e-6
    assert [target.batch for target in Seen(sight.scene, behind, Threat()).target_sums] == [2, 2]
    said = skip_reason(KnownPlaintext.needs, "server", topology="federated", masked=True, has_references=False)
    assert said is not None  # the attack itself declines
    assert "the server reads only their sum" in said


@pytest.mark.slow
@pytest.mark.parametrize("known", [0, 3])
def test_sums_of_one_record_a_site_give_up_all_others(known: int) -> None:
    (row,) = plaintexts(cohort("pbmc68k"), Hardened().spread, [known], size=2, sites=2)
    assert (row["defense"], row["of"], row["share"]) == (STACKED, 160 - 2 * -(-known // 2), 1.0)


@pytest.mark.slow
def test_a_batch_that_comes_back_is_taken_apart_though_it_is_twice_as_large_as_the_layer() -> None:
    data = cohort("pbmc68k")
    assert hardened_checkpoints.measure(data, 1, False, 0)["isolated"] == 0
    for trained in (False, True):
        found = hardened_checkpoints.measure(data, 2, trained, 0)
        assert found["right"] > 0.95 * found["answered"] > 500


@pytest.mark.slow
@pytest.mark.parametrize(("size", "attack", "low", "high"), [(1, "gram_search", 0.95, 1.0), (64, "overlap", 0.5, 1.0)])
def test_cells_of_the_table_come_out_again(size: int, attack: str, low: float, high: float) -> None:
    rows = {row["attack"]: row for row in measure(cohort("pbmc68k"), Hardened().spread, size, 0)}
    assert low <= rows[attack]["share"] <= high


@pytest.mark.slow
def test_at_the_minimum_nothing_above_chance_is_named() -> None:
    for row in measure(cohort("pbmc68k"), Hardened().spread, Hardened().minimum, 0):
        assert row["low"] <= 0.0, row
