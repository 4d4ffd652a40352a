"""Anthropic's /v1/messages: JSON in, our nouns, JSON out. No sockets here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qwenbox.errors import RequestError
from qwenbox.types import Event, Message, OutputFormat, Usage
from qwenbox.wire.errors import error_body, validate
from qwenbox.wire.form_fields import FORM_FIELDS, FormFields
from qwenbox.wire.openai_chat import MAX_MESSAGES, MAX_TOOLS, ChatCall, ChosenTools, arguments_object, check_tools
from qwenbox.wire.openai_fields import (
    HONOURED,
    MAX_NAME,
    MAX_STOPS,
    NO_EFFECT,
    SHARED_FIELDS,
    FieldRow,
    SamplingFields,
    checked_stops,
    refused,
    sort_fields,
)
from qwenbox.wire.thinking_fields import ThinkingFields, thinking_votes

FIELDS: Mapping[str, FieldRow] = {
    **{name: row for name, row in SHARED_FIELDS.items() if name not in ("stop", "timings", "stream_options", "logprobs", "n")},
    **FORM_FIELDS,
    **dict.fromkeys(
        ("messages", "system", "stop_sequences", "tools", "tool_choice", *ThinkingFields.model_fields, "metadata"),
        HONOURED,
    ),
    **dict.fromkeys(
        ("cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id", "workspace_id", "betas", "billing_policy", "fallbacks",
         "fallback_credit_token",
         # The conversation is read as it is sent: what does not fit is said, never cut.
         "context_management", "compaction"),
        NO_EFFECT,
    ),
    "container": refused("this service runs no code"),
    "mcp_servers": refused("this service calls no servers; let the client do it, and give the tools as `tools`"),
    "thread": refused("nothing is kept between requests; send the whole conversation"),
    "output_format": refused("use `output_config.format`"),
}  # fmt: skip

SIGNATURE = "cXdlbmJveA=="
"""Stands under every thought, because clients want a signature. It proves nothing and is not looked at when it comes back: a thought in the history
is the client's word, like any other text of it."""

_BILLING = "x-anthropic-billing-header:"
"""A line that Claude Code puts before its system prompt, another one every time: what follows would never be found in the cache."""
_NEEDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
"""The blocks that are read, and the fields that each must have."""
_UNREAD = {"image": "images", "document": "documents", "container_upload": "files"}
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class Block(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)]
    text: str | None = None
    thinking: str | None = None
    id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Annotated[str, Field(max_length=256)] | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> Block:
        if self.type in _UNREAD:
            raise ValueError(f"{_UNREAD[self.type]} are not supported: this service reads text only")
        if self.type not in _NEEDS:
            raise ValueError(f"only blocks of the types {', '.join(_NEEDS)} are supported")
        for name in _NEEDS[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"a {self.type} block needs `{name}`")
        if self.type == "tool_result" and isinstance(self.content, list) and any(part.type != "text" for part in self.content):
            raise ValueError("the blocks of a tool_result must be text")
        return self


class Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @model_validator(mode="after")
    def _fitting(self) -> Turn:
        fitting = {"user": ("text", "tool_result"), "assistant": ("text", "thinking", "redacted_thinking", "tool_use"), "system": ("text",)}[
            self.role
        ]
        for block in self.content if isinstance(self.content, list) else ():
            if block.type not in fitting:
                raise ValueError(f"a {self.role} message has no {block.type} block")
        return self


