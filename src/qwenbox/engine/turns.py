"""Who computes now: the workers of one service step one at a time, because they share the processors.

Two bytes of a file without a name, "door" and "room", are locked by turns: who waits for the room holds the door, so a worker that steps again
and again waits outside while another goes in. The kernel frees what a worker held when it ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BEAT_SECONDS = 1.0
"""Who waits says so this often."""
_DOOR, _ROOM = 0, 1


def open_turns() -> int:
    """The file, as a descriptor that workers inherit."""
    return os.memfd_create("qwenbox-turns")


class Turns:
    """One worker's side. Only for the main thread, whose waiting a signal interrupts."""

    def __init__(self, descriptor: int, beat: Callable[[], None]) -> None:
        """`beat` is called each second while this worker waits: the front would take silence for death."""
        self._file = descriptor
        self._beat = beat

    @contextmanager
    def turn(self) -> Iterator[None]:
        try:
            self._lock(_DOOR, fcntl.LOCK_NB)
            self._lock(_ROOM, fcntl.LOCK_NB)
        except BlockingIOError:
            self._wait()
        self._unlock(_DOOR)
        try:
            yield
        finally:
            self._unlock(_ROOM)

    def _wait(self) -> None:
        before = signal.signal(signal.SIGALRM, lambda number, frame: self._beat())
        signal.setitimer(signal.ITIMER_REAL, BEAT_SECONDS, BEAT_SECONDS)
        try:
            self._lock(_DOOR)
            self._lock(_ROOM)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _lock(self, byte: int, more: int = 0) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX | more, 1, byte)

    def _unlock(self, byte: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)
