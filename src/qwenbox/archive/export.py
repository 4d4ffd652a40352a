"""A conversation as a file that people read or other programs take."""

from __future__ import annotations

import re
import time
from typing import Any

from .conversation import Conversation

FORMAT = "qwenbox conversation"


def as_json(conversation: Conversation) -> dict[str, Any]:
    """All branches. `POST /conversations` takes it back."""
    return {"format": FORMAT, "version": 1, **conversation.body()}


def as_markdown(conversation: Conversation) -> str:
    """The branch that is shown. Thoughts are folded, where Markdown is shown with HTML."""
    lines = [f"# {conversation.title}", "", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(conversation.created))]
    for message in conversation.branch():
        lines += ["", f"## {message.role}" + (f" ({message.model})" if message.model else ""), ""]
        if message.reasoning:
            lines += ["<details>", "<summary>thoughts</summary>", "", message.reasoning.strip(), "", "</details>", ""]
        lines += [message.content]
        if message.state is not None:
            lines += ["", f"*{message.state}*" + (f": {message.error['message']}" if message.error else "")]
    return "\n".join(lines) + "\n"


def file_name(conversation: Conversation, suffix: str) -> str:
    """From the title, without what file systems do not like."""
    return (re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]+', " ", conversation.title).strip(" .")[:80] or "conversation") + suffix
