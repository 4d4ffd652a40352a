"""Answers that last: what happens when the client goes away, reads slowly, or waits in silence."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenbox.errors import OverloadedError, QwenboxError
from qwenbox.server.attempts import Attempt
from qwenbox.wire import sse

STALL_SECONDS = 30.0
"""A client that lets a full send buffer lie for so long is cut off."""


LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 1024 * 1024
"""How long, and over how much, a refused body is read and thrown away: closing at once would take the answer from a client that is still sending."""


class ClientGone(Exception):
    """The client closed its connection before it had the answer, or has asked for it again."""


@asynccontextmanager
async def until_disconnect(receive: Receive, attempt: Attempt | None = None) -> AsyncIterator[None]:
    """Cancels the block when the client closes the connection or the attempt is over, and raises ClientGone from it. The body has been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    if attempt is not None:
        attempt.leave = leave
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


Write = Callable[[Callable[[], bytes]], bool]
"""Writes what the function makes to a stream that is under way, at once. False, and nothing is made, where the client has to read first."""


class EventResponse(Response):
    """A response of events, one after the other. Empty bytes among the `frames` stand for a silence and become a `keep_alive`.

    `frames` is given a `Write` for what it has while the response waits for its next frame.

    The head goes out with the first frame, with what `headers` holds by then: an error that comes before it has a status of its own. A later one
    becomes a last event, which `failed` makes, and the stream ends.
    """

    def __init__(
        self,
        frames: Callable[[Write], AsyncGenerator[bytes]],
        failed: Callable[[QwenboxError], bytes],
        headers: Mapping[str, str],
        attempt: Attempt,
        keep_alive: bytes = sse.KEEP_ALIVE,
        media_type: str = sse.MEDIA_TYPE,
    ) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._frames = frames
        self._failed = failed
        self._attempt = attempt
        self._keep_alive = keep_alive
        self._more_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        sending_since: float | None = None
        timer: asyncio.TimerHandle
        loop = asyncio.get_running_loop()
        frames = self._frames(scope["state"]["write"])

        async def write(body: bytes) -> None:
            nonlocal sending_since
            sending_since = time.monotonic()
            await send({"type": "http.response.body", "body": body or self._keep_alive, "more_body": True})
            sending_since = None

        def guard() -> None:
            nonlocal timer
            if sending_since is not None and time.monotonic() - sending_since > STALL_SECONDS:
                # The sender waits for a buffer that nobody empties: only dropping the connection wakes it.
                scope["state"]["abort"]()
            timer = loop.call_later(STALL_SECONDS / 4, guard)

        timer = loop.call_later(STALL_SECONDS / 4, guard)
        try:
            async with until_disconnect(receive, self._attempt):
                async for frame in frames:
                    if not started:
                        started = True
                        # Proxies that buffer would turn a stream into one late lump.
                        self.init_headers({**self._more_headers, "cache-control": "no-store", "x-accel-buffering": "no"})
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await write(frame)
        except (ClientGone, QwenboxError, asyncio.CancelledError) as error:
            if not started:
                raise
            if isinstance(error, ClientGone):
                return
            last = error if isinstance(error, QwenboxError) else OverloadedError("The service is stopping.")
            await write(self._failed(last))
        finally:
            timer.cancel()
            await frames.aclose()
            self._attempt.end()
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
