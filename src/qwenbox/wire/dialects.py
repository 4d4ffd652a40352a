"""The dialects that the service speaks, each as one value: what a route needs to read a request and to write its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from qwenbox.types import Event, RequestParams
from qwenbox.wire import anthropic_messages, ollama, openai_chat, openai_completions, openai_responses, sse
from qwenbox.wire.embeddings import EMBEDDINGS
from qwenbox.wire.openai_fields import FieldRow


class Call(Protocol):
    """What the calls of all dialects have."""

    @property
    def model(self) -> str | None: ...
    @property
    def params(self) -> RequestParams: ...
    @property
    def stream(self) -> bool: ...
    @property
    def keep_alive(self) -> float | None: ...
    @property
    def ignored(self) -> tuple[str, ...]: ...


class Writer(Protocol):
    """Writes one response from its events, as one object or as chunks."""

    def start(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """Called once, when the model has the prompt. The chunks are those that a stream begins with."""

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]: ...
    def end(self) -> list[dict[str, Any]]: ...
    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        """The last chunks of a stream that an error ends; `error` is `QwenboxError.to_wire()`."""

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]: ...


class Dialect(NamedTuple):
    fields: Mapping[str, FieldRow]
    read_request: Callable[[Mapping[str, Any]], Any]
    """Makes a `Call`, or raises RequestError."""
    writer: Callable[..., Writer]
    """Of the call; with `id`, `model` and `created`."""
    frame: Callable[[dict[str, Any]], bytes] = sse.typed_frame
    media_type: str = sse.MEDIA_TYPE
    """Of a stream."""
    keep_alive: bytes = sse.KEEP_ALIVE
    """What a stream says in a silence."""
    done: bytes = b""
    """What ends a stream."""
    foreign_models: str | None = None
    """How the names begin for which the default model answers where there is no such model: clients that cannot be told another name send them."""
    names: Callable[[str], Sequence[str]] = lambda name: (name,)
    """What the model may be called here that a request names."""


CHAT = Dialect(openai_chat.FIELDS, openai_chat.read_request, openai_chat.ChatWriter, frame=sse.frame, done=sse.DONE)
COMPLETIONS = Dialect(openai_completions.FIELDS, openai_completions.read_request, openai_completions.CompletionWriter, frame=sse.frame, done=sse.DONE)
RESPONSES = Dialect(openai_responses.FIELDS, openai_responses.read_request, openai_responses.ResponsesWriter)
MESSAGES = Dialect(
    anthropic_messages.FIELDS,
    anthropic_messages.read_request,
    anthropic_messages.MessagesWriter,
    keep_alive=sse.PING,
    foreign_models="claude-",
)
OLLAMA_CHAT = Dialect(
    ollama.CHAT_FIELDS,
    ollama.read_chat,
    ollama.OllamaWriter,
    frame=ollama.frame,
    media_type=ollama.MEDIA_TYPE,
    keep_alive=ollama.frame({"message": {"role": "assistant", "content": ""}, "done": False}),
    names=ollama.model_names,
)
OLLAMA_GENERATE = OLLAMA_CHAT._replace(
    fields=ollama.GENERATE_FIELDS,
    read_request=ollama.read_generate,
    writer=partial(ollama.OllamaWriter, generates=True),
    keep_alive=ollama.frame({"response": "", "done": False}),
)

DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/completions": COMPLETIONS,
    "/v1/messages": MESSAGES,
    "/api/chat": OLLAMA_CHAT,
    "/api/generate": OLLAMA_GENERATE,
}
"""By path."""


def describe() -> str:
    """The tables of fields as Markdown, for docs/api.md."""
    lines = []
    tables = {path: dialect.fields for path, dialect in DIALECTS.items()} | {path: dialect.fields for path, dialect in EMBEDDINGS.items()}
    for path, rows in tables.items():
        by_treatment = {
            treatment: ", ".join(f"`{name}`" for name, row in rows.items() if row.treatment == treatment) for treatment in ("honoured", "no effect")
        }
        lines += [
            f"## {path}",
            "",
            f"Honoured: {by_treatment['honoured']}.",
            "",
            f"Accepted without effect: {by_treatment['no effect'] or 'none'}.",
            "",
        ]
        if refused := [f"| `{name}` | {row.note} |" for name, row in rows.items() if row.treatment == "refused"]:
            lines += ["| Refused | Why |", "|---|---|", *refused, ""]
    return "\n".join(lines)
