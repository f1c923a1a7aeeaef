"""Pinned files onto this machine: from a mirror folder, from the cache, or by download; verified every time they are used.

The mirror (``infl-bench data fetch --mirror DIR``, or ``$INFL_BENCH_DATA``) is read and never written: a copy of somebody's cache,
for machines without a network. The cache is ``$INFL_BENCH_CACHE``, else ``~/.cache/infl-bench``. What is on disk already is not
fetched again, so an interrupted fetch goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from suites.cohorts.originals import ORIGINALS, Original
from suites.errors import RequestError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache() -> Path:
    """The folder for what is downloaded or parsed."""
    given = os.environ.get("INFL_BENCH_CACHE")
    return Path(given).expanduser() if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "infl-bench"


def fetch(name: str, mirror: Path | None = None, say: Callable[[str], None] = lambda line: None) -> dict[str, Path]:
    """The verified original files of a cohort, by file name; ``say`` is told of each download.

    Raises
    ------
    RequestError
        A file with a wrong checksum or cut short, no network, a cache that cannot be written.
    """
    if mirror is None and os.environ.get("INFL_BENCH_DATA"):
        mirror = Path(os.environ["INFL_BENCH_DATA"]).expanduser()
    if mirror is not None and not mirror.is_dir():
        raise RequestError(f"the mirror folder {mirror} is not there; correct --mirror or $INFL_BENCH_DATA, or leave both out to download")
    return {Path(original.file).name: _one(original, mirror, say) for original in ORIGINALS[name]}


def place(original: Original, mirror: Path | None = None) -> Path | None:
    """Where a file already lies, or None."""
    if mirror is None and os.environ.get("INFL_BENCH_DATA"):
        mirror = Path(os.environ["INFL_BENCH_DATA"]).expanduser()
    stored = cache() / "originals" / original.file
    places = [stored] if mirror is None else [mirror / original.file, mirror / "originals" / original.file, stored]
    return next((path for path in places if path.exists()), None)


def _one(original: Original, mirror: Path | None, say: Callable[[str], None]) -> Path:
    found = place(original, mirror)
    if found is not None:
        verify(found, original)
        return found
    stored = cache() / "originals" / original.file
    make_folder(stored.parent)
    with _alone(stored.parent) as alone:
        if not stored.exists():  # another process may have fetched it while this one waited
            for stale in () if not alone else stored.parent.glob(f"{tempfile.gettempprefix()}*"):
                stale.unlink(missing_ok=True)  # of a download that was killed: nobody else is at it
            say(f"downloading {original.url} ({original.size / 1e6:.1f} MB)")
            _download(original, stored)
    verify(stored, original)
    return stored


def verify(path: Path, original: Original) -> None:
    """RequestError unless the file is, byte for byte, the pinned one."""
    if not os.access(path, os.R_OK):
        raise RequestError(f"{path} cannot be read; change its permissions")
    size = path.stat().st_size
    if size < original.size:
        raise RequestError(f"{path} is cut short ({size} of {original.size} bytes), so records would be missing; delete it and fetch again")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != original.sha256:
        raise RequestError(
            f"{path} is not the pinned file (SHA-256 {found[:16]}…, expected {original.sha256[:16]}…), so its numbers would not compare; "
            "delete it and fetch again"
        )


def _download(original: Original, path: Path) -> None:
    """Into a temporary file beside the target, which is moved into place only when its checksum is right."""
    try:
        import pooch  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        raise RequestError(f"downloading {path.name} needs pooch, which is not installed; run pip install 'infl-bench[data]'") from None
    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(original.url, known_hash=f"sha256:{original.sha256}", fname=path.name, path=path.parent)
    except ValueError as error:  # pooch's word for a wrong checksum
        raise RequestError(
            f"{original.url} no longer serves the pinned file, so its numbers would not compare; use a mirror folder that has it "
            "($INFL_BENCH_DATA)"
        ) from error
    except OSError as error:
        if error.errno not in _FULL:
            raise _unreachable(original, error) from error
        raise RequestError(
            f"the cache folder {path.parent} has no room for {path.name} ({original.size / 1e6:.1f} MB: {error.strerror}); make room or "
            "set $INFL_BENCH_CACHE"
        ) from error
    except Exception as error:  # requests, urllib3, ftp and ssl raise their own
        raise _unreachable(original, error) from error


def _unreachable(original: Original, error: Exception) -> RequestError:
    return RequestError(
        f"{original.url} could not be downloaded ({type(error).__name__}); without a network, copy {original.file} into a folder "
        "and name that folder by --mirror or $INFL_BENCH_DATA"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """One process at a time; the kernel gives the lock back when its holder dies. False on a file system without locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(
            f"the cache folder {folder} cannot be written ({error.strerror}); set $INFL_BENCH_CACHE to one that can"
        ) from error
