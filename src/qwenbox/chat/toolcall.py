"""Tool calls in an answer's text, read as it streams: Hermes' JSON in `<tool_call>`, the tags of Qwen3-Coder, and what Qwen2.5-Coder writes instead.

<tool_call>{"name": "NAME", "arguments": {...}}</tool_call>
<tool_call><function=NAME><parameter=KEY>value</parameter> ... </function></tool_call>
```json {"name": "NAME", "arguments": {...}} ```
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from qwenbox.types import Event, ToolCallPiece

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
FENCE, FENCE_END = "```json", "```"
MAX_SPACE = 32
"""Blank characters that are held back, to be dropped where a call follows them."""
MAX_NAME = 256
MAX_DEPTH = 128
MAX_SCALAR = 512
"""Characters of a number in arguments."""


class Part(NamedTuple):
    """What became of the next `length` characters: content, a piece of a call, or nothing that anybody sees.

    The content of a broken call is longer than `length`: it holds what had become pieces.
    """

    length: int
    text: str = ""
    call: ToolCallPiece | None = None


class ToolScanner:
    """Cuts the content of one answer into text and calls. Linear time; for any cutting of the text the same text, names and arguments.

    * Blanks between text and calls are dropped, up to 32 of a run before a call.
    * A call has its name once it is whole, then its arguments as they come; without arguments they are `{}`. What stands inside a JSON string ends
      no call. A call is complete with its last brace or `</function>`; a missing `</tool_call>` does not matter.
    * A call is broken where it is neither form, names no tool of `tools`, or ends too early. Then `error` says why, its whole text comes as
      content, and so does everything after it: text of a broken call could hold what looks like another. Its pieces, if some are out, count for
      nothing: `calls` are those that are complete.
    * With `parallel=False` nothing comes after the first call, and the scanner is `over`.
    * With `fenced` an answer that is one call in a fence and nothing else is a call, if its arguments are what the tool declares (`_satisfies`). Its
      text is held until it ends, or until it is no such answer; then it is read as any other.
    """

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        parallel: bool = True,
        fenced: bool = False,
        new_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}",
    ) -> None:
        self.calls = 0
        self._parallel = parallel
        self.error: str | None = None
        self._tools = {tool["function"]["name"]: _parameter_types(tool["function"]) for tool in tools}
        self._new_id = new_id
        self._fence = _Fence({tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}) if fenced else None
        self._held = ""
        self._state: Literal["text", "form", "call", "after"] = "text"
        self._gap = False  # blanks are dropped until other text comes
        self._raw: list[str] = []  # of the call so far
        self._call: _Call
        self._named = False

    @property
    def num_held(self) -> int:
        """Characters that no part covers yet."""
        return len(self._held) + (0 if self._fence is None else self._fence.length)

    @property
    def over(self) -> bool:
        return self.calls > 0 and not self._parallel

    def feed(self, text: str) -> list[Part]:
        if self._fence is not None:
            if self._fence.feed(text):
                return []
            text, self._fence = self._fence.text, None
        self._held += text
        parts: list[Part] = []
        try:
            while self._step(parts):
                pass
        except BrokenCallError as error:
            self._break(str(error), parts)
        return parts

    def finish(self, reason: str | None) -> list[Part]:
        """The rest, where the content ends or is interrupted.

        An answer that was cut off (its `reason` is not "stop") keeps the call that it was in as far as it is.
        """
        parts: list[Part] = []
        if self._fence is not None:
            fence, self._fence = self._fence, None
            if reason == "stop" and fence.name is not None:
                self.calls += 1
                return [Part(fence.length, call=ToolCallPiece(0, self._new_id(), fence.name, fence.arguments))]
            parts = self.feed(fence.text)
        if self._state == "form" or (self._state == "call" and not (self._named and reason != "stop")):
            self._break("the call is not complete", parts)
        else:
            self._take(len(self._held), parts, visible=self._state == "text")
        return parts

    def _step(self, parts: list[Part]) -> bool:
        """Whether there may be more to do with the text that is held."""
        if self.over:
            self._take(len(self._held), parts)
            return False
        if self._state == "text":
            return self._text(parts)
        if self._state == "call":
            return self._arguments(parts)
        self._take(_end(_BLANK, self._held), parts)
        return bool(self._held) and (self._form() if self._state == "form" else self._after(parts))

    def _text(self, parts: list[Part]) -> bool:
        if self._gap:
            self._take(_end(_BLANK, self._held), parts)
        if self.error is not None:
            self._take(len(self._held), parts, visible=True)
        held = self._held
        at = held.find(OPEN)
        end = at if at >= 0 else len(held) - _common(held, OPEN)
        visible = max(len(held[:end].rstrip(_BLANKS)), end - MAX_SPACE)
        if visible > 0:
            self._gap = False
            self._take(visible, parts, visible=True)
        if at < 0:
            return False
        self._take(end - max(visible, 0) + len(OPEN), parts)
        self._state, self._raw, self._named = "form", [OPEN], False
        return True

    def _form(self) -> bool:
        held = self._held
        if held[0] == "{":
            self._call = _JsonCall()
        elif held.startswith(FUNCTION):
            self._call = _TagCall(self._tools)
        elif FUNCTION.startswith(held):
            return False
        else:
            raise BrokenCallError("a call is a JSON object, or <function=...>")
        self._state = "call"
        return True

    def _arguments(self, parts: list[Part]) -> bool:
        call = self._call
        used, arguments = call.feed(self._held)
        named = call.name is not None and not self._named
        piece = None
        if named and call.name in self._tools:
            self._named = True
            piece = ToolCallPiece(self.calls, self._new_id(), str(call.name), arguments)
        elif arguments and self._named:
            piece = ToolCallPiece(self.calls, arguments=arguments)
        self._take(used, parts, call=piece)
        if named and not self._named:
            raise BrokenCallError(f"there is no tool {str(call.name)[:64]!r}")
        if call.error is not None:
            raise BrokenCallError(call.error)
        if call.done:
            self.calls += 1
            self._state = "after"
        return call.done

    def _after(self, parts: list[Part]) -> bool:
        if len(self._held) < len(CLOSE) and CLOSE.startswith(self._held):
            return False
        if self._held.startswith(CLOSE):
            self._take(len(CLOSE), parts)
        self._state, self._gap = "text", True
        return True

    def _take(self, length: int, parts: list[Part], *, visible: bool = False, call: ToolCallPiece | None = None) -> None:
        """The first characters that are held have become this."""
        if length == 0 and call is None:
            return
        text, self._held = self._held[:length], self._held[length:]
        if self._state in ("form", "call"):
            self._raw.append(text)
        parts.append(Part(length, text if visible else "", call))

    def _break(self, error: str, parts: list[Part]) -> None:
        held, self._held = self._held, ""
        parts.append(Part(len(held), "".join(self._raw) + held))
        self.error, self._state, self._gap, self._raw = error, "text", False, []


def tool_calls(events: Iterable[Event]) -> list[dict[str, Any]]:
    """OpenAI's objects of the calls in the events of one whole answer; a broken one is none."""
    calls: list[dict[str, Any]] = []
    for event in events:
        if event.call is not None and event.call.number == len(calls):
            function = {"name": event.call.name, "arguments": ""}
            calls.append({"id": event.call.id, "type": "function", "function": function, "pieces": []})
        if event.call is not None:
            calls[-1]["pieces"].append(event.call.arguments)
        if event.kind == "finish" and "tool_error" in event.detail:
            del calls[event.detail["tool_error"]["index"] :]
    for call in calls:
        call["function"]["arguments"] = "".join(call.pop("pieces"))
    return calls


