"""What an engine is made of: plain numbers and names that cross a process border."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenbox.engine.constraint import Grammars
from qwenbox.errors import UsageError
from qwenbox.types import TokenTable

if TYPE_CHECKING:
    from qwenbox.engine.engine import EngineModel
    from qwenbox.settings import Settings

Progress = Callable[[float], None]
"""Called with 0..1 while a model loads; what it raises ends the loading."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which model, and how it runs. Exactly one of `model` and `random`; None leaves a choice to the loader."""

    model: str | None = None
    """A directory or a `.gguf` file."""
    random: str | None = None
    """A shape to fill with random weights: 8b, 4b, 1.7b, 0.6b, 30b-a3b."""
    weights: str | None = None
    head: str | None = None
    embedding: str | None = None
    threads: int | None = None
    isa: str | None = None
    context_length: int | None = None
    kv_gb: float | None = None
    memory_util: float | None = None
    memory_bytes: int | None = None
    """No more of the free memory counts as free; None: all of it."""
    num_pages: int | None = None
    max_sequences: int = 32
    max_batch_tokens: int = 512
    step_ms: int = 200
    """Time of a step while answers stream; a longer prompt runs in slices."""
    max_waiting: int = 128
    """Requests that wait for their turn; one more is refused."""
    tokens: TokenTable | None = field(default=None, repr=False)
    """What the real ids stand for, where the rows of the head may be more; without it all are real, and no request can ask for a form."""
    debug: bool = False
    """Check the books after every step: a worker whose pages or queues are wrong ends at once."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.random is None):
            raise UsageError("one of a model and a random shape is needed", param="model")
        for name in ("max_sequences", "max_batch_tokens", "step_ms", "max_waiting"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: at least 1 is needed", param=name)

    @classmethod
    def from_settings(cls, settings: Settings, **where: Any) -> EngineOptions:
        """The part of the settings that an engine is made of. `where` is `model=` or `random=`, and the tokens."""
        return cls(
            **settings.forms,
            threads=settings.threads,
            isa=settings.isa,
            context_length=settings.context_length,
            kv_gb=settings.kv_gb,
            memory_util=settings.memory_util,
            max_sequences=settings.max_sequences,
            max_batch_tokens=settings.max_batch_tokens,
            step_ms=settings.step_ms,
            max_waiting=max(settings.max_queue, 1),
            **where,
        )

    @property
    def max_requests(self) -> int:
        """Requests that run or wait at once; one more is refused. A burst arrives between two steps: those whose turn is the next do not wait."""
        return self.max_waiting + min(self.max_sequences, self.max_batch_tokens)

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_wire(cls, options: Mapping[str, Any]) -> EngineOptions:
        if unknown := set(options) - {entry.name for entry in fields(cls)}:
            raise UsageError(f"unknown engine options {', '.join(sorted(unknown))}")
        table = options["tokens"]
        return cls(**dict(options) | {"tokens": table and TokenTable(**table)})


def open_grammars(options: EngineOptions) -> Grammars | None:
    """For requests that ask for a form."""
    return None if options.tokens is None else Grammars(options.tokens)


def open_model(options: EngineOptions, progress: Progress) -> EngineModel:
    """Loads the model. Raises what the loader raises: ModelFormatError, UnsupportedModelError, NotFoundError, UsageError."""
    # Here and not at the top: the front reads this module and never loads a model.
    from qwenbox.model.load import load_model, random_model

    sizes: dict[str, Any] = {
        "head": options.head,
        "embedding": options.embedding,
        "threads": options.threads,
        "isa": options.isa,
        "context_length": options.context_length,
        "kv_bytes": None if options.kv_gb is None else int(options.kv_gb * 1e9),
        "memory_util": options.memory_util,
        "memory_bytes": options.memory_bytes,
        "num_pages": options.num_pages,
        "max_sequences": options.max_sequences,
        "max_batch_tokens": options.max_batch_tokens,
        "progress": progress,
    }
    if options.random is not None:
        model = random_model(options.random, options.weights or "int4", **sizes)
    else:
        model = load_model(Path(str(options.model)), weights=options.weights, **sizes)
    if options.tokens is not None:
        model.vocab_limit = min(model.vocab_size, options.tokens.num_ids)
    return model
