"""Finished cells are there whole or not at all; claims of the dead are taken up."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from suites import store as store_module
from suites.errors import RequestError
from suites.store import MANIFEST, Store, process_start, write_trouble


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.open()
    return made


def finish(store: Store, identity: str = "a1", text: str = "[]") -> Path:
    folder = store.begin(identity)
    (folder / "rows.json").write_text(text)
    store.commit(folder, "train", identity, {"seconds": 1.0})
    return store.folder("train", identity)


def dead() -> tuple[int, str]:
    """A pid that lived and ended, and its start time."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process_start(child.pid)
    child.communicate(b"\n")
    assert start is not None
    assert process_start(child.pid) is None
    return child.pid, start


def test_a_finished_cell_is_whole(store: Store) -> None:
    assert store.manifest("train", "a1") is None
    folder = finish(store)
    manifest = store.manifest("train", "a1")
    assert manifest is not None
    assert manifest["files"] == {"rows.json": 2}
    assert not list((store.root / "tmp").iterdir())
    (folder / "rows.json").write_text("[")
    assert store.manifest("train", "a1") is None  # torn
    finish(store)
    assert store.manifest("train", "a1") is not None  # and computed again


@pytest.mark.parametrize("text", ["", "{", "{}", '{"files": {"gone.json": 1}}'])
def test_a_torn_manifest_is_no_cell(store: Store, text: str) -> None:
    folder = finish(store)
    (folder / MANIFEST).write_text(text)
    assert store.manifest("train", "a1") is None


def test_the_first_to_finish_stays(store: Store) -> None:
    first, second = store.begin("a1"), store.begin("a1")
    assert first != second
    assert first.parent.parent == store.root  # two levels below the root, as a finished cell is
    (first / "rows.json").write_text("first")
    (second / "rows.json").write_text("second")
    store.commit(first, "train", "a1", {})
    store.commit(second, "train", "a1", {})
    assert (store.folder("train", "a1") / "rows.json").read_text() == "first"
    assert not list((store.root / "tmp").iterdir())


def test_a_claim_holds_while_its_process_lives(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from suites.store import Store; "
        "s = Store(Path(sys.argv[1])); print(s.claim('a1'), flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline().strip() == "True"
    assert not store.claim("a1")
    store.release("a1")  # not ours to release
    assert not store.claim("a1")
    other.kill()
    other.communicate()
    assert store.claim("a1")
    assert store.claim("a1")  # ours
    store.release("a1")
    assert [path.name for path in (store.root / "claims").iterdir()] == [".lock"]


@pytest.mark.parametrize("text", ["", "not JSON", "[1]", '{"pid": 1}'])
def test_a_torn_claim_is_stale(store: Store, text: str) -> None:
    (store.root / "claims" / "a1").write_text(text)
    assert store.claim("a1")


def test_a_reused_pid_does_not_hold_a_claim(store: Store) -> None:
    assert store.claim("a1")
    path = store.root / "claims" / "a1"
    held = json.loads(path.read_text())
    path.write_text(json.dumps({**held, "pid": os.getppid(), "start": process_start(os.getppid())}))
    assert not store.claim("a1")  # our parent lives
    path.write_text(json.dumps({**held, "pid": os.getppid(), "start": "1"}))
    assert store.claim("a1")  # something else had that pid


def test_another_machines_claim_goes_stale_unless_touched(store: Store) -> None:
    path = store.root / "claims" / "a1"
    path.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "start": "1"}))
    assert not store.claim("a1")
    os.utime(path, (1, 1))
    store.touch("a1")
    assert not store.claim("a1")
    os.utime(path, (1, 1))
    assert store.claim("a1")


def test_sweep_removes_what_the_dead_left_and_nothing_else(store: Store) -> None:
    ours = store.begin("a1")
    pid, start = dead()
    machine = ours.name.split("-")[0].rpartition(".")[2]
    left = store.root / "tmp" / f"{pid}.{start}.{machine}-a1-00"
    left.mkdir()
    foreign = store.root / "tmp" / f"{pid}.{start}.elsewhere-a1-00"
    foreign.mkdir()
    store.sweep()
    assert ours.exists()
    assert foreign.exists()
    assert not left.exists()


def test_folders_that_cannot_be_written_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="a file of that name is in the way"):
        Store(tmp_path / "file" / "store").open()
    with pytest.raises(RequestError, match=r"/proc/nowhere cannot be made"):
        Store(Path("/proc/nowhere/store")).open()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.Path, "write_bytes", full)
    with pytest.raises(RequestError, match="no space left"):
        Store(tmp_path / "store").open()


def test_records_in_the_store_are_nobody_elses_to_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Store(tmp_path / "out" / "store").open()
    finally:
        os.umask(before)
    assert (tmp_path / "out" / "store").stat().st_mode & 0o077 == 0


def test_a_wrapped_full_disk_is_known_by_its_words(tmp_path: Path) -> None:
    assert "no space left" in (write_trouble(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path) or "")
    assert "permission denied" in (write_trouble(PermissionError(errno.EACCES, "no"), tmp_path) or "")
    assert "read-only" in (write_trouble(OSError(errno.EROFS, "no"), tmp_path) or "")
    assert write_trouble(RuntimeError("shape mismatch"), tmp_path) is None
    assert write_trouble(FileNotFoundError(2, "gone"), tmp_path) is None


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps")
def test_process_start_tells_processes_apart() -> None:
    pid, start = dead()
    assert process_start(pid) is None
    assert process_start(os.getpid()) not in (None, start)
