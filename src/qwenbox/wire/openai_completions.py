"""OpenAI's /v1/completions: JSON in, our nouns, JSON out. No sockets here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from qwenbox.errors import RequestError
from qwenbox.types import Event, RequestParams
from qwenbox.wire.errors import error_body, validate
from qwenbox.wire.form_fields import FORM_FIELDS, FormFields
from qwenbox.wire.openai_fields import (
    HONOURED,
    MAX_TOP_LOGPROBS,
    NO_EFFECT,
    SHARED_FIELDS,
    FieldRow,
    SamplingFields,
    TokenId,
    UsageSum,
    finish_reason,
    finite,
    sort_fields,
    timings_body,
)

MAX_PROMPTS = 64
MAX_ANSWERS = 128
"""Prompts times `n` of one request."""

FIELDS: Mapping[str, FieldRow] = {
    **SHARED_FIELDS,
    **dict.fromkeys(("prompt", "echo", "best_of", "suffix"), HONOURED),
    "add_special_tokens": NO_EFFECT,  # Qwen puts none before a text
    **FORM_FIELDS,
}

TokenIds = Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(FormFields, SamplingFields):
    prompt: (
        str | TokenIds | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)] | Annotated[list[TokenIds], Field(max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class CompletionCall:
    """What a request asks for, in our nouns. A prompt is text or token ids; with a `suffix`, what stands between the two is asked for."""

    model: str | None
    prompts: tuple[str | tuple[int, ...], ...]
    suffix: str | None
    params: RequestParams
    stream: bool
    include_usage: bool
    timings: bool
    keep_alive: float | None
    ignored: tuple[str, ...]


def read_request(body: Mapping[str, Any]) -> CompletionCall:
    """Raises RequestError, with the field's name as `param`."""
    ignored = sort_fields(body, FIELDS)
    _check_prompt(body.get("prompt"))
    request = validate(CompletionRequest, body)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise RequestError("best_of: only supported where it equals `n`.", param="best_of", code="unsupported_parameter")
    if request.suffix and request.echo:
        raise RequestError("echo: a prompt with a suffix is not given back.", param="echo")
    prompts: list[Any] = [request.prompt] if isinstance(request.prompt, str) or isinstance(request.prompt[0], int) else list(request.prompt)
    if len(prompts) * (request.n or 1) > MAX_ANSWERS:
        raise RequestError(f"n: {len(prompts)} prompts times {request.n} choices are more than {MAX_ANSWERS} answers.", param="n")
    return CompletionCall(
        model=request.model or None,
        prompts=tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in prompts),
        suffix=request.suffix or None,
        params=request.params(logprobs=request.logprobs, echo=bool(request.echo), output_format=request.form()),
        stream=bool(request.stream),
        include_usage=request.include_usage,
        timings=bool(request.timings),
        keep_alive=request.kept_seconds,
        ignored=ignored,
    )


class CompletionWriter:
    """Writes one response, as one object or as chunks, from the same events. Choice i belongs to prompt i // n. `created` is in Unix seconds."""

    def __init__(self, call: CompletionCall, *, id: str, model: str, created: int) -> None:
        self._call = call
        self._head = {"id": f"cmpl-{id}", "object": "text_completion", "created": created, "model": model}
        self._choices = len(call.prompts) * call.params.n
        self._usage = UsageSum(call.params.n)
        self._characters = [0] * self._choices

    def start(self, prompt_tokens: int = 0) -> list[dict[str, Any]]:
        """A stream begins with its first text."""
        return []

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        self._usage.add(index, event.usage)
        logprobs = self._logprobs(index, [event]) if event.logprobs else None
        chunk = self._head | {"choices": [{"index": index, "text": event.text, "logprobs": logprobs, "finish_reason": finish_reason(event)}]}
        if self._call.timings and event.kind == "finish":
            chunk["qwenbox"] = {"timings": timings_body(event)}
        return [chunk | {"usage": None} if self._call.include_usage else chunk]

    def end(self) -> list[dict[str, Any]]:
        """The chunks after the last event."""
        return [self._head | {"choices": [], "usage": self._usage.body()}] if self._call.include_usage else []

    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        return [error_body(error)]

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """The whole response; `events` holds a "finish" of every choice and no "error"."""
        by_choice: list[list[Event]] = [[] for _ in range(self._choices)]
        for index, event in events:
            by_choice[index].append(event)
            self._usage.add(index, event.usage)
        choices = [
            {
                "index": index,
                "text": "".join(event.text for event in own),
                "logprobs": self._logprobs(index, own) if self._call.params.logprobs is not None else None,
                "finish_reason": finish_reason(own[-1]),
            }
            for index, own in enumerate(by_choice)
        ]
        body = self._head | {"choices": choices, "usage": self._usage.body()}
        return body | {"qwenbox": {"timings": [timings_body(own[-1]) for own in by_choice]}} if self._call.timings else body

    def _logprobs(self, index: int, events: Iterable[Event]) -> dict[str, Any]:
        """Four lists of one entry a token. An offset counts the characters that begin before the token, which bytes tell and lossy text does not."""
        tokens = [token for event in events for token in event.logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._characters[index])
            self._characters[index] += sum(byte & 0xC0 != 0x80 for byte in token.bytes)
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [None if math.isnan(token.logprob) else finite(token.logprob) for token in tokens],
            "top_logprobs": [
                None
                if math.isnan(token.logprob)
                else {other.token: finite(other.logprob) for other in reversed(token.top)} | {token.token: finite(token.logprob)}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _check_prompt(prompt: Any) -> None:
    """Says what is wrong with a prompt better than the union of four shapes can."""
    if prompt is None:
        raise RequestError("prompt: a text, token ids, or a list of either is needed.", param="prompt")
    if isinstance(prompt, list) and not prompt:
        raise RequestError("prompt: the list is empty.", param="prompt")
    if isinstance(prompt, list) and not isinstance(prompt[0], int) and len(prompt) > MAX_PROMPTS:
        raise RequestError(f"prompt: at most {MAX_PROMPTS} prompts fit into a request.", param="prompt")
