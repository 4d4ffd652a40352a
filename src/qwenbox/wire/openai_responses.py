"""OpenAI's /v1/responses without a store: JSON in, our nouns, JSON out. No sockets here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qwenbox.types import Event, Message, OutputFormat, TextLogprob, Usage
from qwenbox.wire.errors import validate
from qwenbox.wire.form_fields import FORM_FIELDS, FormFields
from qwenbox.wire.openai_chat import MAX_MESSAGES, MAX_TOOLS, ChatCall, ChosenTools, check_tools
from qwenbox.wire.openai_fields import (
    HONOURED,
    MAX_TOP_LOGPROBS,
    NO_EFFECT,
    SHARED_FIELDS,
    FieldRow,
    SamplingFields,
    TokenCount,
    chat_logprob,
    refused,
    sort_fields,
)
from qwenbox.wire.thinking_fields import ThinkingFields, thinking_votes

FIELDS: Mapping[str, FieldRow] = {
    **{name: row for name, row in SHARED_FIELDS.items() if name not in ("n", "stop", "max_tokens", "timings", "logprobs")},
    **FORM_FIELDS,
    **dict.fromkeys(
        ("input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", *ThinkingFields.model_fields,
         "max_output_tokens", "top_logprobs"),
        HONOURED
    ),
    **dict.fromkeys(("store", "include", "access_programs", "image", "max_tool_calls",
                     # A prompt is read as it is sent: one that does not fit is said, never cut.
                     "context_management", "truncation"), NO_EFFECT),
    "max_tokens": refused("use `max_output_tokens`"),
    "previous_response_id": refused("responses are not stored; send the whole conversation as `input`"),
    "conversation": refused("conversations are not stored; send the whole conversation as `input`"),
    "prompt": refused("prompts are not stored; send the text as `input`"),
    "background": refused("responses are not stored, so nobody could come back for one"),
    "background_options": refused("responses are not stored, so nobody could come back for one"),
    "moderation": refused("there is no moderation"),
}  # fmt: skip

EFFORTS = ("minimal", "low", "medium", "high")
"""Only these are repeated in a response: typed clients refuse to read another."""
_UNREAD = {"input_image": "images", "input_file": "files", "input_audio": "audio"}


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Part:
        if self.type in _UNREAD:
            raise ValueError(f"{_UNREAD[self.type]} are not supported: this service reads text only")
        if self.type not in ("input_text", "output_text", "text", "summary_text", "reasoning_text", "refusal"):
            raise ValueError("only parts of text are supported")
        if self.content is None:
            raise ValueError(f"a part of type {self.type} needs its text")
        return self

    @property
    def content(self) -> str | None:
        return self.refusal if self.type == "refusal" else self.text


class Item(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Item:
        needs = {"message": ("role", "content"), "function_call": ("call_id", "name", "arguments"), "function_call_output": ("call_id", "output")}
        if self.type not in needs and self.type != "reasoning":
            raise ValueError(f"only items of the types {', '.join(needs)} and reasoning are supported")
        for name in needs.get(self.type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"an item of type {self.type} needs `{name}`")
        return self


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)]
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> Tool:
        if self.type == "function" and self.name is None:
            raise ValueError("a function needs `name`")
        return self

    def function(self) -> dict[str, Any]:
        """The object of OpenAI's chat."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters, "strict": self.strict}
        return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


