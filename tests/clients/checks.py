"""What the scripts of all clients share: the conversation, and how a script says what worked. Runs in the client's own environment."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ["SERVICE_URL"]
TEXT = "Hello, world! 你好，世界 👩‍👩‍👧."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PERSON = {"name": "Ada", "age": 36}
PARAMETERS: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "Degrees in a city.", "parameters": PARAMETERS}}]
DEGREES = {"Paris": "26", "Rome": "31"}
BOTH = "It is 26 degrees in Paris and 31 in Rome."
ASK_WEATHER = "How warm is it in Paris and in Rome?"
ASK_PERSON = "Answer as JSON: who is Ada?"
ASK_FOR_EVER = "Go on for ever."
ASK_FULL = "Everybody asks at once."
"""Refused with 429 until it is asked again."""
TOO_LONG = "x" * 20000


def equal(got: Any, wanted: Any) -> None:
    assert got == wanted, f"{got!r} is not {wanted!r}"


def raises(error: type[BaseException], act: Callable[[], Any]) -> BaseException:
    try:
        result = act()
    except error as caught:
        return caught
    raise AssertionError(f"{result!r} instead of {error.__name__}")


def report(**checks: Callable[[], None]) -> None:
    """Runs the checks and prints one line of JSON: of each, null or what went wrong."""
    results: dict[str, str | None] = {}
    for name, check in checks.items():
        try:
            check()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
    print(json.dumps(results))
