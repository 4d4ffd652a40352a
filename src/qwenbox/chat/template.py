"""Messages to prompt text by a chat template, and prompt text to ids that nobody can forge.

A model ships its template, which is a program. Templates that we know by their SHA-256 render in this process; any other renders in a
helper process with bounded memory, processor time and wall time (`sandbox.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import minijinja

from qwenbox.chat import sandbox
from qwenbox.chat.tokenizer import Tokenizer
from qwenbox.errors import EngineError, ModelFormatError, RequestError, UsageError
from qwenbox.types import Message

FAMILIES = ("qwen3", "qwen3-thinking-2507", "qwen2.5")
"""Families that we have a template of our own for, `templates/<family>.jinja`."""

OPTIONS: Mapping[str, type] = {"enable_thinking": bool}
"""What a request may pass to a template, and its type. Everything else is refused by name."""

KNOWN_SHA256 = frozenset(
    {
        "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8",  # Qwen3 (all sizes of the first, hybrid release)
        "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f",  # Qwen2.5-Coder-0.5B-Instruct GGUF
        "d5495a1e5db0611132a97e46a65dbb64a642a499421228b9c8b93229097fa9a4",  # Qwen2.5-Coder-1.5B-Instruct GGUF, doubles braces of one line
    }
)
"""Templates that people have read; our own are known besides."""

MAX_SOURCE = 1024 * 1024
MAX_DEPTH = 64
WALL_SECONDS = 5.0
ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """A chat template. `render` is thread-safe; `close` ends the helper process, where there is one.

    `known`: rendered in this process, because people have read it.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise ModelFormatError(f"chat template: {len(source)} characters, at most {MAX_SOURCE} are read")
        self.source = source
        try:
            self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        except UnicodeEncodeError:
            raise ModelFormatError("chat template: not UTF-8 text") from None
        self.known = self.sha256 in KNOWN_SHA256 or self.sha256 in _own_sha256()
        self._helper = None if self.known else _Helper()

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        /,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **options: Any,
    ) -> str:
        """Prompt text. `continue_final_message` leaves the last message, the assistant's, open at its end and adds no generation prompt.

        RequestError for unknown options and for messages that the template refuses; ModelFormatError where the template breaks its bounds.
        """
        turns = [_turn(message) for message in messages]
        _all_text((turns, list(tools or ())))
        return self._render(turns, list(tools or ()), add_generation_prompt, continue_final_message, options)

    def close(self) -> None:
        if self._helper is not None:
            self._helper.close()

    @cached_property
    def _environment(self) -> sandbox.Environment:
        return sandbox.Environment(self.source)

    def _render(
        self, turns: list[dict[str, Any]], tools: list[Any], add_generation_prompt: bool, continue_final_message: bool, options: Mapping[str, Any]
    ) -> str:
        _check_options(options, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)
        end = ""
        if continue_final_message:
            if not turns or turns[-1]["role"] != "assistant":
                raise RequestError("continue_final_message: the last message must be the assistant's", param="messages")
            end = _unused_marks(_all_text((turns, tools)), 1)
            turns[-1]["content"] += end
        context: dict[str, Any] = {"messages": turns, "add_generation_prompt": add_generation_prompt and not continue_final_message, **options}
        if tools:
            context["tools"] = tools
        try:
            text = self._environment.render(context) if self._helper is None else self._helper.render(self.source, context)
        except sandbox.BrokenTemplateError as error:
            raise ModelFormatError(f"the model's chat template does not compile: {error}") from error
        except sandbox.TemplateError as error:
            raise RequestError(f"the model's chat template cannot render these messages: {error}", param="messages") from error
        if not continue_final_message:
            return text
        if end not in text:
            raise RequestError("continue_final_message: the model's chat template does not show the last message", param="messages")
        return text[: text.rindex(end)]