class BrokenCallError(ValueError):
    """Text that is no call."""


class _Call(Protocol):
    """One form of a call. `feed` takes text and says how much of it it used, and what it adds to the arguments: nothing before there is a name.
    What cannot become a call is not used, and `error` says why."""

    name: str | None
    done: bool
    error: str | None

    def feed(self, text: str) -> tuple[int, str]: ...


# --- JSON ----------------------------------------------------------------------------------------------------------

_BLANKS = " \t\r\n"
_BLANK = re.compile(f"[{_BLANKS}]*")
_STRING_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_RUN = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")


class JsonReader:
    """Reads one JSON value piece by piece; `error` says why it can no longer become one."""

    def __init__(self) -> None:
        self.done = False
        self.error: str | None = None
        self._closers: list[str] = []  # of the objects and lists that are open
        self._expected = "value"
        self._is_key = False
        self._left = 0  # hexadecimal digits
        self._scalar = ""

    def feed(self, text: str, start: int = 0) -> int:
        """Where in `text` the value, or what can be of it, ends. A number ends at the character after it."""
        at = start
        while at < len(text) and not self.done and self.error is None:
            if self._expected in ("string", "escape", "hex"):
                at = self._string(text, at)
            elif self._expected == "scalar":
                at = self._number(text, at)
            else:
                at = _end(_BLANK, text, at)
                if at < len(text):
                    at = self._structure(text[at], at)
        return at

    def _structure(self, char: str, at: int) -> int:
        expected = self._expected
        if char == '"' and expected in ("value", "value or ]", "key", "key or }"):
            self._is_key = expected.startswith("key")
            self._expected = "string"
        elif char in "{[" and expected.startswith("value") and len(self._closers) < MAX_DEPTH:
            self._closers.append("}" if char == "{" else "]")
            self._expected = "key or }" if char == "{" else "value or ]"
        elif char in "}]" and self._closers and char == self._closers[-1] and (expected == ", or end" or expected.endswith(char)):
            self._closers.pop()
            self._value_ends()
        elif char == "," and expected == ", or end":
            self._expected = "key" if self._closers[-1] == "}" else "value"
        elif char == ":" and expected == ":":
            self._expected = "value"
        elif char in "-tfn0123456789" and expected.startswith("value"):
            self._expected = "scalar"
            return at
        else:
            self.error = f"{char!r} where JSON has {expected}, or {MAX_DEPTH} levels"
            return at
        return at + 1

    def _string(self, text: str, at: int) -> int:
        if self._expected == "string":
            at = _end(_STRING_RUN, text, at)
            if at == len(text):
                return at
        char = text[at]
        if self._expected == "hex" and char in _HEX:
            self._left -= 1
            self._expected = "hex" if self._left else "string"
        elif self._expected == "escape" and char in '"\\/bfnrtu':
            self._expected, self._left = ("hex", 4) if char == "u" else ("string", 0)
        elif self._expected != "string" or char not in '"\\':
            self.error = "a string with a control character or a broken escape"
            return at
        elif char == "\\":
            self._expected = "escape"
        elif self._is_key:
            self._is_key = False
            self._expected = ":"
        else:
            self._value_ends()
        return at + 1

    def _number(self, text: str, at: int) -> int:
        end = min(_end(_SCALAR_RUN, text, at), at + MAX_SCALAR + 1 - len(self._scalar))
        self._scalar += text[at:end]
        if len(self._scalar) > MAX_SCALAR or (end < len(text) and not _SCALAR.fullmatch(self._scalar)):
            self.error = f"{self._scalar[:32]!r} is no JSON value"
        elif end < len(text):
            self._scalar = ""
            self._value_ends()
        return end

    def _value_ends(self) -> None:
        self._expected = ", or end"
        self.done = not self._closers


