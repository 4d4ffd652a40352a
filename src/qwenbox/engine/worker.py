"""The worker process: one engine, one socket. `supervisor.WorkerEngine` starts it as a new program that inherits the socket.

One thread reads the socket, so that a cancellation reaches a step that runs; what it read is obeyed between two steps. After each step the other
thread writes one frame with the outputs of all requests and the statistics. It ends when the front closes the socket, asks it to, or dies, and
when the front no longer reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

from qwenbox.confinement import die_with_parent
from qwenbox.engine.constraint import Grammars
from qwenbox.engine.engine import Engine, EngineModel, EngineStats
from qwenbox.engine.frames import Channel, FrameError, decode, pack_output
from qwenbox.engine.options import EngineOptions, open_grammars, open_model
from qwenbox.engine.protocol import model_info, refusal
from qwenbox.engine.slices import ask_slice
from qwenbox.errors import EngineError, QwenboxError, RequestError
from qwenbox.types import GenerationPlan, SequenceOutput

FIRST_IDLE_SECONDS = 0.05
"""Nobody asks for so long after loading: what a first form needs is made while no answer waits for it."""
BEAT_SECONDS = 1.0
"""An idle worker says so this often."""
LONG_STEP_SECONDS = 0.5
"""A step predicted to take longer is announced, so that the front has the patience for it."""
MAX_UNREAD = 16 << 20
"""Bytes that may wait for the front before steps stop."""
UNREAD_SECONDS = 30.0
"""How long they stop before the worker gives up."""
PROGRESS_SECONDS = 0.05

_STATS = attrgetter(*(field.name for field in fields(EngineStats)))  # dataclasses.astuple copies deeply, in 22 us


class Worker:
    """Serves one front over a channel until one of them ends."""

    def __init__(self, channel: Channel, engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._refused: list[SequenceOutput] = []
        self._closing = False
        self._inbox: deque[tuple[str, list[Any]] | Exception] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def serve(self) -> None:
        """EOFError where the front is gone, FrameError where it sends nonsense, TimeoutError where it does not read."""
        reader = threading.Thread(target=self._read, name="qwenbox-worker-reader", daemon=True)
        reader.start()
        try:
            self._serve()
        finally:
            self._channel.deafen()
            reader.join()
            os.close(self._bell)

    def _serve(self) -> None:
        engine = self._engine
        ready = select.poll()
        ready.register(self._bell, select.POLLIN)
        idle = FIRST_IDLE_SECONDS
        while True:
            ready.register(self._channel, select.POLLOUT if self._channel.pending else 0)
            if not ready.poll(0 if engine.has_work else idle * 1000) and not engine.has_work:
                engine.warm()
                idle = BEAT_SECONDS
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
            while self._inbox:
                self._obey(self._inbox.popleft())
            if self._closing:
                return
            outputs, self._refused = self._refused, []
            if engine.has_work:
                outputs += self._step()
            if outputs or engine.has_work or not self._channel.pending:
                self._send_step(outputs)
            self._wait_for_reader()

    def _read(self) -> None:
        """In a thread: takes frames in as they come, and ends with the connection."""
        ready = select.poll()
        ready.register(self._channel, select.POLLIN)
        over = False
        while not over:
            ready.poll()
            try:
                for payload in self._channel.receive():
                    name, items = decode(payload)
                    self._inbox.append((name, items))
                    # Only after it is in the inbox: the step that this ends is not begun again before the request is gone.
                    if name == "cancel" and items and isinstance(items[0], str):
                        self._engine.leave(items[0])
                    over = over or name == "close"
            except Exception as error:
                self._inbox.append(error)
                over = True
            if over:
                self._engine.interrupt()
            os.eventfd_write(self._bell, 1)

    def _obey(self, frame: tuple[str, list[Any]] | Exception) -> None:
        if isinstance(frame, Exception):
            raise frame
        name, items = frame
        if name == "submit" and len(items) == 1:
            self._submit(items[0])
        elif name == "cancel" and len(items) == 1 and isinstance(items[0], str):
            self._engine.cancel(items[0])
        elif name == "answer" and len(items) == 1 and isinstance(items[0], str):
            self._engine.answer_now(items[0])
        elif name == "close":
            self._closing = True
        else:
            raise FrameError(f"the front sent {name!r} with {len(items)} items")

    def _submit(self, wire: Any) -> None:
        try:
            plan = GenerationPlan.from_wire(wire)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            request_id = wire.get("request_id") if isinstance(wire, dict) else None
            if not isinstance(request_id, str):
                raise FrameError(f"a plan without request id: {type(error).__name__}: {error}") from None
            refused = RequestError(f"the plan is malformed: {type(error).__name__}: {error}")
            self._refused.append(SequenceOutput(request_id, finish_reason="error", error=refused.to_wire()))
            return
        try:
            self._engine.add(plan)
        except QwenboxError as error:
            self._refused.append(refusal(plan, error))

    def _step(self) -> list[SequenceOutput]:
        predicted = self._engine.predict_seconds()
        if predicted > LONG_STEP_SECONDS:
            self._channel.send(["patience", predicted])
        return self._engine.step()

    def _send_step(self, outputs: list[SequenceOutput]) -> None:
        packed = [pack_output(output) for output in outputs]
        stats = _STATS(self._engine.stats())
        try:
            self._channel.send(["step", packed, stats])
        except FrameError:
            # Log-probabilities of many long prompts at once: each alone fits, which `check_plan` sees to.
            for one in packed:
                self._channel.send(["step", [one], stats])

    def _wait_for_reader(self) -> None:
        if self._channel.pending:
            self._channel.flush()
        if self._channel.pending <= MAX_UNREAD:
            return
        writable = select.poll()
        writable.register(self._channel, select.POLLOUT)
        deadline = time.monotonic() + UNREAD_SECONDS
        while self._channel.pending > MAX_UNREAD:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the front has left {self._channel.pending} bytes unread for {UNREAD_SECONDS:g} s")
            writable.poll(100)
            self._channel.flush()


def receive_options(channel: Channel) -> EngineOptions:
    """Waits for the first frame, which opens the model."""
    ready = select.poll()
    ready.register(channel, select.POLLIN)
    while True:
        ready.poll()
        for payload in channel.receive():
            name, items = decode(payload)
            if name != "open" or len(items) != 1 or not isinstance(items[0], dict):
                raise FrameError(f"the first frame is {name!r}, not 'open' with options")
            return EngineOptions.from_wire(items[0])


def load(channel: Channel) -> tuple[EngineModel, EngineOptions, Grammars | None] | None:
    """The model that the front asks for; None where it cannot be loaded, which the front has been told then."""
    try:
        options = receive_options(channel)
        grammars = open_grammars(options)
        return open_model(options, progress_sender(channel)), options, grammars
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        if not isinstance(error, QwenboxError):
            error = EngineError(f"the model could not be loaded: {type(error).__name__}: {error}")
        channel.send(["failed", error.to_wire()])
        return None


def progress_sender(channel: Channel) -> Callable[[float], None]:
    """Sends the progress of loading, but not more often than people can see."""
    last = -PROGRESS_SECONDS

    def progress(fraction: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            channel.send(["progress", float(fraction)])

    return progress


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, however it ends, and ends it if that has happened already."""
    die_with_parent()
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Arguments: number of the inherited socket, process id of the front."""
    descriptor, parent = (int(argument) for argument in sys.argv[-2:])
    die_with(parent)
    ask_slice(None)  # the short ones of the front are not for kernels
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the front, which then ends us
    channel = Channel(socket.socket(fileno=descriptor))
    try:
        loaded = load(channel)
        if loaded is not None:
            model, options, grammars = loaded
            channel.send(["ready", asdict(model_info(model, options))])
            engine = Engine(model, grammars=grammars, step_seconds=options.step_ms / 1000, debug=options.debug)
            Worker(channel, engine).serve()
    except (EOFError, BrokenPipeError):
        pass
    except (FrameError, TimeoutError) as error:
        sys.exit(f"qwenbox worker: {error}")


if __name__ == "__main__":
    main()