def template_for(family: str, shipped: str | None) -> ChatTemplate:
    """The template a model ships, else our own of its family. UsageError for a family without one."""
    if shipped is not None:
        return ChatTemplate(shipped)
    if family not in FAMILIES:
        raise UsageError(f"no chat template for family {family!r}: there are templates for {', '.join(FAMILIES)}")
    return ChatTemplate(_own_source(family))


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    /,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **options: Any,
) -> list[int]:
    """Ids of a conversation. Only the template writes control tokens.

    Names of control tokens inside messages, tools and arguments stay text, with two exceptions. The assistant's own content may hold thoughts and
    calls, which templates look for: there `<think>` and `<tool_call>` with their closing tags count. Where the request has no `tools` they and
    `<tool_response>` count in all content: a client that writes calls and results itself, as Qwen-Agent does, means the model's tokens.
    Arguments of earlier tool calls that arrive as JSON text are given to the template as the object they are, as transformers asks for.
    """
    turns = [_turn(message) for message in messages]
    for turn in turns:
        if "tool_calls" in turn:
            turn["tool_calls"] = [_with_parsed_arguments(call) for call in turn["tool_calls"]]
    shield = _Shield(tokenizer, _all_text((turns, list(tools or ()))))
    turns = [_shielded(turn, shield, _ASSISTANT_MARKUP if tools else _MARKUP) for turn in turns]
    safe_tools = [_map_strings(shield.cover, tool) for tool in tools or ()]
    text = template._render(turns, safe_tools, add_generation_prompt, continue_final_message, options)
    ids: list[int] = []
    for piece, control in shield.pieces(text):
        ids += tokenizer.encode(piece, control=False)
        if control is not None:
            ids.append(control)
    return ids


# --- messages ------------------------------------------------------------------------------------------------------

_ASSISTANT_MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_MARKUP = (*_ASSISTANT_MARKUP, "<tool_response>", "</tool_response>")


def _turn(message: Message) -> dict[str, Any]:
    if message.role not in ROLES:
        raise RequestError(f"role {message.role!r}: must be one of {', '.join(ROLES)}", param="messages")
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    for field in ("reasoning_content", "tool_call_id", "name"):
        if getattr(message, field) is not None:
            turn[field] = getattr(message, field)
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    return turn


def _shielded(turn: Mapping[str, Any], shield: _Shield, spare: Sequence[str]) -> dict[str, Any]:
    safe: dict[str, Any] = {key: _map_strings(shield.cover, value) for key, value in turn.items() if key != "role"}
    safe["role"] = turn["role"]
    if turn["role"] == "assistant" or spare is _MARKUP:
        safe["content"] = shield.cover(turn["content"], spare)
    return safe