class _JsonCall:
    """`{"name": ..., "arguments": {...}}`, in either order; other keys are read and dropped."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.done = False
        self.error: str | None = None
        self._expected = "{"
        self._reader: JsonReader | None = None  # of the key, or of the value of `_key`
        self._key: str | None = None
        self._text: list[str] = []  # of a key or the name
        self._waiting: list[str] = []  # arguments that come before the name
        self.keys: set[str] = set()

    def feed(self, text: str) -> tuple[int, str]:
        at = 0
        out: list[str] = []
        while not self.done and self.error is None:
            if self._reader is None:
                at = _end(_BLANK, text, at)
            if at == len(text):
                break
            if self._reader is None:
                at += self._structure(text[at], out)
            else:
                end = self._reader.feed(text, at)
                self._piece(self._reader, text[at:end], out)
                at = end
        return at, "".join(out)

    def _structure(self, char: str, out: list[str]) -> bool:
        """Whether the character is used; else it begins a key or a value, or is wrong."""
        expected = self._expected
        if (char == '"' and expected.startswith("key")) or (expected == "value" and (char == "{" or self._key != "arguments")):
            self._key = self._key if expected == "value" else None
            self._reader, self._text = JsonReader(), []
            return False
        if char == "}" and expected.endswith("}") and self.name is not None:
            out += [] if "arguments" in self.keys else ["{}"]
            self.done = True
        elif (char == ":" and expected == ":") or (char == "," and expected == ", or }") or (char == "{" and expected == "{"):
            self._expected = {":": "value", ",": "key", "{": "key or }"}[char]
        else:
            self.error = f"{char!r} where a call has {expected}, or no name"
            return False
        return True

    def _piece(self, reader: JsonReader, piece: str, out: list[str]) -> None:
        if self._key == "arguments":
            (self._waiting if self.name is None else out).append(piece)
        elif self._key in (None, "name"):
            self._text.append(piece)
        self.error = reader.error
        if not reader.done:
            return
        self._reader = None
        if self._key is None:
            self._key, self._expected = str(json.loads("".join(self._text))), ":"
            if self._key in self.keys:
                self.error = f"two of {self._key[:64]!r}"
            self.keys.add(self._key)
            return
        self._expected = ", or }"
        if self._key == "name":
            name = json.loads("".join(self._text))
            if isinstance(name, str):
                self.name = name
                out += self._waiting
            else:
                self.error = "the name is no text"


# --- tags ----------------------------------------------------------------------------------------------------------


class _TagCall:
    """`<function=NAME>` with `<parameter=KEY>` inside: no escapes, so a value ends at the first `</parameter>` that does not stand inside a string
    of a JSON value; one line end at either side is not part of it. A value becomes what the tool declares, where it is that, else a string."""

    def __init__(self, tools: Mapping[str, Mapping[str, Collection[str]]]) -> None:
        self.name: str | None = None
        self.done = False
        self.error: str | None = None
        self._tools = tools
        self._state: Literal["tag", "line", "value"] = "tag"
        self._types: Collection[str] = ()
        self._text: list[str] = []  # of a value that is no string
        self._reader = JsonReader()  # of that value, as far as it is JSON
        self._keys: set[str] = set()

    def feed(self, text: str) -> tuple[int, str]:
        at, before = 0, -1
        out: list[str] = []
        while at != before and not self.done and self.error is None:
            before = at
            if self._state == "tag":
                at = self._tag(text, _end(_BLANK, text, at), out)
            elif self._state == "value":
                at = self._value(text, at, out)
            elif at < len(text):
                at += text[at] == "\n"
                self._state, before = "value", -1
        return at, "".join(out)

    def _tag(self, text: str, at: int, out: list[str]) -> int:
        tag = FUNCTION if self.name is None else PARAMETER
        rest = text[at : at + len(tag) + MAX_NAME + 1]
        if self.name is not None and rest.startswith(FUNCTION_END):
            out.append("}" if self._keys else "{}")
            self.done = True
            return at + len(FUNCTION_END)
        end = rest.find(">")
        if not rest.startswith(tag) or (end < 0 and len(rest) > len(tag) + MAX_NAME):
            if not tag.startswith(rest) and not (self.name is not None and FUNCTION_END.startswith(rest)):
                self.error = f"something else where a call has {tag}"
            return at
        if end < 0:
            return at
        name = rest[len(tag) : end]
        if self.name is None:
            self.name = name
        elif name in self._keys:
            self.error = f"two of {name[:64]!r}"
        else:
            out.append(f"{', ' if self._keys else '{'}{json.dumps(name, ensure_ascii=False)}: ")
            self._keys.add(name)
            self._types = self._tools.get(self.name, {}).get(name, ("string",))
            self._text, self._reader = [], JsonReader()
            out += ['"'] if self._is_text else []
            self._state = "line"
        return at + end + 1

    @property
    def _is_text(self) -> bool:
        return tuple(self._types) == ("string",)

    def _value(self, text: str, at: int, out: list[str]) -> int:
        if not self._is_text:
            start, at = at, self._reader.feed(text, at)
            self._text.append(text[start:at])
            if at == len(text) and not self._reader.done:
                return at
        found = text.find(PARAMETER_END, at)
        if found < 0:
            tail = text[at:][-len(PARAMETER_END) :]
            end = len(text) - max(_common(tail, PARAMETER_END), _common(tail, "\n" + PARAMETER_END))
        else:
            end = found - (found > at and text[found - 1] == "\n")
        if self._is_text:
            out.append(json.dumps(text[at:end], ensure_ascii=False)[1:-1])
        else:
            self._text.append(text[at:end])
        if found < 0:
            return end
        out.append('"' if self._is_text else _converted("".join(self._text).removesuffix("\n" if end == found else ""), self._types))
        self._state = "tag"
        return found + len(PARAMETER_END)


def _converted(text: str, types: Collection[str]) -> str:
    """The JSON text of a value that a tool declares to be of one of these types."""
    literal = text.strip()
    literal = {"True": "true", "False": "false", "None": "null"}.get(literal, literal)
    try:
        value = json.loads(literal, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    return literal if _is_of(value, types) else json.dumps(text, ensure_ascii=False)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _is_of(value: Any, types: Collection[str]) -> bool:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    kind = kinds[type(value)]
    return kind in types or (kind == "integer" and "number" in types)


def _parameter_types(function: Mapping[str, Any]) -> Mapping[str, Collection[str]]:
    """The types that a tool declares for each of its parameters; every type for one that is declared without."""
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return {str(key): types_of(schema) for key, schema in properties.items()} if isinstance(properties, Mapping) else {}


_EVERY_TYPE = ("boolean", "integer", "number", "string", "array", "object", "null")


def types_of(schema: Any) -> Collection[str]:
    """The types of JSON that a schema's instances may have, as far as it says so by itself; every type where it does not."""
    if not isinstance(schema, Mapping):
        return _EVERY_TYPE
    declared = schema.get("type")
    if isinstance(declared, str):
        return (declared,)
    if isinstance(declared, list):
        return tuple(kind for kind in declared if isinstance(kind, str))
    for key in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list):
            return tuple(dict.fromkeys(kind for branch in branches for kind in types_of(branch)))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return ("string",) if isinstance(values, list) and values and all(isinstance(value, str) for value in values) else _EVERY_TYPE


