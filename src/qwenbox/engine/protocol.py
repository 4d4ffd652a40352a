"""What the two kinds of engine client have in common: the protocol, and the plain values that it gives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from qwenbox.engine.engine import EngineModel, EngineStats
from qwenbox.engine.options import EngineOptions
from qwenbox.errors import EngineError, QwenboxError
from qwenbox.types import GenerationPlan, SequenceOutput

log = logging.getLogger(__name__)

Deliver: TypeAlias = Callable[[SequenceOutput], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is; `costs` are the numbers of `model.costs` by name."""

    name: str
    path: str
    context_length: int
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


@dataclass(frozen=True, slots=True)
class EngineState:
    """`progress` counts 0..1 while loading or restarting; `error` says why it failed."""

    name: Literal["loading", "ready", "restarting", "failed", "closed"]
    progress: float = 0.0
    error: QwenboxError | None = None


class EngineClient(Protocol):
    """Thread-safe. Everything that goes wrong with a request arrives as a `SequenceOutput` with reason "error"."""

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None: ...

    def cancel(self, request_id: str) -> None:
        """The last output follows, with reason "cancelled" unless the request ended before; unknown ids are no error."""
        ...

    def info(self) -> ModelInfo | None:
        """None until the model has been loaded."""
        ...

    def state(self) -> EngineState: ...

    def stats(self) -> EngineStats: ...

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


def model_info(model: EngineModel, options: EngineOptions) -> ModelInfo:
    path = options.model or ""
    return ModelInfo(
        name=options.random or path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf"),
        path=path,
        context_length=model.context_length,
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
