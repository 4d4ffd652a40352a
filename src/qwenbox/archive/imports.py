"""Conversations out of files: our own export, ChatGPT's `conversations.json`, and what Open WebUI exports.

Whatever the format, a conversation becomes the object that `export.as_json` writes; who stores it checks that one. Nothing here is trusted: texts
may be anything, and a tree may be none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import RequestError
from .export import FORMAT

_THOUGHT = re.compile(r'<details type="reasoning"[^>]{0,200}>\s*(?:<summary>[^<]{0,200}</summary>)?(.*?)</details>\s*', re.DOTALL)
"""How Open WebUI writes a thought into the text of an answer."""


def conversations_in(file: Any) -> list[Any]:
    """Of the JSON of a file: a list of conversations, or one."""
    return file if isinstance(file, list) else [file]


def as_ours(given: Any) -> dict[str, Any]:
    """A conversation in our own form. RequestError for what is none of the three, and for one that a newer qwenbox has written."""
    if not isinstance(given, dict):
        raise RequestError("it is no conversation", code="no_conversation")
    if given.get("format") == FORMAT:
        if given.get("version") != 1:
            version = str(given.get("version"))[:20]
            raise RequestError(f"it is of version {version}, and this qwenbox knows version 1: use a newer one", code="newer_export")
        return given
    chat = given.get("chat")
    if isinstance(given.get("mapping"), dict):
        tree, leaf = _of_chatgpt(given["mapping"]), given.get("current_node")
    elif isinstance(chat, dict) and isinstance(history := chat.get("history"), dict) and isinstance(history.get("messages"), dict):
        tree, leaf = _of_open_webui(history["messages"]), history.get("currentId")
    else:
        raise RequestError("it is no export of qwenbox, ChatGPT or Open WebUI", code="unknown_export")
    messages, ids = _in_order(tree)
    title = given.get("title")
    body: dict[str, Any] = {"title": " ".join(title.split())[:200] if isinstance(title, str) else "", "messages": messages}
    return body | {"leaf": ids.get(leaf) if isinstance(leaf, str) else None} | _times(given)


def _times(given: Mapping[str, Any]) -> dict[str, float]:
    """When it was begun and last used, by ChatGPT's names or Open WebUI's."""
    names = {"created": ("create_time", "created_at"), "updated": ("update_time", "updated_at")}
    found = {name: next((time for key in keys if (time := _time(given.get(key))) is not None), None) for name, keys in names.items()}
    return {name: time for name, time in found.items() if time is not None}


class _Node(NamedTuple):
    parent: str | None
    role: str
    text: str
    created: float | None
    model: str | None
    reasoning: str = ""


def _of_chatgpt(mapping: Mapping[str, Any]) -> dict[str, _Node]:
    tree = {}
    for id, node in mapping.items():
        node = node if isinstance(node, dict) else {}
        message = _object(node.get("message"))
        content, more = _object(message.get("content")), _object(message.get("metadata"))
        parts = content.get("parts")
        texts = [part for part in parts if isinstance(part, str)] if isinstance(parts, list) else []
        hidden = more.get("is_visually_hidden_from_conversation") is True or content.get("content_type") not in ("text", "multimodal_text")
        tree[id] = _Node(
            _text(node.get("parent")),
            "" if hidden else str(_object(message.get("author")).get("role")),
            "\n".join(texts),
            _time(message.get("create_time")),
            _text(more.get("model_slug")),
        )
    return tree


def _of_open_webui(messages: Mapping[str, Any]) -> dict[str, _Node]:
    tree = {}
    for id, message in messages.items():
        message = _object(message)
        text = _text(message.get("content")) or ""
        thoughts = [re.sub(r"(?m)^\s*> ?", "", found[1]).strip() for found in _THOUGHT.finditer(text)]
        tree[id] = _Node(
            _text(message.get("parentId")),
            str(message.get("role")),
            _THOUGHT.sub("", text),
            _time(message.get("timestamp")),
            _text(message.get("model")),
            "\n\n".join(thoughts),
        )
    return tree


def _in_order(tree: Mapping[str, _Node]) -> tuple[list[dict[str, Any]], dict[str, str | None]]:
    """What people and models said, parents first, and by each node's name the id of it or of what it followed. What is in a circle is left out."""
    children: dict[str | None, list[str]] = {}
    for name, node in tree.items():
        children.setdefault(node.parent if node.parent in tree else None, []).append(name)
    messages: list[dict[str, Any]] = []
    ids: dict[str, str | None] = {}
    left = children.get(None, [])[::-1]
    while left:
        name = left.pop()
        node = tree[name]
        before = ids.get(node.parent) if node.parent is not None else None
        if node.role in ("user", "assistant") and (node.text.strip() or node.reasoning):
            ids[name] = str(len(messages))
            model = node.model[:256] if node.model and node.role == "assistant" else None
            more = {"created": node.created, "reasoning": node.reasoning or None, "model": model}
            said = {"id": ids[name], "parent": before, "role": node.role, "content": node.text}
            messages.append(said | {name: value for name, value in more.items() if value is not None})
        else:
            ids[name] = before
        left += children.get(name, [])[::-1]
    return messages, ids


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _time(value: Any) -> float | None:
    """Seconds of the years that a calendar shows."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 4e9 else None
