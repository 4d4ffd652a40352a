"""The real worker program over the fake model. What the model does is said by the name of the model that the options ask for."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from qwenbox.engine import worker
from qwenbox.engine.engine import EngineModel
from qwenbox.engine.options import EngineOptions, Progress
from qwenbox.errors import ModelFormatError, UsageError
from qwenbox.types import Batch
from tests.engine.fakes import FakeModel

POISON = 66
"""A token that kills the worker."""
TORPOR = 77
"""A token at which the worker stops for ever."""


def open_fake(options: EngineOptions, progress: Progress) -> EngineModel:
    kind = Path(str(options.model)).name
    if kind == "broken":
        raise ModelFormatError("the file is not what it says")
    if kind == "deadly":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind in ("fickle", "hopeless"):
        starts = Path(str(options.model))
        with starts.open("a") as file:
            file.write("x")
        if 2 <= starts.stat().st_size <= (3 if kind == "fickle" else 1000):
            raise UsageError("somebody else has the memory")
    if kind == "gated":  # who starts it again says when it may go on
        with Path(str(options.model)).open("a") as file:
            file.write("x")
        while Path(str(options.model)).stat().st_size == 2:
            time.sleep(0.002)
    progress(0.5)
    model = FakeModel()
    if kind == "crowded":  # each start finds less memory
        starts = Path(str(options.model))
        with starts.open("a") as file:
            file.write("x")
        model.num_pages = options.num_pages or 1024 // starts.stat().st_size
    model.keep_batches = False

    def before_run(batch: Batch) -> None:
        if np.any(batch.ids == POISON):
            os.kill(os.getpid(), signal.SIGSEGV)
        if np.any(batch.ids == TORPOR):
            os.kill(os.getpid(), signal.SIGSTOP)
        if kind == "slow":
            time.sleep(0.005)

    model.before_run = before_run
    return model


def main() -> None:
    worker.open_model = open_fake
    sys.argv = sys.argv[-2:]
    worker.main()
