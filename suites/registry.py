"""Plug-ins by name: entry points ``infl_bench.{attacks,defenses,tasks}``, or a class in a file.

A reference is ``name[:variant][:key=value]…``, a defense may stack several with ``+``, and ``path/file.py:Class`` names a class directly.
Entry points write a variant with a dot (``infl.published``), people with a colon. Nothing is imported until ``Plugin.make`` is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, get_args

from suites.config import is_file_ref
from suites.errors import RequestError, did_you_mean
from suites.source import INSTANCE, UNREAD, ClassFacts, classes, locate, read_class

Kind = Literal["attacks", "defenses", "tasks"]
Value = bool | int | float | str
PACKAGES = ("infl", "attacks", "baselines", "suites", "reports")
_WORDS: Mapping[str, Value] = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plug-in as asked for: where its class lies, and the constructor arguments of its reference.

    ``ref`` loads it again from anywhere; ``label`` is what tables print (a file without its folder).
    """

    kind: Kind
    ref: str
    label: str
    module: str | None  # None: a file outside any package
    path: Path
    qualname: str
    parameters: Mapping[str, Value]
    facts: ClassFacts

    @property
    def goal(self) -> str | None:
        value = self.facts.values.get("goal")
        return value if isinstance(value, str) else None

    @property
    def needs(self) -> frozenset[str] | None:
        """What an attack declares to read; None where only running it would tell."""
        value = self.facts.values.get("needs")
        return frozenset(value) if isinstance(value, set | frozenset) else None

    @property
    def keyed(self) -> bool:
        """Whether a defense defines a secret."""
        return "secret" in self.facts.names

    @property
    def inserts(self) -> bool:
        """Whether an attack brings records of its own into training, so that it needs a federation trained with them."""
        return "inserts" in self.facts.names

    @property
    def holder(self) -> bool:
        """Whether an attack says something only of a threat that holds some key (``holder = True``)."""
        return self.facts.values.get("holder") is True

    @property
    def active(self) -> bool:
        """Whether an attack chooses what the server sends (``active = True``)."""
        return self.facts.values.get("active") is True

    @property
    def masked(self) -> bool | None:
        """Whether a defense has a channel; None where only running it would tell."""
        if "channel" not in self.facts.names and "channel" not in self.facts.values:
            return False
        value = self.facts.values.get("channel", UNREAD)
        return False if value is None else True if value is INSTANCE else None

    @property
    def topology(self) -> str | None:
        value = self.facts.values.get("topology", "federated")
        return value if isinstance(value, str) else None

    def load(self) -> type[Any]:
        """Import the class."""
        loaded = importlib.import_module(self.module) if self.module else _import_file(self.path)
        found: Any = loaded
        for part in self.qualname.split("."):
            found = getattr(found, part)
        if not isinstance(found, type):
            raise RequestError(f"{self.ref} is not a class; name the class of the plug-in")
        return found

    def make(self) -> Any:
        """An instance with the reference's parameters."""
        try:
            return self.load()(**self.parameters)
        except TypeError as error:
            raise RequestError(f"'{self.label}' cannot be built: {error}; see `infl-bench list {self.kind}`") from error


def find(kind: Kind, ref: str) -> Plugin:
    """The plug-in behind one reference (one layer); a typo raises with the nearest name."""
    ref = ref.strip()
    return _find_file(kind, ref) if is_file_ref(ref) else _find_entry(kind, ref)


def stack(ref: str) -> tuple[Plugin, ...]:
    """The layers of a defense, in the order they are written."""
    return tuple(find("defenses", layer) for layer in ref.split("+"))


def label(plugins: Sequence[Plugin]) -> str:
    """What tables print for a stack."""
    return "+".join(plugin.label for plugin in plugins)


def portable(ref: str) -> str:
    """A reference without the folders of its files: what names a plug-in in tables and in coordinates of randomness."""
    layers = (layer.partition(":") for layer in ref.split("+"))
    return "+".join(head.rpartition("/")[2] + colon + rest for head, colon, rest in layers)


def catalogue(kind: Kind) -> list[Plugin]:
    """Every installed plug-in of a kind, read from source; one whose file cannot be found or read is left out."""
    found = []
    for name in sorted(_entries(kind)):
        try:
            found.append(_find_entry(kind, name.replace(".", ":")))
        except (RequestError, OSError, SyntaxError):
            continue
    return found


