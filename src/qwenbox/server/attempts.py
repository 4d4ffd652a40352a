"""Requests that their clients send again: what runs for an earlier sending is ended before the next one begins."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import weakref
from collections.abc import Callable

from starlette.requests import Request

END_SECONDS = 5.0
"""So long a retry waits for the end of what it replaces."""


class Attempt:
    """One sending of a request, while it is answered."""

    def __init__(self, number: int) -> None:
        self.number = number
        """How often the request was sent before."""
        self.leave: Callable[[], None] = lambda: None
        """Ends it as if its client had closed the connection, which a proxy may hide from us."""
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Nothing runs for it any more."""
        self.leave = lambda: None
        self._ended.set()

    async def ended(self) -> None:
        async with asyncio.timeout(END_SECONDS):
            await self._ended.wait()


class Attempts:
    """Those under way, by what their clients call the request: `Idempotency-Key`, or else an `x-request-id` of their own, with the same body.

    A request without such a name is nobody's earlier attempt: who sends the same body again may want two answers.
    """

    def __init__(self) -> None:
        self._under_way: weakref.WeakValueDictionary[tuple[str, ...], Attempt] = weakref.WeakValueDictionary()

    async def begin(self, request: Request, body: bytes) -> Attempt:
        """The caller ends what it is given. An earlier attempt has ended when this returns, or was given END_SECONDS to."""
        attempt = Attempt(retry_count(request) or 0)
        headers = request.headers
        if (name := headers.get("idempotency-key") or headers.get("x-request-id")) is None:
            return attempt
        key = name, headers.get("authorization", ""), request.url.path, hashlib.blake2b(body).hexdigest()
        earlier = self._under_way.pop(key, None)
        if earlier is not None and earlier.number >= attempt.number:
            return attempt  # two of one name: nobody could tell which is sent again
        self._under_way[key] = attempt
        if earlier is not None:
            earlier.leave()
            with contextlib.suppress(TimeoutError):
                await earlier.ended()
        return attempt


def retry_count(request: Request) -> int | None:
    """How often the client has sent the request before: clients made by Stainless, OpenAI's and Anthropic's, say it, others do not."""
    count = request.headers.get("x-stainless-retry-count", "")
    return int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None
