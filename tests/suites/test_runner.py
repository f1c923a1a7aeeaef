"""The whole runner over fake cells: resume, kill -9, failures, edits; the table stays the same, value for value."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest

from suites import api, gather, runner
from suites.errors import RequestError
from suites.runner import Progress, store_of
from suites.store import MANIFEST
from tests.suites import fake_suite

MEASURED = ["seconds"]
MEASURED_METRICS = ("training_seconds", "samples_per_second", "peak_memory_bytes")
DRIVER = """
import sys
from suites.api import run
from tests.suites.fake_suite import FUNCTIONS
run(sys.argv[1], out=sys.argv[2], functions=FUNCTIONS, report=False, workers=2)
"""


def run(suite: Path, out: Path, **changes: object) -> pd.DataFrame:
    return api.run(suite, out=out, report=False, functions=fake_suite.FUNCTIONS, workers=2, **changes)


def values(table: pd.DataFrame) -> pd.DataFrame:
    """What must not depend on how often a run was interrupted."""
    return table[~table["metric"].isin(MEASURED_METRICS)].drop(columns=MEASURED).reset_index(drop=True)


STAGES = ("train", "reference", "attack")  # where a whole cell lies; one in the making lies under "tmp"


def finished(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for stage in STAGES for path in (out / "store" / stage).glob(f"*/{MANIFEST}")}


def start(suite: Path | str, out: Path, mark: Path, driver: str = DRIVER) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FAKE_MARK": str(mark)}
    with (mark / "log.txt").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-c", driver, str(suite), str(out)], env=environment, stdout=log, stderr=log)
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def _nobody_is_left_behind() -> Iterator[None]:
    """A test that fails half-way ends the runs that it started, and only those."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def marked(mark: Path) -> list[int]:
    """Living processes that descend from a run with this mark in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"FAKE_MARK={mark}\0".encode() in (place / "environ").read_bytes() and "State:\tZ" not in (place / "status").read_text():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def wait_for(mark: Path, count: int) -> None:
    """Until so many processes run: the run itself, its server, workers."""
    until = time.monotonic() + 60
    while len(marked(mark)) < count and time.monotonic() < until:
        time.sleep(0.02)


def wait_until_gone(mark: Path, seconds: float) -> list[int]:
    until = time.monotonic() + seconds
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    return left


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return fake_suite.write(tmp_path / "suite", references=3)


def test_a_run_resumes_by_itself(suite: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    first = run(suite, tmp_path / "out", tell=told.append)
    assert told[0].seconds_left > 0
    assert told[-1].seconds_left == 0, "what is told is of what is missing, and nothing is"
    assert (first["status"] != "failed").all()
    assert told[-1].done == told[-1].total == len(finished(tmp_path / "out"))
    assert max(len(now.running) for now in told) == 2
    before = finished(tmp_path / "out")
    again = run(suite, tmp_path / "out")
    assert finished(tmp_path / "out") == before
    pd.testing.assert_frame_equal(first, again)
    for name in (gather.RESULTS_FILE, gather.CURVES_FILE, gather.RECORD_FILE):
        assert (tmp_path / "out" / name).exists()
    assert not list((tmp_path / "out" / "store" / "tmp").iterdir())


def killed_ten_times(suite: Path | str, out: Path, mark: Path, driver: str, seconds: float) -> dict[str, bytes]:
    """Start a run ten times and kill -9 it each time, at most so long or eight cells into its work; what is finished then.

    The cells bound it too, so that a fast machine does not finish before the last kill.
    """
    mark.mkdir()
    draw = random.Random(20)
    done: dict[str, bytes] = {}
    for attempt in range(10):
        process = start(suite, out, mark, driver)
        if attempt % 3:  # most moments lie in the work, some in the start
            wait_for(mark, 4)
        until = time.monotonic() + draw.uniform(0, seconds)
        while time.monotonic() < until and sum(len(list((out / "store" / stage).glob("*"))) for stage in STAGES) < len(done) + 8:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert wait_until_gone(mark, 2.0) == [], (mark / "log.txt").read_text()
        now = finished(out)
        assert done.items() <= now.items()  # what was done is neither lost nor done again
        done = now
    assert done, "no cell was ever finished: the test killed too early to say anything"
    return done


def agree(out: Path, whole: Path, done: Mapping[str, bytes]) -> None:
    """The resumed run's tables are the uninterrupted one's, and the cells that were done stayed as they were."""
    assert len(done) < len(finished(whole)), "all was finished before the last kill: the test killed too late to say anything"
    assert done.items() <= finished(out).items()
    assert finished(out).keys() == finished(whole).keys()
    for name, read in ((gather.RESULTS_FILE, values), (gather.CURVES_FILE, lambda table: table)):
        pd.testing.assert_frame_equal(read(pd.read_parquet(out / name)), read(pd.read_parquet(whole / name)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see whether anybody is left")
def test_kill_9_at_ten_random_moments(tmp_path: Path) -> None:
    suite = fake_suite.write(tmp_path / "suite", epochs=60, seeds=8, references=3)  # about ten seconds: 136 cells
    done = killed_ten_times(suite, tmp_path / "out", tmp_path / "mark", DRIVER, 1.0)
    run(suite, tmp_path / "out")
    run(suite, tmp_path / "whole")
    agree(tmp_path / "out", tmp_path / "whole", done)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see whether anybody is left")
def test_kill_9_of_the_quickstart(tmp_path: Path) -> None:
    suite = os.environ.get("INFL_BENCH_KILLED_SUITE", "quickstart")
    driver = "import sys; from suites.api import run; run(sys.argv[1], out=sys.argv[2], report=False, device='cpu')"
    done = killed_ten_times(suite, tmp_path / "out", tmp_path / "mark", driver, 8.0)
    for name in ("out", "whole"):
        api.run(suite, out=tmp_path / name, report=False, device="cpu")
    agree(tmp_path / "out", tmp_path / "whole", done)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see whether anybody is left")
def test_no_worker_outlives_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TROUBLE", "orphan@train")  # cells that sleep for a minute
    suite, mark = fake_suite.write(tmp_path / "suite"), tmp_path / "mark"
    mark.mkdir()
    process = start(suite, tmp_path / "out", mark)
    wait_for(mark, 4)
    assert len(marked(mark)) == 4
    process.kill()
    process.wait()
    assert wait_until_gone(mark, 2.0) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_server_is_replaced(tmp_path: Path) -> None:
    suite, mark, out = fake_suite.write(tmp_path / "suite", epochs=100), tmp_path / "mark", tmp_path / "out"
    mark.mkdir()
    process = start(suite, out, mark)
    killed = 0
    until = time.monotonic() + 60
    while killed < 2 and time.monotonic() < until:
        server = [pid for pid in marked(mark) if pid != process.pid and _parent(pid) == process.pid]
        if server and len(marked(mark)) >= 3:
            os.kill(server[0], signal.SIGKILL)
            killed += 1
            time.sleep(0.5)
        time.sleep(0.05)
    assert process.wait(60) == 0, (mark / "log.txt").read_text()
    assert killed == 2
    assert (pd.read_parquet(out / gather.RESULTS_FILE)["status"] != "failed").all()


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_whatever_is_asked_of_a_killed_server_is_told_at_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may be killed while its parent submits, preloads or waits; only the wait says so, where the cells are begun again."""
    from suites.forkserver import ForkServer

    monkeypatch.setenv("FAKE_MARK", str(tmp_path))
    server = ForkServer([], tmp_path / "log")
    try:
        (pid,) = marked(tmp_path)
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while marked(tmp_path) and time.monotonic() < until:
            time.sleep(0.01)
        for _ in range(3):
            server.submit("late", "tests.suites.fake_cells:tell_about_me", {"path": str(tmp_path / "late")})
            server.preload(["json"])
        with pytest.raises(ChildProcessError, match="-9"):
            server.ended(10.0)
    finally:
        server.close()
    assert not (tmp_path / "late").exists()


