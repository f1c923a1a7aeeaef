"""The life of a federation's key: made from the operating system's entropy, saved, told apart, rotated.

One file serves every keyed defense: its 256 bits are never used themselves but expanded by HKDF, apart for each purpose (the published
method's coordinates, the hardened one's mixing, fingerprints, proofs). A fingerprint is such an expansion too, so it tells keys apart
and says nothing about them. Torch is imported only where numbers are drawn.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from infl import key_file
from suites.errors import RequestError

if TYPE_CHECKING:
    from suites.contracts import Defense, Secret
    from suites.randomness import KeyStream

KEY_BYTES = 32
FINGERPRINT_BYTES = 16  # nobody finds a second key with the same 128 bits


@dataclass(frozen=True, slots=True)
class Identity:
    """What may be known of a key: its federation (a random public number), its version, its fingerprint."""

    federation: str
    version: int
    fingerprint: str

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Identity:
        """As a public file names it, which anybody can write; raises ``KeyError`` or ``ValueError`` for what no key is called."""
        federation, version, fingerprint = fields["federation"], fields["version"], fields["fingerprint"]
        if not (_is_hex(federation, 16) and _is_hex(fingerprint, FINGERPRINT_BYTES)) or type(version) is not int or version < 1:
            raise ValueError("no key is called so")
        return cls(federation, version, fingerprint)

    def __str__(self) -> str:
        return f"version {self.version}, fingerprint {spoken(self.fingerprint)}, federation {self.federation}"


class Key:
    """256 secret bits of one version; prints nothing, is never pickled or copied.

    Parameters
    ----------
    material : bytes
        32 bytes.
    federation : str
        32 hexadecimal digits, the same for all versions of a federation's key.
    version : int
        From 1 on.
    """

    __slots__ = ("_material", "identity")

    def __init__(self, material: bytes, federation: str, version: int) -> None:
        if len(material) != KEY_BYTES:
            raise RequestError(f"a key has {KEY_BYTES} bytes and this one {len(material)}, so it is cut short or no key; take another copy")
        if not _is_hex(federation, 16) or type(version) is not int or version < 1:
            raise RequestError(
                "a key names its federation by 32 hexadecimal digits and its version from 1 on; this one does not: take another"
            )
        self._material = material
        self.identity = Identity(federation, version, self._derive("fingerprint", FINGERPRINT_BYTES, federation, version).hex())

    @classmethod
    def new(cls) -> Key:
        """Version 1 of a new federation's key, from the operating system's entropy."""
        return cls(secrets.token_bytes(KEY_BYTES), secrets.token_hex(16), 1)

    def rotated(self) -> Key:
        """The next version: fresh entropy, nothing derived from this one, so whoever holds the old key learns nothing of the new."""
        return Key(secrets.token_bytes(KEY_BYTES), self.identity.federation, self.identity.version + 1)

    def source(self, purpose: str) -> KeyStream:
        """The stream from which a defense draws its secret; each purpose has its own."""
        from suites.randomness import KeyStream

        return KeyStream(self._derive("stream", KEY_BYTES, purpose))

    def proof(self, *facts: object) -> str:
        """A MAC that only holders of this version can make and check."""
        said = "|".join(f"{len(str(fact))}:{fact}" for fact in facts)
        return hmac.digest(self._derive("proof", KEY_BYTES), said.encode(), "sha256").hex()

    def sealed(self, seal: Callable[[bytes], bytes]) -> bytes:
        """The material through an encryption: how ``infl.key_wrap`` carries it without anybody else reading it."""
        return seal(self._material)

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the key to a file that only its owner can read (mode 0600); refuses to replace a file unless told."""
        with self.staged(path, overwrite=overwrite) as name:
            name()

    def staged(self, path: Path, *, overwrite: bool = False) -> AbstractContextManager[Callable[[], None]]:
        """``save`` in the two steps of ``key_file.staged``."""
        fields = {
            "federation": self.identity.federation,
            "version": self.identity.version,
            "fingerprint": self.identity.fingerprint,
            "material": self._material.hex(),
        }
        return key_file.staged(path, "key", fields, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path, *, expected: str | None = None) -> Key:
        """Read a key file; raises ``RequestError`` for a mode looser than 0600, harm of any kind, or another fingerprint than expected."""
        return cls.of_fields(key_file.read(path, "key"), path, expected)

    @classmethod
    def of_fields(cls, fields: dict[str, Any], path: Path, expected: str | None = None) -> Key:
        try:
            key = cls(bytes.fromhex(fields["material"]), fields["federation"], fields["version"])
            named = fields["fingerprint"]
        except (KeyError, ValueError, TypeError):
            raise RequestError(f"{path} lacks a part of a key; take an unharmed copy") from None
        if not same_fingerprint(named, key.identity.fingerprint):
            raise RequestError(f"{path} holds another key than its fingerprint says; take an unharmed copy")
        if expected is not None and not same_fingerprint(expected, key.identity.fingerprint):
            raise RequestError(
                f"{path} holds a key with fingerprint {spoken(key.identity.fingerprint)}, not {expected}: it is another federation's or "
                "another version; ask whoever issued the key"
            )
        return key

    def _derive(self, purpose: str, count: int, *facts: object) -> bytes:
        info = hashlib.sha256(repr(("infl-bench key v1", purpose, *facts)).encode()).digest()
        return HKDF(SHA256(), count, salt=None, info=info).derive(self._material)

    def __repr__(self) -> str:
        return f"Key({self.identity}, <withheld>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key is never pickled or copied: load it where it is needed")


def secret_of(key: Key, defense: Defense) -> Secret:
    """The defense's secret from the key file's bits; each kind of defense has its own stream of them."""
    secret = defense.secret(key.source(f"secret of {type(defense).__qualname__}"))
    if secret is None:
        raise RequestError(
            f"{type(defense).__name__} has no key, so a key file gives it nothing; use a keyed defense such as infl:hardened"
        )
    return secret


def spoken(fingerprint: str) -> str:
    """In groups of four, as people compare it."""
    return "-".join(fingerprint[start : start + 4] for start in range(0, len(fingerprint), 4))


def same_fingerprint(one: str, other: str) -> bool:
    """Equal but for case, hyphens and blanks."""
    plain = [text.replace("-", "").replace(" ", "").lower() for text in (str(one), str(other))]
    return hmac.compare_digest(plain[0].encode(), plain[1].encode())


def _is_hex(text: object, count: int) -> bool:
    try:
        return isinstance(text, str) and len(bytes.fromhex(text)) == count and len(text) == 2 * count
    except ValueError:
        return False
