"""How long the system lets a thread run before it looks at who else waits.

Front and kernels share the processors. A front that asks for short slices runs soon after it wakes, and a token is at its reader milliseconds
earlier; the kernels keep the usual ones, which cost them fewer changes. Linux has this since 6.12 (sched_setattr(2)); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

FRONT_SECONDS = 0.0001
"""The shortest that the system gives."""

_NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of the system calls sched_setattr and sched_getattr, which the C library has no functions for."""
_ATTRIBUTES = struct.Struct("<IIQiIQQQ")
"""size, policy, flags, nice, priority, runtime, deadline, period: `struct sched_attr` of sched_setattr(2), in nanoseconds."""
_SHARING = (0, 3)
"""SCHED_OTHER and SCHED_BATCH, whose slice the runtime is."""


def ask_slice(seconds: float | None) -> None:
    """For this thread and those that it starts; None: what the system finds right."""
    attributes = _attributes()
    if attributes is None or attributes[1] not in _SHARING:
        return
    size, policy, flags, nice, priority, *_ = attributes
    asked = _ATTRIBUTES.pack(size, policy, flags, nice, priority, round((seconds or 0.0) * 1e9), 0, 0)
    # An old system refuses or ignores it, and all goes on as before.
    ctypes.CDLL(None).syscall(_NUMBERS[platform.machine()][0], 0, ctypes.create_string_buffer(asked, len(asked)), 0)


def slice_seconds(thread: int = 0) -> float | None:
    """Of a thread by its id, or of this one; None where the system does not say."""
    attributes = _attributes(thread)
    return None if attributes is None else attributes[5] / 1e9


def _attributes(thread: int = 0) -> tuple[int, ...] | None:
    if sys.platform != "linux" or platform.machine() not in _NUMBERS:
        return None
    buffer = ctypes.create_string_buffer(_ATTRIBUTES.size)
    failed = ctypes.CDLL(None).syscall(_NUMBERS[platform.machine()][1], thread, buffer, _ATTRIBUTES.size, 0)
    return None if failed else _ATTRIBUTES.unpack(buffer.raw)
