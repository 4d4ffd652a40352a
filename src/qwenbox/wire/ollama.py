"""Ollama's /api/chat and /api/generate: JSON in, our nouns, JSON out. No sockets here.

One table holds the fields of both; those inside `options` stand in it as `options.NAME`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from qwenbox.chat.toolcall import tool_calls
from qwenbox.errors import RequestError
from qwenbox.types import Event, Message, OutputFormat, RequestParams
from qwenbox.wire.errors import OLLAMA_PATH, error_body, validate
from qwenbox.wire.openai_chat import MAX_MESSAGES, MAX_TOOLS, ChatCall, ChosenTools, arguments_object, check_tools, checked_calls, checked_tools
from qwenbox.wire.openai_completions import CompletionCall
from qwenbox.wire.openai_fields import (
    HONOURED,
    INT32,
    MAX_STOPS,
    MAX_TOP_LOGPROBS,
    NO_EFFECT,
    FieldRow,
    chat_logprob,
    checked_stops,
    refused,
    seconds,
    sort_fields,
)
from qwenbox.wire.thinking_fields import ThinkingFields, thinking_votes

MEDIA_TYPE = "application/x-ndjson"
LATEST = ":latest"
MAX_PLAIN_TOKENS = 16384
"""Longest text of a plain prompt that names no limit."""
_LEAST_TOP_P = 1e-9
"""0 leaves the likeliest token, as this does."""

_SHARED: Mapping[str, FieldRow] = {
    **dict.fromkeys(("model", "stream", "keep_alive", "format", "options", "logprobs", "top_logprobs", *ThinkingFields.model_fields), HONOURED),
    # What does not fit is said, never cut.
    **dict.fromkeys(("truncate", "shift"), NO_EFFECT),
    **{
        f"options.{name}": HONOURED
        for name in (
            "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty", "seed", "num_predict", "stop",
        )
    },
    **{
        f"options.{name}": NO_EFFECT
        for name in (
            "num_ctx", "num_keep", "repeat_last_n", "typical_p", "tfs_z", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline", "numa",
            "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "num_thread",
        )
    },
}  # fmt: skip
CHAT_FIELDS: Mapping[str, FieldRow] = {**_SHARED, **dict.fromkeys(("messages", "tools"), HONOURED)}
GENERATE_FIELDS: Mapping[str, FieldRow] = {
    **_SHARED,
    **dict.fromkeys(("prompt", "suffix", "system", "raw"), HONOURED),
    "template": refused("the model's own template is used; with `raw` a prompt is carried on as it is"),
    "context": refused("send the conversation to /api/chat"),
    "images": refused("only text is supported"),
    **dict.fromkeys(("width", "height", "steps"), refused("this service makes no images")),
}


def _whole(value: Any) -> Any:
    """Ollama takes 40.0 for 40."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class Options(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[Whole, Field(ge=-1, le=INT32)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    num_predict: Annotated[Whole, Field(ge=-(2**31), le=INT32)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None

    @field_validator("stop")
    @classmethod
    def _bounded_stops(cls, stop: str | list[str] | None) -> list[str] | None:
        return checked_stops([stop] if isinstance(stop, str) else stop)


