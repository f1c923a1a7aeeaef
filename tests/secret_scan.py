"""Where a secret lies open: searches files and objects for a ``Secret``'s tensors, as bytes, as decimal text, encoded or compressed.

A float64 word of the key counts wherever it lies. A float32 word or a six-digit decimal occurs by chance in millions of weights, so these
count next to their neighbour in the key (by row or by column) or three in a row. Values without entropy of their own (signs, a permutation)
count as a run of about 64 bits. Not found: a key cast to 16 bits, drawn into an image, or changed by arithmetic.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import gzip
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from suites.contracts import Secret

NUMBER = re.compile(rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?")
BASE64, HEX = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}"), re.compile(rb"(?:[0-9a-fA-F]{2}){12,}")
DEFLATED = re.compile(rb"stream\r?\n(.*?)endstream", re.DOTALL)  # in a PDF
PIECE = re.compile(rb"\(((?:\\.|[^()\\])*)\)")
ENCODINGS = ("<f8", "<f4", "<i8", "<i4", "<i2", "i1")


def find_secret(where: Any, secret: Secret) -> list[str]:
    """Every place in a file, a folder or an object that holds (part of) the secret: its name and the form, never a value."""
    needles = [Needle(name, secret[name].detach().cpu()) for name in secret.names]
    found = []
    for place, blob in blobs(where, ""):
        for needle in needles:
            found += [f"{place}: {needle.name} as {form}" for form in needle.forms(blob)]
    return found


class Needle:
    """One tensor of the secret, ready to be searched for."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name = name
        values = tensor.double().numpy()
        flat, self.runs = values.reshape(-1), []
        telling = (flat * 2.0**16 != np.rint(flat * 2.0**16)) & np.isfinite(flat)  # signs and counts occur everywhere
        self.values = flat[telling]
        stride = values.shape[-1] if values.ndim > 1 else 1
        places = np.flatnonzero(telling)
        rank = {int(place): number for number, place in enumerate(places)}
        self.neighbours = {(a, rank[place + step]) for place, a in rank.items() for step in (1, stride) if place + step in rank}
        self.neighbours |= {(b, a) for a, b in self.neighbours}
        if (~telling).sum() > len(flat) / 2:
            distinct = max(2, len(np.unique(flat)))
            length = min(len(flat), math.ceil(64 / math.log2(distinct)))
            cuts = [flat[start : start + length] for start in range(0, len(flat) - length + 1, length)]
            self.runs = [cut.astype(kind).tobytes() for cut in cuts if length * math.log2(distinct) >= 32 for kind in ENCODINGS]

    def forms(self, blob: bytes) -> Iterator[str]:
        if any(run in blob for run in self.runs):
            yield "a run of values"
        if not len(self.values):
            return
        if len(self._words(blob, "<u8", self.values.astype("<f8"))):
            yield "float64"
        if self._close(self._words(blob, "<u4", self.values.astype("<f4")), 4):
            yield "float32"
        if self._in_text(blob):
            yield "decimal text"

    def _words(self, blob: bytes, kind: str, values: NDArray[Any]) -> NDArray[np.int64]:
        """Rows (byte position, index of the value) of every occurrence, at any alignment."""
        wanted, hits = values.view(kind), []
        order = np.argsort(wanted)
        table = np.zeros(2**16, dtype=bool)
        table[(wanted & 0xFFFF).astype(np.int64)] = True  # the low bits tell most words apart at the price of a look-up
        size = wanted.itemsize
        for offset in range(size):
            words = np.frombuffer(blob, dtype=kind, offset=min(offset, len(blob)), count=max(0, (len(blob) - offset) // size))
            near = np.flatnonzero(table[(words & 0xFFFF).astype(np.int64)])
            rank = np.minimum(np.searchsorted(wanted[order], words[near]), len(wanted) - 1)
            same = wanted[order][rank] == words[near]
            hits.append(np.stack([near[same] * size + offset, order[rank[same]]], axis=1))
        return np.concatenate(hits)

    def _close(self, hits: NDArray[np.int64], step: int) -> bool:
        """Whether two hits ``step`` apart are neighbours in the key, or three in a row are different values of it."""
        at = {int(place): int(index) for place, index in hits}
        for place, index in at.items():
            following, third = at.get(place + step), at.get(place + 2 * step)
            if following is not None and (index, following) in self.neighbours:
                return True
            if following is not None and third is not None and len({index, following, third}) == 3:
                return True
        return False

    def _in_text(self, blob: bytes) -> bool:
        """Ten digits of one coordinate, or six of two that are neighbours in the key and at most two numbers apart in the text."""
        ordered = np.sort(self.values)
        index = np.argsort(self.values)
        found: list[tuple[int, int]] = []
        for place, digits, value, slack in _long_numbers(blob):
            near = index[np.searchsorted(ordered, value - slack) : np.searchsorted(ordered, value + slack, side="right")]
            if digits >= 10 and len(near):
                return True
            for one in near:
                if any(place - earlier <= 3 and (other, int(one)) in self.neighbours for earlier, other in found[-8:]):
                    return True
                found.append((place, int(one)))
        return False


@lru_cache(maxsize=4096)  # the same files are searched for one key after the other
def _long_numbers(blob: bytes) -> list[tuple[int, int, float, float]]:
    """Each decimal of six digits or more: which number of the text it is, its digits, its value and one unit of its last digit."""
    found = []
    for place, match in enumerate(NUMBER.finditer(blob.replace("−".encode(), b"-"))):
        token = match.group()
        if not 6 <= len(token) <= 60:
            continue
        mantissa, _, exponent = token.lower().partition(b"e")
        digits, power = len(mantissa.lstrip(b"+-0.").replace(b".", b"")), int(exponent or 0)
        if digits < 6 or abs(power) > 30:
            continue
        slack = 1.001 * 10.0 ** (power - len(mantissa.partition(b".")[2]))  # a whole last digit, since some cut instead of rounding
        found.append((place, digits, float(token), slack))
    return found


def blobs(where: Any, name: str) -> Iterator[tuple[str, bytes]]:
    """All bytes that ``where`` holds, each with its place; containers are opened."""
    if isinstance(where, Path):
        files = sorted(path for path in where.rglob("*") if path.is_file()) if where.is_dir() else [where]
        for path in files:
            yield from opened(str(path.relative_to(where)) if where.is_dir() else path.name, path.read_bytes())
    elif isinstance(where, bytes | bytearray | memoryview):
        yield from opened(name, bytes(where))
    elif isinstance(where, str):
        yield from opened(name, where.encode())
    elif isinstance(where, Tensor):
        yield from blobs(where.detach().cpu().float().numpy() if where.dtype == torch.bfloat16 else where.detach().cpu().numpy(), name)
    elif isinstance(where, np.ndarray):
        yield name, np.ascontiguousarray(where).tobytes()
        if where.ndim > 1:
            yield f"{name} (transposed)", np.ascontiguousarray(where.T).tobytes()
        if where.dtype.kind in "OU":
            yield name, "\n".join(map(str, where.reshape(-1))).encode()
    elif isinstance(where, pd.DataFrame | pd.Series):
        yield from blobs(
            {str(column): where[column].to_numpy() for column in where} if isinstance(where, pd.DataFrame) else where.to_numpy(), name
        )
    elif isinstance(where, nn.Module):
        yield from blobs(where.state_dict(), name)
    elif isinstance(where, Secret):
        return  # the holder's own; asked is what lies beside it
    elif isinstance(where, Mapping):
        yield from opened(name, json.dumps([str(key) for key in where]).encode())
        for key, value in where.items():
            yield from blobs(value, f"{name}/{key}" if name else str(key))
    elif dataclasses.is_dataclass(where) and not isinstance(where, type):
        yield from blobs({field.name: getattr(where, field.name) for field in dataclasses.fields(where)}, name)
    elif isinstance(where, list | tuple | set | frozenset):
        if all(isinstance(item, int | float) for item in where):
            yield name, np.array(list(where), dtype=np.float64).tobytes()
        for number, item in enumerate(where):
            if not isinstance(item, int | float):
                yield from blobs(item, f"{name}[{number}]")
    elif isinstance(where, float):
        yield name, np.float64(where).tobytes()
    elif where is not None and not isinstance(where, int):
        yield name, repr(where).encode()


def opened(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The bytes, and what they hold compressed or encoded."""
    yield name, content
    if content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        yield from blobs(dict(table.schema.metadata or {}), f"{name}/metadata")
        yield from blobs({column: table[column].to_numpy() for column in table.column_names}, name)
    elif zipfile.is_zipfile(io.BytesIO(content)):  # npz, torch.save
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                inner = archive.read(member)
                yield from opened(f"{name}/{member}", inner)
                if member.endswith(".npy") and (array := np.load(io.BytesIO(inner), allow_pickle=False)).ndim > 1:
                    yield f"{name}/{member} (transposed)", np.ascontiguousarray(array.T).tobytes()
    elif content[:2] == b"\x1f\x8b":
        yield from opened(f"{name} (gunzipped)", gzip.decompress(content))
    elif content[:5] == b"%PDF-":
        for number, match in enumerate(DEFLATED.finditer(content)):
            try:
                inner = zlib.decompress(match.group(1))
            except zlib.error:
                continue
            # Text stands as pieces in brackets with kerning between them; ET ends a line of it.
            words = b"\n".join(b"".join(PIECE.findall(line)) for line in inner.split(b"ET\n"))
            yield f"{name} (stream {number})", inner + b"\n" + words
    elif is_text(content):
        for match in BASE64.finditer(content):
            whole = match.group()[: len(match.group()) // 4 * 4]
            yield f"{name} (base64)", base64.b64decode(whole)
        for match in HEX.finditer(content):
            yield f"{name} (hex)", binascii.unhexlify(match.group())
    if name.endswith(".safetensors"):
        for at, array in matrices(content):
            yield f"{name}/{at} (transposed)", np.ascontiguousarray(array.T).tobytes()


def matrices(content: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """A safetensors file's float tensors of two dimensions or more; the others are found in the raw bytes."""
    size = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] in ("F64", "F32") and len(entry["shape"]) > 1:
            start, end = entry["data_offsets"]
            kind = {"F64": "<f8", "F32": "<f4"}[entry["dtype"]]
            yield name, np.frombuffer(content[8 + size + start : 8 + size + end], dtype=kind).reshape(entry["shape"])


def is_text(content: bytes) -> bool:
    return b"\0" not in content[:4096]
