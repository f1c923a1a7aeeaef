"""The claim beside a reconstruction: how often *any* attack may point at the right record of a pool, given the noise in one message."""

from __future__ import annotations

import math
from collections.abc import Sequence

from suites.auditing.reconstruction import rero_gaussian
from suites.contracts import Claim, Clip, Probe
from suites.scoring_measure import NAN, Measure


def rero_measures(claim: Claim | None, clip: Clip | None, probes: Sequence[Probe], pool: int, measures: Sequence[Measure]) -> list[Measure]:
    """A row ``rero`` of role claim, and a flag where more records were re-identified than it allows; nothing where it does not apply.

    A probe's message of one record clipped to C with noise sigma C at each step is a Gaussian mechanism with mu = sqrt(steps) / sigma for
    adding that record, so its record is pointed at among ``pool`` equally likely ones with chance at most Phi(Phi^-1(1 / pool) + mu)
    (Hayes, Mahloujifar and Balle 2023). It says nothing of messages of several records, whose guesses are matched to them afterwards.
    """
    if claim is None or claim.kind != "dp" or clip is None or not claim.noise_multiplier or not probes or pool < 2:
        return []
    if any(len(site) > 1 for probe in probes for site in probe.records):
        return []
    steps = max(1 if probe.optimiser == "gradient" else probe.steps for probe in probes)
    mu = math.sqrt(steps) / claim.noise_multiplier
    bound = rero_gaussian(1 / pool, mu)
    sentence = (
        f"ReRo: from one message of one record, clipped and with noise multiplier {claim.noise_multiplier:.4g} over {steps} steps, "
        f"no attack points at the right one of {pool} equally likely records more often than this"
    )
    rows = [Measure("rero", bound, NAN, NAN, pool, "lower", "claim", sentence)]
    found = next((one for one in measures if one.metric == "reidentified"), None)
    if found is not None and found.low > bound:
        share = f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"
        said = f"{share} of the records were re-identified, but the claimed noise allows {bound:.3g}"
        rows.append(Measure("flag:rero_exceeded", 1.0, NAN, NAN, found.n, "lower", "flag", said))
    return rows
