"""What the two kinds of engine client have in common: the protocol, and the plain values that it gives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

from qwenbox.engine.engine import EngineModel, EngineStats
from qwenbox.engine.options import EngineOptions
from qwenbox.errors import EngineError, QwenboxError
from qwenbox.types import GenerationPlan, SequenceOutput

log = logging.getLogger(__name__)

Deliver: TypeAlias = Callable[[SequenceOutput], None]

NoteStep: TypeAlias = Callable[[float, int, int], None]
"""Told of a step: seconds, tokens of prompts, tokens of answers."""

PACE_SECONDS = 0.5
"""How long a phase lasts before anybody says how much longer it will."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is; `costs` are the numbers of `model.costs` by name."""

    name: str
    path: str
    context_length: int
    hidden_size: int
    """Numbers of a vector."""
    vocab_size: int
    vocab_limit: int
    num_pages: int
    max_sequences: int
    max_batch_tokens: int
    max_requests: int
    """Requests that run or wait at once; one more is refused."""
    isa: str
    threads: int
    weights_bytes: int
    costs: Mapping[str, float] = field(default_factory=dict)


StateName: TypeAlias = Literal["fetching", "verifying", "loading", "ready", "restarting", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class EngineState:
    """`progress` counts 0..1 in each phase before "ready"; `error` says why it failed, or what is tried again."""

    name: StateName
    progress: float = 0.0
    error: QwenboxError | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    """Of a model that is fetched or verified."""
    seconds_left: float | None = None
    """In this phase, at its average speed so far."""


class Pace:
    """Makes states of reports how far a phase is, with the time that is left of it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name: StateName | None = None
        self._first = self._last = self._began = 0.0

    def state(
        self, name: StateName, progress: float, *, done_bytes: int | None = None, total_bytes: int | None = None, error: QwenboxError | None = None
    ) -> EngineState:
        now = self._clock()
        # A phase may begin in the middle, with what an earlier one fetched: only what has been done since says how fast it is.
        if name != self._name or progress < self._last:
            self._name, self._first, self._began = name, progress, now
        self._last = progress
        done, seconds = progress - self._first, now - self._began
        left = (1.0 - progress) * seconds / done if done > 0.0 and seconds >= PACE_SECONDS else None
        return EngineState(name, progress, error, done_bytes, total_bytes, left)


class Closed(Exception):
    """Ends the loading of a model that nobody waits for any more."""


class EngineClient(Protocol):
    """Thread-safe. Everything that goes wrong with a request arrives as a `SequenceOutput` with reason "error"."""

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None: ...

    def cancel(self, request_id: str) -> None:
        """The last output follows, with reason "cancelled" unless the request ended before; unknown ids are no error."""
        ...

    def answer_now(self, request_id: str) -> None:
        """Ends the thought of a request, or the one that it begins with; its answer follows. No error where there is none."""
        ...

    def info(self) -> ModelInfo | None:
        """None until the model has been loaded."""
        ...

    def state(self) -> EngineState: ...

    def stats(self) -> EngineStats: ...

    def watch(self, note: NoteStep) -> None:
        """`note` is called with each step from now on, from the thread that delivers."""
        ...

    def close(self) -> None:
        """Ends every request with an error, and the engine with its memory."""
        ...


def refusal(plan: GenerationPlan, error: QwenboxError) -> SequenceOutput:
    return SequenceOutput(plan.request_id, finish_reason="error", error=error.to_wire())


def closed_error() -> EngineError:
    return EngineError("the engine is closed", code="engine_closed", status=503)


def deliver_safely(deliver: Deliver, output: SequenceOutput) -> bool:
    """False where the receiver raised, which is written to the log."""
    try:
        deliver(output)
    except Exception:
        log.exception("the receiver of request %s failed", output.request_id)
        return False
    return True


def with_waiting(stats: EngineStats, num_requests: int) -> EngineStats:
    """`waiting` as a client counts it: of its requests those that do not run, also where they have not reached the engine yet."""
    return replace(stats, waiting=max(0, num_requests - stats.running))


def tell_step(note: NoteStep, before: EngineStats, after: EngineStats) -> None:
    """Tells of the step that lies between two readings of one engine, if there is one."""
    if after.steps > before.steps:
        decoded = after.decode_tokens - before.decode_tokens
        note(after.step_seconds - before.step_seconds, after.computed_tokens - before.computed_tokens - decoded, decoded)


def model_info(model: EngineModel, options: EngineOptions) -> ModelInfo:
    path = options.model or ""
    return ModelInfo(
        name=options.random or path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf"),
        path=path,
        context_length=model.context_length,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        vocab_limit=model.vocab_limit,
        num_pages=model.num_pages,
        max_sequences=model.max_sequences,
        max_batch_tokens=model.max_batch_tokens,
        max_requests=options.max_requests,
        isa=model.isa,
        threads=model.threads,
        weights_bytes=model.weights_bytes,
        costs=dict(model.costs),
    )
