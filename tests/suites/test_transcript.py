"""A transcript on disk: written round by round, what was sent comes back bit for bit, and no more is read than is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from baselines.secure_aggregation import SecureAggregation
from suites import api, transcript
from suites.contracts import Defense, Federation, Local, Message, Params, Probe, ProbeRecord, Round, Shape
from suites.federation import Assignment, Pool, Trained, train
from suites.observation import Evidence, Views
from suites.stack import Stack
from suites.store import process_start
from suites.tasks.classification import Classification

TASK = Classification(hidden=16, blocks=1, head=8, dropout=0.0, network="mlp")
POOL = Pool(torch.randn(60, 24, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3, 3)
FEDERATION = Federation(sites=3, rounds=4, local=Local(epochs=1, batch=5))
PROBES = [Probe(name, 1, ((0, 1), (20,), (40, 41, 42))) for name in ("a", "b")]


def trained(*layers: Defense, filing: transcript.Writer | None = None) -> Trained:
    sites = tuple(torch.split(torch.arange(60), 20))
    stack = Stack(layers).plan(FEDERATION, Shape((20, 20, 20), 24, 3))
    given = [Assignment(sites, ("transcript", i), ("transcript", "defense", i)) for i in range(2)]
    return train(TASK, stack, FEDERATION, POOL, given, probes=PROBES, keep=lambda r: r != 2, filing=filing)[0]


def same(one: Params, other: Params) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def same_rounds(one: Round | ProbeRecord, other: Round | ProbeRecord) -> bool:
    messages = zip(one.messages, other.messages, strict=True)
    alike = all(same(a.payload, b.payload) and (a.site, a.kind, a.records) == (b.site, b.kind, b.records) for a, b in messages)
    own = (one.own is None and other.own is None) or (
        one.own is not None
        and other.own is not None
        and same(one.own.update, other.own.update)
        and (one.own.weight, one.own.total) == (other.own.weight, other.own.total)
    )
    if isinstance(one, Round) and isinstance(other, Round):
        probes = zip(one.probes, other.probes, strict=True)
        alike &= one.index == other.index and same(one.broadcast, other.broadcast) and all(same_rounds(a, b) for a, b in probes)
    return alike and own and same(one.combined, other.combined)


def test_what_is_written_as_it_comes_is_what_was_sent(tmp_path: Path) -> None:
    for number, layers in enumerate(((), (SecureAggregation(),))):
        folder = tmp_path / str(number)
        folder.mkdir()
        held, writer = trained(*layers), transcript.Writer(folder)
        filed = trained(*layers, filing=writer)
        writer.close(filed.finals, filed.samples)
        back = transcript.load(folder)
        assert [record.index for record in back.rounds] == [0, 1, 3]
        assert [len(record.probes) for record in back.rounds] == [0, 2, 0]
        for kept, put_away, read in zip(held.rounds, filed.rounds, back.rounds, strict=True):
            assert same_rounds(kept, put_away)
            assert same_rounds(kept, read)
            assert (kept.own is None) == (not layers)
        assert same(held.finals[0], back.finals[0])
        assert back.samples == held.samples


def test_a_round_is_on_disk_before_the_next_begins_and_its_probes_before_it_trains(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Noting(transcript.Writer):
        def probe(self, index: int, record: ProbeRecord) -> ProbeRecord:
            seen.append((f"probe {index}", sorted(path.name for path in tmp_path.iterdir())))
            return super().probe(index, record)

        def round(self, record: Round) -> Round:
            seen.append((f"round {record.index}", sorted(path.name for path in tmp_path.iterdir())))
            return super().round(record)

    trained(filing=Noting(tmp_path))
    first, one, two = "0.wire.safetensors", "1.probe.0.wire.safetensors", "1.probe.1.wire.safetensors"
    assert seen[:4] == [("round 0", []), ("probe 0", [first]), ("probe 1", [first, one]), ("round 1", [first, one, two])]
    assert not (tmp_path / transcript.INDEX).exists()  # without which nobody reads it


def test_a_round_is_read_when_it_is_asked_for_and_few_stay_open(tmp_path: Path) -> None:
    writer = transcript.Writer(tmp_path)
    done = trained(filing=writer)
    writer.close(done.finals, done.samples)
    size = (tmp_path / "3.wire.safetensors").stat().st_size
    (tmp_path / "0.wire.safetensors").unlink()
    rounds = transcript.load(tmp_path).rounds
    assert isinstance(rounds, transcript.Rounds)
    assert rounds[-1].index == 3  # although the first is gone
    assert rounds[-1] is rounds[2]
    assert [record.index for record in rounds[1:]] == [1, 3]
    narrow = transcript.Rounds(tmp_path, rounds._entries, most=size)
    first = narrow[1]
    assert narrow[2].index == 3
    assert narrow[1] is not first
    views = Views(narrow, lambda record: record)
    assert len(views[1:]) == 2
    assert views[-1].index == 3


def test_who_writes_into_what_was_read_changes_no_file(tmp_path: Path) -> None:
    writer = transcript.Writer(tmp_path)
    done = trained(filing=writer)
    writer.close(done.finals, done.samples)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for record in transcript.load(tmp_path).rounds:
        for tensor in (*record.broadcast.values(), *record.messages[0].payload.values()):
            tensor.zero_()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_parts_of_one_memory_and_the_same_tensor_twice_come_back(tmp_path: Path) -> None:
    """The engine trains sites stacked, so that messages are slices of one tensor; a sum is the next round's broadcast itself."""
    stacked = torch.arange(24.0).reshape(2, 3, 4)
    together = stacked.sum(0)
    first = {"w": torch.zeros(3, 4), "turned": stacked[0].T}
    rounds = [
        Round(0, first, tuple(Message(i, "update", {"w": stacked[i]}, 5) for i in range(2)), {"w": together}),
        Round(1, {"w": together}, (Message(0, "update", {"w": stacked[1, 1:]}, 5),), {"w": torch.tensor(2.0)}),
    ]
    transcript.save(tmp_path, Evidence(rounds, [{"w": together}], 7))
    back = transcript.load(tmp_path)
    assert back.samples == 7
    assert torch.equal(back.finals[0]["w"], together)
    for given, found in zip(rounds, back.rounds, strict=True):
        assert same_rounds(given, found)


