"""Error bodies, and readers of JSON that end in them. What a client sent is never repeated in an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from qwenbox.errors import OverloadedError, QwenboxError, RequestError, WorkerDiedError

MAX_FIELDS = 1024
MAX_DEPTH = 100
"""Nesting of a request's JSON. Tool schemas, the deepest honest thing there is, stay below 30."""

Schema = TypeVar("Schema", bound=BaseModel)


ANTHROPIC_PATH = "/v1/messages"
"""Below this path errors look as Anthropic's do."""
OLLAMA_PATH = "/api/"
"""Below this one as Ollama's, and everywhere else as OpenAI's."""
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: Mapping[str, Any], path: str = "", request_id: str = "") -> dict[str, Any]:
    """`QwenboxError.to_wire()` as the dialect that is spoken at `path` writes an error."""
    if path.startswith(OLLAMA_PATH):
        return {"error": error["message"]}
    if not path.startswith(ANTHROPIC_PATH):
        return {"error": {"message": error["message"], "type": error["type"], "param": error["param"], "code": error["code"]}}
    status = error["status"]
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    # By these words Claude Code knows that it has to shorten its conversation.
    known = "prompt is too long: " if error["code"] == "context_length_exceeded" else ""
    return {"type": "error", "error": {"type": kind, "message": known + error["message"]}, "request_id": request_id}


def error_headers(error: QwenboxError) -> dict[str, str]:
    """What a client's retry logic reads. The SDKs retry every 5xx; only overload and a restarted worker are worth it."""
    if error.http_status in (429, 503):
        return {"retry-after": str(error.retry_after or 1), "x-should-retry": "true"}
    if error.http_status >= 500 and not isinstance(error, (OverloadedError, WorkerDiedError)):
        return {"x-should-retry": "false"}
    return {}


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a request body, with at most `MAX_FIELDS` fields. Raises what `read_json_value` does."""
    value = _parsed(body)
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_json")
    if len(value) > MAX_FIELDS:  # looking at each would keep every other client waiting
        raise RequestError(f"The body has {len(value)} fields; up to {MAX_FIELDS} are read.", code="invalid_json")
    _check_depth(value)
    return value


def read_json_value(body: bytes) -> Any:
    """The JSON of a request body. For a large one this takes seconds, most of them not in one piece.

    Refused: NaN and Infinity, numbers that no double holds, lone surrogates, a byte order mark, nesting beyond `MAX_DEPTH`. Integers beyond 64 bits
    become floats, which integer fields then refuse by name. Of duplicate keys the last counts.
    """
    value = _parsed(body)
    if isinstance(value, dict | list):
        _check_depth(value)
    return value


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The decoder's message holds a position and no input.
        raise RequestError(
            f"The body is not valid JSON: {error.msg} at character {error.pos}.", param=_unreal_number(body), code="invalid_json"
        ) from None


def validate(schema: type[Schema], value: Mapping[str, Any]) -> Schema:
    """`value` as `schema`, or a RequestError that names the first wrong field."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[:64]
        paths = [field_path(value, one["loc"]) for one in wrong]
        # Each member of a union complains: the one that got furthest into the value is the one that was meant.
        param, message = max(
            ((path, one["msg"]) for path, one in zip(paths, wrong, strict=True) if path.startswith(paths[0])), key=lambda one: len(one[0])
        )
        raise RequestError(f"{param}: {message.removeprefix('Value error, ')}.", param=param) from None


def field_path(value: Any, location: tuple[int | str, ...]) -> str:
    """`messages.0.content`: the parts of pydantic's location that are keys of the request; names of union members are left out."""
    path: list[str] = []
    for index, part in enumerate(location):
        inside = isinstance(value, Mapping) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            value = value[part]
        elif isinstance(part, str) and isinstance(value, Mapping) and index == len(location) - 1:
            value = None  # a required field that is not there
        else:
            continue
        path.append(str(part))
    return ".".join(path)[:200]


def _unreal_number(body: bytes) -> str | None:
    """Name of the field whose number is NaN or infinite, if that is what is wrong."""
    found = re.search(rb'"(\w{1,64})"\s*:\s*-?(?:NaN|Infinity|\d[\d.]{0,40}[eE]\+?\d{3,})', body[:65536])
    return found[1].decode("ascii", "replace") if found else None


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child for parent in level for child in (parent.values() if type(parent) is dict else parent) if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise RequestError(f"The body nests deeper than {MAX_DEPTH} levels.", code="invalid_json")
