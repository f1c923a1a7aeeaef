"""A key's life in files: what is written, what is refused, and that nothing public tells anything of the key."""

import json
import os
import pickle
import stat
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from infl import key_file
from infl.key import Key, same_fingerprint, spoken
from infl.key_wrap import Pair, PublicHalf, unwrap, wrap
from infl.revocation import Revoked
from suites.errors import RequestError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Key.new().save(tmp_path / "key")
    return tmp_path / "key"


def material(path: Path) -> str:
    text = json.loads(path.read_text())["material"]
    assert len(text) == 64
    return str(text)


def refused(call: Callable[[], object], *words: str, secret: str = "") -> None:
    with pytest.raises(RequestError) as caught:
        call()
    said = str(caught.value)
    for word in words:
        assert word in said, said
    assert "\n" not in said
    assert not secret or secret not in said


def test_saved_for_the_owner_alone_and_read_back(tmp_path: Path) -> None:
    key = Key.new()
    old = os.umask(0)
    try:
        key.save(tmp_path / "key")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert Key.load(tmp_path / "key").identity == key.identity
    assert Key.load(tmp_path / "key").source("x").bytes(16) == key.source("x").bytes(16)
    assert os.listdir(tmp_path) == ["key"]  # no half-written file is left


def test_256_bits_that_differ_each_time(tmp_path: Path) -> None:
    drawn = set()
    for i in range(8):
        Key.new().save(tmp_path / str(i))
        drawn.add(material(tmp_path / str(i)))
    assert len(drawn) == 8


def test_never_overwrites_unasked(saved: Path) -> None:
    before = saved.read_bytes()
    refused(lambda: Key.new().save(saved), "exists", "--overwrite")
    assert saved.read_bytes() == before
    Key.new().save(saved, overwrite=True)
    assert saved.read_bytes() != before


def test_a_folder_without_hard_links_still_never_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    key = Key.new()
    key.save(tmp_path / "key")
    assert Key.load(tmp_path / "key").identity == key.identity
    refused(lambda: Key.new().save(tmp_path / "key"), "exists")
    assert Key.load(tmp_path / "key").identity == key.identity


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_looser_mode_is_refused(saved: Path, mode: int) -> None:
    saved.chmod(mode)
    refused(lambda: Key.load(saved), f"mode 0{mode:o}", "chmod 600", secret=json.loads(saved.read_bytes())["material"])
    saved.chmod(0o400)
    Key.load(saved)


def test_every_cut_and_every_changed_byte_is_refused(saved: Path) -> None:
    whole, secret = saved.read_bytes(), material(saved)
    for end in range(0, len(whole) - 2, 7):
        saved.write_bytes(whole[:end])
        refused(lambda: Key.load(saved), str(saved), secret=secret)
    for at in range(len(whole) - 1):
        changed = bytearray(whole)
        changed[at] ^= 1
        if json_equal(bytes(changed), whole):
            continue  # blanks between fields, or the case of a digit: the same content
        saved.write_bytes(bytes(changed))
        refused(lambda: Key.load(saved), str(saved), secret=secret)


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["cut short"]),
        (b"\x80\x04\x95pickled", ["no file of infl-bench"]),
        (b"[1, 2]", ["no file of infl-bench"]),
        (b'{"infl-bench": {"a": 1}}', ["no file of infl-bench"]),
        (b'{"infl-bench": "key", "schema": 2}', ["another schema"]),
        (b'{"infl-bench": "key", "schema": 1}', ["changed after"]),
        (b'{"infl-bench": "key", "schema": 1, "material": "zz", "check": 3}', ["changed after"]),
        (b"[" * 100_000, ["cut short"]),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", ["no file of infl-bench"]),
    ],
)
def test_what_is_no_key_file(saved: Path, content: bytes, words: list[str]) -> None:
    saved.write_bytes(content)
    refused(lambda: Key.load(saved), *words)


def test_places_that_hold_no_key(tmp_path: Path) -> None:
    refused(lambda: Key.load(tmp_path / "nowhere"), "no file", "infl-bench key new")
    refused(lambda: Key.load(tmp_path), "no regular")
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(lambda: Key.load(tmp_path / "pipe"), "no regular")
    refused(lambda: Key.new().save(tmp_path / "no" / "folder"), "cannot be written")


