"""``infl-bench check REF``: the contract's tests of a plug-in, and flags on evaluations that mean nothing.

``check_attack`` and ``check_defense`` try one plug-in on a small federation with known truth; ``flag_results`` reads a finished table and
``flag_messages`` a recorded federation.
"""

from __future__ import annotations

from collections.abc import Sequence

from reports.flags import flag_results
from suites.checks_attack import check_attack
from suites.checks_budget import Limits
from suites.checks_defense import check_defense
from suites.checks_draws import Draws, similarity
from suites.checks_flags import flag_messages
from suites.checks_result import CheckResult
from suites.checks_secret import eliminate

__all__ = ["CheckResult", "Draws", "check_attack", "check_defense", "eliminate", "flag_messages", "flag_results", "main", "similarity"]

_MARKS = {"pass": "ok  ", "fail": "FAIL", "warn": "warn", "skip": "-   "}


def main(kind: str, ref: str, patience: float | None = None) -> int:
    """Print what each check found; 1 if any failed. ``patience``: CPU seconds that one attack on a secret may take."""
    results: Sequence[CheckResult] = check_attack(ref) if kind == "attacks" else check_defense(ref)
    if kind == "defenses" and all(result.verdict != "fail" for result in results):
        results = [*results, *eliminate(ref, Limits() if patience is None else Limits(patience=patience))]
    for result in results:
        print(f"{_MARKS[result.verdict]}  {result.name}: {result.detail}")
    failed = sum(result.verdict == "fail" for result in results)
    print(f"{ref}: {f'{failed} of {len(results)} checks failed' if failed else 'all checks hold'}")
    return int(failed > 0)