class SystemBlock(Block):
    type: Literal["text"]


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Annotated[str, Field(max_length=64)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None

    @property
    def custom(self) -> bool:
        """False for one that Anthropic's own service knows or runs."""
        return self.type in (None, "custom")

    @model_validator(mode="after")
    def _whole(self) -> Tool:
        if self.custom and (self.name is None or self.input_schema is None):
            raise ValueError("a tool needs `name` and `input_schema`")
        return self

    def function(self) -> dict[str, Any]:
        """OpenAI's object."""
        function = {"name": self.name, "description": self.description, "parameters": self.input_schema, "strict": self.strict}
        return {"type": "function", "function": {name: value for name, value in function.items() if value is not None}}


class ToolChoice(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    type: Literal["auto", "any", "tool", "none"]
    name: Annotated[str, Field(max_length=256)] | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if self.type == "tool" and self.name is None:
            raise ValueError("a choice of type tool needs `name`")
        return self

    @property
    def ours(self) -> ChosenTools:
        return ChosenTools({"any": "required", "tool": f"={self.name}"}.get(self.type, self.type))


class OutputForm(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", populate_by_name=True)
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    format: OutputForm | None = None
    effort: Annotated[str, Field(max_length=64)] | None = None


class Metadata(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    user_id: str | None = None


class MessagesRequest(SamplingFields, ThinkingFields, FormFields):
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[SystemBlock] | None = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None

    _bounded = field_validator("stop_sequences")(checked_stops)


def read_request(body: Mapping[str, Any]) -> ChatCall:
    """Raises RequestError, with the field's name as `param`."""
    if body.get("max_tokens") is None:
        raise RequestError("max_tokens: how long the answer may be is needed.", param="max_tokens")
    return read_prompt(body)


def read_prompt(body: Mapping[str, Any]) -> ChatCall:
    """`read_request` for counting: without `max_tokens`."""
    ignored = list(sort_fields(body, FIELDS))
    request = validate(MessagesRequest, body)
    system, has_billing = _system(request.system)
    if has_billing:
        ignored.append("system.x-anthropic-billing-header")
    tools = [tool for tool in request.tools or () if tool.custom]
    ignored += sorted({f"tools.{tool.type}" for tool in request.tools or () if not tool.custom})
    messages = [message for turn in request.messages for message in _messages(turn)]
    choice = request.tool_choice or ToolChoice(type="auto")
    check_tools([tool.name for tool in tools], choice.ours)
    prefilled = request.messages[-1].role == "assistant"
    if prefilled and messages[-1].tool_calls:
        raise RequestError("messages: a tool_use at the end needs its tool_result.", param="messages")
    form = request.output_config and request.output_config.format
    user = request.metadata and request.metadata.user_id
    return ChatCall(
        model=request.model or None,
        messages=((Message("system", system),) if system else ()) + tuple(messages),
        tools=() if choice.type == "none" else tuple(tool.function() for tool in tools),
        params=request.params(
            n=1,
            stop=tuple(request.stop_sequences or ()),
            tool_choice=choice.ours.how,
            parallel_tool_calls=not choice.disable_parallel_tool_use,
            thinking=thinking_votes(body),
            output_format=request.form(output_config=OutputFormat("json_schema", form.json_schema, "output_config.format") if form else None),
            template_options={"continue_final_message": True} if prefilled else {},
            user=request.user or _short(user or ""),
        ),
        stream=bool(request.stream),
        include_usage=True,
        timings=False,
        keep_alive=request.kept_seconds,
        ignored=tuple(ignored),
        hides_thoughts=_hides_thoughts(request.thinking),
    )


def _hides_thoughts(thinking: Any) -> bool:
    display = thinking.get("display") if isinstance(thinking, Mapping) else None
    if display not in (None, "summarized", "omitted"):
        raise RequestError("thinking.display: must be summarized or omitted.", param="thinking.display")
    return display == "omitted"


def _system(system: str | list[SystemBlock] | None) -> tuple[str, bool]:
    """The system prompt without its billing header, and whether it had one."""
    texts = [system] if isinstance(system, str) else [block.text or "" for block in system or ()]
    kept = [text.partition("\n")[2].lstrip("\n") if text.startswith(_BILLING) else text for text in texts]
    return "\n\n".join(text for text in kept if text), kept != texts


def _messages(turn: Turn) -> Iterator[Message]:
    """A turn as ours: each tool_result is a message of its own."""
    blocks = [Block(type="text", text=turn.content)] if isinstance(turn.content, str) else turn.content
    if turn.role == "assistant":
        calls = [{"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}} for block in blocks if block.name]
        thoughts = [block.thinking for block in blocks if block.thinking]
        text = "".join(block.text or "" for block in blocks)
        yield Message("assistant", text, reasoning_content="\n".join(thoughts) if thoughts else None, tool_calls=tuple(calls))
        return
    texts: list[str] = []
    for block in blocks:
        if block.type == "text":
            texts.append(block.text or "")
            continue
        if texts:
            yield Message(turn.role, "\n\n".join(texts))
            texts = []
        content = block.content if isinstance(block.content, str) else "\n".join(part.text or "" for part in block.content or ())
        # Templates have no place for a failure: it is said in words.
        yield Message("tool", f"Error: {content}" if block.is_error else content, tool_call_id=block.tool_use_id)
    if texts or not blocks:
        yield Message(turn.role, "\n\n".join(texts))


def _short(user: str) -> str:
    """Claude Code's names of users are long, and only have to differ."""
    return user if len(user) <= MAX_NAME else hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()


class MessagesWriter:
    """Writes one response, as one object or as events, from the same events of ours. Runs of one kind are one block, each tool call is one."""

    def __init__(self, call: ChatCall, *, id: str, model: str, created: int) -> None:
        self._head = {"id": f"msg_{id}", "type": "message", "role": "assistant", "model": model}
        self._hides_thoughts = call.hides_thoughts
        self._index = -1
        self._open: tuple[str, int] | None = None
        """Kind of the block that is under way, and the number of its call."""

    def start(self, prompt_tokens: int) -> list[dict[str, Any]]:
        message: dict[str, Any] = self._head | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(Usage(prompt_tokens))}
        return [{"type": "message_start", "message": message}]

    def chunks(self, index: int, event: Event) -> list[dict[str, Any]]:
        if event.kind == "finish":
            delta = {"stop_reason": _stop_reason(event), "stop_sequence": event.stop_text}
            return [*self._close(), {"type": "message_delta", "delta": delta, "usage": _usage(event.usage or Usage())} | _beside(event)]
        kind = _kind(event)
        opened = [] if kind == self._open else self._start_block(kind, event)
        if event.call is not None:
            delta = {"type": "input_json_delta", "partial_json": event.call.arguments}
        elif event.kind == "reasoning" and self._hides_thoughts:
            return opened
        elif event.kind == "reasoning":
            delta = {"type": "thinking_delta", "thinking": event.text}
        else:
            delta = {"type": "text_delta", "text": event.text}
        return [*opened, {"type": "content_block_delta", "index": self._index, "delta": delta}]

    def end(self) -> list[dict[str, Any]]:
        return [{"type": "message_stop"}]

    def failure(self, error: Mapping[str, Any], request_id: str) -> list[dict[str, Any]]:
        return [error_body(error, "/v1/messages", request_id)]

    def completion(self, events: Iterable[tuple[int, Event]]) -> dict[str, Any]:
        """The whole response; `events` holds one "finish" and no "error"."""
        blocks: list[dict[str, Any]] = []
        pieces: list[str] = []
        last: tuple[str, int] | None = None
        final = Event("finish")
        for _, event in events:
            if event.kind == "finish":
                final = event
                continue
            if (kind := _kind(event)) != last:
                if blocks:
                    _fill(blocks[-1], "".join(pieces))
                blocks.append(_block(event))
                pieces, last = [], kind
            if not (event.kind == "reasoning" and self._hides_thoughts):
                pieces.append(event.call.arguments if event.call else event.text)
        if blocks:
            _fill(blocks[-1], "".join(pieces))
        ending = {"stop_reason": _stop_reason(final), "stop_sequence": final.stop_text, "usage": _usage(final.usage or Usage())}
        return self._head | {"content": blocks} | ending | _beside(final)

    def _start_block(self, kind: tuple[str, int], event: Event) -> list[dict[str, Any]]:
        closed = self._close()
        self._open = kind
        self._index += 1
        return [*closed, {"type": "content_block_start", "index": self._index, "content_block": _block(event)}]

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        signed = {"type": "content_block_delta", "index": self._index, "delta": {"type": "signature_delta", "signature": SIGNATURE}}
        stop = {"type": "content_block_stop", "index": self._index}
        return [signed, stop] if self._open[0] == "reasoning" else [stop]


def _kind(event: Event) -> tuple[str, int]:
    return event.kind, event.call.number if event.call else 0


def _block(event: Event) -> dict[str, Any]:
    """An empty block of an event's kind."""
    if event.call is not None:
        return {"type": "tool_use", "id": event.call.id, "name": event.call.name, "input": {}}
    return {"type": "thinking", "thinking": "", "signature": ""} if event.kind == "reasoning" else {"type": "text", "text": ""}


def _fill(block: dict[str, Any], text: str) -> None:
    if block["type"] == "tool_use":
        block["input"] = arguments_object(text)
    elif block["type"] == "thinking":
        block |= {"thinking": text, "signature": SIGNATURE}
    else:
        block["text"] = text


def _beside(event: Event) -> dict[str, Any]:
    return {"qwenbox": dict(event.detail)} if event.detail else {}


def _stop_reason(event: Event) -> str:
    if event.stop_text is not None:
        return "stop_sequence"
    return _STOP_REASONS.get(event.finish_reason or "", "end_turn")


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's tokens of a prompt are those that were not in the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }
