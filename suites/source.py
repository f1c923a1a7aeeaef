"""Reading Python without running it: where a module lies, what a class says of itself, what a file imports.

The command line lists plug-ins, and the planner skips and hashes, from the text alone, since importing one plug-in costs seconds of
torch. What cannot be read off the text is left open: the worker, which does import, then decides.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ClassFacts:
    """A class as its text and that of its bases has it; ``values`` holds literal class attributes, ``names`` all that it defines."""

    name: str
    path: Path
    summary: str  # first line of the docstring
    values: Mapping[str, object] = field(default_factory=dict)
    names: frozenset[str] = frozenset()  # outside the contract's own base class
    parameters: Mapping[str, str] | None = None  # constructor's, with their annotations; None: cannot be told


UNREAD = object()  # a class attribute that is there but whose value only running would tell
INSTANCE = object()  # the same, but certainly not None: the outcome of calling a class


@cache
def locate(module: str) -> Path | None:
    """The file of a dotted module name; only the top-level name is asked of the import system, so that nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest and spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        stem = Path(place, *rest)
        for candidate in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if candidate.is_file() and (rest or candidate.name == "__init__.py"):
                return candidate
    return None


def tree(path: Path) -> ast.Module:
    """The parsed file; parsed again when it changes."""
    stat = path.stat()
    return _tree(path, stat.st_mtime_ns, stat.st_size)


@cache
def _tree(path: Path, _modified: int, _size: int) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


def classes(path: Path) -> dict[str, ast.ClassDef]:
    """The classes at the top level of a file."""
    return {node.name: node for node in tree(path).body if isinstance(node, ast.ClassDef)}


def read_class(path: Path, name: str) -> ClassFacts | None:
    """What the class says of itself, with what it inherits by name; None if the file has no such class."""
    node = classes(path).get(name)
    if node is None:
        origin = _imported(path).get(name)  # re-exported from elsewhere
        return read_class(*origin) if origin and origin != (path, name) else None
    values: dict[str, object] = {}
    names = set[str]()
    parameters: Mapping[str, str] | None = {}
    for base in node.bases:
        inherited = _base(base, path)
        if inherited is None:
            parameters = None
            continue
        values = {**inherited.values, **values}
        names |= inherited.names
        parameters = inherited.parameters or parameters
    for statement in node.body:
        for target, value in _assignments(statement):
            names.add(target)
            values[target] = UNREAD if value is None else _evaluate(value, path)
        if isinstance(statement, ast.FunctionDef):
            names.add(statement.name)
            values.pop(statement.name, None)
            if statement.name == "__init__":
                parameters = _parameters(statement)
                values.update(_set_on_self(statement))
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        own = {s.target.id: ast.unparse(s.annotation) for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)}
        parameters = {**(parameters or {}), **{field: note for field, note in own.items() if "ClassVar" not in note}}
    summary = (ast.get_docstring(node) or "").strip().split("\n\n")[0].replace("\n", " ")
    return ClassFacts(name, path, summary, values, frozenset(names), parameters)


def imports(node: ast.AST, module: str, path: Path) -> set[str]:
    """Dotted names that the code under ``node`` imports, wherever it does so; ``from a import b`` gives ``a`` and ``a.b``."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set[str]()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found.update(alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            base = inner.module or ""
            if inner.level:
                anchor = package.split(".")[: len(package.split(".")) - inner.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in inner.names)
    return found


def _base(base: ast.expr, path: Path) -> ClassFacts | None:
    text = ast.unparse(base).split("[")[0]
    if text in ("Defense", "contracts.Defense", "suites.contracts.Defense"):
        return ClassFacts("Defense", path, "", {"topology": "federated"}, frozenset(), {})  # identity hooks: defining nothing
    if text in ("object", "Protocol", "Attack", "Task", "Generic"):
        return ClassFacts(text, path, "", {}, frozenset(), {})
    if text in classes(path):
        return read_class(path, text)
    origin = _imported(path).get(text)
    return read_class(*origin) if origin else None


def _imported(path: Path) -> dict[str, tuple[Path, str]]:
    """Names that ``from x import y`` binds at the top level, with the file and name they come from."""
    found: dict[str, tuple[Path, str]] = {}
    for node in tree(path).body:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            origin = locate(node.module)
            if origin is not None:
                found.update({alias.asname or alias.name: (origin, alias.name) for alias in node.names})
    return found


def _assignments(statement: ast.stmt) -> list[tuple[str, ast.expr | None]]:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [(statement.target.id, statement.value)] if statement.value is not None else []
    if isinstance(statement, ast.Assign):
        return [(target.id, statement.value) for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _parameters(function: ast.FunctionDef) -> Mapping[str, str] | None:
    arguments = function.args
    if arguments.kwarg is not None:
        return None
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs][1:]
    return {a.arg: ast.unparse(a.annotation) if a.annotation else "" for a in listed}


def _set_on_self(function: ast.FunctionDef) -> dict[str, object]:
    """Attributes that a constructor sets, without their values."""
    found: dict[str, object] = {}
    for statement in ast.walk(function):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                    again = isinstance(statement.value, ast.Attribute) and found.get(statement.value.attr) is INSTANCE  # self.a = self.b
                    built = (isinstance(statement.value, ast.Call) or again) and statement in function.body
                    found[target.attr] = INSTANCE if built else UNREAD
    return found


def _evaluate(node: ast.expr, path: Path) -> object:
    """Literals, sets of literals, their unions and differences, and another class's attribute; else ``UNREAD``."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Call) and ast.unparse(node.func).split("[")[0] in ("frozenset", "set"):
        inner = _evaluate(node.args[0], path) if node.args else frozenset()
        return frozenset(inner) if isinstance(inner, set | frozenset | tuple | list) else UNREAD
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Card" and not node.args:
        return {str(word.arg): _evaluate(word.value, path) for word in node.keywords}  # a defense's card: plain words by party
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.Sub):
        left, right = _evaluate(node.left, path), _evaluate(node.right, path)
        if isinstance(left, set | frozenset) and isinstance(right, set | frozenset):
            return frozenset(left | right) if isinstance(node.op, ast.BitOr) else frozenset(left - right)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner = _base(node.value, path)
        return owner.values.get(node.attr, UNREAD) if owner else UNREAD
    if isinstance(node, ast.Name):
        for statement in tree(path).body:
            for target, value in _assignments(statement):
                if target == node.id and value is not None:
                    return _evaluate(value, path)
    return UNREAD
