"""What passes between front and worker: length-framed msgpack over a socket that never blocks. Nothing here can call anything.

frame   4 bytes little-endian length, then one msgpack array whose first item names the rest
front   ["open", options]  ["submit", plan]  ["cancel", request id]  ["answer", request id]  ["close"]
worker  ["progress", 0..1]  ["ready", info]  ["failed", error]  ["patience", seconds]  ["step", outputs, stats]
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any

import msgpack

from qwenbox.errors import QwenboxError
from qwenbox.types import Progress, SequenceOutput, TokenLogprob, Usage

MAX_FRAME = 64 << 20
"""Largest frame, in bytes: a prompt of a million tokens, or the log-probabilities that one request may ask for."""
_READ = 1 << 20
_READS = 64
"""Reads of one `receive` call, so that a fast writer cannot keep it for ever."""


class FrameError(QwenboxError):
    """The other side sent what no version of us sends."""


class Channel:
    """One end of a socketpair. Writes go to a buffer and from there as the other side reads; `pending` bytes are in the buffer."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._inbox = bytearray()
        self._outbox = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def pending(self) -> int:
        return len(self._outbox)

    def send(self, frame: list[Any]) -> None:
        """Queues a frame and writes what goes. FrameError for one that is too large, OSError where the other side is gone."""
        payload = msgpack.packb(frame)
        if len(payload) > MAX_FRAME:
            raise FrameError(f"a frame of {len(payload)} bytes is more than {MAX_FRAME}")
        self._outbox += struct.pack("<I", len(payload))
        self._outbox += payload
        self.flush()

    def flush(self) -> None:
        while self._outbox:
            try:
                sent = self._socket.send(memoryview(self._outbox)[:_READ])
            except BlockingIOError:
                return
            del self._outbox[:sent]

    def receive(self) -> Iterator[bytes]:
        """The payloads that are there now. EOFError where the other side has closed, FrameError for a length that cannot be."""
        closed = False
        for _ in range(_READS):
            try:
                data = self._socket.recv(_READ)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                closed = True
                break
            self._inbox += data
            if len(data) < _READ:
                break
        start = 0
        try:
            while len(self._inbox) - start >= 4:
                (length,) = struct.unpack_from("<I", self._inbox, start)
                if length > MAX_FRAME:
                    raise FrameError(f"a frame of {length} bytes was announced, more than {MAX_FRAME}")
                if len(self._inbox) - start - 4 < length:
                    break
                payload = bytes(memoryview(self._inbox)[start + 4 : start + 4 + length])
                start += 4 + length
                yield payload
        finally:
            del self._inbox[:start]
        if closed:
            raise EOFError("the other side closed the socket")

    def deafen(self) -> None:
        """No more is received; a thread that waits for something to receive is woken by the end of it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        self._socket.close()


def decode(payload: bytes) -> tuple[str, list[Any]]:
    """Name and items of a frame; FrameError unless it is an array that begins with a name."""
    try:
        frame = msgpack.unpackb(payload, raw=False, strict_map_key=True, max_ext_len=0)
    except Exception as error:
        raise FrameError(f"a frame is not msgpack: {type(error).__name__}: {error}") from None
    if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
        raise FrameError("a frame is not an array that begins with a name")
    return frame[0], frame[1:]


# Outputs cross by position, not by name: 32 of them a step, on the processor that also runs the model.


def pack_output(output: SequenceOutput) -> list[Any]:
    usage = output.usage
    return [
        output.request_id,
        output.ids,
        None if output.logprobs is None else [one and _pack_logprob(one) for one in output.logprobs],
        None if output.prompt_logprobs is None else [one and _pack_logprob(one) for one in output.prompt_logprobs],
        output.finish_reason,
        output.error,
        usage and (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens),
        output.timings,
        output.detail,
        output.progress,
        output.vector,
    ]


def unpack_output(items: list[Any]) -> SequenceOutput:
    """FrameError where the items are not those of `pack_output`."""
    try:
        request_id, ids, logprobs, prompt_logprobs, reason, error, usage, timings, detail, progress, vector = items
        if vector is not None and (not isinstance(vector, bytes) or len(vector) % 4):
            raise ValueError("a vector is bytes of float32")
        return SequenceOutput(
            request_id,
            tuple(ids),
            None if logprobs is None else tuple(one and _unpack_logprob(one) for one in logprobs),
            None if prompt_logprobs is None else tuple(one and _unpack_logprob(one) for one in prompt_logprobs),
            reason,
            error,
            usage and Usage(*usage),
            timings,
            detail,
            progress and Progress(*progress),
            vector,
        )
    except (TypeError, ValueError) as error:
        raise FrameError(f"an output is malformed: {error}") from None


def _pack_logprob(logprob: TokenLogprob) -> tuple[Any, ...]:
    return (logprob.id, logprob.logprob, logprob.top)


def _unpack_logprob(items: list[Any]) -> TokenLogprob:
    id, logprob, top = items
    return TokenLogprob(id, logprob, tuple((one, value) for one, value in top))
