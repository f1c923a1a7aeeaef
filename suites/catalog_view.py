"""What ``infl-bench list`` prints and ``infl-bench check`` says, out of the registry's reading of sources."""

from __future__ import annotations

import shutil
import textwrap
from importlib import import_module
from typing import get_args

from suites import config, ensembles, registry
from suites.errors import RequestError

Row = tuple[str, str, str]  # name, what it needs, one sentence


def show(kind: str) -> None:
    """Print one kind, a line each, cut to the terminal's width."""
    rows = entries(kind)
    width = max(80, shutil.get_terminal_size().columns)
    name = max([len(row[0]) for row in rows], default=0)
    print(kind)
    for first, second, sentence in rows:
        text = f"  {first:<{name}}  {sentence}{f' [{second}]' if second else ''}"
        print(textwrap.fill(text, width, subsequent_indent=" " * (name + 4), break_on_hyphens=False))


def entries(kind: str) -> list[Row]:
    """Name, needs and first sentence of everything of a kind."""
    if kind == "suites":
        return [(name, "", config.load(name)[0].title) for name in config.catalog()]
    if kind == "data":
        from suites.cohorts.registry import CARDS

        return [(card.name, card.records, card.title) for card in CARDS.values()]
    plugin_kind = next(known for known in get_args(registry.Kind) if known == kind)
    rows = [(plugin.label, _needs(plugin), plugin.facts.summary) for plugin in registry.catalogue(plugin_kind)]
    if kind == "attacks":
        rows += [
            (f"{ensembles.NAME}:{goal}", goal, f"The fixed ensemble of {len(members)} attacks: {', '.join(members)}.")
            for goal, members in ensembles.MEMBERS.items()
        ]
    return rows


def _needs(plugin: registry.Plugin) -> str:
    if plugin.kind == "attacks":
        return f"{plugin.goal or '?'}; needs {', '.join(sorted(plugin.needs)) if plugin.needs is not None else '?'}"
    return ", ".join(sorted(plugin.facts.parameters or ()))


def check(ref: str, patience: float | None = None) -> int:
    """Run the contract's tests on a plug-in, or on a stack of defenses; 0 if all hold. ``patience`` as in ``suites.checks.main``."""
    if "+" in ref:
        stack = "+".join(layer.ref for layer in registry.stack(ref))
        return int(import_module("suites.checks").main("defenses", stack, patience))
    kind: registry.Kind = _kind(ref)
    plugin = registry.find(kind, ref)
    return int(import_module("suites.checks").main(kind, plugin.ref, patience))


def _kind(ref: str) -> registry.Kind:
    """A file's class is an attack if it can ``run``; a name is looked up among defenses and attacks."""
    if config.is_file_ref(ref):
        return "attacks" if "run" in registry.find("attacks", ref).facts.names else "defenses"
    known = {kind: [plugin.label for plugin in registry.catalogue(kind)] for kind in ("attacks", "defenses")}
    bare = ":".join(word for word in ref.split(":") if "=" not in word)
    for kind in ("attacks", "defenses"):
        if bare in known[kind]:
            return kind
    from suites.errors import did_you_mean

    raise RequestError(f"there is no plug-in '{ref}'{did_you_mean(bare, [*known['attacks'], *known['defenses']])}")
