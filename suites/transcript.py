"""A federation's transcript on disk: everything that crossed the wire, as safetensors plus a JSON index. No secret is ever in it.

``<i>.wire.safetensors`` holds round i's tensors, ``<i>.probe.<n>.wire.safetensors`` those of a probe at its start and
``final.wire.safetensors`` the released models; ``wire.json``, written last, says what they are. ``….site.safetensors`` beside a record has
what the colluding site put into a sum that hides it: it knows that, and nobody else does.

A round is written as it ends and read when it is asked for, so that no process holds a whole federation's messages: those of 30,000 genes,
five sites and three kept rounds take a quarter of a gigabyte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from suites.contracts import Message, Own, Params, Probe, ProbeRecord, Round
from suites.observation import Evidence

TENSORS, INDEX, SITE = "{}.wire.safetensors", "wire.json", "{}.site.safetensors"
FINAL = TENSORS.format("final")
_OPEN = 1 << 26  # bytes of rounds that stay open: a small federation's all, of a large one's the last


class Writer:
    """Takes what is recorded as it comes, each round and each probe into a file of its own; ``close`` writes the rest.

    ``folder`` becomes a finished cell in one rename (``suites.store``), so that what a killed process leaves here is never read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: list[dict[str, Any]] = []
        self._probes: list[dict[str, Any]] = []  # of the round to come

    def probe(self, index: int, record: ProbeRecord) -> ProbeRecord:
        """Write the ``index``-th probe of the round to come; returns it as it lies on disk, so that the tensors in memory can go."""
        name = f"{record.probe.round}.probe.{index}"
        entry = {"probe": asdict(record.probe), "name": name, **self._write(name, record.messages, record.own, combined=record.combined)}
        self._probes.append(entry)
        return _read_probe(self.folder, entry, "cpu")

    def round(self, record: Round) -> Round:
        """Write a round, whose probes were given before; returns it as it lies on disk."""
        name = str(record.index)
        sent = self._write(name, record.messages, record.own, broadcast=record.broadcast, combined=record.combined)
        self._entries.append({"index": record.index, "name": name, **sent, "probes": self._probes})
        self._probes = []
        return _read(self.folder, self._entries[-1], "cpu")

    def close(self, finals: Sequence[Params], samples: int) -> None:
        """Write the released models and the index of it all."""
        self._save(FINAL, {str(i): params for i, params in enumerate(finals)})
        (self.folder / INDEX).write_text(json.dumps({"finals": len(finals), "samples": samples, "rounds": self._entries}))

    def _write(self, name: str, messages: Sequence[Message], own: Own | None, **parts: Params) -> dict[str, Any]:
        size = self._save(TENSORS.format(name), {**parts, **{f"message/{n}": message.payload for n, message in enumerate(messages)}})
        if own is not None:
            weights = {"weight": json.dumps(own.weight), "total": json.dumps(own.total)}
            self._save(SITE.format(name), {"own": own.update}, weights)
        return {"messages": [{"site": m.site, "kind": m.kind, "records": m.records} for m in messages], "bytes": size}

    def _save(self, name: str, groups: Mapping[str, Params], about: dict[str, str] | None = None) -> int:
        path = self.folder / name
        tensors = {f"{at}//{own}": tensor.detach().cpu().contiguous() for at, params in groups.items() for own, tensor in params.items()}
        save_file(apart(tensors), path, about)
        return path.stat().st_size


class Rounds(Sequence[Round]):
    """The rounds of a transcript, each read from its file (whose pages the system maps) when it is asked for.

    The last used stay open while they take no more than ``most`` bytes together; the one in use always does.
    """

    def __init__(self, folder: Path, entries: Sequence[Mapping[str, Any]], device: str | torch.device = "cpu", most: int = _OPEN) -> None:
        self._folder, self._entries, self._device, self._most = folder, entries, device, most
        self._held: dict[int, Round] = {}  # by place, the last used last

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, at: int) -> Round: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Round]: ...
    def __getitem__(self, at: int | slice) -> Round | Sequence[Round]:
        if isinstance(at, slice):
            return Rounds(self._folder, self._entries[at], self._device, self._most)
        place = range(len(self._entries))[at]
        found = self._held.pop(place) if place in self._held else _read(self._folder, self._entries[place], self._device)
        self._held[place] = found  # now the last
        while len(self._held) > 1 and sum(map(self._bytes, self._held)) > self._most:
            del self._held[next(iter(self._held))]
        return found

    def _bytes(self, place: int) -> int:
        entry = self._entries[place]
        return int(entry["bytes"]) + sum(int(probe["bytes"]) for probe in entry["probes"])


def save(folder: Path, evidence: Evidence) -> None:
    """Write a transcript into ``folder`` at once."""
    writer = Writer(folder)
    for record in evidence.rounds:
        for n, probe in enumerate(record.probes):
            writer.probe(n, probe)
        writer.round(record)
    writer.close(evidence.finals, evidence.samples)


def load(folder: Path, device: str | torch.device = "cpu") -> Evidence:
    """Read a transcript back; its rounds are read as they are asked for."""
    index = json.loads((folder / INDEX).read_text())
    finals = _grouped(folder / FINAL, device)
    return Evidence(Rounds(folder, index["rounds"], device), [finals[str(i)] for i in range(index["finals"])], index["samples"])


def _read(folder: Path, entry: Mapping[str, Any], device: str | torch.device) -> Round:
    groups, own = _grouped(folder / TENSORS.format(entry["name"]), device), _read_own(folder, entry, device)
    probes = tuple(_read_probe(folder, probe, device) for probe in entry["probes"])
    return Round(entry["index"], groups["broadcast"], _messages(groups, entry), groups["combined"], probes, own)


def _read_probe(folder: Path, entry: Mapping[str, Any], device: str | torch.device) -> ProbeRecord:
    groups, own = _grouped(folder / TENSORS.format(entry["name"]), device), _read_own(folder, entry, device)
    probe = Probe(**{**entry["probe"], "records": tuple(tuple(site) for site in entry["probe"]["records"])})
    return ProbeRecord(probe, _messages(groups, entry), groups.get("combined", {}), own)


def _read_own(folder: Path, entry: Mapping[str, Any], device: str | torch.device) -> Own | None:
    path = folder / SITE.format(entry["name"])
    if not path.is_file():
        return None
    with safe_open(path, "pt") as held:
        about = held.metadata()
    return Own(_grouped(path, device).get("own", {}), json.loads(about["weight"]), json.loads(about["total"]))


def _messages(groups: Mapping[str, Params], entry: Mapping[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(e["site"], e["kind"], groups.get(f"message/{n}", {}), e["records"]) for n, e in enumerate(entry["messages"]))


def _grouped(path: Path, device: str | torch.device) -> dict[str, Params]:
    groups: dict[str, Params] = {}
    for name, tensor in load_file(path, device=str(device)).items():
        prefix, _, own = name.partition("//")
        groups.setdefault(prefix, {})[own] = tensor
    return groups


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
