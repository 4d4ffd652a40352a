"""Whether anybody still waits for the step that runs, and its interruption when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from qwenbox.kernels.program import CancelFlag


class StepGuard:
    """`leave` and `stop` are called from any thread, the rest from the engine's. `flag` is what the model looks at between two operations."""

    def __init__(self) -> None:
        self.flag = CancelFlag()
        self._lock = threading.Lock()
        self._stopped = False
        self._left: set[str] = set()
        self._step: set[str] = set()

    def begin(self, request_ids: Iterable[str]) -> None:
        """A step for these requests begins; it is interrupted at once where all of them have left already."""
        with self._lock:
            self._step = set(request_ids)
            self.flag.clear()
            self._look()

    def end(self) -> None:
        with self._lock:
            self._step.clear()

    def leave(self, request_id: str) -> None:
        """Nobody waits for this request any more: its cancellation is on the way to the engine, which then calls `forget`."""
        with self._lock:
            self._left.add(request_id)
            self._look()

    def forget(self, request_id: str) -> None:
        with self._lock:
            self._left.discard(request_id)

    def stop(self) -> None:
        """Interrupts the step that runs and all that begin later: the engine closes."""
        with self._lock:
            self._stopped = True
            self.flag.set()

    def _look(self) -> None:
        if self._stopped or (self._step and self._step <= self._left):
            self.flag.set()
