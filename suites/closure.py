"""The code that a cell uses, hashed: a cell is stale exactly when a file that its imports lead to has changed.

The walk is static (``ast``), over the five packages and plug-in files, and counts imports inside functions too. A root may name one
function (``suites.referee:train_cell``): of its own module only what that function reaches is taken, so that a change in how attacks
are run does not retrain. Package ``__init__`` files stay empty, else one attack's edit would rerun all.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from suites.registry import PACKAGES
from suites.source import imports, locate, tree

Code = dict[str, str]  # module, module:function or file name -> SHA-256 of its text


def closure(*roots: str | Path) -> Code:
    """Every module that the roots lead to, with its hash; a root is a module, ``module:function`` or a file."""
    found: Code = {}
    pending: list[str] = []
    for root in roots:
        if isinstance(root, Path):
            found[f"file {root.name} {_hash(root.read_bytes())[:12]}"] = _hash(root.read_bytes())
            pending.extend(_followed(imports(tree(root), root.stem, root)))
            continue
        module, _, function = root.partition(":")
        path = locate(module)
        if path is None:
            raise ModuleNotFoundError(f"there is no module {module} to take cells from")
        if function:
            text, led = _reached(path, module, function, path.stat().st_mtime_ns)
            found[root] = _hash(text.encode())
            pending.extend(led)
        else:
            pending.append(module)
    while pending:
        module = pending.pop()
        if module in found or (path := locate(module)) is None:
            continue
        found[module], led = _module(path, module, path.stat().st_mtime_ns)
        pending.extend(led)
    return dict(sorted(found.items()))


def combined(code: Code) -> str:
    """One hash for a closure."""
    return _hash("\n".join(f"{name} {value}" for name, value in sorted(code.items())).encode())


@cache
def _module(path: Path, module: str, _modified: int) -> tuple[str, tuple[str, ...]]:
    parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    return _hash(path.read_bytes()), (*_followed(imports(tree(path), module, path)), *parents)


@cache
def _reached(path: Path, module: str, function: str, _modified: int) -> tuple[str, tuple[str, ...]]:
    """The text of what ``function`` reaches inside its own module, and the modules that this text leads to."""
    parsed, source = tree(path), path.read_text(encoding="utf-8")
    bound: dict[str, list[ast.stmt]] = {}
    always: list[ast.stmt] = []
    for statement in parsed.body:
        names = _bound(statement)
        for name in names:
            bound.setdefault(name, []).append(statement)
        if not names and not isinstance(statement, ast.Expr):
            always.append(statement)
    if function not in bound:
        raise ModuleNotFoundError(f"{module} has no function {function}")
    taken: list[ast.stmt] = []
    names_left = [function]
    pending = [*always]
    seen = set[str]()
    while pending or names_left:
        while names_left:
            name = names_left.pop()
            if name not in seen:
                seen.add(name)
                pending.extend(bound.get(name, ()))
        while pending:
            statement = pending.pop()
            if statement not in taken:
                taken.append(statement)
                names_left.extend(node.id for node in ast.walk(statement) if isinstance(node, ast.Name))
    taken.sort(key=lambda statement: statement.lineno)
    text: list[str] = []
    led = set[str]()
    for statement in taken:
        used = seen if isinstance(statement, ast.Import | ast.ImportFrom) else None
        text.append(ast.unparse(statement) if used else _segment(source, statement))
        if isinstance(statement, ast.ImportFrom):
            kept = [alias for alias in statement.names if (alias.asname or alias.name) in seen or alias.name == "*"]
            text[-1] = " ".join(f"{statement.module}.{alias.name}" for alias in kept)
            narrowed = ast.ImportFrom(statement.module, kept, statement.level)
            led |= imports(narrowed, module, path)
        else:
            led |= imports(statement, module, path)
    parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    return "\n".join(text), (*(name for name in _followed(led) if name != module), *parents)


def _segment(source: str, statement: ast.stmt) -> str:
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    return "\n".join(source.splitlines()[first - 1 : statement.end_lineno])


def _bound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _followed(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.split(".")[0] in PACKAGES)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
