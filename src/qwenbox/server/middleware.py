"""What stands before every route: the request's number and its line in the log, the check of Host and Origin, the key."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenbox.errors import EngineError, OverloadedError, QwenboxError, RequestError
from qwenbox.metrics import Metrics
from qwenbox.server.auth import ServiceKey
from qwenbox.wire.errors import ANTHROPIC_PATH, error_body, error_headers

log = logging.getLogger("qwenbox.server")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_POLLED = ("/health", "/healthz", "/ready", "/readyz", "/metrics", "/conversations/news")
"""Routes that machines ask all day."""
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?")


def error_response(error: QwenboxError, scope: Scope) -> JSONResponse:
    """As the dialect of the request's path has it."""
    return JSONResponse(scoped_error_body(error, scope), error.http_status, error_headers(error))


def scoped_error_body(error: QwenboxError, scope: Scope) -> dict[str, Any]:
    return error_body(error.to_wire(), scope["path"], scope["state"].get("request_id", ""))


def headers_of(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


class RequestLog:
    """Numbers each request, answers what nobody caught, counts and logs the response. Never logs a body, a query or a header."""

    def __init__(self, app: ASGIApp, metrics: Metrics, route_of: Callable[[str], str]) -> None:
        self._app = app
        self._responses = metrics["http_responses"]
        self._route_of = route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        given = headers_of(scope, b"x-request-id")
        request_id = given[0] if given and _REQUEST_ID.fullmatch(given[0]) else secrets.token_hex(16).encode()
        scope["state"]["request_id"] = request_id.decode()
        status = 0

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]
                if scope["path"].startswith(ANTHROPIC_PATH):
                    more.append((b"request-id", request_id))
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            await self._app(scope, receive, numbered)
        except asyncio.CancelledError:
            if not status:
                await error_response(OverloadedError("The service is stopping.", retry_after=5), scope)(scope, receive, numbered)
        except Exception:
            log.exception("request failed", extra={"request_id": request_id.decode()})
            if status:
                raise
            await error_response(EngineError("The service failed; its log says why.", code="internal_error"), scope)(scope, receive, numbered)
        finally:
            route = self._route_of(scope["path"])
            self._responses.labels(route, str(status)).inc()
            quiet = route in _POLLED and status in (200, 503)
            fields = {
                "request_id": request_id.decode(),
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(time.perf_counter() - began, 3),
            }
            log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


class Guard:
    """Refuses browsers that a foreign page steers: a Host that is not ours (a name rebound to loopback), a foreign Origin on anything but reading.

    `hosts` None: any Host, for services that ask for a key anyway.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            return await error_response(RequestError(refusal, status=403, code="forbidden"), scope)(scope, receive, send)
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        hosts = [value.decode("latin-1").lower() for value in headers_of(scope, b"host")]
        if self._hosts is not None:
            named = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
            if named is None or named[1] not in self._hosts:
                return f"This service answers on {', '.join(sorted(self._hosts))} only."
        if scope["method"] not in ("GET", "HEAD"):
            for origin in headers_of(scope, b"origin"):
                if origin.decode("latin-1").lower() not in {f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts}:
                    return "Pages of other origins may not use this service."
        return None


class Auth:
    """Asks for the key on every path but the public ones. What a new route forgets is closed, not open."""

    def __init__(self, app: ASGIApp, key: ServiceKey, public: Collection[str]) -> None:
        self._app = app
        self._key = key
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not (scope["path"] in self._public and scope["method"] in ("GET", "HEAD")):
            try:
                self._key.check(headers_of(scope, b"authorization"), headers_of(scope, b"x-api-key"))
            except QwenboxError as error:
                response = error_response(error, scope)
                response.headers["www-authenticate"] = "Bearer"
                return await response(scope, receive, send)
        await self._app(scope, receive, send)


class LogLines(logging.Formatter):
    """One line a record: time, level, message, then the record's fields as name=value. Control characters cannot break a line."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields: dict[str, Any] = getattr(record, "fields", {})
        parts = [f"{stamp}Z", record.levelname.lower(), json.dumps(record.getMessage())[1:-1], *(f"{k}={_value(v)}" for k, v in fields.items())]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _value(value: Any) -> str:
    text = str(value)
    return text if re.fullmatch(r"[\w./:{}-]+", text, re.ASCII) else json.dumps(text)