def test_what_lies_apart_is_not_copied() -> None:
    stacked = torch.arange(24.0).reshape(2, 3, 4)
    given = {"b": stacked[1], "a": stacked[0], "again": stacked[0], "whole": torch.ones(5)}
    found = transcript.apart(given)
    assert list(found) == list(given)  # the order is that of the file
    assert all(torch.equal(found[name], given[name]) for name in given)
    assert {name: found[name].data_ptr() == given[name].data_ptr() for name in given} == {
        "b": True,
        "a": True,
        "again": False,
        "whole": True,
    }


SUITE = """suite: killed
title: A training that is killed
task: classification:network=mlp:dropout=0
data: {name: synthetic}
split: {unit: record, train: 0.5, validation: 0.1, test: 0.2, auxiliary: 0.2}
partition: {kind: iid, sites: 3}
federation: {rounds: 60, local: {epochs: 1, batch: 50}}
seeds: 1
defenses: [fedavg]
attacks: [loss_threshold]
threats: [{view: server, key: none}]
engine: {chunk: 4, keep_every: 1}
"""
DRIVER = "import sys; from suites import api; api.carry_out(api.request(sys.argv[1], out=sys.argv[2]), workers=1)"


def test_a_training_killed_between_two_rounds_leaves_nothing_that_counts(tmp_path: Path) -> None:
    suite, out = tmp_path / "killed.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(suite), str(out)], stderr=subprocess.DEVNULL)
    try:
        written: list[Path] = []
        until = time.monotonic() + 120
        while len(written) < 2 and process.poll() is None and time.monotonic() < until:
            written = list((out / "store" / "tmp").glob("*/*.wire.safetensors"))
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert 2 <= len(written) < 61  # in the middle
    for torn in (out / "store" / "tmp").iterdir():
        pid, start = torn.name.partition("-")[0].split(".")[:2]
        while process_start(int(pid)) == start and time.monotonic() < until:  # a worker sees its parent's end a moment later
            time.sleep(0.05)
    assert not list((out / "store" / "train").iterdir())
    asked = api.request(suite, out=out)
    table = api.carry_out(asked, workers=1)
    assert (table["status"] == "ok").all(), table["reason"].unique()
    (cell,) = (out / "store" / "train").iterdir()
    assert len(list(cell.glob("*.wire.safetensors"))) == 61
    assert not list((out / "store" / "tmp").iterdir())  # the torn one is gone
    whole = api.carry_out(api.request(suite, out=tmp_path / "whole"), workers=1)
    (uninterrupted,) = (tmp_path / "whole" / "store" / "train").iterdir()
    for path in cell.glob("*.wire.safetensors"):
        assert path.read_bytes() == (uninterrupted / path.name).read_bytes()
    keep = ["attack", "metric", "value"]
    pd.testing.assert_frame_equal(scores(table)[keep], scores(whole)[keep])


def scores(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["role"] == "score"].reset_index(drop=True)
