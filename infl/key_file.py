"""Small JSON files for keys: read only from a file that nobody else can read, written whole or not at all.

A file is one object: what it is (``infl-bench``), its schema, its fields, and a check value over all of them: HMAC-SHA256 under the secret
that the file holds, or under a public constant where it holds none (that one finds accidents, not forgers). No error ever quotes a field
of a file with a secret.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from suites.errors import RequestError

SCHEMA = 1
WORDS = {
    "key": "a key",
    "private": "a site's private half",
    "public": "a site's public half",
    "wrapped": "a wrapped key",
    "revoked": "a list of revoked keys",
}
SECRET_FIELD = {"key": "material", "private": "private"}  # kinds that hold a secret, and where
_LARGEST = 1 << 20  # bytes; the longest honest file is a list of revoked versions


def write(path: Path, kind: str, fields: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a file of mode 0600 (0644 where it holds no secret): complete and synced before it has its name.

    Raises ``RequestError`` where a file is in the way and ``overwrite`` was not asked for, or the folder cannot be written.
    """
    with staged(path, kind, fields, overwrite=overwrite) as name:
        name()


@contextlib.contextmanager
def staged(path: Path, kind: str, fields: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[Callable[[], None]]:
    """``write`` in two steps, so that of two files none has its name before both are on the disk; what it yields gives the name."""
    content = {"infl-bench": kind, "schema": SCHEMA, **fields}
    content["check"] = _check(content, kind)
    text = (json.dumps(content, indent=1) + "\n").encode()
    with _said(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")  # mode 0600 from the first byte on

    def name() -> None:
        with _said(path):
            if overwrite:
                os.replace(temporary, path)
            else:
                _name(Path(temporary), path)
            _sync(path.parent)

    try:
        with _said(path), os.fdopen(handle, "wb") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o600 if kind in SECRET_FIELD else 0o644)
            stream.flush()
            os.fsync(stream.fileno())
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """What the file system refuses, as one sentence."""
    try:
        yield
    except FileExistsError:
        _refuse_taken(path)
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written ({(error.strerror or 'unknown reason').lower()}); give a name in a folder of yours"
        ) from None


def read(path: Path, *kinds: str) -> dict[str, Any]:
    """The fields of a file of one of these kinds (``["infl-bench"]`` says which).

    Raises ``RequestError`` where it is missing, readable by others though it may hold a secret, truncated, changed, of another schema or
    of another kind.
    """
    text, about = _bytes(path)
    if all(kind in SECRET_FIELD for kind in kinds):
        _refuse_others(path, about)
    what = " or ".join(WORDS[kind] for kind in kinds)
    try:
        content: dict[str, Any] = json.loads(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise RequestError(f"{path} is no file of infl-bench, or it was cut short; {what} is needed: take an unharmed copy") from None
    kind = content.get("infl-bench") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in WORDS:
        raise RequestError(f"{path} is no file of infl-bench; {what} is needed")
    if kind in SECRET_FIELD:
        _refuse_others(path, about)
    if content.get("schema") != SCHEMA:
        raise RequestError(f"{path} is of another schema than {SCHEMA}, which this infl-bench reads; use the version that wrote it")
    try:
        sound = hmac.compare_digest(str(content.pop("check", "")).encode(), _check(content, kind).encode())
    except (KeyError, ValueError, TypeError):
        sound = False
    if not sound:
        raise RequestError(f"{path} was changed after it was written (its check value does not fit); take an unharmed copy")
    if kind not in kinds:
        raise RequestError(f"{path} holds {WORDS[kind]}, but {what} is needed here")
    return content


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Raises ``RequestError`` where a file is in the way; ``write`` does so too, but only when everything before it was done."""
    if path.exists() and not overwrite:
        _refuse_taken(path)


def _refuse_taken(path: Path) -> NoReturn:
    raise RequestError(f"{path} exists and a key is never overwritten unasked; give another name, or --overwrite") from None


def _check(content: Mapping[str, Any], kind: str) -> str:
    secret = bytes.fromhex(content[SECRET_FIELD[kind]]) if kind in SECRET_FIELD else b"no secret"
    key = hashlib.sha256(b"infl-bench file check v1|" + secret).digest()
    return hmac.digest(key, json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), "sha256").hex()


def _bytes(path: Path) -> tuple[bytes, os.stat_result]:
    """Content, owner and mode of one and the same opened file, so that nothing can be swapped between look and read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe under that name must not make us wait
    except FileNotFoundError:
        raise RequestError(f"there is no file {path}; check the path, or make a key with `infl-bench key new`") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({(error.strerror or 'unknown reason').lower()}); check its owner and mode") from None
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
            raise RequestError(f"{path} is no regular small file, as all files of `infl-bench key` are; check the path")
        return os.read(handle, _LARGEST), about
    finally:
        os.close(handle)


def _refuse_others(path: Path, about: os.stat_result) -> None:
    """A secret is read only from a file that its owner alone can reach."""
    if about.st_mode & 0o077:
        raise RequestError(
            f"{path} has mode {stat.S_IMODE(about.st_mode):04o}, so others on this machine can reach the secret in it; run "
            f"`chmod 600 {path}`, and rotate the key if they may have read it"
        )
    if hasattr(os, "geteuid") and about.st_uid not in (os.geteuid(), 0):
        raise RequestError(f"{path} belongs to another user, who could change it; copy it to a file of your own with mode 0600")


def _name(temporary: Path, path: Path) -> None:
    """Give a finished file its name without taking anybody else's."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # no hard links here: take the name, then fill it
        os.replace(temporary, path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
