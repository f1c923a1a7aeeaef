"""How many records must stand behind the smallest visible update of ``infl:hardened``: re-identification against spread and N.

``measure`` makes one cell, ``limits`` a table of them. Adversary: the server, without key or plaintext unless said, at a fresh network
(64 hidden units, ReLU), with the gradients of batches of N records and the candidates' labels. *disjoint*: about 64 records in batches
that share none, taken apart by the row-space search and named by lengths, by inner products, or from 20 known records. *redrawn*: 24
batches of at most 64 drawn anew from one site of 140 records, isolated where their row spaces meet. An answer for a batch is a set, so N
guesses among n candidates hit N / n by chance (more where labels are used: that of a draw within classes); ``share`` is the part above
chance, with the Clopper-Pearson interval of distinct records.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from attacks.key.known_plaintext import with_known
from attacks.key.matching import search
from attacks.key.mixed import by_target, may_be, mixed_records
from attacks.key.norms import match_lengths
from attacks.key.overlap import Overlap
from baselines.secure_aggregation import SecureAggregation
from infl.hardened import Hardened
from reports.intervals import clopper_pearson
from suites.cohorts.load import load
from suites.cohorts.spec import DataSpec
from suites.contracts import Exchange, Records, Skip, Threat
from suites.observation import Evidence, Seen
from suites.preprocess import Preprocessor
from suites.randomness import keys, stream
from suites.tasks.classification import Classification
from tests.attacks.visible import Sight, hits, look

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SPREADS = (1.0, 1.4, 1.7, 2.0, 4.0)
KNOWN = 20
PLAINTEXTS = (0, 3, 10, 30, 100)
ALONE, STACKED = "infl:hardened", "infl:hardened+secure_aggregation"
_DISJOINT, _REDRAWN, _SITE = 64, 24, 140
UNITS = 64  # of the first layer


def cohort(name: str, every: int = 12) -> tuple[Records, Tensor, Tensor]:
    """Records in public units, candidates, and the adversary's own third (of Kang, every twelfth cell)."""
    folder = Path(os.environ.get("INFL_BENCH_DATA") or Path(__file__).parents[3] / "shared" / "data")
    if name != "kang":
        held, step = load(DataSpec(name=name)), 1
    else:
        held, step = load(DataSpec(path=str(folder / "h5ad" / "kang_control_8donors_muscat.h5ad"), label="cell_type")), every
    raw, y = held.x[::step], torch.from_numpy(held.y[::step])
    order = torch.randperm(len(raw), generator=stream("hardened limits", name, "split"))
    own, asked = order[: len(raw) // 3], order[len(raw) // 3 :]
    return Records(Preprocessor.fit(raw[own.numpy()]).transform(raw), y), asked, own


def measure(data: tuple[Records, Tensor, Tensor], spread: float, size: int, seed: int, *, starts: int = 4) -> list[dict[str, Any]]:
    """Rows of one cell: attack, hits, records, chance, share, low, high."""
    records, asked, own = data
    order = asked[torch.randperm(len(asked), generator=stream("hardened limits", "sent", seed))].tolist()
    count = max(_DISJOINT // size, 2 if 2 * size <= len(order) else 1)
    messages = [order[i * size : (i + 1) * size] for i in range(count)]
    layer, coordinates = Hardened(spread=spread, minimum=1), ("hardened limits", seed, size)
    common: dict[str, Any] = {
        "classes": int(records.y.max()) + 1,
        "task": Classification(dropout=0.0, network="mlp"),
        "secret": keys("hardened limits", "secret", seed),
        "start": seed,
    }
    if size > 64:
        starts = 1
    sight = look([layer], records, messages, asked, own, **common)
    seen, x = Seen(sight.scene, sight.evidence, Threat()), sight.pool.x
    evaluations = 900 if size <= 32 else 150  # at the layer's width and above a longer search gains nothing
    mixed = mixed_records(seen, seen.targets, stream(*coordinates, "mixed"), budget=evaluations)
    allowed = may_be(mixed, sight.pool.y)
    guesses = {"norms": x[match_lengths(mixed.z.norm(dim=1), x.double().norm(dim=1), allowed)[0]]}
    guesses["gram_search"] = x[search(mixed.z, x, allowed, stream(*coordinates, "gram"), starts=starts, trusted=mixed.trusted)[0]]
    more, may = with_known(mixed, x, allowed, torch.cat(sight.truth)[:KNOWN])
    guesses["known_plaintext"] = more[search(mixed.z, more, may, stream(*coordinates, "known"), starts=starts, trusted=mixed.trusted)[0]]
    chance = _within_labels(messages, records.y, sight.pool.y)
    rows = [_row(name, by_target(guess, mixed), sight.truth, chance) for name, guess in guesses.items()]
    if 8 <= size <= UNITS:  # above that `overlap` declines: a gradient of so many units holds no row space of a whole batch
        site = order[:_SITE]
        draws = [torch.randperm(len(site), generator=stream(*coordinates, "batch", k))[:size] for k in range(_REDRAWN)]
        sight = look([layer], records, [[site[i] for i in draw] for draw in draws], asked, own, **common)
        with contextlib.suppress(Skip):
            rows.append(_row("overlap", sight.guess(Overlap(250 * starts), *coordinates).value, sight.truth, min(size / len(x), 1.0)))
    return [{"spread": spread, "records_behind": size, "seed": seed, **row} for row in rows]


def _within_labels(messages: Sequence[Sequence[int]], y: Tensor, asked: Tensor) -> float:
    """The share that a draw among candidates of the right labels names; the labels are known."""
    sizes = torch.bincount(asked, minlength=int(y.max()) + 1).double()
    drawn = [torch.bincount(y[list(message)], minlength=len(sizes)).double() for message in messages]
    return float(sum((one.square() / sizes.clamp_min(1)).sum() for one in drawn)) / sum(len(message) for message in messages)


def _row(attack: str, guess: Sequence[Tensor], truth: Sequence[Tensor], chance: float) -> dict[str, Any]:
    found, count = hits(guess, truth)
    distinct = len(torch.unique(torch.cat(list(truth)), dim=0))
    rate = found / count
    low, high = clopper_pearson(round(rate * distinct), distinct)
    above = [(value - chance) / max(1 - chance, 1e-9) for value in (rate, low, high)]
    return {
        "attack": attack,
        "hits": found,
        "of": count,
        "distinct": distinct,
        "chance": chance,
        "share": above[0],
        "low": above[1],
        "high": above[2],
    }


def plaintexts(
    data: tuple[Records, Tensor, Tensor],
    spread: float,
    known: Iterable[int] = PLAINTEXTS,
    size: int = 1,
    seed: int = 0,
    in_sight: int = 160,
    sites: int = 1,
) -> list[dict[str, Any]]:
    """How many of ``in_sight`` records, ``size`` behind each message, are named when the first ``known`` of them are given: a row each.

    With several ``sites`` each sends its part of the ``size`` through secure aggregation, and the server sees their sum alone: which site
    a record is at, known or not, does not show. `known_plaintext` itself declines there, for want of messages; this is its search on sums.
    """
    records, asked, own = data
    order = asked[torch.randperm(len(asked), generator=stream("hardened limits", "known", seed))].tolist()[:in_sight]
    messages = [order[i : i + size // sites] for i in range(0, len(order), size // sites)]
    visible = [order[i : i + size] for i in range(0, len(order), size)]
    where = ("hardened limits", "plaintexts", spread, size, seed)
    hardened = Hardened(spread=spread, minimum=1)
    sight = look(
        [hardened] if sites == 1 else [hardened, SecureAggregation()],
        records,
        messages,
        asked,
        own,
        classes=int(records.y.max()) + 1,
        task=Classification(dropout=0.0, network="mlp"),
        secret=keys("hardened limits", "secret", seed),
        start=seed,
        sites=sites,
    )
    x, truth = sight.pool.x, torch.cat(sight.truth)
    seen = Seen(sight.scene, sight.evidence if sites == 1 else masked(sight, seed), Threat())
    targets = seen.targets if sites == 1 else seen.target_sums
    mixed = mixed_records(seen, targets, stream(*where, "mixed"), budget=900 if size <= 32 else 150)
    allowed = may_be(mixed, sight.pool.y)
    rows = []
    for count in known:
        more, may = with_known(mixed, x, allowed, truth[:count])
        placed = search(mixed.z, more, may, stream(*where, "known", count), starts=1, trusted=mixed.trusted)[0]
        guess, first = by_target(more[placed], mixed), -(-count // size)  # messages that hold a known record are not asked for
        row = _row("known_plaintext", guess[first:], sight.truth[first:], _within_labels(visible[first:], records.y, sight.pool.y))
        place = {"defense": ALONE if sites == 1 else STACKED, "spread": spread, "records_behind": size, "seed": seed, "known": count}
        rows.append(place | row)
    return rows


def masked(sight: Sight, seed: int) -> Evidence:
    """What was seen, each probe's messages masked and its sum opened by secure aggregation, rounding included."""
    channel, (round_,), probes = sight.scene.stack.channel, sight.evidence.rounds, []
    assert channel is not None
    for number, probe in enumerate(round_.probes):
        sources = tuple(keys("hardened limits", "masks", seed, number, message.site) for message in probe.messages)
        exchange = Exchange(0, f"probe {number}".encode(), round_.broadcast, sources)
        delivery = channel.run([message.payload for message in probe.messages], [1.0] * len(sources), exchange)
        probes.append(replace(probe, messages=delivery.messages, combined=delivery.combined))
    return replace(sight.evidence, rounds=[replace(round_, probes=tuple(probes))])


def stacked() -> pd.DataFrame:
    """Known plaintexts behind secure aggregation on pbmc68k, rows of hardened_known.csv: two sites, sums of 2, 16 and 128 records."""
    data, rows = cohort("pbmc68k"), []
    for size, in_sight, seeds in ((2, 160, 1), (16, 160, 1), (128, 256, 3)):
        for seed in range(seeds):
            rows += plaintexts(data, Hardened().spread, size=size, seed=seed, in_sight=in_sight, sites=2)
    columns = ["data", "defense", "spread", "records_behind", "known", "seed", "hits", "of", "chance", "share", "low", "high"]
    table = pd.DataFrame(rows).assign(data="pbmc68k")[columns]
    return table.round({"chance": 4, "share": 3, "low": 3, "high": 3})


def limits(name: str, spreads: Iterable[float] = SPREADS, sizes: Iterable[int] = SIZES, seeds: Iterable[int] = (0,)) -> pd.DataFrame:
    """The whole table of one cohort; about a minute a cell."""
    data = cohort(name)
    rows = [row for spread in spreads for size in sizes for seed in seeds for row in measure(data, spread, size, seed)]
    return pd.DataFrame(rows).assign(data=name)


def needed(table: pd.DataFrame, bar: float = 0.05, spread: float = 1.0) -> int:
    """The smallest N from which on no attack without plaintext names more than ``bar`` above chance, on any cohort, from ``spread`` on.

    Seeds are repeats of a cell: their mean counts.
    """
    keyless = table[(table["attack"] != "known_plaintext") & (table["spread"] >= spread)]
    cells = keyless.groupby(["data", "spread", "attack", "records_behind"])["share"].mean()
    worst = cells.groupby("records_behind").max()
    above = worst.index[worst > bar]
    return int(worst.index[worst.index > (above.max() if len(above) else 0)].min())