def test_two_runs_share_one_folder_and_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, mark, out = fake_suite.write(tmp_path / "suite", epochs=100, references=3), tmp_path / "mark", tmp_path / "out"
    mark.mkdir()
    computed = tmp_path / "computed"
    computed.mkdir()
    monkeypatch.setenv("FAKE_PIDS", str(computed))
    runs = [start(suite, out, mark) for _ in range(2)]
    assert [process.wait(120) for process in runs] == [0, 0], (mark / "log.txt").read_text()
    assert len(list(computed.iterdir())) == len(finished(out))  # a process a cell, and no cell twice
    pd.testing.assert_frame_equal(values(pd.read_parquet(out / gather.RESULTS_FILE)), values(run(suite, tmp_path / "alone")))
    assert not list((out / "store" / "tmp").iterdir())


def test_editing_one_attack_reruns_that_attack_and_nothing_else(suite: Path, tmp_path: Path) -> None:
    first = run(suite, tmp_path / "out")
    before = finished(tmp_path / "out")
    path = suite.parent / "second.py"
    path.write_text(path.read_text().replace("bonus = 2", "bonus = 20"))
    second = run(suite, tmp_path / "out")
    after = finished(tmp_path / "out")
    assert before.items() <= after.items()
    first, second = (table[table["role"] != "flag"].reset_index(drop=True) for table in (first, second))  # flags speak of all seeds at once
    assert len(after) - len(before) == len(first[first["attack"] == "second.py:Second"])
    mine = (first["attack"] == "second.py:Second") & (first["status"] == "ok")
    assert (second["value"] - first["value"])[mine].round(9).eq(18).all()  # the new code ran
    pd.testing.assert_frame_equal(first[~mine], second[~mine])


