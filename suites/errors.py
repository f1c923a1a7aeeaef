"""The two exceptions that carry a sentence to the user; apart from ``contracts`` so that the command line starts without torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RequestError(ValueError):
    """The request was wrong: one clear sentence (what, why, how to mend); the CLI prints it and exits with code 2."""


class Skip(Exception):
    """Raised by an attack or a task that cannot apply here; the row is ``skipped`` with this reason."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, else the known words themselves, else nothing."""
    choices = sorted(set(known))
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.55)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(choices)}" if choices else ""
