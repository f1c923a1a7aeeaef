"""What a screen's condition names mean: which genes are perturbed, and which cells are controls.

Files write two genes as "A+B" (GEARS, PerturBench), "A_B" (scPerturb), "A|B", "A,B" or "A;B", and a "_" may as well belong to a name
or part gene and guide. So the file is asked: its gene names, and the conditions that are one word. What that leaves open is told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from suites.errors import RequestError, did_you_mean

CONTROLS = frozenset({"control", "ctrl", "non-targeting"})
JOIN = "+"
SEPARATORS = (JOIN, "_", "|", ",", ";", "&", "/")
_LIKE_CONTROL = re.compile(
    r"ctrl|control|non.?target|safe.?target|^nt(c|$)|unperturbed|untreated|vehicle|dmso|mock|scramble|^neg", re.IGNORECASE
)


def genes_of(condition: str, separator: str = JOIN, control: str = "") -> tuple[str, ...]:
    """The perturbed genes of "A+B", "A+ctrl", "A" or "control" (none); "" separates nothing."""
    if is_control(condition, control):
        return ()
    words = [word.strip() for word in (condition.split(separator) if separator else [condition])]
    return tuple(sorted({word for word in words if word and not is_control(word, control)}))


def is_control(word: str, control: str = "") -> bool:
    return word.lower() in CONTROLS or (bool(control) and word == control)


def perturbed(
    cohort: str, conditions: Sequence[str], features: Sequence[str], separator: str = "auto", control: str = ""
) -> list[tuple[str, ...]]:
    """The genes of each condition.

    Parameters
    ----------
    cohort, features : the file's name for complaints, and its gene names
    separator : what joins the genes of a condition; "none" where every name is one perturbation, "auto" to see it from the file
    control : the name of the control cells, beside the usual ones

    Raises
    ------
    RequestError
        No condition is called ``control``, or "auto" cannot tell what joins genes.
    """
    if control and control not in conditions:
        raise RequestError(f"{cohort}: no cells are called '{control}' (perturbation:control){did_you_mean(control, conditions)}")
    joins = {"auto": None, "none": ""}.get(separator, separator)
    if joins is None:
        joins = _seen(cohort, conditions, frozenset(features), control)
    return [genes_of(name, joins, control) for name in conditions]


def no_controls(cohort: str, line: str, conditions: Sequence[str]) -> RequestError:
    """The complaint of a line without control cells, which names the setting and, where one looks like it, the condition."""
    like = min((name for name in conditions if _LIKE_CONTROL.search(name)), key=len, default="NAME")
    return RequestError(
        f"{cohort}: no control cells in '{line}', so that no change can be told; say what they are called (perturbation:control={like}), "
        "label them 'control', or leave that line out"
    )


def _seen(cohort: str, conditions: Sequence[str], features: frozenset[str], control: str) -> str:
    """The one separator whose parts are, in most conditions that hold it, genes of the file, conditions of their own or controls.

    "+" is in no gene's name, so it joins whether or not the file knows the parts (perturbed genes are often not among the measured ones).
    """
    whole = features | {name for name in conditions if not any(mark in name for mark in SEPARATORS)}
    found: list[str] = []
    for mark in SEPARATORS:
        held = [name for name in conditions if mark in name and name not in features and not is_control(name, control)]
        if not held:
            continue
        known = [all(word in whole or is_control(word, control) for word in _words(name, mark)) for name in held]
        if mark == JOIN or 2 * sum(known) > len(held):
            found.append(mark)
            continue
        raise RequestError(
            f"{cohort}: '{mark}' in {len(held)} of {len(conditions)} conditions, such as '{held[known.index(False)]}', may join two "
            f"genes or belong to a name, and neither the file's genes nor its other conditions say which; set "
            f"perturbation:separator={mark} or perturbation:separator=none"
        )
    if len(found) > 1:
        raise RequestError(
            f"{cohort}: both '{found[0]}' and '{found[1]}' join genes in the names of conditions, which cannot be read in two ways; "
            f"write all with one of them, or set perturbation:separator={found[0]}"
        )
    return found[0] if found else ""


def _words(name: str, mark: str) -> list[str]:
    return [word.strip() for word in name.split(mark) if word.strip()]
