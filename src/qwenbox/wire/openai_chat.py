"""OpenAI's /v1/chat/completions: JSON in, our nouns, JSON out. No sockets here."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qwenbox.chat.toolcall import tool_calls
from qwenbox.errors import RequestError
from qwenbox.types import Event, Message, Progress, RequestParams, ToolCallPiece
from qwenbox.wire.errors import error_body, validate
from qwenbox.wire.form_fields import FORM_FIELDS, FormFields
from qwenbox.wire.openai_fields import (
    HONOURED,
    MAX_NAME,
    MAX_TOP_LOGPROBS,
    NO_EFFECT,
    SHARED_FIELDS,
    FieldRow,
    SamplingFields,
    StreamOptions,
    TokenCount,
    UsageSum,
    chat_logprob,
    finish_reason,
    refused,
    sort_fields,
    timings_body,
)
from qwenbox.wire.thinking_fields import ThinkingFields, thinking_votes

MAX_MESSAGES = 4096
MAX_TOOLS = 128
REASONING_FIELDS = ("reasoning_content", "reasoning")
"""What different clients call the thoughts; each has the same text."""

FIELDS: Mapping[str, FieldRow] = {
    **SHARED_FIELDS,
    **dict.fromkeys(
        (
            "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", *ThinkingFields.model_fields,
            "add_generation_prompt", "continue_final_message", "parallel_tool_calls", "return_progress",
        ),
        HONOURED,
    ),
    **dict.fromkeys(("store", "prediction", "verbosity"), NO_EFFECT),
    **FORM_FIELDS,
    "modalities": refused("only text is supported", lambda value: value == ["text"]),
    "audio": refused("only text is supported"),
    "functions": refused("use `tools`"),
    "function_call": refused("use `tool_choice`", lambda value: value in ("none", "auto")),
    "web_search_options": refused("the service does not search the web"),
    "moderation": refused("there is no moderation"),
    "echo": refused("use /v1/completions"),
}  # fmt: skip


def checked_calls(calls: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """ValueError for calls of tools that are none."""
    for call in calls or ():
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(function.get("arguments", ""), (str, dict)):
            raise ValueError('a tool call is {"type": "function", "function": {"name": ..., "arguments": ...}}')
    return calls


def checked_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """ValueError for tools that are no functions."""
    for tool in tools or ():
        function = tool.get("function")
        if not isinstance(function, dict):
            function = {}
        name = function.get("name")
        if tool.get("type") != "function" or not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
            raise ValueError(
                f'a tool is {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}, its name up to {MAX_NAME} characters'
            )
        if not isinstance(function.get("parameters") or {}, dict):
            raise ValueError("the parameters of a tool are a JSON schema")
    return tools


class ContentPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _only_text(self) -> ContentPart:
        known = {"text": self.text, "refusal": self.refusal}
        if self.type not in known:
            raise ValueError("only text parts are supported: this service reads no images, audio or files")
        if known[self.type] is None:
            raise ValueError(f"a {self.type} part needs `{self.type}`")
        return self


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    _calls = field_validator("tool_calls")(checked_calls)

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.reasoning_content or self.reasoning)):
            raise ValueError(f"a {self.role} message needs `content`")
        return self

    def message(self) -> Message:
        if isinstance(self.content, list):
            content = "".join((part.text if part.type == "text" else part.refusal) or "" for part in self.content)
        else:
            content = self.content or ""
        thought = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        if self.role == "assistant":
            written, content = _split_thought(content)
            thought = written if thought is None else thought
        return Message(
            role="system" if self.role == "developer" else self.role,
            content=content,
            reasoning_content=thought,
            tool_calls=tuple(self.tool_calls or ()),
            tool_call_id=self.tool_call_id,
            name=self.name,
        )


class ChosenTools(NamedTuple):
    """As `RequestParams` has it."""

    how: str
    allowed: tuple[str, ...] = ()


def _function_name(tool: Any) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


_THOUGHT = re.compile(r'\s*<(?:(think)|details type="reasoning"[^>]*)>')


def _split_thought(content: str) -> tuple[str | None, str]:
    """The thought that content begins with, and the rest: as models write it, or as older versions of Open WebUI and those who copy from it quote it.

    Templates look for the last `</think>`, wherever it stands, and those of models that do not think leave the thought where it is.
    """
    opening = _THOUGHT.match(content)
    if opening is None:
        return None, content
    quote, closing, rest = content[opening.end() :].partition("</think>" if opening[1] else "</details>")
    if not closing:
        return None, content
    if opening[1]:
        return quote.strip("\n"), rest.lstrip("\n")
    quote = quote[quote.find("</summary>") + len("</summary>") if "</summary>" in quote else 0 :].strip()
    return html.unescape(re.sub(r"^(&gt;|>) ?", "", quote, flags=re.MULTILINE)), rest.lstrip()


class ChatRequest(FormFields, SamplingFields, ThinkingFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    """A `ChosenTools`, once it is read."""
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_progress: bool | None = None

    _functions = field_validator("tools")(checked_tools)

    @field_validator("tool_choice")
    @classmethod
    def _chosen(cls, choice: Any) -> ChosenTools | None:
        if choice is None or choice in ("auto", "none", "required"):
            return choice and ChosenTools(choice)
        if isinstance(choice, dict):
            if choice.get("type") == "function" and (name := _function_name(choice)) is not None:
                return ChosenTools(f"={name}")
            allowed = choice.get("allowed_tools")
            if choice.get("type") == "allowed_tools" and isinstance(allowed, dict) and allowed.get("mode") in ("auto", "required"):
                tools = allowed.get("tools")
                names = [_function_name(tool) for tool in tools] if isinstance(tools, list) else []
                if names and None not in names:
                    return ChosenTools(allowed["mode"], tuple(map(str, names)))
        raise ValueError(
            'a choice is auto, none, required, {"type": "function", "function": {"name": ...}} or '
            '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": ...}}]}}'
        )


@dataclass(frozen=True, slots=True)
class ChatCall:
    """What a request asks for, in our nouns."""

    model: str | None
    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    params: RequestParams
    stream: bool
    include_usage: bool
    timings: bool
    keep_alive: float | None
    ignored: tuple[str, ...]
    hides_thoughts: bool = False
    """The answer shall tell that there was a thought, but not show it."""
    counts_on: bool = False
    """See `SamplingFields`."""


def read_request(body: Mapping[str, Any]) -> ChatCall:
    """Raises RequestError, with the field's name as `param`."""
    ignored = sort_fields(body, FIELDS, StreamOptions.model_fields)
    request = validate(ChatRequest, body)
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs: needs `logprobs: true`.", param="top_logprobs")
    choice = request.tool_choice or ChosenTools("auto")
    check_tools([tool["function"]["name"] for tool in request.tools or ()], choice)
    switches = {name: getattr(request, name) for name in ("add_generation_prompt", "continue_final_message")}
    return ChatCall(
        model=request.model or None,
        messages=tuple(message.message() for message in request.messages),
        # A client that forbids calls does not want the model to know of tools.
        tools=() if choice.how == "none" else tuple(request.tools or ()),
        params=request.params(
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            output_format=request.form(),
            template_options={name: value for name, value in switches.items() if value is not None},
            thinking=thinking_votes(body),
            tool_choice=choice.how,
            allowed_tools=choice.allowed,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            progress=bool(request.stream and request.return_progress),
        ),
        stream=bool(request.stream),
        include_usage=request.include_usage,
        counts_on=request.counts_on,
        timings=bool(request.timings),
        keep_alive=request.kept_seconds,
        ignored=ignored,
    )


