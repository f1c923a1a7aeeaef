"""Flags on evaluations that mean nothing, read off a finished table or a recorded federation.

A flag is a row of role "flag" whose ``reason`` is a sentence for the reader; it changes no number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from reports.schema import CELL, HEADLINE_KEYS, RESULTS, SCHEMA_VERSION, upper_bound
from reports.stats import summarise
from suites.contracts import Claim, Message, Params, ProbeRecord, Target, Task
from suites.observation import Evidence
from suites.scoring_measure import NAN, Measure
from suites.simulation import simulate
from suites.stack import Stack

OPEN = "fedavg"  # the defense that protects nothing
QUIET = 0.5  # share of the claimed noise below which a message counts as clean


def flag_results(df: pd.DataFrame) -> pd.DataFrame:
    """Flag rows (``metric`` starts with "flag:") on the attacks of a results table; an empty table where all is well.

    no_power: on FedAvg the attack's leakage is not above the prior, so its silence elsewhere means nothing. above_oracle: it leaks more
    than the truth itself. still_improving: the largest budget leaks clearly more than the one before. oblivious_beats_aware: without the
    key it leaks clearly more than with it, so the attack that holds the key was not tried hard enough.
    """
    held = df[(df["metric"] == "leakage") & (df["role"] == "score") & (df["status"] == "ok") & np.isfinite(df["value"]) & ~upper_bound(df)]
    found = [*_no_power(held), *_above_oracle(held), *_still_improving(held), *_oblivious(held)]
    columns = list(RESULTS)
    rows = [
        {
            **{name: row[name] for name in CELL},
            "seed": int(held["seed"].min()),
            "metric": f"flag:{flag}",
            "value": 1.0,
            "low": NAN,
            "high": NAN,
        }
        | {"n": 1, "direction": "lower", "role": "flag", "status": "ok", "reason": reason, "seconds": 0.0, "schema_version": SCHEMA_VERSION}
        for row, flag, reason in found
    ]
    return pd.DataFrame(rows, columns=columns)


Found = Iterator[tuple[Mapping[str, Any], str, str]]


def _records(df: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in df.to_dict("records")]


def _no_power(held: pd.DataFrame) -> Found:
    for row in _records(summarise(held[(held["defense"] == OPEN) & (held["goal"] != "key")])):
        if not row["low"] > 0:
            shown = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            yield row, "no_power", f"{row['attack']} leaks {shown} on {OPEN}, where nothing protects: its silence elsewhere means nothing"


def _above_oracle(held: pd.DataFrame) -> Found:
    for row in _records(summarise(held)):
        low = row["low"] if np.isfinite(row["low"]) else row["value"]
        if low > 1 + 1e-6:
            yield row, "above_oracle", f"leakage {row['value']:.3f} is more than the truth itself gives: the scale's upper end is wrong"


def _still_improving(held: pd.DataFrame) -> Found:
    if "budget" not in held.columns or held["budget"].isna().all():
        return
    by_seed = held.groupby([*CELL, "budget", "seed"])["value"].mean().unstack("seed")
    for key, part in by_seed.groupby(level=list(CELL), sort=False):
        ordered = part.sort_index(level="budget")
        if len(ordered) < 2:
            continue
        gains = (ordered.iloc[-1] - ordered.iloc[-2]).dropna().to_numpy()
        if len(gains) and gains.mean() > 0.02 and (gains > 0).mean() >= 0.5:
            row = dict(zip(CELL, key if isinstance(key, tuple) else (key,)))
            steps = " to ".join(f"{budget:g}" for budget in ordered.index.get_level_values("budget")[-2:])
            yield row, "still_improving", f"leakage rises by {gains.mean():.3f} from budget {steps}: it was stopped while improving"


def _oblivious(held: pd.DataFrame) -> Found:
    cells = summarise(held)
    same = [name for name in CELL if name != "key"]
    blind, aware = cells[cells["key"].isin(HEADLINE_KEYS)], cells[cells["key"] == "right"]
    for row in _records(blind.merge(aware, on=same, suffixes=("", "_aware"))):
        if row["low"] > row["high_aware"]:
            shown = f"{row['value']:.3f} without the key, {row['value_aware']:.3f} with it"
            yield row, "oblivious_beats_aware", f"{row['attack']} leaks {shown}: whoever holds the key was not tried hard enough"


# ------------------------------------------------------------------------------------------------------------- recorded messages


def flag_messages(
    evidence: Evidence, stack: Stack, task: Task, module: nn.Module, inputs: Tensor, y: Tensor, claim: Claim | None = None
) -> list[Measure]:
    """Flags on what crossed the wire: messages that are zero, and gradients without their noise under a claim of privacy.

    Parameters
    ----------
    module : the sites' module (with its secret)
    inputs, y : the whole pool as the sites feed it (prepared), and its labels
    """
    flags = []
    empty = [record for _, record in _probed(evidence) if any(_size(m.payload) == 0 for m in _clear(record)) or _size(record.combined) == 0]
    if empty:
        flags.append(_flag("zero_gradient", len(empty), "a probed message is zero: nothing was sent, so nothing could leak"))
    if claim is not None and claim.kind == "dp":
        shares = [share for one in noise_shares(evidence, stack, task, module, inputs, y, claim) if math.isfinite(share := one)]
        if shares and min(shares) < QUIET:
            said = f"a message holds {min(shares):.2f} of the noise that the claim ε = {claim.epsilon:.3g} rests on: gradients are clean"
            flags.append(_flag("clean_under_claim", sum(share < QUIET for share in shares), said))
    return flags


def noise_shares(
    evidence: Evidence, stack: Stack, task: Task, module: nn.Module, inputs: Tensor, y: Tensor, claim: Claim
) -> Iterator[float]:
    """For each probed gradient: its distance from the clean clipped one over what the claimed noise makes it.

    Where the noise is not that of clipped sums (no ``clip``), the expected size is unknown and a thousandth of the message is taken.
    """
    sigma = claim.noise_multiplier or 0.0
    for broadcast, record in _probed(evidence):
        probe = record.probe
        if probe.optimiser != "gradient":
            continue
        clean = {}
        for site, rows in enumerate(probe.records):
            if rows:
                index = torch.tensor(rows)
                target = Target(broadcast, {}, len(rows), "gradient", 1, 0.0, site, 1, probe.round)
                clean[site] = simulate(module, task.loss, target, inputs[index], y[index], stack.clip)
        sent = {m.site: m.payload for m in _clear(record)} if stack.channel is None else {}
        expected = {site: _noise(stack, sigma, len(probe.records[site]), clean[site]) for site in clean}
        for site, message in sent.items():
            yield _distance(message, clean[site]) / expected[site]
        if not sent and record.combined:
            mean = {name: torch.stack([one[name] for one in clean.values()]).mean(0) for name in next(iter(clean.values()))}
            whole = math.sqrt(sum(size**2 for size in expected.values())) / len(expected)
            yield _distance(record.combined, mean) / whole


def _noise(stack: Stack, sigma: float, batch: int, clean: Params) -> float:
    """L2 norm that the claimed noise has over a whole message."""
    if stack.clip is None:
        return max(1e-3 * _size(clean), 1e-30)
    return max(sigma * stack.clip.norm / batch * math.sqrt(sum(tensor.numel() for tensor in clean.values())), 1e-30)


def _probed(evidence: Evidence) -> Iterator[tuple[Params, ProbeRecord]]:
    return ((record.broadcast, probe) for record in evidence.rounds for probe in record.probes)


def _clear(record: ProbeRecord) -> list[Message]:
    return [message for message in record.messages if message.kind in ("update", "gradient")]


def _distance(a: Params, b: Params) -> float:
    return math.sqrt(sum(float((a[name].double() - value.double()).square().sum()) for name, value in b.items() if name in a))


def _size(params: Params) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in params.values()))


def _flag(name: str, count: int, reason: str) -> Measure:
    return Measure(f"flag:{name}", 1.0, NAN, NAN, count, "lower", "flag", reason)
