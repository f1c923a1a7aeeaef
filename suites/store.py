"""Finished cells by content: ``DIR/store/<stage>/<id>/``, there whole or not at all.

A worker fills a folder under a name of its own and renames it when done; ``cell.json``, written last, lists every file's size, so that a
torn cell (a power cut) is seen as absent. A claim names the process that computes a cell, by pid and start time: of a dead process, or of
one that merely inherited the pid, it is stale and taken up. Several runs may share a folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from suites.errors import RequestError

MANIFEST = "cell.json"
_DAY = 86400.0
FOREIGN_CLAIM_SECONDS = 120.0  # a claim of another machine counts while it is touched at least this often
_FULL = {errno.ENOSPC: "no space left on the device", errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "the file would be too big"}
_BARRED = {errno.EACCES: "permission denied", errno.EPERM: "permission denied", errno.EROFS: "the file system is read-only"}


@dataclass(frozen=True, slots=True)
class Store:
    """The cells of one output folder."""

    root: Path

    def folder(self, stage: str, identity: str) -> Path:
        return self.root / stage / identity

    def manifest(self, stage: str, identity: str) -> dict[str, Any] | None:
        """What the cell recorded of itself, or None unless every file is there in full."""
        folder = self.folder(stage, identity)
        try:
            found: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if all((folder / name).stat().st_size == size for name, size in found["files"].items()):
                return found
        except (OSError, ValueError, KeyError):
            pass
        return None

    def open(self) -> None:
        """Make the folders and try a write, so that a bad output folder is told before hours of work."""
        with writing(self.root.parent):
            for name in ("train", "reference", "attack", "claims", "failed", "tmp"):
                try:
                    self.root.mkdir(mode=0o700, parents=True, exist_ok=True)  # records lie below: nobody else's to read
                    (self.root / name).mkdir(exist_ok=True)
                except FileNotFoundError:  # a place such as /proc, where nothing can be made
                    raise RequestError(f"{self.root.parent} cannot be made: that place takes no folders; give another --out") from None
            trial = self.root / "tmp" / _own_name("trial")
            trial.write_bytes(b"x")
            trial.unlink()

    def begin(self, identity: str) -> Path:
        """A fresh folder of this process's own, two levels below the root like a finished one."""
        folder = self.root / "tmp" / _own_name(identity)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, stage: str, identity: str, recorded: Mapping[str, Any]) -> None:
        """Make a filled folder the finished cell, in one rename; if somebody else was first, theirs stays."""
        files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        (folder / MANIFEST).write_text(json.dumps({**recorded, "files": files}, indent=1))
        final = self.folder(stage, identity)
        if final.exists() and self.manifest(stage, identity) is None:
            shutil.rmtree(final)  # torn
        try:
            folder.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(folder)

    def claim(self, identity: str) -> bool:
        """Take a cell for this process; False while another living process has it."""
        path = self.root / "claims" / identity
        with self._lock():
            if path.exists() and not _is_stale(path):
                return _holder(path) == _myself()
            _replace(path, json.dumps(_myself()))
        return True

    def touch(self, identity: str) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.root / "claims" / identity)

    def release(self, identity: str) -> None:
        path = self.root / "claims" / identity
        with self._lock(), contextlib.suppress(OSError):
            if _holder(path) == _myself():
                path.unlink()

    def sweep(self) -> None:
        """Remove what dead processes left half done; of other machines only what is a day old, since nobody here can ask them."""
        for path in [*(self.root / "tmp").iterdir(), *(self.root / "prepared").glob("*.tmp")]:
            pid, _, rest = path.name.partition("-")[0].partition(".")
            start, _, machine = rest.rpartition(".")
            ours = machine == _machine()
            with contextlib.suppress(OSError):
                old = time.time() - path.stat().st_mtime > _DAY
                if old or (ours and process_start(int(pid)) != start):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / "claims" / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)  # the kernel gives it back when we die
            yield


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk or a barred folder into one sentence."""
    try:
        yield
    except OSError as error:
        sentence = write_trouble(error, folder)
        if sentence is None:
            raise
        raise RequestError(sentence) from None


def write_trouble(error: BaseException, folder: Path) -> str | None:
    """The sentence for an error of writing, also one that a library wrapped in its own; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or "No space left on device" in str(error):
        why = _FULL.get(code or errno.ENOSPC, "no space left on the device")
        return f"{folder} cannot be written: {why}; free some or give another --out, then run again to go on where it stopped"
    if code in _BARRED:
        return f"{folder} cannot be written: {_BARRED[code]}; give another --out or mend its permissions"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{folder} cannot be a folder, since a file of that name is in the way; give another --out"
    return None


@cache
def _machine() -> str:
    """A short name of this machine since its last start: pids mean something only within it."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:12]
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


def process_start(pid: int) -> str | None:
    """When a living process started, as text that no later process of the same pid repeats; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]  # field 22, clock ticks since boot
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout  # no /proc: macOS
    return "_".join(said.split()) or None


def _myself() -> dict[str, Any]:
    return {"machine": _machine(), "pid": os.getpid(), "start": process_start(os.getpid())}


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return {key: found[key] for key in ("machine", "pid", "start")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_stale(path: Path) -> bool:
    holder = _holder(path)
    if holder is None:
        return True
    if holder["machine"] != _machine():
        return time.time() - path.stat().st_mtime > FOREIGN_CLAIM_SECONDS
    return process_start(int(holder["pid"])) != str(holder["start"])


def _own_name(identity: str) -> str:
    pid = os.getpid()
    return f"{pid}.{process_start(pid)}.{_machine()}-{identity}-{secrets.token_hex(4)}"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)
