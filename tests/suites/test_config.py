"""The suite file: every key checked, every mistake one sentence with file and line."""

from pathlib import Path

import pytest

from suites.config import catalog, load, override, parse
from suites.errors import RequestError

GOOD = """suite: small
data: {name: pbmc68k}
federation: {rounds: 2, local: {lr: 1e-3}}
probes: {gradients: 1, batch: 1, round: 1}
defenses: [fedavg]
attacks: [lira]
threats:
  - {view: server, key: "partial:0.5"}
"""


def test_good_suite_reads() -> None:
    spec = parse(GOOD, Path("small.yaml"))
    assert spec.federation.local.lr == 1e-3  # YAML 1.1 reads 1e-3 as a word
    assert spec.probes[0].round == 1
    assert spec.threats[0].key_label == "partial:0.5"


def test_every_suite_of_the_catalogue_reads() -> None:
    assert "quickstart" in catalog()
    for name in catalog():
        assert load(name)[0].suite == name


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("defenses:", "defences:", ["line 5", "unknown key 'defences'", "did you mean 'defenses'"]),
        ("rounds:", "round:", ["line 3", "unknown key 'round'", "did you mean 'rounds'"]),
        ("lr: 1e-3", "learning: 3", ["line 3", "unknown key 'learning'"]),
        ("view:", "veiw:", ["line 8", "unknown key 'veiw'", "did you mean 'view'"]),
        ("gradients:", "gradient:", ["line 4", "did you mean 'gradients'"]),
        ("{name: pbmc68k}", "{nam: pbmc68k}", ["line 2", "did you mean 'name'"]),
        ("rounds: 2", "rounds: many", ["line 3", "federation.rounds", "'many'"]),
        ("round: 1}", "round: 7}", ["round 7"]),
        ("defenses: [fedavg]\n", "", ["'defenses' is missing"]),
        ("attacks: [lira]", "attacks: [lira", ["line", "not YAML"]),
        ("attacks: [lira]", "attacks:\t[lira]\n\t- x", ["line", "not YAML"]),
        ("attacks: [lira]", "suite: again", ["line 6", "given twice"]),
        ("attacks: [lira]", "attacks: !!python/object/apply:os.system [ls]", ["not YAML"]),
        ("{name: pbmc68k}", "{name: a, path: b}", ["not both"]),
        ('key: "partial:0.5"', 'key: "partial:7"', ["line 8"]),
    ],
)
def test_each_mistake_is_one_sentence(old: str, new: str, words: list[str]) -> None:
    assert old in GOOD
    with pytest.raises(RequestError) as caught:
        parse(GOOD.replace(old, new), Path("small.yaml"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("small.yaml")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b", "\x00"])
def test_not_a_suite(text: str) -> None:
    with pytest.raises(RequestError):
        parse(text, Path("x.yaml"))


def test_unknown_and_missing_suites(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="did you mean 'quickstart'"):
        load("quikstart")
    with pytest.raises(RequestError, match="no suite file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"suite: \xff\xfe")
    with pytest.raises(RequestError, match="cannot be read"):
        load(tmp_path / "latin.yaml")


def test_paths_are_taken_from_the_suite_files_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine: ...\n")
    (tmp_path / "cells.h5ad").write_bytes(b"")
    text = GOOD.replace("[lira]", "[mine.py:Mine, lira]").replace("{name: pbmc68k}", "{path: cells.h5ad, label: kind}")
    spec = parse(text, tmp_path / "small.yaml")
    assert spec.attacks == (f"{tmp_path}/mine.py:Mine", "lira")
    assert spec.data.path == str(tmp_path / "cells.h5ad")


def test_override_is_checked_too() -> None:
    spec = parse(GOOD, Path("small.yaml"))
    assert override(spec, seeds=7, attacks=None).seeds == 7
    assert override(spec, seeds=7).attacks == ("lira",)
    with pytest.raises(RequestError, match="seeds"):
        override(spec, seeds=0)
