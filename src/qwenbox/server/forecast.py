"""What will run the model that a service was told to run, and how fast at best: said before the model is there."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

from qwenbox.errors import QwenboxError
from qwenbox.hub import find
from qwenbox.hub.catalogue import Packages
from qwenbox.server.stock import Stock
from qwenbox.settings import Settings

PATIENT_BYTES = 2_000_000_000
"""A model of fewer bytes on this disk is loaded in seconds: memory is not measured then, which would make them more."""


class Forecast:
    """Of the default model of `stock`. Found out in a thread of its own, beside whatever fetches and loads the model."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._known: dict[str, Any] = {"threads": threads_of(stock.settings)}

    def begin(self) -> None:
        threading.Thread(target=self._find, name="qwenbox-forecast", daemon=True).start()

    def prediction(self) -> dict[str, Any]:
        """As far as it is known: `isa`, `threads`, and `speed` in tokens a second."""
        return self._known

    def _find(self) -> None:
        with contextlib.suppress(QwenboxError, OSError):  # whoever loads the model meets the same and says it
            self._known = {**self._known, "isa": isa_of(self._stock.settings)}
            if (touched := self._touched_bytes()) is not None:
                from qwenbox.model.choice import measure

                self._known = {**self._known, "speed": round(measure(self._known["threads"]).bandwidth / touched, 1)}

    def _touched_bytes(self) -> int | None:
        """What a token reads; None where the model is soon there, or nobody knows."""
        from qwenbox.model.choice import entry_costs
        from qwenbox.model.load import stored_costs

        path = self._stock.path(self._stock.default)
        if path is not None:
            own = stored_costs(path, **self._stock.settings.forms)
            return own.touched_bytes if own.weights_bytes >= PATIENT_BYTES else None
        entry = find(self._stock.default)
        if isinstance(entry.source, Packages):
            return entry.source.size
        return None if entry.shape is None else entry_costs(entry, **self._stock.settings.forms).touched_bytes


def threads_of(settings: Settings) -> int:
    return settings.threads or len(os.sched_getaffinity(0))


def isa_of(settings: Settings) -> str:
    """The variant of the kernels. Raises EngineError without the native library."""
    from qwenbox.kernels.native import isa_best

    return settings.isa or isa_best()
