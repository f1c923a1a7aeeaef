"""A federation's transcript on disk: everything that crossed the wire, as safetensors plus a JSON index. No secret is ever in it.

``wire.safetensors`` holds tensors under ``round/<i>/…``; ``wire.json`` says what they are. ``site.safetensors`` has what the colluding site
put into sums that hide it: it knows that, and nobody else does.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from suites.contracts import Message, Own, Params, Probe, ProbeRecord, Round
from suites.observation import Evidence

TENSORS, INDEX, SITE = "wire.safetensors", "wire.json", "site.safetensors"


def save(folder: Path, evidence: Evidence) -> None:
    """Write the transcript into ``folder``."""
    tensors: Params = {}
    index: dict[str, Any] = {"finals": len(evidence.finals), "samples": evidence.samples, "rounds": []}
    for i, params in enumerate(evidence.finals):
        _put(tensors, f"final/{i}", params)
    for record in evidence.rounds:
        at = f"round/{record.index}"
        _put(tensors, f"{at}/broadcast", record.broadcast)
        _put(tensors, f"{at}/combined", record.combined)
        index["rounds"].append({"index": record.index, "messages": _messages(tensors, at, record.messages), "probes": []})
        for n, probe in enumerate(record.probes):
            _put(tensors, f"{at}/probe/{n}/combined", probe.combined)
            entry = {"probe": asdict(probe.probe), "messages": _messages(tensors, f"{at}/probe/{n}", probe.messages)}
            index["rounds"][-1]["probes"].append(entry)
    _save_own(folder, evidence)
    save_file(apart(tensors), folder / TENSORS)
    (folder / INDEX).write_text(json.dumps(index))


def load(folder: Path, device: str | torch.device = "cpu") -> Evidence:
    """Read a transcript back."""
    index = json.loads((folder / INDEX).read_text())
    inside = _load_own(folder, device)
    groups: dict[str, Params] = {}
    for name, tensor in load_file(folder / TENSORS, device=str(device)).items():
        prefix, _, own = name.partition("//")
        groups.setdefault(prefix, {})[own] = tensor
    rounds = []
    for entry in index["rounds"]:
        at = f"round/{entry['index']}"
        probes = []
        for n, probe in enumerate(entry["probes"]):
            spec = {**probe["probe"], "records": tuple(tuple(site) for site in probe["probe"]["records"])}
            messages = _read(groups, f"{at}/probe/{n}", probe["messages"])
            probes.append(ProbeRecord(Probe(**spec), messages, groups.get(f"{at}/probe/{n}/combined", {}), inside.get(f"{at}/probe/{n}")))
        messages = _read(groups, at, entry["messages"])
        rounds.append(Round(entry["index"], groups[f"{at}/broadcast"], messages, groups[f"{at}/combined"], tuple(probes), inside.get(at)))
    return Evidence(rounds, [groups[f"final/{i}"] for i in range(index["finals"])], index["samples"])


def _save_own(folder: Path, evidence: Evidence) -> None:
    """The colluding site's parts, where there are any."""
    parts = {f"round/{record.index}": record.own for record in evidence.rounds}
    parts |= {f"round/{record.index}/probe/{n}": probe.own for record in evidence.rounds for n, probe in enumerate(record.probes)}
    found = {at: own for at, own in parts.items() if own is not None}
    tensors: Params = {}
    for at, own in found.items():
        _put(tensors, at, own.update)
    if found:
        save_file(apart(tensors), folder / SITE, {"weights": json.dumps({at: [own.weight, own.total] for at, own in found.items()})})


def _load_own(folder: Path, device: str | torch.device) -> dict[str, Own]:
    path = folder / SITE
    if not path.is_file():
        return {}
    with safe_open(path, "pt", device=str(device)) as held:
        weights = json.loads(held.metadata()["weights"])
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a mapping)
    return {
        at: Own({name.removeprefix(f"{at}//"): t for name, t in tensors.items() if name.startswith(f"{at}//")}, weight, total)
        for at, (weight, total) in weights.items()
    }


def _put(tensors: Params, prefix: str, params: Params) -> None:
    for name, tensor in params.items():
        tensors[f"{prefix}//{name}"] = tensor.detach().cpu().contiguous()


def apart(tensors: Params) -> Params:
    """The same, each in memory of its own, since safetensors refuses two in one place; what lies apart already is not copied.

    A transcript is as large as all its messages together: a copy of each would double that.
    """
    found: Params = {}
    taken = -1  # where what was seen so far ends, in the order of memory
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        found[name] = tensor.clone() if tensor.data_ptr() < taken else tensor
        taken = max(taken, tensor.data_ptr() + tensor.nbytes)
    return {name: found[name] for name in tensors}


def _messages(tensors: Params, at: str, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    for n, message in enumerate(messages):
        _put(tensors, f"{at}/message/{n}", message.payload)
    return [{"site": m.site, "kind": m.kind, "records": m.records} for m in messages]


def _read(groups: dict[str, Params], at: str, entries: list[dict[str, Any]]) -> tuple[Message, ...]:
    return tuple(Message(e["site"], e["kind"], groups.get(f"{at}/message/{n}", {}), e["records"]) for n, e in enumerate(entries))
