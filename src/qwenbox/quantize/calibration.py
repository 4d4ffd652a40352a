"""The text that a quantiser watches a model with: as token ids, in blocks of one length.

A calibration file is JSONL. A line is a text, `{"kind": "text", "text": ...}`, or a conversation, `{"kind": "chat", "messages": [...],
"tools": [...], "thinking": true}`, which the model's own template renders; "kind" may be left out. A file whose name ends in neither .jsonl,
.ndjson nor .json is one text. Lines are taken in an order that depends on nothing but their number, so that each part of a file has its share of
however many tokens are wanted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qwenbox.chat.chat import ChatFormat
from qwenbox.chat.text import ids_of, lines, token_ids
from qwenbox.errors import QwenboxError, UsageError
from qwenbox.types import IntArray, Message

BUILTIN = Path(__file__).parent / "calibration.jsonl"
LENGTH = 512
"""Tokens of a block."""
LEAST = 2048
"""Tokens of the smallest calibration that is accepted: fewer say more about themselves than about language."""
_FIELDS = frozenset(field.name for field in fields(Message))


@dataclass(frozen=True, slots=True)
class Calibration:
    """`ids` int32 [blocks, length]; `digest` is their SHA-256, `source` where they come from."""

    ids: IntArray
    digest: str
    source: str


def load(source: str, chat: ChatFormat, num_tokens: int, length: int = LENGTH) -> Calibration:
    """At most `num_tokens` tokens of a file, or of our own for "builtin". Raises UsageError for a file that is too short or cannot be understood."""
    path = BUILTIN if source == "builtin" else Path(source)
    wanted = num_tokens // length * length
    ids = list(itertools.islice(_ids(path, chat), wanted))
    blocks = len(ids) // length
    if blocks * length < min(LEAST, wanted) or not blocks:
        raise UsageError(
            f"the calibration {path} has {len(ids)} tokens of this model; at least {max(LEAST, length)} are needed, 8,192 or more are good",
            param="calibration",
        )
    array = np.array(ids[: blocks * length], np.int32).reshape(blocks, length)
    return Calibration(array, hashlib.sha256(array.tobytes()).hexdigest(), source if source == "builtin" else path.name)


def _ids(path: Path, chat: ChatFormat) -> Iterator[int]:
    """No more is encoded than somebody asks for."""
    if path.suffix.lower() not in (".jsonl", ".ndjson", ".json"):
        yield from token_ids(path, chat.tokenizer, param="calibration")
        return
    read = [(number, _parsed(line, path, number)) for number, line in lines(path, "calibration")]
    random.Random(0).shuffle(read)
    for number, line in read:
        try:
            yield from _encoded(line, chat)
        except QwenboxError as error:
            raise UsageError(f"{path}, line {number}: {error.message}", param="calibration") from None
        except (TypeError, KeyError, ValueError, AttributeError) as error:  # a tool that is none, say
            raise UsageError(f"{path}, line {number}: {error!r}", param="calibration") from None


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}, line {number}: not JSON ({error})", param="calibration") from None


def _encoded(line: Any, chat: ChatFormat) -> Iterable[int]:
    if isinstance(line, str):
        return ids_of([line], chat.tokenizer)
    kind = line.get("kind", "chat" if "messages" in line else "text") if isinstance(line, dict) else None
    if kind == "text" and isinstance(line.get("text"), str):
        return ids_of([line["text"]], chat.tokenizer)
    if kind == "chat" and isinstance(line.get("messages"), list):
        messages = [_message(message) for message in line["messages"]]
        return chat.encode(messages, line.get("tools"), add_generation_prompt=False, enable_thinking=bool(line.get("thinking", False)))
    raise UsageError('it is neither {"kind": "text", "text": "..."} nor {"kind": "chat", "messages": [...]}')


def _message(given: Any) -> Message:
    """Of OpenAI's form; null is as good as nothing."""
    said = {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else {}
    calls = said.get("tool_calls", ())
    texts = [value for name, value in said.items() if name != "tool_calls"]
    if "role" not in said or not all(isinstance(text, str) for text in texts):
        raise UsageError("a message needs a role, and its parts are texts")
    if not isinstance(calls, list | tuple) or not all(isinstance(call, dict) for call in calls):
        raise UsageError("tool_calls of a message must be a list of objects")
    if unknown := said.keys() - _FIELDS:
        raise UsageError(f"a message has the unknown field {min(unknown)!r}; there are {', '.join(sorted(_FIELDS))}")
    return Message(**{**said, "tool_calls": tuple(calls)})