def test_other_kinds_and_other_keys_are_told_apart(saved: Path, tmp_path: Path) -> None:
    Pair.new("a").save(tmp_path / "a.private")
    refused(lambda: Key.load(tmp_path / "a.private"), "holds a site's private half", "a key is needed")
    key = Key.load(saved)
    assert Key.load(saved, expected=spoken(key.identity.fingerprint).upper()).identity == key.identity
    refused(lambda: Key.load(saved, expected=Key.new().identity.fingerprint), "another federation's or another version")


def test_a_consistent_file_with_another_version_needs_the_key_itself(saved: Path) -> None:
    fields = json.loads(saved.read_text())
    fields["version"] = 2
    saved.write_text(json.dumps(fields))
    refused(lambda: Key.load(saved), "changed after")
    fields["check"] = key_file._check({k: v for k, v in fields.items() if k != "check"}, "key")
    saved.write_text(json.dumps(fields))
    refused(lambda: Key.load(saved), "fingerprint")  # which is bound to the version


def test_the_fingerprint_is_an_expansion_of_its_own(saved: Path) -> None:
    """Known answer by another road: HKDF over the material with the documented info."""
    import hashlib

    fields = json.loads(saved.read_text())
    info = hashlib.sha256(repr(("infl-bench key v1", "fingerprint", fields["federation"], 1)).encode()).digest()
    expected = HKDF(SHA256(), 16, salt=None, info=info).derive(bytes.fromhex(fields["material"])).hex()
    key = Key.load(saved)
    assert key.identity.fingerprint == expected
    # No bytes of the key, of what a defense draws, or of a proof are in it.
    assert expected not in fields["material"]
    assert key.source("fingerprint").bytes(16).hex() != expected
    assert key.proof("fingerprint")[:32] != expected
    assert hashlib.sha256(bytes.fromhex(fields["material"])).hexdigest()[:32] != expected


def test_purposes_are_apart(saved: Path) -> None:
    key = Key.load(saved)
    assert key.source("a").bytes(32) != key.source("b").bytes(32)
    assert key.source("a").bytes(32) == key.source("a").bytes(32)
    assert key.proof("ab", "c") != key.proof("a", "bc")


def test_rotation_is_fresh_and_keeps_the_federation(tmp_path: Path) -> None:
    one = Key.new()
    two, other = one.rotated(), one.rotated()
    assert two.identity.federation == one.identity.federation
    assert two.identity.version == 2
    assert len({one.identity.fingerprint, two.identity.fingerprint, other.identity.fingerprint}) == 3
    two.save(tmp_path / "two")
    one.save(tmp_path / "one")
    assert material(tmp_path / "one") != material(tmp_path / "two")


def test_a_key_prints_nothing_and_is_not_copied(saved: Path) -> None:
    key, pair = Key.load(saved), Pair.new("a")
    assert material(saved)[:8] not in repr(key) + str(key) + f"{key!s}"
    assert "withheld" in repr(key)
    assert "withheld" in repr(pair)
    for thing in (key, pair):
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            deepcopy(thing)


# ---------------------------------------------------------------------------------------------------------------- wrapping


def test_wrapped_for_one_site(tmp_path: Path, saved: Path) -> None:
    key, site, other = Key.load(saved), Pair.new("hospital-a"), Pair.new("hospital-a")
    fields, where = wrap(key, site.public), tmp_path / "w"
    assert material(saved) not in json.dumps(fields)
    opened = unwrap(fields, site, fingerprint=key.identity.fingerprint, path=where)
    assert opened.identity == key.identity
    assert opened.source("x").bytes(8) == key.source("x").bytes(8)
    refused(lambda: unwrap(fields, other, fingerprint=key.identity.fingerprint, path=where), "does not open")
    refused(lambda: unwrap(fields, Pair.new("b"), fingerprint=key.identity.fingerprint, path=where), "another site")
    assert wrap(key, site.public)["box"] != fields["box"]  # a fresh ephemeral pair each time


