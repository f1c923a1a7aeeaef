"""Which sights each view gets under a defense, as words: what the planner skips by before torch is even imported.

An attack that needs more than its view gets is skipped with that reason, so that no table sets one site's update beside a masked sum.
"""

from __future__ import annotations

from collections.abc import Iterable

ALWAYS = frozenset({"candidates", "auxiliary", "simulate", "predict", "key", "own_keys", "oracle"})

NO_CHOICE = "this view sends no model, so it cannot choose one"  # why an attack that crafts what is sent is skipped …
PASSIVE = "this attack chooses what is sent to the sites, and this threat only watches; give the threat active: true"  # … here, too
NO_NEIGHBOURS = (
    "no record of this task holds what its neighbours gave, so nothing of it is theirs to be unknown; leave out neighbours: unknown"
)

NO_PAIRS = "this threat knows no record behind a message; give it known_pairs: 4, say"

_WHY_NOT = {
    "updates": "single sites' updates are not visible to this view",
    "probes": "single sites' updates are not visible to this view",
    "known_pairs": "single sites' updates are not visible to this view",
    "probe_sums": "no update crosses a wire here that this view could read",
    "sums": "no update crosses a wire here that this view could read",
    "broadcasts": "no model is broadcast here that this view could read",
    "released": "no model is released",
    "references": "the suite trains no reference models",
    "own_records": "this view owns no training records",
}


def goal_of(goal: str, unit: str) -> str:
    """The goal that a row states: membership of whole persons or sites is a question of its own, beside that of single records."""
    return f"{goal}:{unit}" if goal == "membership" and unit in ("person", "site") else goal


def available(view: str, *, topology: str, masked: bool, has_references: bool) -> frozenset[str]:
    """What a view sees; ``masked`` says that a channel lets the server read only the sum."""
    if topology == "local_only":
        return ALWAYS  # nothing ever leaves a site
    sights = ALWAYS | {"released"} | ({"references"} if has_references else set())
    if topology == "centralized" or view == "outsider":
        return sights
    sights |= {"broadcasts", "sums", "probe_sums"}
    if view == "site":  # a mean reaches it as the step of the model, and it takes its own part out
        return sights | {"own_records"}
    return sights | (set() if masked else {"updates", "probes", "known_pairs"})


def skip_reason(needs: Iterable[str], view: str, *, topology: str, masked: bool, has_references: bool) -> str | None:
    """Why an attack with these needs cannot run, or None."""
    missing = sorted(set(needs) - available(view, topology=topology, masked=masked, has_references=has_references))
    if not missing:
        return None
    why_not = {**_WHY_NOT, "references": _WHY_NOT["released"]} if has_references else _WHY_NOT  # references are there: nothing to liken
    reasons = list(dict.fromkeys(why_not.get(name, f"{name} is not visible to this view") for name in missing))
    return "; ".join(reasons) + (" (they are masked: the server reads only their sum)" if masked and view == "server" else "")
