"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """``name`` is the promise, ``detail`` what was seen; a "warn" says that a number will mean less than it seems, and fails nothing."""

    name: str
    verdict: Verdict
    detail: str


def judged(name: str, good: bool, detail: str, otherwise: str) -> CheckResult:
    """Pass with ``detail`` or fail with ``otherwise``."""
    return CheckResult(name, "pass" if good else "fail", detail if good else otherwise)
