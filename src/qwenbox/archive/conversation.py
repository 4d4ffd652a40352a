"""The nouns of the archive. A conversation is a tree of messages: an edited question, and an answer made again, are siblings of what they replace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["running", "stopped", "length", "loop", "empty", "interrupted", "error"]
"""Of an answer that is not simply whole. "interrupted": the service ended before it did."""


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """Times are Unix seconds."""

    id: str
    parent: str | None
    role: Literal["user", "assistant"]
    content: str
    created: float
    reasoning: str = ""
    seconds: float | None = None
    """How long it was thought."""
    why: Any = None
    """What was decided of thinking, as the service's answers say it."""
    state: State | None = None
    error: Mapping[str, Any] | None = None
    """`message` and `code`, with state "error"."""
    model: str | None = None
    usage: Mapping[str, Any] | None = None

    def body(self) -> dict[str, Any]:
        """For JSON; what nobody knows is left out."""
        known = {"reasoning": self.reasoning or None, "seconds": self.seconds, "why": self.why, "state": self.state, "error": self.error}
        known |= {"model": self.model, "usage": self.usage}
        head = {"id": self.id, "parent": self.parent, "role": self.role, "content": self.content}
        return head | {name: value for name, value in known.items() if value is not None} | {"created": self.created}


@dataclass(frozen=True, slots=True)
class Summary:
    """A line of the list."""

    id: str
    title: str
    created: float
    updated: float
    snippet: str = ""
    """Of the newest message that has what was searched for."""

    def body(self) -> dict[str, Any]:
        return {"id": self.id, "title": self.title, "created": self.created, "updated": self.updated, "snippet": self.snippet}


@dataclass(frozen=True, slots=True)
class Conversation:
    """All of it. `messages` come in the order in which they were made, so parents stand before their children."""

    id: str
    title: str
    titled_by: Literal["words", "model", "person"]
    """Whose title it is: until somebody makes one it is the first words of the question."""
    created: float
    updated: float
    leaf: str | None
    """The end of the branch that is shown."""
    messages: Sequence[StoredMessage] = field(default_factory=tuple)

    def branch(self, end: str | None = None) -> list[StoredMessage]:
        """The messages from the first one to `end`, otherwise to the leaf."""
        by_id = {message.id: message for message in self.messages}
        found, at = [], by_id.get(end or self.leaf or "")
        while at is not None:
            found.append(at)
            at = by_id.get(at.parent or "")
        return found[::-1]

    def body(self) -> dict[str, Any]:
        head = {"id": self.id, "title": self.title, "created": self.created, "updated": self.updated, "leaf": self.leaf}
        return head | {"messages": [message.body() for message in self.messages]}


TITLE_LENGTH = 60
_FILES = re.compile(r'<file name="([^"\n]*)">\n.*?\n</file>\n\n', re.DOTALL)
"""How the page writes files before the question that is asked of them."""


def first_words(text: str) -> str:
    """What a conversation is called until it has a title: its beginning, cut at a word where there are any."""
    names = []
    while file := _FILES.match(text):
        names.append(file[1])
        text = text[file.end() :]
    line = " ".join(text.split()) or ", ".join(names)
    if len(line) <= TITLE_LENGTH:
        return line
    cut = line[:TITLE_LENGTH]
    at_word = cut.rsplit(" ", 1)[0] if line[TITLE_LENGTH] != " " else cut
    return (at_word if len(at_word) > TITLE_LENGTH // 2 else cut).rstrip() + "…"
