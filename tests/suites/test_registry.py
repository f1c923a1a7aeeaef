"""Plug-ins by name, by file, with parameters; read from source, and a typo is answered."""

import subprocess
import sys
from pathlib import Path

import pytest

from suites import registry
from suites.errors import RequestError

PLUGIN = '''"""A file with plug-ins."""
from attacks.membership.lira import LiRA
from suites.contracts import Defense
NEEDS = frozenset({"released", "candidates"})

class Mine(LiRA):
    """One idea.

    More.
    """
    needs = LiRA.needs | {"updates"}

class Other:
    """Another."""
    goal = "membership"
    needs = NEEDS
    def __init__(self, *, power: float = 1.0, on: bool = False):
        self.power, self.on = power, on
    def run(self, seen, rng): ...

class Masks(Defense):
    def __init__(self, bound: float = 1.0) -> None:
        self.channel = Other()
    def secret(self, rng): ...
'''


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return str(tmp_path / "mine.py")


def test_entry_with_variant_and_parameters() -> None:
    plugin = registry.find("defenses", "infl:published:strength=5")
    assert plugin.label == "infl:published:strength=5"
    assert plugin.parameters == {"strength": 5}
    assert plugin.keyed
    assert plugin.masked is False
    assert registry.find("defenses", "infl:strength=5:published").label == plugin.label


def test_stack_keeps_its_order(file: str) -> None:
    layers = registry.stack(f"infl:published + {file}:Masks:bound=2")
    assert registry.label(layers) == "infl:published+mine.py:Masks:bound=2"
    assert layers[1].masked is True


def test_file_plugin_reads_inheritance_without_importing(file: str) -> None:
    mine = registry.find("attacks", f"{file}:Mine")
    assert mine.goal == "membership"
    assert mine.needs == {"released", "candidates", "predict", "references", "key", "updates"}
    assert mine.facts.summary == "One idea."
    other = registry.find("attacks", f"{file}:Other:power=2:on=true")
    assert other.needs == {"released", "candidates"}
    made = other.make()
    assert (made.power, made.on) == (2, True)
    assert type(made) is other.load()


@pytest.mark.parametrize(
    ("kind", "ref", "words"),
    [
        ("attacks", "lyra", ["no attack 'lyra'", "did you mean 'lira'"]),
        ("defenses", "fedavgg", ["no defense 'fedavgg'", "did you mean 'fedavg'"]),
        ("defenses", "infl", ["needs a variant", "infl:published"]),
        ("defenses", "infl:publishd", ["did you mean 'infl:published'"]),
        ("defenses", "infl:published:strenght=5", ["unknown parameter 'strenght'", "did you mean 'strength'"]),
        ("defenses", "infl:published:strength=high", ["strength is float"]),
        ("defenses", "infl:published:strength=1:strength=2", ["twice"]),
        ("tasks", "clasification", ["no task", "did you mean 'classification'"]),
        ("attacks", "nowhere.py:Mine", ["no plug-in file nowhere.py"]),
        ("attacks", "FILE:Mone", ["no class 'Mone'", "did you mean 'Mine'"]),
        ("attacks", "FILE", ["does not say which class", "mine.py:"]),
    ],
)
def test_each_mistake_is_one_sentence(kind: registry.Kind, ref: str, words: list[str], file: str) -> None:
    with pytest.raises(RequestError) as caught:
        registry.find(kind, ref.replace("FILE", file))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_broken_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("class Mine(:\n")
    with pytest.raises(RequestError, match=r"bad\.py cannot be read"):
        registry.find("attacks", f"{tmp_path}/bad.py:Mine")


def test_catalogue_is_read_from_source() -> None:
    code = (
        "import sys; from suites import registry; "
        "rows = [p for k in ('attacks', 'defenses', 'tasks') for p in registry.catalogue(k)]; "
        "assert len(rows) >= 20, rows; assert all(p.facts.summary for p in rows), [p.label for p in rows if not p.facts.summary]; "
        "assert all(p.goal and p.needs for p in rows if p.kind == 'attacks'), rows; "
        "print(*[m for m in ('torch', 'numpy', 'pandas', 'attacks.controls', 'infl.published') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_what_the_source_says_is_what_the_class_has() -> None:
    for plugin in registry.catalogue("attacks"):
        loaded = plugin.load()
        assert plugin.goal == loaded.goal
        assert plugin.needs == loaded.needs
    for plugin in registry.catalogue("defenses"):
        loaded = plugin.load()
        assert plugin.topology == loaded.topology
        from suites.contracts import Defense

        assert plugin.keyed == (loaded.secret is not Defense.secret)


def test_an_intruder_is_named(tmp_path: Path) -> None:
    registry.refuse_intruders()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from suites.registry import refuse_intruders; refuse_intruders()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the package 'reports' lies at" in said.stderr
    assert str(tmp_path) in said.stderr
