"""The referee: trains, records, cuts observations, runs attacks and has their guesses scored. It alone holds truth and secrets.

Three kinds of cell, each a JSON spec and a folder to write into: ``train_cell`` (one target federation), ``reference_cell`` (some reference
federations), ``attack_cell`` (one attack on one target). Secrets are derived again in memory where they are needed; no cell writes one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from suites import registry, transcript
from suites.bench import CLAIM, REFERENCES, Bench, Row, row
from suites.checks_flags import flag_messages
from suites.contracts import (
    Attack,
    Claim,
    Params,
    Skip,
    Threat,
)
from suites.federation import Trained
from suites.meter import flop, peak_memory
from suites.observation import Evidence, why_not
from suites.receipt import receipt
from suites.scoring import (
    Measure,
    score_utility,
)
from suites.sight import PASSIVE, goal_of
from suites.trial import Trial
from suites.witness import Witness

ROWS, CURVES, RECEIPT = "rows.json", "curves.json", "receipt.json"


def train_cell(spec: Mapping[str, Any], folder: Path) -> None:
    """Train the target federation; write its transcript, its receipt, and rows of utility, cost and claim."""
    started, bench = time.perf_counter(), Bench(spec, _cache(folder))
    claim = bench.stack.claim(bench.federation, bench.shape)
    witness = Witness() if claim is not None and claim.kind == "dp" else None
    writer = transcript.Writer(folder)
    trained = bench.train([bench.assignment()], target=True, witness=witness, filing=writer)[0]
    writer.close(trained.finals, trained.samples)
    evidence = Evidence(trained.rounds, trained.finals, trained.samples)
    metrics = bench.utility(trained)
    measures = score_utility(metrics, bench.floor(), len(bench.prepared.test), bench.lower)
    measures += bench.yardsticks(metrics)
    rows = [row(bench, measure, goal="utility") for measure in measures]
    rows += [row(bench, measure, goal="cost") for measure in _costs(bench, trained)]
    rows += [row(bench, measure, goal="utility") for measure in [*_claims(claim), *_receipt(bench, witness, claim, trained, folder)]]
    flags = flag_messages(evidence, bench.stack, bench.task, trained.module, bench.fed(trained.secret), bench.prepared.pool.y, claim)
    rows += [row(bench, measure, goal="utility") for measure in flags]
    rows = [] if spec.get("inserts") else rows  # a federation with canaries in it is no measure of utility or cost
    _write(folder, rows, [], time.perf_counter() - started)
    (folder / CLAIM).write_text(json.dumps({} if claim is None else asdict(claim)))


def reference_cell(spec: Mapping[str, Any], folder: Path) -> None:
    """Train references ``first`` … ``first + count - 1`` under the same defense, with the adversary's own keys."""
    bench = Bench(spec, _cache(folder))
    indices = range(spec["first"], spec["first"] + spec["count"])
    drawn = [bench.reference_assignment(index) for index in indices]
    finals = bench.train([assignment for assignment, _ in drawn], target=False)
    tensors: Params = {}
    for index, (_, included), trained in zip(indices, drawn, finals):
        tensors[f"{index}//included"] = included
        tensors |= {f"{index}//final//{name}": value.cpu().contiguous() for name, value in trained.finals[0].items()}
    save_file(tensors, folder / REFERENCES)


def attack_cell(spec: Mapping[str, Any], folder: Path, inputs: Mapping[str, Path]) -> None:
    """Run one attack under one threat on one recorded federation, and score its guess.

    ``inputs`` has the train cell's folder under "train" and the reference cells' under names that start with "reference".
    """
    started, bench = time.perf_counter(), Bench(spec, _cache(folder))
    threat = Threat(**spec["threat"])
    plugin = registry.find("attacks", spec["attack"])
    attack: Attack = plugin.make()
    if spec.get("budget", 1) != 1 and hasattr(attack, "budget"):
        attack.budget = max(1, round(attack.budget * spec["budget"]))
    name = registry.portable(spec["attack"])
    where = {"attack": name, "goal": goal_of(attack.goal, threat.unit), "view": threat.view_label, "key": threat.key_label}
    reference_folders = [path for name, path in sorted(inputs.items()) if name.startswith("reference")]
    reason = why_not(attack, threat.view, bench.stack, has_references=bool(reference_folders))
    curves: list[Row] = []
    if reason is None and getattr(attack, "active", False) and not threat.active:
        reason = PASSIVE
    if reason is None and attack.needs & {"probes", "probe_sums"}:
        reason = bench.refused_probes()
    if reason is None:
        try:
            rows, curves = Trial(bench, threat, inputs["train"], reference_folders).run(attack, name, where)
        except Skip as skip:
            reason = str(skip)
    if reason is not None:
        rows = [row(bench, Measure("", math.nan, math.nan, math.nan, 0, "higher", "score", reason), status="skipped", **where)]
    _write(folder, rows, curves, time.perf_counter() - started)


def _claims(claim: Claim | None) -> list[Measure]:
    if claim is None or claim.epsilon is None:
        return []
    nan = math.nan
    rows = [Measure("epsilon", claim.epsilon, nan, nan, len(claim.per_site), "lower", "claim", claim.sentence)]
    rows += [] if claim.delta is None else [Measure("delta", claim.delta, nan, nan, 1, "lower", "claim")]
    rows += [Measure(f"epsilon:site {i}", value, nan, nan, 1, "lower", "claim") for i, value in enumerate(claim.per_site)]
    return rows


def _receipt(bench: Bench, witness: Witness | None, claim: Claim | None, trained: Trained, folder: Path) -> list[Measure]:
    """Write the receipt of a training under ε; a flag where it is refused."""
    if witness is None or claim is None:
        return []
    shared: str = getattr(bench.task, "shared_inputs", "")
    found = receipt(witness, bench.stack, bench.federation, bench.shape, claim, trained, shared)
    (folder / RECEIPT).write_text(json.dumps(found.record()))
    said = "; ".join(found.reasons)
    return [] if found.accepted else [Measure("flag:receipt_refused", 1.0, math.nan, math.nan, len(found.reasons), "lower", "flag", said)]


def _costs(bench: Bench, trained: Trained) -> list[Measure]:
    sent = [sum(t.numel() * t.element_size() for m in r.messages for t in m.payload.values()) for r in trained.rounds]
    back = [sum(t.numel() * t.element_size() for t in r.broadcast.values()) * len(r.messages) for r in trained.rounds]
    measured = {
        "training_seconds": trained.seconds,
        "samples_per_second": trained.samples / max(trained.seconds, 1e-9),
        "peak_memory_bytes": float(peak_memory()),
        "flop_per_round": float(flop(bench.short) * bench.federation.local.epochs),
        "bytes_up_per_round": sum(sent) / len(sent) if sent else 0.0,
        "bytes_down_per_round": sum(back) / len(back) if back else 0.0,
        "parameters": float(sum(t.numel() for t in trained.finals[0].values())),
    }
    higher = {"samples_per_second"}
    return [Measure(n, v, math.nan, math.nan, 1, "higher" if n in higher else "lower", "cost") for n, v in measured.items()]


def _write(folder: Path, rows: Sequence[Row], curves: Sequence[Row], seconds: float) -> None:
    (folder / ROWS).write_text(json.dumps([{**row, "seconds": seconds} for row in rows]))
    (folder / CURVES).write_text(json.dumps(list(curves)))


def _cache(folder: Path) -> Path:
    """Prepared data is kept beside the cells' folders."""
    return folder.parent.parent / "prepared"
