"""Answers that last: what happens when the client goes away, reads slowly, or waits in silence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenbox.errors import OverloadedError, QwenboxError
from qwenbox.wire import sse
from qwenbox.wire.errors import error_body

STALL_SECONDS = 30.0
"""A client that lets a full send buffer lie for so long is cut off."""


LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024 * 1024
"""How long, and over how much, a refused body is read and thrown away: closing at once would take the answer from a client that is still sending."""


class ClientGone(Exception):
    """The client closed its connection before it had the answer."""


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the block when the client closes the connection, and raises ClientGone from it. The request's body has been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class EventResponse(Response):
    """A response of server-sent events: `first`, then the rest of `frames`. Empty bytes stand for a silence and become a keep-alive comment.

    An error that ends the frames becomes a last event, and the stream ends without `[DONE]`.
    """

    media_type = sse.MEDIA_TYPE

    def __init__(self, first: asyncio.Future[bytes], frames: AsyncGenerator[bytes], headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self._first = first
        self._frames = frames
        # Proxies that buffer would turn a stream into one late lump.
        self.init_headers({**headers, "cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending_since: float | None = None

        async def write(body: bytes) -> None:
            nonlocal sending_since
            sending_since = time.monotonic()
            await send({"type": "http.response.body", "body": body or sse.KEEP_ALIVE, "more_body": True})
            sending_since = None

        async def guard() -> None:
            while True:
                await asyncio.sleep(STALL_SECONDS / 4)
                if sending_since is not None and time.monotonic() - sending_since > STALL_SECONDS:
                    # The sender waits for a buffer that nobody empties: only dropping the connection wakes it.
                    scope["state"]["abort"]()

        stall_guard = asyncio.create_task(guard())
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with until_disconnect(receive):
                await write(await self._first)
                async for frame in self._frames:
                    await write(frame)
        except ClientGone:
            return
        except QwenboxError as error:
            await write(sse.frame(error_body(error.to_wire())))
        except asyncio.CancelledError:
            await write(sse.frame(error_body(OverloadedError("The service is stopping.").to_wire())))
        finally:
            stall_guard.cancel()
            self._first.cancel()
            with contextlib.suppress(QwenboxError, asyncio.CancelledError, StopAsyncIteration):
                await self._first
            await self._frames.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class RefusedBody:
    """Sends `response` at once, then closes the connection when the client has stopped sending or has sent too much."""

    def __init__(self, response: Response) -> None:
        self._response = response
        response.headers["connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self._response.status_code, "headers": self._response.raw_headers})
        await send({"type": "http.response.body", "body": self._response.body, "more_body": True})
        discarded = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while discarded < LINGER_BYTES:
                    message = await receive()
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
                    discarded += len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
