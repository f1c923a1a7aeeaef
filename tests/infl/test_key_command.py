"""``infl-bench key``: the whole life on the command line, and one sentence for each mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infl import key_file
from suites import cli

Command = Callable[..., tuple[int, str, str]]
START = "import sys; sys.argv = ['infl-bench', *sys.argv[1:]]; from suites.cli import main; main()"


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["infl-bench", "key", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return command


def fingerprint(said: str) -> str:
    found = re.search(r"version \d+, fingerprint ([0-9a-f-]{39})", said)
    assert found, said
    return found[1]


def test_from_new_to_revoked(key: Command, tmp_path: Path) -> None:
    said = [key("new", "v1"), key("pair", "hospital-a")]
    told = fingerprint(said[0][1])
    said += [
        key("wrap", "v1", "hospital-a.public", "a.wrapped"),
        key("unwrap", "a.wrapped", "hospital-a.private", "a", "--fingerprint", told),
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "v1").read_bytes()
    said += [key("rotate", "v1", "v2", "--revoke", "revoked"), key("show", "v2", "--revoked", "revoked"), key("show", "revoked")]
    said += [key("show", name) for name in ("v1", "a.wrapped", "hospital-a.public", "hospital-a.private")]
    assert [code for code, _, _ in said] == [0] * len(said), said
    assert "version 2" in said[5][1]
    assert told in said[6][1]
    secrets = [
        json.loads((tmp_path / name).read_text()).get(field) for name, field in (("v1", "material"), ("hospital-a.private", "private"))
    ]
    for _, out, err in said:
        assert not any(secret[:16] in out + err for secret in secrets)
    code, out, err = key("show", "v1", "--revoked", "revoked")
    assert code == 2
    assert "was revoked" in err
    assert key("wrap", "v1", "hospital-a.public", "again", "--revoked", "revoked")[0] == 2
    assert key("unwrap", "a.wrapped", "hospital-a.private", "b", "--fingerprint", told, "--revoked", "revoked")[0] == 2
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "b").exists()
    assert key("revoke", "v2", "revoked")[0] == 0
    assert key("show", "v2", "--revoked", "revoked")[0] == 2


FIELDS = {"site": "a", "federation": "0a" * 16, "version": 1, "fingerprint": "0b" * 16, "sender": "0c" * 32, "box": "0d" * 48}
FORGED: list[dict[str, object]] = [
    *[dict.fromkeys([name]) for name in FIELDS],
    {"version": "1"},
    {"version": True},
    {"version": 0},
    {"fingerprint": 5},
    {"fingerprint": "0B\x1b[2J"},
    {"federation": "0a" * 15},
    {"site": "\x1b[2Jhospital-a"},
    {"site": 3},
    {"box": "zz"},
]


@pytest.mark.parametrize("forged", FORGED)
def test_a_wrapped_file_that_anybody_could_have_made_is_one_sentence(key: Command, tmp_path: Path, forged: dict[str, object]) -> None:
    """Its check value is under a public constant, so it fits."""
    key_file.write(tmp_path / "sound", "wrapped", FIELDS)
    assert key("show", "sound")[:2] == (
        0, f"wrapped key for site a: version 1, fingerprint {'-'.join(['0b0b'] * 8)}, federation {'0a' * 16}\n"
    )  # fmt: skip
    key_file.write(tmp_path / "w", "wrapped", {name: value for name, value in (FIELDS | forged).items() if value is not None})
    code, out, err = key("show", "w")
    assert (code, out) == (2, "")
    assert "lacks a part of a wrapped key" in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.parametrize("forged", [{"federation": "\x1b[2J"}, {"version": "1"}, {"fingerprint": "zz"}])
def test_a_list_of_names_that_no_key_has_is_one_sentence(key: Command, tmp_path: Path, forged: dict[str, object]) -> None:
    entry = {name: FIELDS[name] for name in ("federation", "version", "fingerprint")} | {"certificate": "00"}
    key_file.write(tmp_path / "sound", "revoked", {"revoked": [entry]})
    assert key("show", "sound")[0] == 0
    key_file.write(tmp_path / "list", "revoked", {"revoked": [entry, entry | forged]})
    code, out, err = key("show", "list")
    assert (code, out) == (2, "")
    assert "lacks a part of a list" in err


def test_show_looks_a_wrapped_version_up_in_the_list(key: Command) -> None:
    for made in (("new", "v1"), ("pair", "a"), ("wrap", "v1", "a.public", "w"), ("rotate", "v1", "v2"), ("revoke", "v2", "list")):
        assert key(*made)[0] == 0
    assert key("show", "w", "--revoked", "list")[0] == 0
    assert key("revoke", "v1", "list")[0] == 0
    code, _, err = key("show", "w", "--revoked", "list")
    assert code == 2
    assert "version 1 of this federation's key was revoked" in err
    for other in ("a.public", "a.private", "list"):  # nothing to look up
        code, out, err = key("show", other, "--revoked", "list")
        assert (code, out) == (2, "")
        assert "--revoked looks up the version of a key" in err


def test_a_rotation_that_cannot_revoke_writes_nothing(key: Command, tmp_path: Path) -> None:
    assert key("new", "v1")[0] == key("new", "taken")[0] == 0
    (tmp_path / "bad").write_text("no list\n")

    def held() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    before = held()
    for arguments, words in (
        (("v2", "--revoke", "bad"), "no file of infl-bench"),
        (("v2", "--revoke", "v1"), "holds a key"),
        (("v2", "--revoke", "no/list"), "cannot be written"),
        (("no/v2", "--revoke", "list"), "cannot be written"),
        (("taken", "--revoke", "list"), "exists"),
        (("v2", "--revoke", "v2"), "two names"),
        (("taken", "--overwrite", "--revoke", str(tmp_path / "taken")), "two names"),
    ):
        code, out, err = key("rotate", "v1", *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert held() == before, arguments
    assert key("rotate", "v1", "v2", "--revoke", "list")[0] == 0
    assert key("show", "v1", "--revoked", "list")[0] == 2


def loosen(path: Path) -> None:
    path.chmod(0o644)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def tamper(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))


def age(path: Path) -> None:
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 9'))


def replace(path: Path) -> None:
    path.write_text("not a key\n")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (loosen, "mode 0644"),
        (cut, "cut short"),
        (tamper, "was changed"),
        (age, "another schema"),
        (replace, "no file of infl-bench"),
        (Path.unlink, "there is no file"),
    ],
)
def test_a_harmed_key_file_is_one_sentence(key: Command, tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    assert key("new", "v1")[0] == key("pair", "a")[0] == 0
    secret = json.loads((tmp_path / "v1").read_text())["material"]
    harm(tmp_path / "v1")
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in (("show", "v1"), ("rotate", "v1", "v2"), ("revoke", "v1", "list"), ("wrap", "v1", "a.public", "w")):
        code, out, err = key(*command)
        assert (code, out) == (2, "")
        assert err.startswith("infl-bench: ")
        assert err.count("\n") == 1
        assert words in err, err
        assert secret[:16] not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


MISTAKES: list[tuple[list[str], str]] = [
    (["new", "v1"], "exists"),
    (["pair", "../a"], "without slashes"),
    (["wrap", "v1", "v1", "w"], "a site's public half is needed"),
    (["unwrap", "a.public", "a.private", "k", "--fingerprint", "00"], "a wrapped key is needed"),
    (["unwrap", "w", "a.private", "k", "--fingerprint", "00"], "not the one that you were told"),
    (["unwrap", "w", "a.private", "k"], "--fingerprint"),
    (["unwrap", "w", "b.private", "k", "--fingerprint", "00"], "another site"),
    (["shwo", "v1"], "shwo"),
]


def test_other_mistakes(key: Command, tmp_path: Path) -> None:
    for made in (("new", "v1"), ("pair", "a"), ("pair", "b"), ("wrap", "v1", "a.public", "w")):
        assert key(*made)[0] == 0
    for arguments, words in MISTAKES:
        code, _, err = key(*arguments)
        assert code == 2
        assert words in err, err
        assert err.count("\n") == 1
    assert not (tmp_path / "k").exists()
    (tmp_path / "c.public").touch()
    assert key("pair", "c")[0] == 2
    assert not (tmp_path / "c.private").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["key", "--help"], ["key", "new", "made"]])
def test_no_torch_for_keys(arguments: list[str], tmp_path: Path) -> None:
    code = START.replace("main()", "\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules, 'numpy' in sys.modules)")
    said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.strip().endswith("False False"), said.stdout
