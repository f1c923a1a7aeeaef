"""A key on its way to a site: sealed so that only the site's private half opens it.

X25519 between a fresh ephemeral pair and the site's pair, HKDF-SHA256 over both public halves, AES-256-GCM with everything that is public
(site, federation, version, fingerprint) as associated data. A wrapped key does not say who wrapped it: a server in the middle could
wrap a key of its own, so a site opens it only against the fingerprint that it was told by another way, and the issuer compares the
fingerprint of the site's public half in the same way.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from infl import key_file
from infl.key import Identity, Key, same_fingerprint, spoken
from suites.errors import RequestError

_ONCE = bytes(12)  # the nonce of a key that seals one box: the ephemeral pair is fresh each time


@dataclass(frozen=True, slots=True)
class PublicHalf:
    """What a site gives to whoever issues the key."""

    site: str
    public: bytes

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"infl-bench site v1|" + self.site.encode() + b"|" + self.public).hexdigest()[:32]

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        key_file.write(path, "public", {"site": self.site, "public": self.public.hex()}, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path) -> PublicHalf:
        fields = key_file.read(path, "public")
        try:
            public = bytes.fromhex(fields["public"])
            X25519PublicKey.from_public_bytes(public)
            return cls(_site(fields["site"]), public)
        except (KeyError, ValueError, TypeError):
            raise RequestError(f"{path} lacks a part of a site's public half; take an unharmed copy") from None


class Pair:
    """A site's X25519 pair; the private half prints nothing and is never pickled."""

    __slots__ = ("_private", "public")

    def __init__(self, site: str, private: X25519PrivateKey) -> None:
        self._private = private
        self.public = PublicHalf(_site(site), private.public_key().public_bytes_raw())

    @classmethod
    def new(cls, site: str) -> Pair:
        return cls(site, X25519PrivateKey.generate())

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        fields = {"site": self.public.site, "private": self._private.private_bytes_raw().hex()}
        key_file.write(path, "private", fields, overwrite=overwrite)

    @classmethod
    def load(cls, path: Path) -> Pair:
        fields = key_file.read(path, "private")
        try:
            return cls(fields["site"], X25519PrivateKey.from_private_bytes(bytes.fromhex(fields["private"])))
        except (KeyError, ValueError, TypeError):
            raise RequestError(f"{path} lacks a part of a site's private half; take an unharmed copy") from None

    def agree(self, public: bytes) -> bytes:
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))

    def __repr__(self) -> str:
        return f"Pair({self.public.site!r}, {spoken(self.public.fingerprint)}, <withheld>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pair is never pickled or copied: load it where it is needed")


def wrap(key: Key, site: PublicHalf) -> dict[str, Any]:
    """The fields of a wrapped key, which only this site can open; all that they show is who it is for and which key it is."""
    ephemeral = X25519PrivateKey.generate()
    sender = ephemeral.public_key().public_bytes_raw()
    try:
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(site.public))
    except ValueError:  # a public half of small order, whose agreements are the same for everybody
        raise RequestError(f"the public half of site '{site.site}' is no honest X25519 key; ask the site for another") from None
    about = {"site": site.site, **_about(key)}
    box = key.sealed(lambda material: AESGCM(_box_key(shared, sender, site.public)).encrypt(_ONCE, material, _canonical(about)))
    return {**about, "sender": sender.hex(), "box": box.hex()}


def described(fields: dict[str, Any], path: Path) -> tuple[str, Identity]:
    """The site and the key that a wrapped file names; anybody can write one, so nothing but well-formed names is taken."""
    try:
        bytes.fromhex(fields["sender"] + fields["box"])
        return _site(fields["site"]), Identity.of_fields(fields)
    except (KeyError, ValueError, TypeError):
        raise RequestError(f"{path} lacks a part of a wrapped key, or holds a name that none has; have it wrapped again") from None


def unwrap(fields: dict[str, Any], pair: Pair, *, fingerprint: str, path: Path) -> Key:
    """The key in a wrapped file, opened by its site.

    Parameters
    ----------
    fingerprint : str
        As the issuer told it by another way than the file.

    Raises
    ------
    RequestError
        If the file is for another site, was changed, or holds another key than the fingerprint's.
    """
    own = pair.public
    if fields.get("site") != own.site:
        raise RequestError(f"{path} is wrapped for another site than '{own.site}'; ask the issuer for your own")
    try:
        about = {name: fields[name] for name in ("site", "federation", "version", "fingerprint")}
        sender = bytes.fromhex(fields["sender"])
        box_key = _box_key(pair.agree(sender), sender, own.public)
        material = AESGCM(box_key).decrypt(_ONCE, bytes.fromhex(fields["box"]), _canonical(about))
    except (InvalidTag, KeyError, ValueError, TypeError):
        raise RequestError(
            f"{path} does not open with the private half of '{own.site}': changed, or wrapped for another half; have it wrapped again"
        ) from None
    key = Key(material, about["federation"], about["version"])
    if not same_fingerprint(about["fingerprint"], key.identity.fingerprint):
        raise RequestError(f"{path} holds another key than its fingerprint says; have it wrapped again")
    if not same_fingerprint(fingerprint, key.identity.fingerprint):
        raise RequestError(
            f"{path} holds a key with fingerprint {spoken(key.identity.fingerprint)}, not the one that you were told; somebody in between "
            "may have put a key of their own there: ask the issuer"
        )
    return key


def _about(key: Key) -> dict[str, Any]:
    identity = key.identity
    return {"federation": identity.federation, "version": identity.version, "fingerprint": identity.fingerprint}


def _canonical(about: dict[str, Any]) -> bytes:
    return b"infl-bench wrapped key v1|" + json.dumps(about, sort_keys=True, separators=(",", ":")).encode()


def _box_key(shared: bytes, sender: bytes, recipient: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=sender + recipient, info=b"infl-bench wrap v1").derive(shared)


def _site(name: object) -> str:
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 100:
        raise RequestError("a site's name has 1 to 100 printable characters, since it is bound to its key; give another name")
    return name
