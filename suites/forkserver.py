"""A process that has torch loaded and forks one fresh process a cell: 15–40 ms instead of seconds of imports, and no state in common.

Own rather than ``multiprocessing``'s, which keeps one server a Python process: an edited plug-in would run in its old version, and a script
without a ``__main__`` guard would run itself again. Lines of JSON go in on stdin (what to call) and out on the old stdout (who ended).

Nobody outlives its parent: on Linux the kernel kills (PR_SET_PDEATHSIG); everywhere the end of stdin does, and workers watch their parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# glibc hands every large tensor back to the system and fetches its next one page by page: a tenth of a small network's step. What is as
# large as a cohort goes back all the same: a heap that small tensors have come to lie in cannot give it room a second time.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_TOP_PAD_": "67108864"}


class ForkServer:
    """The parent's end: ``submit`` a call, ``ended`` says which calls are over."""

    def __init__(self, preload: Sequence[str], errors: Path) -> None:
        fixed = {"PYTHONHASHSEED": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        environment = {**_KEEP_MEMORY, **os.environ, **dict.fromkeys(_ONE_THREAD, "1"), **fixed}
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from suites.forkserver import serve; serve(int(sys.argv[2]))"
        command = [sys.executable, "-P", "-c", code, json.dumps([str(Path(p or ".").resolve()) for p in sys.path]), str(os.getpid())]
        with errors.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment)
        self._rest = b""
        self.preload(preload)

    def preload(self, names: Sequence[str]) -> None:
        """Have modules imported, or ``module:function`` called, in the server: for every process forked from now on."""
        self._send({"preload": list(names)})

    def submit(self, token: str, call: str, arguments: Mapping[str, Any]) -> None:
        """Have ``module:function`` called with keyword arguments in a fresh process."""
        self._send({"token": token, "call": call, "arguments": arguments})

    def kill(self, token: str) -> None:
        self._send({"kill": token})

    def ended(self, timeout: float) -> list[tuple[str, int]]:
        """Tokens of processes that ended, with exit code (negative: signal); waits up to ``timeout`` seconds for the first.

        Raises ChildProcessError when the server itself has ended: what was submitted and not reported must be submitted to another.
        """
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], timeout)[0]:
            return []
        read = os.read(out.fileno(), 1 << 16)
        if not read:
            raise ChildProcessError(f"the process that starts the workers ended with code {self._process.wait()}")
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [(str(message["token"]), int(message["code"])) for message in map(json.loads, lines)]

    def close(self) -> None:
        """End the server and every worker at once."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its workers die with it
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the server is gone: ``ended`` says so, in one place for whatever it was doing
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()


def serve(parent: int) -> None:
    """The server's loop: import what is asked for, fork for each call, report each end; ends with its parent."""
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not mix with the protocol
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    workers: dict[int, str] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake_read, 4096)
        _report(workers, out)
        if 0 not in ready:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            for pid in workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in workers:  # whoever waits for this end may clear away what they were writing
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
            os._exit(0)
        *lines, rest = (rest + read).split(b"\n")
        for message in map(json.loads, lines):
            _obey(message, workers, (out, wake_read, wake_write))


def _obey(message: Mapping[str, Any], workers: dict[int, str], private: Sequence[int]) -> None:
    for name in message.get("preload", ()):
        with contextlib.suppress(Exception):  # the worker that needs it says what is wrong
            module, _, function = name.partition(":")
            loaded = importlib.import_module(module)
            if function:
                getattr(loaded, function)()
    if "kill" in message:
        for pid in [pid for pid, token in workers.items() if token == message["kill"]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    if "call" in message:
        gc.freeze()  # a worker's collector then leaves the server's objects alone, and their memory pages shared
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _work(message, server, private)
        workers[pid] = message["token"]


def _report(workers: dict[int, str], out: int) -> None:
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in workers:
            line = json.dumps({"token": workers.pop(pid), "code": os.waitstatus_to_exitcode(status)})
            os.write(out, line.encode() + b"\n")


def _work(message: Mapping[str, Any], server: int, private: Sequence[int]) -> None:
    """A worker's life: one call, then the end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with(server)
        for descriptor in private:
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        threading.Thread(target=_watch, args=(server,), daemon=True).start()
        module, _, function = str(message["call"]).partition(":")
        getattr(importlib.import_module(module), function)(**message["arguments"])
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends; it may have ended already."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
