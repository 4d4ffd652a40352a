"""What this machine can do at most, measured beside the work that it judges: DRAM read bandwidth and multiply-add rates.

The numbers drift with the neighbours of a virtual machine, so `Ceilings.measure` is made to be called before and after each repetition.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbox.errors import EngineError
from qwenbox.kernels.native import declare, library

PREFETCHES = ("none", "t0", "nta")
KINDS = ("int8", "bf16")
FEEDS = ("registers", "l1")
HUGE_PAGE = 2 << 20


@dataclass(frozen=True, slots=True)
class ReadPattern:
    """One way of walking through memory. `distance` is how many bytes ahead the prefetch runs; it means nothing for "none"."""

    prefetch: str
    distance: int
    streams: int


READ_PATTERNS = [ReadPattern("none", 0, streams) for streams in (1, 2, 4)] + [
    ReadPattern(prefetch, distance, streams) for prefetch in ("t0", "nta") for distance in (1024, 2048, 4096, 8192) for streams in (1, 2, 4)
]


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Best rates of one moment: bytes per second, and operations per second (a multiply-add is two) with their methods."""

    bandwidth: float
    pattern: ReadPattern
    int8_registers: float
    int8_l1: float
    int8_method: str
    bf16_registers: float
    bf16_l1: float
    bf16_method: str


class CeilingMeter:
    """Measures ceilings with `threads` threads. The first measurement tries every read pattern and method; later ones only the best few.

    The buffer exists only while a measurement runs, so that it is not counted as memory of the model.
    """

    def __init__(self, threads: int, *, buffer_bytes: int | None = None, seconds: float = 0.04) -> None:
        self.threads = threads
        self.seconds = seconds
        self.buffer_bytes = (buffer_bytes or default_buffer_bytes()) // HUGE_PAGE * HUGE_PAGE
        self._patterns: Sequence[ReadPattern] = READ_PATTERNS
        self._methods = {kind: methods(kind) for kind in KINDS}

    def measure(self) -> Ceilings:
        """The ceilings now. Raises EngineError where the buffer does not fit into memory."""
        bandwidths = read_bandwidths(self._patterns, threads=self.threads, buffer_bytes=self.buffer_bytes)
        ranked = sorted(bandwidths, key=lambda pattern: -bandwidths[pattern])
        self._patterns = ranked[:4]
        best = {kind: self._best_rates(kind) for kind in KINDS}
        return Ceilings(bandwidths[ranked[0]], ranked[0], *best["int8"], *best["bf16"])

    def _best_rates(self, kind: str) -> tuple[float, float, str]:
        """(register-only rate, L1-fed rate, method) of the method whose L1-fed rate is highest; that method alone is measured from then on."""
        fed = {method: rate(method, kind, "l1", threads=self.threads, seconds=self.seconds) for method in self._methods[kind]}
        method = max(fed, key=lambda name: fed[name])
        self._methods[kind] = [method]
        return rate(method, kind, "registers", threads=self.threads, seconds=self.seconds), fed[method], method


def default_buffer_bytes() -> int:
    """1 GiB or four times the last-level cache, whichever is more, but at most half of the memory that is free."""
    cache = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        cache = max(cache, int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1], 0))
    available = 0
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    return min(max(1 << 30, 4 * cache), available // 2)


def methods(kind: str) -> list[str]:
    """Names of the product methods that this machine can run for "int8" or "bf16", fastest instruction set first."""
    names: list[str] = []
    while name := _library().qb_ceiling_method(KINDS.index(kind), len(names)):
        names.append(name.decode())
    return names


def rate(method: str, kind: str, feed: str, *, threads: int, seconds: float = 0.04) -> float:
    """Operations per second of `threads` threads together, operands in "registers" or fed from "l1"; 0.0 if the machine cannot run the method."""
    return float(_library().qb_ceiling_rate(method.encode(), KINDS.index(kind), FEEDS.index(feed), threads, seconds))


def read_bandwidths(patterns: Sequence[ReadPattern], *, threads: int, buffer_bytes: int) -> dict[ReadPattern, float]:
    """Bytes per second of reading `buffer_bytes` once, for each pattern. Raises EngineError where the buffer does not fit into memory."""
    native = _library()
    buffer = native.qb_ceiling_buffer(buffer_bytes)
    if not buffer:
        raise EngineError(
            f"no memory for a buffer of {buffer_bytes:,} bytes to measure bandwidth with: close other programs or choose a smaller buffer"
        )
    try:
        return {
            pattern: float(
                native.qb_ceiling_read(buffer, buffer_bytes, threads, PREFETCHES.index(pattern.prefetch), pattern.distance, pattern.streams)
            )
            for pattern in patterns
        }
    finally:
        native.qb_ceiling_buffer_free(buffer, buffer_bytes)


@functools.cache
def _library() -> ctypes.CDLL:
    """The native library, with the signatures of csrc/ceiling.h."""
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "qb_ceiling_buffer": (ctypes.c_void_p, [ctypes.c_uint64]),
        "qb_ceiling_buffer_free": (None, [ctypes.c_void_p, ctypes.c_uint64]),
        "qb_ceiling_read": (ctypes.c_double, [ctypes.c_void_p, ctypes.c_uint64] + [ctypes.c_int32] * 4),
        "qb_ceiling_method": (ctypes.c_char_p, [ctypes.c_int32, ctypes.c_int32]),
        "qb_ceiling_rate": (ctypes.c_double, [ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.c_double]),
    }
    return declare(library(), signatures)
