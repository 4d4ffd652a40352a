"""The HTTP/1.1 protocol of uvicorn with the limits it lacks: bytes and seconds of a request's head."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import orjson
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from qwenbox.errors import OverloadedError, RequestError
from qwenbox.server.middleware import error_response
from qwenbox.wire.errors import error_body

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 15.0
MAX_CONNECTIONS = 1024
"""Requests on more connections are answered with 503."""
LINGER_SECONDS = 2.0
_READ_BYTES = 256 * 1024
"""What asyncio reads at once: a head may arrive together with this much of its body."""


class Protocol(HttpToolsProtocol):
    """Puts two functions into the scope's state, past the tasks and wrappers that cost more than what they carry.

    `abort` drops the connection without waiting for the client to read. `write` is `stream.Write`, for a body without a length, after its head.
    """

    url = b""  # of the request that is read
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _refusal: tuple[int, str] | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio does this only for sockets made with IPPROTO_TCP, which accepted ones are not: answers would wait 40 ms for an acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES + _READ_BYTES and not self._refused:
            self._refuse(431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"] |= {"abort": self.transport.abort, "write": self._write}
        if not self._in_head:
            self._in_head, self._head_bytes = True, 0
            self._start_head_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        # Not uvicorn's `limit_concurrency`, which answers in plain text.
        full = max(len(self.connections), len(self.tasks)) > MAX_CONNECTIONS
        self.app = cast(Any, _full) if full else self.config.loaded_app
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._refusal = (431, f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")
            raise ValueError("head too large")  # the parser turns it into send_400_response
        super().on_headers_complete()

    def _write(self, make: Callable[[], bytes]) -> bool:
        if self.flow.write_paused or self.transport.is_closing():
            return False
        if body := make():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))
        return True

    def send_400_response(self, msg: str) -> None:
        self._refuse(*(self._refusal or (400, "This is not a valid HTTP/1.1 request.")))

    def _refuse(self, status: int, message: str) -> None:
        body = orjson.dumps(error_body(RequestError(message, status=status).to_wire(), self.url.decode("latin-1")))
        head = f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode("ascii") + body)
        # Closing at once would take the answer from a client that is still sending: what it sends is thrown away for a while.
        self._refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        if not self._refused and not self.transport.is_closing():
            self._refuse(408, f"The head of the request took longer than {HEAD_SECONDS:g} seconds.")


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    error = OverloadedError(f"There are more than {MAX_CONNECTIONS} connections; close some that are idle.", retry_after=5)
    response = error_response(error, scope)
    response.headers["connection"] = "close"
    await response(scope, receive, send)


_PHRASES = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
