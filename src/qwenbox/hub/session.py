"""Requests to model hubs: through huggingface_hub's session, so that its settings, headers and errors hold; and where they must not lead.

huggingface_hub is imported where it is used: a third of a second that only who fetches should pay.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import httpx2

from ..errors import DownloadError
from .manifest import Advance

TIMEOUT_SECONDS = 30.0
"""Of each phase of a request."""
RETRY_SECONDS = 5
"""An error of the network says this to whoever can wait; what will not mend by itself says nothing."""
WAY_OUT = "Run the same command again: what was fetched is kept."

_MAX_REDIRECTS, _MAX_TEXT_BYTES = 5, 16 << 20
_ATTEMPTS = 4


class _Guard:
    """Of the requests of one block. `texts`: their answers are read whole, so they are bounded; bytes of a file are counted as they are written."""

    def __init__(self, texts: bool) -> None:
        self.texts = texts
        self.redirects = 0


_guard: ContextVar[_Guard | None] = ContextVar("qwenbox_hub", default=None)


@contextmanager
def guarded(*, texts: bool = True) -> Iterator[httpx2.Client]:
    """The session, which follows at most five redirects within this block, none of them to plain HTTP, or into a private network from outside of it.

    Whoever else uses the session in this process keeps it as it is. Raises DownloadError from the requests.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    session = get_session()
    if _inspect not in session.event_hooks["response"]:
        session.event_hooks["response"].append(_inspect)
    token = _guard.set(_Guard(texts))
    try:
        yield session
    except OfflineModeIsEnabled as error:
        raise DownloadError("HF_HUB_OFFLINE is set: nothing is fetched from a hub.", code="offline") from error
    finally:
        _guard.reset(token)


def _inspect(answer: httpx2.Response) -> None:
    guard = _guard.get()
    if guard is None:
        return
    if answer.has_redirect_location:
        guard.redirects += 1
        origin = answer.request.url
        target = origin.join(answer.headers["Location"])
        if guard.redirects > _MAX_REDIRECTS:
            raise DownloadError(f"{origin.host} redirects more than {_MAX_REDIRECTS} times; refused")
        if target.scheme != "https" and origin.scheme == "https":
            raise DownloadError(f"{origin.host} redirects to {target.host} without encryption; refused")
        if _is_private(target.host) and not _is_private(origin.host):
            raise DownloadError(f"{origin.host} redirects to the private address {target.host}; refused")
    if guard.texts or not answer.is_success:
        assert isinstance(answer.stream, httpx2.SyncByteStream)
        answer.stream = _Bounded(answer.stream, answer.request.url)


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, stream: httpx2.SyncByteStream, url: httpx2.URL) -> None:
        self._stream, self._url = stream, url

    def __iter__(self) -> Iterator[bytes]:
        total = 0
        for block in self._stream:
            total += len(block)
            if total > _MAX_TEXT_BYTES:
                raise DownloadError(f"{self._url} answers with more than {_MAX_TEXT_BYTES} bytes")
            yield block

    def close(self) -> None:
        self._stream.close()


def fetch(url: str, headers: Mapping[str, str], target: Path, size: int, advance: Advance) -> None:
    """Bring `target` to `size` bytes, going on from those that are there. Raises DownloadError when the hub does not deliver; OSError."""
    from huggingface_hub.errors import HfHubHTTPError

    failures = 0
    while (there := target.stat().st_size if target.exists() else 0) != size:
        if there > size:
            target.unlink()
            continue
        try:
            _fetch_rest(url, headers, target, there, size, advance)
            reason = "the answer ended too early"
        except HfHubHTTPError as error:
            reason = f"the hub answered {error.response.status_code}"
            if not is_passing(error.response.status_code):
                raise DownloadError(f"{target.name}: {reason} for {url}") from error
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
        now = target.stat().st_size if target.exists() else 0
        failures = 0 if now > there else failures + 1
        if failures == _ATTEMPTS:
            raise DownloadError(
                f"{target.name}: {reason}; {now} of {size} bytes are there. {WAY_OUT}", code="download_interrupted", retry_after=RETRY_SECONDS
            )
        if now != size:
            time.sleep(0.1 * 2**failures)
    if size == 0:
        target.touch()


def _fetch_rest(url: str, headers: Mapping[str, str], target: Path, there: int, size: int, advance: Advance) -> None:
    from huggingface_hub import hf_raise_for_status

    sent = {**headers, "Range": f"bytes={there}-"} if there else dict(headers)
    with guarded(texts=False) as session, session.stream("GET", url, headers=sent, timeout=TIMEOUT_SECONDS, follow_redirects=True) as answer:
        if answer.status_code == 416 or (answer.status_code == 206 and not _continues(answer, there, size)):
            target.unlink(missing_ok=True)  # The hub has another file now; its digest decides in the end.
            return
        hf_raise_for_status(answer)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{target.name}: the hub sent it encoded as {answer.headers['Content-Encoding'][:40]!r}, unasked")
        done = there if answer.status_code == 206 else 0
        with target.open("ab" if done else "wb") as output:
            # As it comes in: blocks of a fixed size would lose the last, unfinished one when the connection breaks.
            for block in answer.iter_raw():
                if done + len(block) > size:
                    raise DownloadError(f"{target.name}: the hub sends more than the {size} bytes that it announced")
                output.write(block)
                done += len(block)
                advance(done)


def _continues(answer: httpx2.Response, there: int, size: int) -> bool:
    match = re.fullmatch(r"bytes (\d{1,20})-\d{1,20}/(\d{1,20})", answer.headers.get("Content-Range", ""))
    return match is not None and (int(match[1]), int(match[2])) == (there, size)


def is_passing(status: int) -> bool:
    """Whether the hub would perhaps answer better a little later."""
    return status in (408, 429) or status >= 500


def _is_private(host: str) -> bool:
    """Whether the host is given as an address inside somebody's network, or is this machine."""
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
