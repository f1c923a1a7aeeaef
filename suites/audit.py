"""Audits without a federation, in one call: ``from suites.audit import audit, audit_scores, audit_trace``."""

from suites.auditing.arrays import audit
from suites.auditing.bound import Bound
from suites.auditing.epsilons import epsilons
from suites.auditing.network import Network
from suites.auditing.result import Audit
from suites.auditing.scores import audit_scores
from suites.auditing.trace import Trace, audit_trace

__all__ = ["Audit", "Bound", "Network", "Trace", "audit", "audit_scores", "audit_trace", "epsilons"]