# --- fences --------------------------------------------------------------------------------------------------------


class _Fence:
    """An answer that may yet be one call between fences, and nothing else. `schemas`: what each tool declares of its arguments."""

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self.length = 0
        self._schemas = schemas
        self._pieces: list[str] = []
        self._arguments: list[str] = []
        self._state: Literal["begin", "call", "end"] = "begin"
        self._mark = ""  # of the fence that is expected, without blanks before it
        self._call = _JsonCall()

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    @property
    def name(self) -> str | None:
        """The tool's, where the answer so far is a call of it."""
        if self._state != "end" or self._mark != FENCE_END or self._call.keys != {"name", "arguments"}:
            return None
        return self._call.name if _satisfies(json.loads(self.arguments), self._schemas[str(self._call.name)]) else None

    def feed(self, text: str) -> bool:
        """Whether the answer may still become one."""
        self._pieces.append(text)
        self.length += len(text)
        if self._state == "begin":
            self._mark = (self._mark + text).lstrip(_BLANKS)
            if not self._mark.startswith(FENCE):
                return FENCE.startswith(self._mark)
            self._state, text, self._mark = "call", self._mark[len(FENCE) :], ""
        if self._state == "call":
            call = self._call
            used, arguments = call.feed(text)
            self._arguments.append(arguments)
            if call.error is not None or not call.keys <= {"name", "arguments"} or (call.name is not None and call.name not in self._schemas):
                return False
            if not call.done:
                return True
            self._state, text = "end", text[used:]
        self._mark = (self._mark + text).lstrip(_BLANKS)
        if self._mark.startswith(FENCE_END):
            self._mark = self._mark.rstrip(_BLANKS)
        return FENCE_END.startswith(self._mark)


def _satisfies(value: Any, schema: Any) -> bool:
    """Whether a value has the types, names and listed values that a schema states, at every depth. Names that it does not state need its leave."""
    if not isinstance(schema, Mapping):
        return schema is not False
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if not _is_of(value, types_of(schema)) or (isinstance(listed, list) and value not in listed):
        return False
    if isinstance(value, list):
        return all(_satisfies(item, schema.get("items")) for item in value)
    if not isinstance(value, dict):
        return True
    properties, required, others = schema.get("properties"), schema.get("required"), schema.get("additionalProperties", False)
    if isinstance(required, list) and not all(name in value for name in required):
        return False
    if not isinstance(properties, Mapping):
        return True
    return all(_satisfies(item, properties.get(name, others)) for name, item in value.items())


# --- text ----------------------------------------------------------------------------------------------------------


def _end(run: re.Pattern[str], text: str, at: int = 0) -> int:
    found = run.match(text, at)
    return found.end() if found else at


def _common(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `tag`."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