def _with_parsed_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _check_options(options: Mapping[str, Any], **switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false", param=name)
    for name, value in options.items():
        if name not in OPTIONS:
            raise RequestError(f"template option {name!r} is not supported: there is {', '.join(OPTIONS)}", param=f"chat_template_kwargs.{name}")
        if type(value) is not OPTIONS[name]:
            raise RequestError(f"template option {name!r} must be true or false", param=f"chat_template_kwargs.{name}")


def _map_strings(change: Callable[[str], str], value: Any, depth: int = 0) -> Any:
    """A copy of a JSON value with every string changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if depth > MAX_DEPTH:
        raise RequestError(f"tools and arguments may be nested {MAX_DEPTH} deep", param="tools")
    if isinstance(value, Mapping):
        return {change(str(key)): _map_strings(change, item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_map_strings(change, item, depth + 1) for item in value]
    return value


def _all_text(value: Any) -> str:
    """All text inside a JSON value, in one string. RequestError where UTF-8 cannot hold it."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    _map_strings(keep, value)
    text = "".join(found)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("the messages or tools hold a lone surrogate, which no UTF-8 text can", param="messages") from None
    return text


# --- control tokens nobody can forge -------------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Text, and the control token that follows it."""

    text: str
    control: int | None


class _Shield:
    """Marks the names of control tokens in other people's text, so that they can be told from the template's own.

    A mark is a private-use character that occurs nowhere in the conversation. It stands before a closing tag and after any other name:
    `startswith("<tool_response>")` and `endswith("</tool_response>")`, which templates ask for, still hold. A third mark keeps a text that
    starts or ends with part of a name from completing it with its neighbour.
    """

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._tokenizer = tokenizer
        marks = _unused_marks(text, 3)
        self._before, self._after, self._edge = marks[0], marks[1], marks[2]
        self._pattern = tokenizer.control_pattern
        self._fragments = _fragments(tuple(tokenizer.control_tokens))
        self._all = str.maketrans("", "", marks)

    def cover(self, text: str, spare: Iterable[str] = ()) -> str:
        """`text` with marks; names in `spare` stay as they are."""

        def mark(match: re.Match[str]) -> str:
            name = match.group()
            if name in spare:
                return name
            return self._before + name if name.startswith("</") else name + self._after

        text = self._pattern.sub(mark, text)
        if self._fragments.starts(text):
            text = self._edge + text
        return text + self._edge if self._fragments.ends(text) else text

    def pieces(self, text: str) -> Iterable[_Piece]:
        """Cuts rendered text at the template's own control tokens and removes the marks."""
        start = 0
        for match in self._pattern.finditer(text):
            name, end = match.group(), match.end()
            forged = text[match.start() - 1 : match.start()] == self._before if name.startswith("</") else text[end : end + 1] == self._after
            if not forged:
                yield _Piece(text[start : match.start()].translate(self._all), self._tokenizer.control_tokens[name])
                start = end
        yield _Piece(text[start:].translate(self._all), None)


class _Fragments:
    """Proper beginnings (heads) and proper ends (tails) of names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._heads = frozenset(name[:length] for name in names for length in range(1, len(name)))
        self._tails = frozenset(name[length:] for name in names for length in range(1, len(name)))
        self._first = frozenset(name[0] for name in names)
        self._last = frozenset(name[-1] for name in names)
        self._longest = max(map(len, self._heads), default=0)

    def starts(self, text: str) -> bool:
        """Whether `text` starts with a tail."""
        start = text[: self._longest]
        return not self._last.isdisjoint(start) and any(start[:length] in self._tails for length in range(1, len(start) + 1))

    def ends(self, text: str) -> bool:
        """Whether `text` ends with a head."""
        end = text[-self._longest :]
        return not self._first.isdisjoint(end) and any(end[-length:] in self._heads for length in range(1, len(end) + 1))


@cache
def _fragments(names: tuple[str, ...]) -> _Fragments:
    return _Fragments(names)


def _unused_marks(text: str, count: int) -> str:
    """`count` private-use characters that `text` has none of."""
    taken = set(re.findall("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]", text))
    marks = ""
    for code in (*range(0xF0000, 0xFFFFE), *range(0x100000, 0x10FFFE), *range(0xE000, 0xF900)) if taken else range(0xF0000, 0xF0000 + count):
        if chr(code) not in taken:
            marks += chr(code)
            if len(marks) == count:
                return marks
    raise RequestError("the messages use every private-use character of Unicode", param="messages")


# --- own templates and the helper process --------------------------------------------------------------------------


@cache
def _own_source(family: str) -> str:
    return (Path(__file__).parent / "templates" / f"{family}.jinja").read_text(encoding="utf-8")


@cache
def _own_sha256() -> frozenset[str]:
    return frozenset(hashlib.sha256(_own_source(family).encode()).hexdigest() for family in FAMILIES)


class _Helper:
    """The helper process: started when first needed, again after it died, ended with its owner."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def render(self, source: str, context: Mapping[str, Any]) -> str:
        request = json.dumps({"source": source, "context": context}).encode()
        if len(request) > sandbox.MAX_FRAME:
            raise RequestError(f"the messages take {len(request)} bytes, at most {sandbox.MAX_FRAME} fit", param="messages")
        with self._lock:
            answer = self._ask(request)
            if answer is None:
                self._stop()
                raise ModelFormatError("the model's chat template took too much memory or time; give the model another template")
        if "broken" in answer:
            raise sandbox.BrokenTemplateError(answer["broken"])
        if "error" in answer:
            raise sandbox.TemplateError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _ask(self, request: bytes) -> dict[str, Any] | None:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(WALL_SECONDS, process.kill)
        alarm.start()
        try:
            sandbox.write_frame(process.stdin, request)
            frame = sandbox.read_frame(process.stdout)
        except OSError:
            frame = None
        finally:
            alarm.cancel()
        return None if frame is None else json.loads(frame)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            library = str(Path(minijinja.__file__).parent.parent)
            command = [sys.executable, "-I", sandbox.__file__, library]
            try:
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/")
            except OSError as error:
                raise EngineError(f"the helper process for chat templates does not start: {error}") from error
            self._end = weakref.finalize(self, _end_process, self._process)
        return self._process

    def _stop(self) -> None:
        if self._end is not None:
            self._end()
        self._process = self._end = None


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # unsent bytes of a dead helper
                stream.close()
    process.wait()