def refuse_intruders() -> None:
    """Each of the five packages must be ours: their generic names can be shadowed by another package."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if [place.parent for place in places] == [home]:
            continue
        what = f"lies at {places[0] if places else spec.origin}" if spec else "is missing"
        raise RequestError(
            f"the package '{name}' {what} but should lie in {home}: another package of that name is in the way; remove or rename it"
        )


def _find_entry(kind: Kind, ref: str) -> Plugin:
    words = ref.split(":")
    name = ".".join(word for word in words if "=" not in word)
    entries = _entries(kind)
    shown = sorted(known.replace(".", ":") for known in entries)
    if name not in entries:
        singular = kind.removesuffix("s")
        variants = [known for known in shown if known.startswith(words[0] + ":")]
        if variants and name == words[0]:
            raise RequestError(f"{singular} '{ref}' needs a variant; write one of: {', '.join(variants)}")
        raise RequestError(f"there is no {singular} '{name.replace('.', ':')}'{did_you_mean(name.replace('.', ':'), shown)}")
    entry = entries[name]
    path = locate(entry.module)
    facts = read_class(path, entry.attr) if path else None
    if path is None or facts is None:
        raise RequestError(
            f"{kind.removesuffix('s')} '{ref}' is registered as {entry.value}, which is not there; install its package again"
        )
    parameters = _parameters(words, ref, facts)
    return Plugin(kind, text := _text(name.replace(".", ":"), parameters), text, entry.module, path, entry.attr, parameters, facts)


def _find_file(kind: Kind, ref: str) -> Plugin:
    place, _, rest = ref.partition(":")
    words = rest.split(":") if rest else []
    path = Path(place).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise RequestError(f"there is no plug-in file {place}; write it as folder/file.py:ClassName")
    try:
        inside = [name for name in classes(path) if not name.startswith("_")]
    except (SyntaxError, OSError) as error:
        raise RequestError(f"the plug-in file {place} cannot be read ({error}); mend it first") from None
    name = words[0] if words and "=" not in words[0] else ""
    if not name:
        raise RequestError(f"'{ref}' does not say which class{did_you_mean(ref, [f'{place}:{known}' for known in inside])}")
    facts = read_class(path, name)
    if facts is None:
        raise RequestError(f"{place} has no class '{name}'{did_you_mean(name, inside)}")
    parameters = _parameters(words[1:], ref, facts)
    return Plugin(kind, _text(f"{path}:{name}", parameters), _text(f"{path.name}:{name}", parameters), None, path, name, parameters, facts)


def _text(name: str, parameters: Mapping[str, Value]) -> str:
    spelled = {True: "true", False: "false"}
    return ":".join([name, *(f"{key}={spelled[v] if isinstance(v, bool) else v}" for key, v in sorted(parameters.items()))])


def _parameters(words: Sequence[str], ref: str, facts: ClassFacts) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            continue
        if facts.parameters is not None and key not in facts.parameters:
            hint = did_you_mean(key, facts.parameters) or f"; {facts.name} takes no parameters"
            raise RequestError(f"'{ref}' sets an unknown parameter '{key}'{hint}")
        if key in found:
            raise RequestError(f"'{ref}' sets '{key}' twice; keep one")
        found[key] = _value(text)
        _check_type(ref, key, found[key], (facts.parameters or {}).get(key, ""))
    return found


def _value(text: str) -> Value:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_type(ref: str, key: str, value: Value, annotation: str) -> None:
    """Refuse a word where the constructor says that it wants a number, and a number where it wants a switch."""
    wanted = set(annotation.replace(" ", "").split("|")) - {"None"}
    fits = {"int": isinstance(value, int), "float": isinstance(value, int | float), "bool": isinstance(value, bool), "str": True}
    if wanted and wanted <= set(fits) and not any(fits[kind] for kind in wanted):
        raise RequestError(f"'{ref}' sets {key}={value}, but {key} is {' or '.join(sorted(wanted))}; give such a value")


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"infl_bench.{kind}")}


def look_up() -> None:
    """Read what is installed, once for this process and those forked from it.

    It opens a file of every installed distribution: over 10 ms, where the smallest cells take 60.
    """
    for kind in get_args(Kind):
        _entries(kind)


def _import_file(path: Path) -> Any:
    """Import a plug-in file under a name of its own, once a process for each content."""
    name = f"infl_bench_plugin_{path.stem}_{sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(f"the plug-in file {path} cannot be imported; give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
