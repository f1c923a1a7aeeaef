"""What a computation costs: seconds, peak memory, floating-point operations, bytes on the wire.

FLOP are counted by torch's own dispatcher (two for each multiply-add of a matrix product; element-wise work is not counted), the same on
CPU and CUDA. Torch is imported only where tensors are met.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Reading:
    """Filled when the measured block ends: wall and CPU seconds, and bytes at the peak."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    device: str = "cpu"

    @property
    def busy(self) -> float:
        """Seconds of work: this process's own on a CPU, where neighbours only make it wait; on a device the wall's."""
        return self.cpu_seconds if self.device == "cpu" else self.seconds


@contextlib.contextmanager
def measure(device: str = "cpu") -> Iterator[Reading]:
    """Measure a block on a device; on CUDA the peak is the device's, and the clock waits for it."""
    reading = Reading(device=device)
    _synchronise(device)
    reset_peak_memory(device)
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield reading
    finally:
        _synchronise(device)
        reading.seconds = time.perf_counter() - wall
        reading.cpu_seconds = time.process_time() - cpu
        reading.peak_bytes = peak_memory(device)


def peak_memory(device: str = "cpu") -> int:
    """Bytes at the peak since the process began or the peak was reset: of the device's allocator on CUDA, resident else."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def reset_peak_memory(device: str = "cpu") -> None:
    """Start the peak anew from here; where the system cannot (macOS) it stays the process's own."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def flop(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions that ``work()`` performs."""
    from suites.flop import Products

    with Products() as counted:
        work()
    return int(counted.flop)


def wire_bytes(params: Mapping[str, Tensor]) -> int:
    """Bytes of named tensors as they cross the wire, uncompressed."""
    return sum(tensor.numel() * tensor.element_size() for tensor in params.values())


def peak_flop_rate(device: str = "cpu", size: int = 1536, repeats: int = 7) -> float:
    """FLOP a second of the best of several square float32 matrix products: what this device can do at most, as measured now."""
    import torch

    left = torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(repeats):
        with measure(device) as reading:
            left @ left
        best = min(best, reading.busy)
    return 2.0 * size**3 / best


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