class Choice(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["function"]
    name: Annotated[str, Field(max_length=256)]


class AllowedTools(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[Choice], Field(min_length=1, max_length=MAX_TOOLS)]


class Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _whole(self) -> Form:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a format of type json_schema needs `schema`")
        return self


class Text(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    format: Form | None = None


class ResponsesRequest(SamplingFields, ThinkingFields, FormFields):
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | Choice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: Text | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


@dataclass(frozen=True, slots=True)
class ResponsesCall(ChatCall):
    echo: Mapping[str, Any] = field(default_factory=dict)
    """What a response repeats of its request."""


def read_request(body: Mapping[str, Any]) -> ResponsesCall:
    """Raises RequestError, with the field's name as `param`."""
    ignored = list(sort_fields(body, FIELDS))
    request = validate(ResponsesRequest, body)
    tools = [tool for tool in request.tools or () if tool.type == "function"]
    ignored += sorted({f"tools.{tool.type}" for tool in request.tools or () if tool.type != "function"})
    choice = _choice(request.tool_choice)
    check_tools([tool.name for tool in tools], choice)
    form = request.text and request.text.format
    system = (Message("system", request.instructions),) if request.instructions else ()
    items = [Item(role="user", content=request.input)] if isinstance(request.input, str) else request.input
    wants_logprobs = request.top_logprobs is not None or "message.output_text.logprobs" in (body.get("include") or ())
    return ResponsesCall(
        model=request.model or None,
        messages=system + tuple(_messages(items)),
        tools=() if choice.how == "none" else tuple(tool.function() for tool in tools),
        params=request.params(
            n=1,
            stop=(),
            max_tokens=request.max_output_tokens,
            logprobs=(request.top_logprobs or 0) if wants_logprobs else None,
            thinking=thinking_votes(body),
            tool_choice=choice.how,
            allowed_tools=choice.allowed,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            output_format=request.form(text=OutputFormat(form.type, form.json_schema, "text.format") if form and form.type != "text" else None),
        ),
        stream=bool(request.stream),
        include_usage=True,
        timings=False,
        keep_alive=request.kept_seconds,
        ignored=tuple(ignored),
        echo=_echo(body, request, tools),
    )


def _messages(items: Iterable[Item]) -> Iterator[Message]:
    """Items as turns: thoughts, text and calls that stand together are one turn of the assistant."""
    thoughts: list[str] = []
    text: list[str] = []
    calls: list[dict[str, Any]] = []

    def assistant() -> Iterator[Message]:
        if thoughts or text or calls:
            yield Message("assistant", "".join(text), reasoning_content="\n".join(thoughts) if thoughts else None, tool_calls=tuple(calls))
            for collected in (thoughts, text, calls):
                collected.clear()

    for item in items:
        if item.type == "reasoning":
            if text or calls:
                yield from assistant()
            thoughts.append(_text(item.content) or _text(item.summary))
        elif item.type == "function_call":
            function = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": function})
        elif item.type == "function_call_output":
            yield from assistant()
            yield Message("tool", _text(item.output), tool_call_id=item.call_id)
        elif item.role == "assistant":
            if text or calls:
                yield from assistant()
            text.append(_text(item.content))
        else:
            yield from assistant()
            yield Message("user" if item.role == "user" else "system", _text(item.content))
    yield from assistant()


def _text(content: str | list[Part] | None) -> str:
    return content if isinstance(content, str) else "".join(part.content or "" for part in content or ())


def _echo(body: Mapping[str, Any], request: ResponsesRequest, tools: list[Tool]) -> dict[str, Any]:
    effort = (request.reasoning or {}).get("effort")
    return {
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": body["metadata"] if isinstance(body.get("metadata"), dict) else {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": effort if effort in EFFORTS else None, "summary": None},
        "store": False,
        "temperature": request.temperature,
        "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [{"description": None, "parameters": None, "strict": None} | tool.model_dump(exclude_none=True) for tool in tools],
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _choice(choice: str | Choice | AllowedTools | None) -> ChosenTools:
    if isinstance(choice, AllowedTools):
        return ChosenTools(choice.mode, tuple(tool.name for tool in choice.tools))
    return ChosenTools(f"={choice.name}" if isinstance(choice, Choice) else choice or "auto")


class ResponsesWriter:
    """Writes one response, as one object or as events, from the same events of ours: a stream's last event has the object.

    Runs of thoughts and of text are one item each, and so is each tool call.
    """

    def __init__(self, call: ResponsesCall, *, id: str, model: str, created: int) -> None:
        self._id = id
        self._logprobs = call.params.logprobs is not None
        self._head = {"id": f"resp_{id}", "object": "response", "created_at": created, "model": model, "background": False, **call.echo}
        self._items: list[dict[str, Any]] = []
        self._pieces: list[str] = []
        self._tokens: list[TextLogprob] = []
        self._open: tuple[str, int] | None = None
        """Kind of the item that is under way, and the number of its call."""
        self._number = 0

    def start(self, prompt_tokens: int) -> list[dict[str, Any]]:
        response = self._response("in_progress", None)
        return self._numbered([{"type": f"response.{name}", "response": response} for name in ("created", "in_progress")])

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        return self._numbered(self._finish(event) if event.kind == "finish" else self._piece(event))

    def end(self) -> list[dict[str, Any]]:
        return []

    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        # Clients know a few codes only; the message says the rest.
        response = self._response("failed", None) | {"error": {"code": "server_error", "message": error["message"]}}
        return self._numbered([{"type": "response.failed", "response": response}])

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """The whole response; `events` holds one "finish" and no "error"."""
        last = [chunk for index, event in events for chunk in self.chunks(index, event)][-1]
        response: dict[str, Any] = last["response"]
        return response

    # --- the items ---

    def _piece(self, event: Event) -> list[dict[str, Any]]:
        kind = event.kind, event.call.number if event.call else 0
        events = []
        if kind != self._open:
            events = [*self._close("completed"), *self._start_item(kind, event)]
        text = event.call.arguments if event.call else event.text
        self._pieces.append(text)
        self._tokens += event.logprobs
        delta = self._place() | {"delta": text}
        if kind[0] == "content":
            delta["logprobs"] = [_logprob(token) for token in event.logprobs]
        name = {"reasoning": "reasoning_text", "content": "output_text"}.get(kind[0], "function_call_arguments")
        return [*events, {"type": f"response.{name}.delta"} | delta]

    def _start_item(self, kind: tuple[str, int], event: Event) -> list[dict[str, Any]]:
        self._open, self._pieces, self._tokens = kind, [], []
        name = f"{self._id}_{len(self._items)}"
        item: dict[str, Any]
        if event.call is not None:
            item = {"id": f"fc_{name}", "type": "function_call", "call_id": event.call.id, "name": event.call.name, "arguments": ""}
        elif event.kind == "reasoning":
            item = {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": []}
        else:
            item = {"id": f"msg_{name}", "type": "message", "role": "assistant", "content": []}
        self._items.append(item | {"status": "in_progress"})
        added = [{"type": "response.output_item.added", "output_index": len(self._items) - 1, "item": dict(self._items[-1])}]
        if event.call is None:
            added.append({"type": "response.content_part.added", **self._place(), "part": self._part("")})
        return added

    def _close(self, status: str) -> list[dict[str, Any]]:
        """Ends the item that is under way."""
        if self._open is None:
            return []
        kind, item, text = self._open[0], self._items[-1], "".join(self._pieces)
        self._open = None
        item["status"] = status
        done: list[dict[str, Any]]
        if kind == "tool_call":
            item["arguments"] = text
            done = [{"type": "response.function_call_arguments.done", **self._place(), "arguments": text, "name": item["name"]}]
        else:
            part = self._part(text)
            item["content"] = [part]
            name, logprobs = ("reasoning_text", {}) if kind == "reasoning" else ("output_text", {"logprobs": [_logprob(t) for t in self._tokens]})
            done = [
                {"type": f"response.{name}.done", **self._place(), "text": text, **logprobs},
                {"type": "response.content_part.done", **self._place(), "part": part},
            ]
        return [*done, {"type": "response.output_item.done", "output_index": len(self._items) - 1, "item": item}]

    def _place(self) -> dict[str, Any]:
        item = self._items[-1]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": len(self._items) - 1}
        return place if item["type"] == "function_call" else place | {"content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        if self._items[-1]["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        return part | {"logprobs": [_logprob(token) for token in self._tokens]} if self._logprobs else part

    # --- the whole ---

    def _finish(self, event: Event) -> list[dict[str, Any]]:
        whole = event.finish_reason not in ("length", "cancelled")
        closed = self._close("completed" if whole else "incomplete")
        response = self._response("completed" if whole else "incomplete", event.usage or Usage())
        if event.finish_reason == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if event.detail:
            response["qwenbox"] = dict(event.detail)
        return [*closed, {"type": f"response.{response['status']}", "response": response}]

    def _response(self, status: str, usage: Usage | None) -> dict[str, Any]:
        more = {"status": status, "error": None, "incomplete_details": None, "output": self._items, "usage": None if usage is None else _usage(usage)}
        return self._head | more

    def _numbered(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events


def _logprob(token: TextLogprob) -> dict[str, Any]:
    return chat_logprob(token) | {"top_logprobs": [chat_logprob(other) for other in token.top]}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