class _Shared(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    model: Annotated[str, Field(max_length=512)] | None = None
    stream: bool | None = None
    keep_alive: float | Annotated[str, Field(max_length=32)] | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @field_validator("keep_alive")
    @classmethod
    def _seconds(cls, value: float | str | None) -> float | None:
        return seconds(value) if isinstance(value, str) else value

    def params(self, body: Mapping[str, Any], *, plain: bool = False) -> RequestParams:
        asked = self.options or Options()
        most = asked.num_predict
        if most is not None and most <= 0:
            most = INT32  # as long as there is room
        elif most is None and plain:
            most = MAX_PLAIN_TOKENS
        return RequestParams(
            max_tokens=most,
            temperature=asked.temperature,
            top_k=asked.top_k and max(asked.top_k, 0),
            top_p=None if asked.top_p is None else max(asked.top_p, _LEAST_TOP_P),
            min_p=asked.min_p,
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            repetition_penalty=asked.repeat_penalty,
            seed=None if asked.seed == -1 else asked.seed,
            stop=tuple(asked.stop or ()),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            output_format=self._form(),
            thinking=() if plain else thinking_votes(body),
        )

    def _form(self) -> OutputFormat | None:
        if not self.format:
            return None
        if isinstance(self.format, str) and self.format != "json":
            raise RequestError('format: there is "json" and a JSON schema.', param="format")
        return OutputFormat("json_object", param="format") if isinstance(self.format, str) else OutputFormat("json_schema", self.format, "format")

    @property
    def kept_seconds(self) -> float | None:
        return None if self.keep_alive is None else float(self.keep_alive)


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_name: Annotated[str, Field(max_length=256)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    _calls = field_validator("tool_calls")(checked_calls)

    @model_validator(mode="after")
    def _only_text(self) -> Turn:
        if self.images:
            raise ValueError("images are not supported: this service reads text only")
        return self

    def message(self) -> Message:
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=self.content or "",
            reasoning_content=self.thinking or None,
            tool_calls=tuple(self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
            name=self.tool_name,
        )


class ChatRequest(_Shared):
    messages: Annotated[list[Turn], Field(max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None

    _functions = field_validator("tools")(checked_tools)


class GenerateRequest(_Shared):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None


def read_chat(body: Mapping[str, Any]) -> ChatCall:
    """A call without messages only loads its model. Raises RequestError, with the field's name as `param`."""
    ignored = sort_fields(_flat(body), CHAT_FIELDS)
    request = validate(ChatRequest, body)
    check_tools([tool["function"]["name"] for tool in request.tools or ()], ChosenTools("auto"))
    messages = tuple(turn.message() for turn in request.messages or ())
    return _chat_call(request, messages, tuple(request.tools or ()), body, ignored)


def read_generate(body: Mapping[str, Any]) -> ChatCall | CompletionCall:
    """A prompt in the model's template, or one that is carried on as it is: with `raw`, and with a `suffix`. Without a prompt it only loads."""
    ignored = sort_fields(_flat(body), GENERATE_FIELDS)
    request = validate(GenerateRequest, body)
    if not request.prompt and not request.suffix:
        return _chat_call(request, (), (), body, ignored)
    if request.raw and (request.system or request.suffix):
        raise RequestError("raw: goes with neither `system` nor `suffix`: write what the model shall read into the prompt.", param="raw")
    if not request.raw and not request.suffix:
        system = (Message("system", request.system),) if request.system else ()
        return _chat_call(request, (*system, Message("user", request.prompt or "")), (), body, ignored)
    if request.suffix and request.system:
        ignored += ("system",)
    return CompletionCall(
        model=request.model or None,
        prompts=(request.prompt or "",),
        suffix=request.suffix or None,
        params=request.params(body, plain=True),
        stream=request.stream is not False,
        include_usage=True,
        timings=True,
        keep_alive=request.kept_seconds,
        ignored=ignored,
    )


def _chat_call(
    request: _Shared, messages: tuple[Message, ...], tools: tuple[Mapping[str, Any], ...], body: Mapping[str, Any], ignored: tuple[str, ...]
) -> ChatCall:
    return ChatCall(
        model=request.model or None,
        messages=messages,
        tools=tools,
        params=request.params(body),
        stream=request.stream is not False,
        include_usage=True,
        timings=True,
        keep_alive=request.kept_seconds,
        ignored=ignored,
    )


def _flat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with its options as fields of their own, as the table has them."""
    options = body.get("options")
    return {**body, **{f"options.{name}": value for name, value in options.items()}} if isinstance(options, Mapping) else dict(body)


def model_names(name: str) -> tuple[str, ...]:
    """What a model may be called here whose name is written as Ollama writes it, the likeliest first: `qwen3:8b` is qwen3-8b, `x` is x:latest."""
    bare = name.removesuffix(LATEST).removeprefix("library/")
    return tuple(dict.fromkeys((name, tagged(name), bare, bare.replace(":", "-"), bare.replace(":", "-").lower())))


def tagged(name: str) -> str:
    """A model's name as Ollama lists it."""
    return name if ":" in name else name + LATEST


def timestamp(unix_seconds: float | None = None) -> str:
    """RFC 3339, in UTC; now, if no time is given."""
    return (datetime.now(UTC) if unix_seconds is None else datetime.fromtimestamp(unix_seconds, UTC)).isoformat().replace("+00:00", "Z")


def frame(value: Mapping[str, Any]) -> bytes:
    """One line of a stream."""
    return orjson.dumps(value) + b"\n"


class OllamaWriter:
    """Writes one response, whole or as lines, from the same events. A call of a tool is written when it is whole."""

    def __init__(self, call: ChatCall | CompletionCall, *, id: str, model: str, created: int, generates: bool = False) -> None:
        """`generates`: as /api/generate has it."""
        self._model = model
        self._generates = generates
        self._began = time.monotonic()
        self._load_seconds = 0.0
        self._call: tuple[str, str, list[str]] | None = None
        """Id, name and pieces of the arguments of the call that is under way."""
        self._num_calls = 0

    def start(self, prompt_tokens: int = 0) -> list[dict[str, Any]]:
        self._load_seconds = time.monotonic() - self._began
        return []

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        if event.kind == "finish":
            if "tool_error" in event.detail:
                self._call = None  # it is none
            return [*self._whole_call(), self._line() | self._ending(event)]
        if event.call is not None:
            before = self._whole_call() if event.call.id else []
            if event.call.id:
                self._call = event.call.id, event.call.name, []
            if self._call is not None:
                self._call[2].append(event.call.arguments)
            return before
        thought, content = (event.text, "") if event.kind == "reasoning" else ("", event.text)
        return [*self._whole_call(), self._line(content, thought) | _logprobs([] if thought else [event]) | {"done": False}]

    def end(self) -> list[dict[str, Any]]:
        return []

    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        return [error_body(error, OLLAMA_PATH)]

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """The whole response, which the lines of a stream come to; `events` holds one "finish" and no "error"."""
        own = [event for _, event in events]
        content = [event for event in own if event.kind == "content"]
        thought = "".join(event.text for event in own if event.kind == "reasoning")
        calls = [_call(number, call["id"], **call["function"]) for number, call in enumerate(tool_calls(own))]
        return self._line("".join(event.text for event in content), thought, calls) | _logprobs(content) | self._ending(own[-1])

    def nothing(self, reason: Literal["load", "unload"]) -> dict[str, Any]:
        """The response to a request that only loads or unloads."""
        return self._line() | {"done": True, "done_reason": reason}

    def _line(self, text: str = "", thought: str = "", calls: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
        head = {"model": self._model, "created_at": timestamp()}
        beside: dict[str, Any] = {"thinking": thought} if thought else {}
        if calls := list(calls):
            beside["tool_calls"] = calls
        return head | ({"response": text} | beside if self._generates else {"message": {"role": "assistant", "content": text} | beside})

    def _whole_call(self) -> list[dict[str, Any]]:
        """The line of the call that was under way."""
        if self._call is None:
            return []
        id, name, pieces = self._call
        self._call = None
        call = _call(self._num_calls, id, name, "".join(pieces))
        self._num_calls += 1
        return [self._line(calls=[call]) | {"done": False}]

    def _ending(self, event: Event) -> dict[str, Any]:
        """Durations in nanoseconds. The prompt's tokens are all of them; `qwenbox` says how many needed no work."""
        usage, times, total = event.usage, event.timings or {}, time.monotonic() - self._began
        before = total - sum(times.values())  # the engine may have begun before `start` was called
        ending: dict[str, Any] = {
            "done": True,
            "done_reason": "length" if event.finish_reason == "length" else "stop",
            "total_duration": _nanoseconds(total),
            "load_duration": _nanoseconds(max(0.0, min(self._load_seconds, before))),
            "prompt_eval_count": usage.prompt_tokens if usage else 0,
            "prompt_eval_duration": _nanoseconds(times.get("prefill", 0.0)),
            "eval_count": usage.completion_tokens if usage else 0,
            "eval_duration": _nanoseconds(times.get("decode", 0.0)),
        }
        beside = dict(event.detail) | {"queue_duration": _nanoseconds(times.get("queue", 0.0)), "cached_tokens": usage.cached_tokens if usage else 0}
        return ending | {"qwenbox": beside}


def _call(number: int, id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "function": {"index": number, "name": name, "arguments": arguments_object(arguments)}}


def _logprobs(events: Iterable[Event]) -> dict[str, Any]:
    tokens = [chat_logprob(token) | {"top_logprobs": [chat_logprob(other) for other in token.top]} for event in events for token in event.logprobs]
    return {"logprobs": tokens} if tokens else {}


def _nanoseconds(value: float) -> int:
    return round(value * 1e9)
