"""Server-sent events: how one JSON object, a comment or the end of a stream looks on the wire."""

from __future__ import annotations

from typing import Any

import orjson

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: clients skip it, proxies see that the connection lives."""
DONE = b"data: [DONE]\n\n"


PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""What Anthropic sends in a silence."""


def frame(value: Any) -> bytes:
    """One event. JSON from orjson never contains a line end, so one `data:` line is enough (U+2028 is no line end here)."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def typed_frame(value: dict[str, Any]) -> bytes:
    """One event that is named by its type, as in the dialects of Anthropic and of OpenAI's responses."""
    return b"event: %b\n" % value["type"].encode() + frame(value)