@pytest.mark.parametrize("name", ["site", "federation", "version", "fingerprint", "sender", "box"])
def test_everything_about_a_wrapped_key_is_bound(tmp_path: Path, saved: Path, name: str) -> None:
    key, site = Key.load(saved), Pair.new("a")
    fields = wrap(key, site.public)
    changed = {"site": "b", "version": 2, "federation": "00" * 16, "fingerprint": "00" * 16, "sender": "11" * 32, "box": fields["box"][2:]}
    fields[name] = changed[name]
    refused(lambda: unwrap(fields, site, fingerprint=key.identity.fingerprint, path=tmp_path / "w"), str(tmp_path / "w"))
    del fields[name]
    refused(lambda: unwrap(fields, site, fingerprint=key.identity.fingerprint, path=tmp_path / "w"), str(tmp_path / "w"))


def test_a_key_put_in_its_place_by_somebody_else_is_not_taken(tmp_path: Path, saved: Path) -> None:
    site, told = Pair.new("a"), Key.load(saved).identity.fingerprint
    refused(lambda: unwrap(wrap(Key.new(), site.public), site, fingerprint=told, path=tmp_path / "w"), "not the one that you were told")


def test_a_public_half_of_small_order_gets_no_key(saved: Path) -> None:
    refused(lambda: wrap(Key.load(saved), PublicHalf("a", bytes(32))), "no honest X25519 key")


def test_pairs_are_saved_and_read_back(tmp_path: Path, saved: Path) -> None:
    pair = Pair.new("a")
    pair.save(tmp_path / "a.private")
    pair.public.save(tmp_path / "a.public")
    assert stat.S_IMODE((tmp_path / "a.private").stat().st_mode) == 0o600
    again, half = Pair.load(tmp_path / "a.private"), PublicHalf.load(tmp_path / "a.public")
    assert half == again.public == pair.public
    peer = X25519PrivateKey.generate()
    assert again.agree(peer.public_key().public_bytes_raw()) == pair.agree(peer.public_key().public_bytes_raw())
    (tmp_path / "a.private").chmod(0o644)
    refused(lambda: Pair.load(tmp_path / "a.private"), "mode 0644")
    refused(lambda: PublicHalf.load(saved), "holds a key", "a site's public half is needed")
    key_file.write(tmp_path / "b.public", "public", {"site": "b", "public": "00"})
    refused(lambda: PublicHalf.load(tmp_path / "b.public"), "lacks a part")
    key_file.write(tmp_path / "c.public", "public", {"site": "c\n", "public": "09" + "00" * 31})
    refused(lambda: PublicHalf.load(tmp_path / "c.public"), "lacks a part")


# ---------------------------------------------------------------------------------------------------------------- revocation


def test_a_revoked_version_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    key = Key.new()
    two = key.rotated()
    Revoked().with_key(key).save(tmp_path / "list")
    listed = Revoked.load(tmp_path / "list")
    refused(lambda: listed.refuse(key), "version 1", "revoked")
    listed.refuse(two)
    listed.with_key(two).save(tmp_path / "list")
    assert len(Revoked.load(tmp_path / "list").entries) == 2
    assert listed.with_key(key) == listed


def test_a_revocation_that_no_key_holder_made_is_named(tmp_path: Path) -> None:
    key = Key.new()
    forged = Revoked(((key.identity, Key.new().proof("revoked")),))
    refused(lambda: forged.refuse(key), "without its certificate")
    key_file.write(tmp_path / "list", "revoked", {"revoked": [{"version": 1}]})
    refused(lambda: Revoked.load(tmp_path / "list"), "lacks a part")
    key_file.write(tmp_path / "none", "revoked", {})
    refused(lambda: Revoked.load(tmp_path / "none"), "lacks a part")


def test_fingerprints_compare_as_people_write_them() -> None:
    assert same_fingerprint("ab12-CD34", "ab12cd34")
    assert not same_fingerprint("ab12-CD34", "ab12cd35")


def test_another_users_file_is_not_trusted(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.getuid() == 0:
        os.chown(saved, 4242, -1)  # root's own files are taken by everybody
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    refused(lambda: Key.load(saved), "another user")