@pytest.mark.parametrize(
    ("trouble", "reason"), [("raise", "ZeroDivisionError: division by zero"), ("die", "the worker ended by signal 9 (out of memory?)")]
)
def test_a_failed_cell_is_a_row_and_the_suite_goes_on(
    trouble: str, reason: str, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = values(run(suite, tmp_path / "whole"))
    monkeypatch.setenv("FAKE_TROUBLE", f"{trouble}@train {suite.parent}/defenses.py:Plain 1")
    told: list[Progress] = []
    table = run(suite, tmp_path / "out", tell=told.append)
    assert told[-1].seconds_left == 0, "neither failed cells nor those that wait for them are left"
    failed = table[table["status"] == "failed"]
    assert set(failed["defense"]) == {"defenses.py:Plain"}
    assert set(failed["seed"]) == {1}
    assert failed["reason"].str.contains(reason, regex=False).all()
    assert failed[failed["attack"] == ""]["reason"].tolist() == [reason]
    assert failed[failed["attack"] != ""]["reason"].str.startswith("not run, since what it reads failed").all()
    monkeypatch.delenv("FAKE_TROUBLE")
    pd.testing.assert_frame_equal(values(run(suite, tmp_path / "out")), whole)  # a failed cell is tried again


def test_a_skipped_cell_is_a_row(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_TROUBLE", f"skip@attack {suite.parent}/defenses.py:Plain 1")
    table = run(suite, tmp_path / "out")
    skipped = table[(table["status"] == "skipped") & (table["reason"] == "nothing to see")]
    assert set(zip(skipped["defense"], skipped["seed"])) == {("defenses.py:Plain", 1)}
    assert (table["status"] != "failed").all()


@pytest.mark.parametrize(("trouble", "words"), [("request", "site 3 has one record"), ("full", "no space left on the device")])
def test_a_wrong_request_ends_the_run_with_its_sentence(
    trouble: str, words: str, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TROUBLE", f"{trouble}@train")
    with pytest.raises(RequestError, match=words) as caught:
        run(suite, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out" / "store" / "tmp").iterdir())
    assert [path.name for path in (tmp_path / "out" / "store" / "claims").iterdir()] == [".lock"]


def test_tables_are_replaced_whole_or_not_at_all(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(suite, tmp_path / "out")
    before = (tmp_path / "out" / gather.RESULTS_FILE).read_bytes()

    def full(self: pd.DataFrame, path: Path, **_: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(RequestError, match="no space left"):
        run(suite, tmp_path / "out")
    assert (tmp_path / "out" / gather.RESULTS_FILE).read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["curves.parquet", "record.json", "results.parquet", "store"]


def test_the_record_says_with_what_it_was_made(suite: Path, tmp_path: Path) -> None:
    import json

    run(suite, tmp_path / "out", seeds=1)
    text = (tmp_path / "out" / gather.RECORD_FILE).read_text()
    record: Mapping[str, object] = json.loads(text)
    assert record["seeds"] == [0]
    assert record["suite_text"] == suite.read_text()
    assert record["request"]["seeds"] == 1  # type: ignore[index]
    assert {"torch", "numpy", "python"} <= set(record["versions"])  # type: ignore[call-overload]
    assert any("second.py" in name for name in record["code"])  # type: ignore[attr-defined]


def test_workers_are_pinned_to_one_thread_and_fresh(tmp_path: Path) -> None:
    from suites.forkserver import ForkServer

    server = ForkServer(["tests.suites.fake_cells"], tmp_path / "log")
    try:
        for token in ("a", "b"):
            server.submit(token, "tests.suites.fake_cells:tell_about_me", {"path": str(tmp_path / token)})
        ended: list[tuple[str, int]] = []
        until = time.monotonic() + 60
        while len(ended) < 2 and time.monotonic() < until:
            ended += server.ended(1.0)
    finally:
        server.close()
    assert sorted(ended) == [("a", 0), ("b", 0)], (tmp_path / "log").read_text()
    said = [(tmp_path / token).read_text().split() for token in ("a", "b")]
    assert said[0][0] != said[1][0]  # a process each
    assert all(line[1:] == ["1", "1"] for line in said)  # one thread; nothing left over from another cell


@pytest.mark.parametrize(
    ("preload", "call", "said"),
    [
        (["tests.suites.fake_cells:count_once"], "tell_about_me", "2"),
        (["tests.suites.fake_cells", "suites.registry:look_up"], "find_without_looking", "0"),
    ],
)
def test_what_a_server_was_asked_to_call_holds_in_its_workers(tmp_path: Path, preload: list[str], call: str, said: str) -> None:
    """The second: the files of all that is installed are read once a run and not once a cell."""
    from suites.forkserver import ForkServer

    server = ForkServer(preload, tmp_path / "log")
    try:
        server.submit("a", f"tests.suites.fake_cells:{call}", {"path": str(tmp_path / "a")})
        ended: list[tuple[str, int]] = []
        until = time.monotonic() + 60
        while not ended and time.monotonic() < until:
            ended = server.ended(1.0)
    finally:
        server.close()
    assert ended == [("a", 0)], (tmp_path / "log").read_text()
    assert (tmp_path / "a").read_text().split()[-1] == said


def test_a_run_looks_plug_ins_up_before_it_forks(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded: list[str] = []
    begin = runner.ForkServer.__init__

    def noted(self: object, preload: list[str], errors: Path) -> None:
        preloaded.extend(preload)
        begin(self, preload, errors)  # type: ignore[arg-type]

    monkeypatch.setattr(runner.ForkServer, "__init__", noted)
    run(suite, tmp_path / "out")
    assert "suites.registry:look_up" in preloaded


def test_store_of_is_absolute() -> None:
    assert store_of(Path("somewhere")).root.is_absolute()
