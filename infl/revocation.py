"""Versions of a key that must not be used any more: a public list that sites keep beside their key.

Each entry carries a certificate that only a holder of the revoked version can make, as with a revocation certificate of OpenPGP. Who
holds that version checks it; everybody else takes the entry as it stands, since an entry can only make a gate refuse more. An old list put
in the place of a newer one is not noticed: keep it where only its owner writes.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infl import key_file
from infl.key import Identity, Key
from suites.errors import RequestError


@dataclass(frozen=True, slots=True)
class Revoked:
    """The revoked versions, each with its certificate."""

    entries: tuple[tuple[Identity, str], ...] = ()

    def with_key(self, key: Key) -> Revoked:
        """The list with this version added; only a holder of the key can do that."""
        if self.holds(key.identity):
            return self
        return Revoked((*self.entries, (key.identity, key.proof("revoked"))))

    def holds(self, identity: Identity) -> bool:
        return any(entry == identity for entry, _ in self.entries)

    def refuse(self, key: Key) -> None:
        """Raises ``RequestError`` if this key was revoked, or if an entry that names it was not made by a holder of it."""
        for entry, certificate in self.entries:
            if entry == key.identity and not hmac.compare_digest(certificate.encode(), key.proof("revoked").encode()):
                raise RequestError(
                    f"the list of revoked keys names version {entry.version} without its certificate, so nobody who holds that key "
                    "revoked it; ask the issuer for an unharmed list"
                )
        self.refuse_named(key.identity)

    def refuse_named(self, identity: Identity) -> None:
        """The same for who holds only the key's name, and so takes an entry as it stands."""
        if self.holds(identity):
            raise RequestError(f"version {identity.version} of this federation's key was revoked; ask the issuer for the new version")

    def save(self, path: Path) -> None:
        with self.staged(path) as name:
            name()

    def staged(self, path: Path) -> AbstractContextManager[Callable[[], None]]:
        """``save`` in the two steps of ``key_file.staged``."""
        fields = [
            {"federation": e.federation, "version": e.version, "fingerprint": e.fingerprint, "certificate": proof}
            for e, proof in self.entries
        ]
        return key_file.staged(path, "revoked", {"revoked": fields}, overwrite=True)

    @classmethod
    def load(cls, path: Path) -> Revoked:
        entries: Any = key_file.read(path, "revoked").get("revoked")
        try:
            return cls(tuple((Identity.of_fields(entry), str(entry["certificate"])) for entry in entries))
        except (KeyError, ValueError, TypeError):
            raise RequestError(f"{path} lacks a part of a list of revoked keys; take an unharmed copy") from None

    @classmethod
    def at(cls, path: Path) -> Revoked:
        """The list there, or an empty one where there is none yet."""
        return cls.load(path) if path.exists() else cls()
