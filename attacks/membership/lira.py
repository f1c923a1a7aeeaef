"""The likelihood-ratio attack: how much likelier is a record's signal under models that saw it than under models that did not?

Source: Carlini et al. 2022, "Membership inference attacks from first principles". Each record has two Gaussians, fitted to its
signal under references that include and that exclude it. With fewer than ``POOL`` references a record's own variance is too noisy, so
one variance is pooled over all records for each side (their "fixed variance"). A record that lacks one side borrows the mean shift of
all others; where no reference includes any candidate, the one-sided offline form is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from attacks.membership.loss import released
from attacks.membership.per_record import signals
from suites.contracts import Goal, Guess, Observation, Reference, Sees, Skip

POOL = 64  # references below which variances are pooled
_ALL = 1 << 20
_FLOOR = 1e-6  # of the variance, for references that agree to the last bit


class LiRA:
    """Membership by the likelihood ratio of reference models with and without each record.

    Parameters
    ----------
    count : int | None
        How many references to ask for; None takes all that the suite trains.
    """

    goal: ClassVar[Goal] = "membership"
    log_ratio: ClassVar[bool] = True
    needs: ClassVar[frozenset[Sees]] = frozenset({"released", "candidates", "predict", "references", "key"})

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def run(self, seen: Observation, rng: torch.Generator) -> Guess:
        signal, signals, included = signals_of(seen, self.count)
        return Guess(likelihood_ratio(signal, signals, included), notes={"references": float(len(signals))})


def signals_of(seen: Observation, count: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The released model's signal [n], the references' [R, n], and which reference was trained on which candidate [R, n] bool."""
    candidates, references = seen.candidates, ask_references(seen, count)
    with torch.no_grad():
        signal = signals(seen, released(seen), candidates).double()
        rows = [signals(seen, reference.predict, candidates).double() for reference in references]
    included = torch.stack([reference.included[: len(candidates)].bool() for reference in references])
    return signal, torch.stack(rows), included.to(signal.device)


def ask_references(seen: Observation, count: int | None) -> Sequence[Reference]:
    """The first ``count`` references, or all that the suite trains; raises ``Skip`` where there are none."""
    available = seen.known.get("n_references")
    references = seen.references(count if count is not None else int(available.value) if available else _ALL)
    if not references:
        raise Skip("there are no reference models to compare with; set references in the suite")
    return references


def likelihood_ratio(signal: Tensor, signals: Tensor, included: Tensor, pool: int = POOL) -> Tensor:
    """Log-likelihood ratio [n] of ``signal`` [n] given reference signals [R, n] and inclusions [R, n]; higher for members."""
    mean_in, mean_out = _means(signals, included), _means(signals, ~included)  # NaN where a side is empty
    spread_out = _variance(signals, ~included, mean_out, pool)
    if not bool(included.any()):
        return (signal - mean_out) / spread_out.sqrt()  # offline, one-sided
    shift = torch.nanmean(mean_in - mean_out)
    shift = torch.where(shift.isnan(), torch.zeros_like(shift), shift)
    spread_in = _variance(signals, included, mean_in, pool)
    left = torch.where(mean_in.isnan(), mean_out + shift, mean_in)
    right = torch.where(mean_out.isnan(), mean_in - shift, mean_out)
    return _log_density(signal, left, spread_in) - _log_density(signal, right, spread_out)


def _means(signals: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, signals, torch.zeros_like(signals)).sum(0) / chosen.sum(0)


def _variance(signals: Tensor, chosen: Tensor, mean: Tensor, pool: int) -> Tensor:
    """Unbiased variance [n]: per record from ``pool`` references up, else one for all records."""
    squares = torch.where(chosen, (signals - mean).square(), torch.zeros_like(signals)).sum(0)
    count = chosen.sum(0)
    if len(signals) >= pool and int(count.min()) >= 2:
        return (squares / (count - 1)).clamp_min(_FLOOR)
    freedom = (count - 1).clamp_min(0).sum()
    pooled = squares.sum() / freedom if int(freedom) else signals.var()  # a single reference: the spread over records
    return pooled.clamp_min(_FLOOR).expand_as(mean)


def _log_density(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((value - mean).square() / variance + variance.log() + math.log(2 * math.pi))
