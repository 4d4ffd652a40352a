"""A model of nothing but time, in the real engine and worker: `front.py` measures with it what stands between a step and its readers.

Its directory holds `ids.npy`, the tokens that every answer repeats, and `stub.json`: {"rounds"} of work for both processors a step, or
{"seconds"} to sleep. The end of each step is noted in `steps.f64`: how many, then their times on the monotonic clock.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.machine import run  # noqa: E402
from qwenbox.engine import worker  # noqa: E402
from qwenbox.engine.engine import Engine, EngineModel  # noqa: E402
from qwenbox.engine.options import EngineOptions, Progress  # noqa: E402
from qwenbox.kernels.program import CancelFlag, SampleResult, SampleRow  # noqa: E402
from qwenbox.types import Batch, FloatArray, GenerationPlan, SamplingParams  # noqa: E402

LIBRARY, CLIENT = ROOT / "build" / "bench" / "libstub.so", ROOT / "build" / "bench" / "client"
THREADS = 2
MAX_STEPS = 1 << 16


def build() -> None:
    """Compiles stub.cpp with the pool of the kernels, and client.cpp."""
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "src" / "qwenbox" / "kernels" / "csrc"
    compiler = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{csrc}"]
    run([*compiler, "-shared", "-fPIC", "-pthread", "-o", str(LIBRARY), str(ROOT / "bench" / "stub.cpp"), str(csrc / "pool.cpp")])
    run([*compiler, "-o", str(CLIENT), str(ROOT / "bench" / "client.cpp")])


class StubModel:
    """An `EngineModel` without numbers."""

    context_length = 1 << 16
    hidden_size = 64
    vocab_size = 160_000
    vocab_limit = 160_000
    num_pages = 1 << 14
    max_batch_tokens = 4096
    max_logits = 64
    max_sequences = 64
    slice_tokens = 16
    isa = "stub"
    threads = THREADS
    weights_bytes = 0
    costs: Mapping[str, float] = {}

    def __init__(self, directory: Path) -> None:
        asked = json.loads((directory / "stub.json").read_text(encoding="utf-8"))
        self._rounds, self._seconds = asked.get("rounds"), asked.get("seconds", 0.0)
        self._ids = np.load(directory / "ids.npy").tolist()
        self._steps = np.memmap(directory / "steps.f64", np.float64, "w+", shape=MAX_STEPS + 1)
        if self._rounds is not None:
            self._library = ctypes.CDLL(str(LIBRARY))
            self._library.stub_open.restype = ctypes.c_void_p
            self._pool = ctypes.c_void_p(self._library.stub_open(THREADS))

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        return self.run_beside(batch)

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        if self._rounds is None:
            time.sleep(self._seconds)
        else:
            self._library.stub_step(self._pool, ctypes.c_int64(self._rounds))
        return np.zeros((len(batch.logits_rows), 1), np.float32)

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        results = [SampleResult(self._ids[row.position % len(self._ids)]) for row in rows]
        count = int(self._steps[0])
        if count < MAX_STEPS:
            self._steps[count + 1] = time.monotonic()
            self._steps[0] = count + 1
        return results

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        pass

    def close(self) -> None:
        pass


def alone(directory: Path, streams: int, seconds: float) -> float:
    """Steps a second of the engine with `streams` answers that nobody reads."""
    engine = Engine(StubModel(directory))
    for index in range(streams):
        engine.add(GenerationPlan(f"r{index}", (1, 2, 3), 1 << 14, SamplingParams(seed=1)))
    engine.step()
    steps, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        engine.step()
        steps += 1
    return steps / passed


def _open(options: EngineOptions, progress: Progress) -> EngineModel:
    return StubModel(Path(str(options.model)))


def main() -> None:
    """As the worker program, or with `alone DIRECTORY STREAMS SECONDS`."""
    if sys.argv[1] == "alone":
        print(alone(Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
        return

    worker.open_model = _open
    worker.main()


if __name__ == "__main__":
    main()
