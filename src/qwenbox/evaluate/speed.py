"""How fast a model is, and how much of the machine that uses: prefill and greedy decode, ceilings measured around each repetition."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwenbox.errors import NumericalError, UsageError
from qwenbox.kernels.ceiling import Ceilings
from qwenbox.kernels.program import SampleResult, SampleRow
from qwenbox.model.costs import Costs
from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, IntArray, SamplingParams, Span

GREEDY = SamplingParams(temperature=0.0)


class Timed(Protocol):
    """The part of a loaded model that is timed; `model.load.Model` is one."""

    vocab_limit: int
    num_pages: int
    max_batch_tokens: int
    max_logits: int

    @property
    def spared_bytes(self) -> int: ...

    def run(self, batch: Batch) -> FloatArray: ...

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]: ...


@dataclass(frozen=True, slots=True)
class Workload:
    """`batch` streams at once, each with a prompt of `prompt_tokens` and `new_tokens` after it."""

    prompt_tokens: int
    new_tokens: int
    batch: int = 1

    @property
    def pages_a_stream(self) -> int:
        return -(-(self.prompt_tokens + self.new_tokens) // PAGE_TOKENS)

    @property
    def num_pages(self) -> int:
        return self.batch * self.pages_a_stream

    def least_prefill_seconds(self, costs: Costs, ceiling: Callable[[str], float]) -> float:
        """Of all prompts, if the products ran at the `Ceilings` rate of their kind and attention, which is floating point, at that of bf16.

        Every position sees those before it, and the last one needs the head.
        """
        tokens = self.prompt_tokens
        products = tokens * costs.operations_per_token(0, head=False) + costs.head_operations
        attention = costs.attention_operations * tokens * (tokens + 1) / 2
        return self.batch * (products / ceiling(f"{matrix_kind(costs)}_l1") + attention / ceiling("bf16_l1"))

    def bytes_per_token(self, costs: Costs) -> float:
        """Of one decoded token with its whole head, on average over the answer. The streams of a batch share the reading of the weights."""
        context = self.prompt_tokens + (self.new_tokens + 1) / 2
        return costs.touched_bytes / self.batch + costs.kv_bytes * (context + 1)


@dataclass(frozen=True, slots=True)
class Repetition:
    prefill_seconds: float
    decode_seconds: float
    rss_bytes: int
    spared_bytes: int
    """Of the head, in all decoding: the answers are greedy."""
    before: Ceilings
    after: Ceilings

    def ceiling(self, name: str) -> float:
        """A ceiling at the time of the work: the mean of before and after."""
        return float(getattr(self.before, name) + getattr(self.after, name)) / 2


def measure(
    model: Timed, work: Workload, *, repeat: int, ceilings: Callable[[], Ceilings], progress: Callable[[], None] = lambda: None
) -> list[Repetition]:
    """Repetitions of the workload, after a short warm-up. Raises UsageError where the model has no room for it."""
    if work.num_pages > model.num_pages or work.batch > model.max_logits:
        raise UsageError(
            f"{work.batch} streams of {work.prompt_tokens} + {work.new_tokens} tokens need {work.num_pages} pages and {work.batch} rows of logits; "
            f"the model was opened with {model.num_pages} and {model.max_logits}"
        )
    warm = Streams(model, Workload(min(work.prompt_tokens, PAGE_TOKENS), 1, work.batch))
    warm.prefill()
    warm.decode()
    repetitions = []
    before = ceilings()
    for _ in range(repeat):
        streams = Streams(model, work)
        prefill = streams.prefill()
        spared = -model.spared_bytes
        decode = streams.decode()
        spared += model.spared_bytes
        rss = rss_bytes()
        after = ceilings()
        repetitions.append(Repetition(prefill, decode, rss, spared, before, after))
        before = after
        progress()
    return repetitions


def matrix_kind(costs: Costs) -> str:
    """Whether the products are judged by the int8 or the bf16 ceiling: 16-bit weights take two bytes for each multiplication, all others fewer."""
    products = (costs.linear_operations + costs.head_operations) / 2
    return "bf16" if costs.touched_bytes > 1.5 * products else "int8"


def summary(work: Workload, repetitions: Sequence[Repetition], costs: Costs) -> dict[str, Any]:
    """Medians over the repetitions. Fractions compare each repetition with the ceilings around it."""
    new, prompts = work.batch * work.new_tokens, work.batch * work.prompt_tokens
    kind = matrix_kind(costs)
    l1, registers = f"{kind}_l1", f"{kind}_registers"

    def decoded_bytes(repetition: Repetition) -> float:
        return work.bytes_per_token(costs) * new - repetition.spared_bytes

    def median(value: Callable[[Repetition], float]) -> float:
        return statistics.median(value(repetition) for repetition in repetitions)

    return {
        "prefill_tok_s": median(lambda r: prompts / r.prefill_seconds),
        "decode_tok_s": median(lambda r: new / r.decode_seconds),
        "bytes_per_token": round(median(decoded_bytes) / new),
        "bandwidth_gb_s": median(lambda r: decoded_bytes(r) / r.decode_seconds / 1e9),
        "bandwidth_fraction": median(lambda r: decoded_bytes(r) / r.decode_seconds / r.ceiling("bandwidth")),
        "compute_fraction": median(lambda r: work.least_prefill_seconds(costs, r.ceiling) / r.prefill_seconds),
        "rss_bytes": max(repetition.rss_bytes for repetition in repetitions),
        "ceiling_bandwidth_gb_s": median(lambda r: r.ceiling("bandwidth") / 1e9),
        "ceiling_l1_tops": median(lambda r: r.ceiling(l1) / 1e12),
        "ceiling_registers_tops": median(lambda r: r.ceiling(registers) / 1e12),
        "ceiling_method": getattr(repetitions[0].after, f"{kind}_method"),
        "prompt_tokens": work.prompt_tokens,
        "new_tokens": work.new_tokens,
        "batch": work.batch,
        "repeat": len(repetitions),
    }


class Streams:
    """The sequences of one workload, driven directly: no engine, the same prompts each time."""

    def __init__(self, model: Timed, work: Workload) -> None:
        self._model = model
        self._work = work
        random = np.random.default_rng(0)
        self._prompts = random.integers(0, model.vocab_limit, (work.batch, work.prompt_tokens), dtype=np.int32)
        self._pages = np.arange(work.num_pages, dtype=np.int32).reshape(work.batch, work.pages_a_stream)
        self._first = np.zeros(work.batch, np.int32)

    def prefill(self) -> float:
        """Seconds of the prompts, first tokens included."""
        start = time.perf_counter()
        self._first = self._prefill()
        return time.perf_counter() - start

    def decode(self) -> float:
        """Seconds of the answers. They end where they began, so they can be decoded again after the same prompts."""
        start = time.perf_counter()
        ids = self._first
        for step in range(self._work.new_tokens):
            spans = [self._span(stream, stream, self._work.prompt_tokens + step, 1) for stream in range(self._work.batch)]
            logits = self._model.run(Batch(ids, spans, np.arange(self._work.batch, dtype=np.int32), self._model.vocab_limit))
            ids = self._choose(logits, self._work.prompt_tokens + step + 1)
        return time.perf_counter() - start

    def _prefill(self) -> IntArray:
        chosen = np.zeros(self._work.batch, np.int32)
        for parts in self._chunks():
            starts = np.cumsum([0] + [length for _, _, length in parts])
            spans = [self._span(int(start), stream, position, length) for start, (stream, position, length) in zip(starts, parts, strict=False)]
            ids = np.concatenate([self._prompts[stream, position : position + length] for stream, position, length in parts])
            ending = [(index, stream) for index, (stream, position, length) in enumerate(parts) if position + length == self._work.prompt_tokens]
            rows = np.array([starts[index + 1] - 1 for index, _ in ending], np.int32)
            logits = self._model.run(Batch(ids, spans, rows))
            if ending:
                chosen[[stream for _, stream in ending]] = self._choose(logits, self._work.prompt_tokens)
        return chosen

    def _chunks(self) -> Iterator[list[tuple[int, int, int]]]:
        """(stream, position, length) of every prompt, packed into steps of at most `max_batch_tokens`."""
        parts: list[tuple[int, int, int]] = []
        room = self._model.max_batch_tokens
        for stream in range(self._work.batch):
            position = 0
            while position < self._work.prompt_tokens:
                length = min(room, self._work.prompt_tokens - position)
                parts.append((stream, position, length))
                position, room = position + length, room - length
                if not room:
                    yield parts
                    parts, room = [], self._model.max_batch_tokens
        if parts:
            yield parts

    def _span(self, start: int, stream: int, position: int, length: int) -> Span:
        return Span(start, length, position, self._pages[stream, : -(-(position + length) // PAGE_TOKENS)])

    def _choose(self, logits: FloatArray, position: int) -> IntArray:
        nothing = np.zeros(0, np.int32)
        row = SampleRow(params=GREEDY, prompt_ids=nothing, output_ids=nothing, position=position, vocab_limit=self._model.vocab_limit)
        results = self._model.sample(logits, [row] * len(logits))
        if any(result.id < 0 for result in results):
            raise NumericalError("the model produced NaN")
        return np.array([result.id for result in results], np.int32)


def rss_bytes() -> int:
    """Memory of this process that is resident now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def steal_seconds() -> float:
    """Processor time of this machine, so far, that its host gave to somebody else."""
    return int(Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")