def check_tools(names: Sequence[str | None], choice: ChosenTools) -> None:
    """RequestError for tools of one name, and for a choice that none of them is."""
    if len(set(names)) != len(names):
        raise RequestError("tools: two have the same name.", param="tools")
    wanted = choice.allowed or ((choice.how[1:],) if choice.how.startswith("=") else ())
    if not set(wanted) <= set(names) or (choice.how == "required" and not names):
        raise RequestError("tool_choice: there is no such tool.", param="tool_choice")


def arguments_object(arguments: str) -> dict[str, Any]:
    """The arguments of a call as an object; what the end of an answer cut off is an empty one."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


class ChatWriter:
    """Writes one response, as one object or as chunks, from the same events. `created` is in Unix seconds."""

    def __init__(self, call: ChatCall, *, id: str, model: str, created: int, reasoning_fields: Sequence[str] = REASONING_FIELDS) -> None:
        self._call = call
        self._reasoning_fields = reasoning_fields
        self._head = {"id": f"chatcmpl-{id}", "created": created, "model": model}
        self._usage = UsageSum(call.params.n)
        self._so_far = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0} if call.counts_on else None

    def start(self, prompt_tokens: int = 0) -> list[dict[str, Any]]:
        """The chunks that a stream begins with: the role of each choice."""
        if self._so_far is not None:
            self._so_far["prompt_tokens"] = self._so_far["total_tokens"] = prompt_tokens
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._call.params.n)]

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        if self._so_far is not None:
            for name in ("completion_tokens", "total_tokens"):
                self._so_far[name] += len(event.ids)
        if event.kind == "finish":
            self._usage.add(index, event.usage)
            last = self._chunk(index, {}, finish_reason=finish_reason(event))
            beside = dict(event.detail) | ({"timings": timings_body(event)} if self._call.timings else {})
            return [last | {"qwenbox": beside} if beside else last]
        if event.progress is not None:
            return [self._head | {"object": "chat.completion.chunk", "choices": [], "prompt_progress": _progress_body(event.progress)}]
        if event.kind == "reasoning":
            return [self._chunk(index, dict.fromkeys(self._reasoning_fields, event.text))]
        if event.call is not None:
            return [self._chunk(index, {"tool_calls": [_call_delta(event.call)]})]
        logprobs = {"content": _logprobs([event]), "refusal": None} if event.logprobs else None
        return [self._chunk(index, {"content": event.text}, logprobs=logprobs)]

    def end(self) -> list[dict[str, Any]]:
        """The chunks after the last event."""
        if not self._call.include_usage:
            return []
        return [self._head | {"object": "chat.completion.chunk", "choices": [], "usage": self._usage.body()}]

    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        return [error_body(error)]

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """The whole response; `events` holds a "finish" of every choice and no "error"."""
        by_choice: list[list[Event]] = [[] for _ in range(self._call.params.n)]
        for index, event in events:
            by_choice[index].append(event)
            self._usage.add(index, event.usage)
        choices = [self._choice(index, own) for index, own in enumerate(by_choice)]
        body = self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage.body()}
        lasts = [own[-1] for own in by_choice]
        # Of one answer as it is, of several a list.
        beside: dict[str, Any] = dict(lasts[0].detail)
        if len(lasts) > 1:
            beside = {name: [last.detail.get(name) for last in lasts] for name in sorted({name for last in lasts for name in last.detail})}
        if self._call.timings:
            beside["timings"] = [timings_body(last) for last in lasts]
        return body | {"qwenbox": beside} if beside else body

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": self._so_far and dict(self._so_far)} if self._call.include_usage else chunk

    def _choice(self, index: int, events: list[Event]) -> dict[str, Any]:
        content = [event for event in events if event.kind == "content"]
        reasoning = "".join(event.text for event in events if event.kind == "reasoning")
        text = "".join(event.text for event in content)
        calls = tool_calls(events)
        message: dict[str, Any] = {"role": "assistant", "content": None if (reasoning or calls) and not text else text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        if reasoning:
            message |= dict.fromkeys(self._reasoning_fields, reasoning)
        logprobs = {"content": _logprobs(content), "refusal": None} if self._call.params.logprobs is not None else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(events[-1])}


def _progress_body(progress: Progress) -> dict[str, Any]:
    """llama.cpp's object of the same name, with the seconds that are left beside as soon as they are known."""
    body = {
        "total": progress.num_tokens,
        "cache": progress.num_cached,
        "processed": progress.num_read,
        "time_ms": round(progress.seconds * 1000),
    }
    return body if progress.seconds_left is None else body | {"seconds_left": round(progress.seconds_left, 1)}


def _call_delta(piece: ToolCallPiece) -> dict[str, Any]:
    """The first piece of a call has its id and its name."""
    if not piece.id:
        return {"index": piece.number, "function": {"arguments": piece.arguments}}
    return {"index": piece.number, "id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": piece.arguments}}


def _logprobs(events: Iterable[Event]) -> list[dict[str, Any]]:
    return [chat_logprob(token) | {"top_logprobs": [chat_logprob(other) for other in token.top]} for event in events for token in event.logprobs]
