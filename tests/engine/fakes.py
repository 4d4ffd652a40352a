"""A model whose logits are a hash of all tokens so far, read back through the page table.

Every token is written into a paged store of ids and read from it again, so a wrong page, a lost page, a page of somebody else or a wrong
recomputation changes the answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from qwenbox.kernels.program import CancelFlag, Interrupted, SampleResult, SampleRow
from qwenbox.types import PAGE_TOKENS, Batch, FloatArray, GenerationPlan, SamplingParams, SequenceOutput

VOCAB = 97
HIDDEN = 12
OPS = 4
"""Operations before any of which a run can be interrupted."""
_MASK = (1 << 64) - 1
_POWERS = np.random.default_rng(5).integers(1, 2**63, 1 << 15, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class FakeModel:
    """Implements `engine.EngineModel`; `batches` keeps what was run, `before_run` is called with each batch and may raise or wait."""

    def __init__(
        self, *, context_length: int = 4096, num_pages: int = 1024, max_batch_tokens: int = 512, max_sequences: int = 32, max_logits: int = 64
    ) -> None:
        self.context_length = context_length
        self.hidden_size = HIDDEN
        self.vocab_size = VOCAB
        self.vocab_limit = VOCAB - 3
        self.num_pages = num_pages
        self.max_batch_tokens = max_batch_tokens
        self.max_logits = max_logits
        self.max_sequences = max_sequences
        self.slice_tokens = 16
        self.isa = "generic"
        self.threads = 1
        self.weights_bytes = 0
        self.costs: dict[str, float] = {}
        self.store = np.zeros((num_pages, PAGE_TOKENS), np.uint64)
        self.keep_batches = True
        self.batches: list[Batch] = []
        self.before_run: Callable[[Batch], None] | None = None
        self.cancel: CancelFlag | None = None
        """The flag that the running step looks at."""
        self.nan_after: set[int] = set()
        """Ids after which the logits are NaN."""
        self.pauses: Callable[[], bool] = lambda: False
        """Whether a run that has a deadline is interrupted before its next operation."""
        self.closed = False
        self._kept: dict[bool, list[list[int]]] = {}
        """Of the batch whose activations lie in the buffers, those for hidden states or the others: its ids and positions."""

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        kept = [batch.ids.tolist(), *([span.position, *span.pages.tolist()] for span in batch.spans)]
        assert first_op == 0 or self._kept[batch.hidden] == kept, "a batch goes on with the activations of another"
        self._kept[batch.hidden] = kept
        for op in range(first_op, OPS):
            if deadline is not None and self.pauses():
                raise Interrupted(op)
        return self._run(batch, cancel)

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        assert batch.num_tokens <= self.max_logits and not batch.hidden
        return self._run(batch, cancel)

    def _run(self, batch: Batch, cancel: CancelFlag | None) -> FloatArray:
        self.cancel = cancel
        if self.keep_batches:
            self.batches.append(Batch(batch.ids.copy(), batch.spans, batch.logits_rows, batch.largest, batch.hidden))
        if self.before_run is not None:
            self.before_run(batch)
        assert 0 < batch.num_tokens <= self.max_batch_tokens
        assert len(batch.logits_rows) <= (batch.num_tokens if batch.hidden else self.max_logits)
        assert sum(span.length for span in batch.spans) == batch.num_tokens
        used = [span.pages[: -(-(span.position + span.length) // PAGE_TOKENS)].tolist() for span in batch.spans]
        for span, pages in zip(batch.spans, used, strict=True):
            written = set(pages[span.position // PAGE_TOKENS :])
            assert sum(len(written.intersection(other)) for other in used) == len(written), "a page is written and used by somebody else"
        width = HIDDEN if batch.hidden else VOCAB
        logits = np.empty((len(batch.logits_rows), width), np.float32)
        row = 0
        for span in batch.spans:
            positions = np.arange(span.position, span.position + span.length)
            pages = span.pages[positions // PAGE_TOKENS]
            for fresh in pages[positions % PAGE_TOKENS == 0]:
                self.store[fresh] = 0
            self.store[pages, positions % PAGE_TOKENS] = batch.ids[span.start : span.start + span.length] + 1
            if cancel is not None and cancel.is_set():
                raise Interrupted(1)  # half of the step has been written
            context: np.ndarray[Any, np.dtype[np.uint64]] | None = None
            while row < len(batch.logits_rows) and batch.logits_rows[row] < span.start + span.length:
                if context is None:
                    context = self.store[span.pages].reshape(-1)
                end = int(batch.logits_rows[row]) - span.start + span.position + 1
                seen = context[:end]
                assert seen.all(), "a token was never computed"
                with np.errstate(over="ignore"):
                    hashed = int(np.sum(seen * _POWERS[:end]))
                noise = np.random.Generator(np.random.PCG64(mix(hashed))).random(width, np.float32)
                logits[row] = noise * np.float32(8.0)
                if int(seen[-1]) - 1 in self.nan_after:
                    logits[row] = np.nan
                row += 1
        assert row == len(batch.logits_rows), "rows of logits belong to no span"
        if batch.largest:
            logits[logits < logits[:, : batch.largest].max(axis=1, keepdims=True)] = -np.inf
        return logits

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        assert self.store[source, :num_tokens].all(), "a token that is copied was never computed"
        self.store[target] = 0
        self.store[target, :num_tokens] = self.store[source, :num_tokens]

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        assert len(logits) == len(rows)
        return [sample(row, logits[index]) for index, row in enumerate(rows)]

    def close(self) -> None:
        self.closed = True


def sample(row: SampleRow, raw: FloatArray) -> SampleResult:
    """Bias, temperature and seed only: enough to see that the engine hands the right things over."""
    raw = raw[: row.vocab_limit]
    if np.isnan(raw).any():
        return SampleResult(-1)
    biased = raw.astype(np.float64)
    for id, bias in row.params.logit_bias.items():
        biased[id] += bias
    if row.allowed is not None:
        every = np.arange(len(biased))
        biased[row.allowed[every // 32] >> (every % 32).astype(np.uint32) & 1 == 0] = -np.inf
        assert biased.max() > -np.inf, "nothing is allowed"
    if row.params.temperature == 0:
        chosen = int(np.argmax(biased))
    else:
        u = (mix(mix(mix(row.params.seed & _MASK) ^ row.params.choice) ^ row.position) >> 11) * 2.0**-53
        mass = np.exp((biased - biased.max()) / row.params.temperature)
        chosen = min(int(np.searchsorted(np.cumsum(mass), u * mass.sum(), side="right")), row.vocab_limit - 1)
    if row.params.logprobs is None:
        return SampleResult(chosen)
    logprobs = raw - raw.max() - np.log(np.exp(raw - raw.max()).sum())
    best = np.argsort(-raw, kind="stable")[: row.params.logprobs]
    return SampleResult(chosen, float(logprobs[chosen]), [(int(id), float(logprobs[id])) for id in best])


_PLAN_FIELDS = {field.name for field in fields(GenerationPlan)} - {"request_id", "prompt_ids", "max_tokens", "sampling"}


def plan(request_id: str, prompt: Sequence[int] | int, max_tokens: int = 8, *, rng: Any = None, **options: Any) -> GenerationPlan:
    """A plan; `prompt` may be a number of tokens, other ones for each request. Options of the sampling and of the plan alike."""
    if isinstance(prompt, int):
        prompt = (rng or np.random.default_rng([prompt, *request_id.encode()])).integers(0, VOCAB - 3, prompt).tolist()
    own = {name: options.pop(name) for name in _PLAN_FIELDS if name in options}
    return GenerationPlan(request_id, tuple(prompt), max_tokens, SamplingParams(**options), **own)


class Answer:
    """Gathers the outputs of one request, and insists that the last one ends it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logprobs: list[Any] = []
        self.prompt_logprobs: Any = None
        self.vector: bytes | None = None
        self.last: SequenceOutput | None = None

    def feed(self, output: SequenceOutput) -> None:
        assert self.last is None, "an output after the last one"
        self.ids += output.ids
        self.logprobs += output.logprobs or ()
        if output.prompt_logprobs is not None:
            assert self.prompt_logprobs is None
            self.prompt_logprobs = output.prompt_logprobs
        if output.finish_reason is not None:
            self.last, self.vector = output, output.vector

    @property
    def reason(self) -> str | None:
        return None if self.last is None else self.last.finish_reason

    def same_as(self, other: Answer) -> bool:
        mine, others = ((one.ids, one.logprobs, one.prompt_logprobs, one.vector, one.reason) for one in (self, other))
        return mine == others


class Receiver:
    """A `deliver` that can be waited for."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.threads: set[int] = set()
        self.first = threading.Event()
        self._ended = threading.Event()

    def __call__(self, output: SequenceOutput) -> None:
        self.threads.add(threading.get_ident())
        self.answer.feed(output)
        self.first.set()
        if self.answer.last is not None:
            self._ended.set()

    def wait(self, seconds: float = 300.0) -> Answer:
        assert self._ended.wait(seconds), "no last output"
        return self.answer


def eventually(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """For what announces itself nowhere: asks until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.002)
