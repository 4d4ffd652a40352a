"""An engine in a process of its own, started again when it dies.

One thread does everything: it starts the worker, reads and writes its socket, hands outputs on, watches the clock, and starts the next worker.
Callers only put things under the lock and ring.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

import qwenbox
from qwenbox.engine.admission import Admission
from qwenbox.engine.engine import EngineStats
from qwenbox.engine.frames import MAX_FRAME, Channel, FrameError, decode, unpack_output
from qwenbox.engine.options import EngineOptions
from qwenbox.engine.protocol import (
    Closed,
    Deliver,
    EngineState,
    ModelInfo,
    NoteStep,
    Pace,
    StateName,
    closed_error,
    deliver_safely,
    refusal,
    tell_step,
    with_waiting,
)
from qwenbox.errors import EngineError, OverloadedError, QwenboxError, RequestError, WorkerDiedError
from qwenbox.types import GenerationPlan, SequenceOutput, Usage

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
"""A worker that says nothing for so long, or for ten times the step it announced, is taken for dead. It says something every second when idle."""
PATIENCE = 10.0
LOADING_SECONDS = 300.0
"""The same while it loads, counted from its last progress."""
CLOSE_SECONDS = 2.0
"""Time to end by itself before it is killed."""
MAX_LOADING_DEATHS = 4
"""A worker that dies this often before it has been ready is not started again."""
MAX_FAILED_RESTARTS = 20
"""A model that was ready and then cannot be loaded again (memory that somebody else holds now, for one) is tried so often in a row."""
MAX_FETCHES = 8
"""So often in a row a model is fetched without a byte more before the network is given up."""
FETCH_PAUSE_SECONDS = 2.0
"""Pause before the second attempt; it doubles with each one in a row."""
MAX_FETCH_PAUSE_SECONDS = 60.0
BACKOFF_SECONDS = 0.1
"""Pause before the first restart; it doubles with each death in a row."""
MAX_BACKOFF_SECONDS = 5.0
SETTLED_SECONDS = 30.0
"""A worker that has been ready for so long has got over the last crash: the next pause is the shortest again."""
MAX_SUSPECTS = 256

# -P and the path: the worker runs exactly our own package, and nothing from the working directory.
_LAUNCH = "import sys; p = sys.argv[1]; p in sys.path or sys.path.insert(0, p); from qwenbox.engine.worker import main; main()"

Report = Callable[[StateName, int, int], None]
"""Told the phase, bytes done and bytes in all; what it raises ends the finding."""
Find = Callable[[Report], EngineOptions]

_MOMENTARY = {"running", "waiting", "used_pages", "num_pages"}


@dataclass(slots=True)
class _Request:
    plan: GenerationPlan
    deliver: Deliver
    arrived: float
    sent: bool = False


class Suspects:
    """Prompts that were running when a worker died. A prompt that sees two deaths and no good end in between is refused from then on."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def blame(self, plans: Iterable[GenerationPlan]) -> None:
        """Notes one death. A prompt that ran several times at once (`n`, or many clients) has still seen only one."""
        for key in {self._key(plan) for plan in plans}:
            self._deaths[key] = self._deaths.pop(key, 0) + 1
            if len(self._deaths) > MAX_SUSPECTS:
                self._deaths.popitem(last=False)

    def clear(self, plan: GenerationPlan) -> None:
        if self._deaths:
            self._deaths.pop(self._key(plan), None)

    def refuses(self, plan: GenerationPlan) -> bool:
        return bool(self._deaths) and self._deaths.get(self._key(plan), 0) >= 2

    @staticmethod
    def _key(plan: GenerationPlan) -> bytes:
        return hashlib.blake2b(np.array(plan.prompt_ids, np.int64).tobytes(), digest_size=16).digest()


class WorkerEngine:
    """An `EngineClient` over a worker process. Requests that run when it dies end with WorkerDiedError; those not sent yet go to the next one.

    `options` may be what finds them, in the engine's own thread: it fetches the model and reports how far it is. It is called again after an error
    that says when to try again.
    """

    def __init__(self, options: EngineOptions | Find, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self._find: Find = (lambda report: options) if isinstance(options, EngineOptions) else options
        self._options = options if isinstance(options, EngineOptions) else None
        self._beat_seconds = beat_seconds
        self._lock = threading.Lock()
        self._state = EngineState("loading" if isinstance(options, EngineOptions) else "fetching")
        self._pace = Pace()
        self._info: ModelInfo | None = None
        # Of the workers before, and of the one that runs; one tuple, so that a reader never counts a worker twice.
        self._counts = (EngineStats(), EngineStats())
        self._note_step: NoteStep = lambda *_: None
        self._admission = None if self._options is None else Admission(self._options.max_requests)
        self._requests: dict[str, _Request] = {}
        self._unsent: deque[_Request] = deque()
        self._cancels: deque[str] = deque()
        self._hurries: deque[str] = deque()
        self._suspects = Suspects()
        self._closing = False
        self._pid: int | None = None
        self._ready_at = math.inf
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._thread = threading.Thread(target=self._supervise, name="qwenbox-worker-supervisor", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._pid

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None:
        with self._lock:
            error = self._admit(plan)
            if error is None:
                request = self._requests[plan.request_id] = _Request(plan, deliver, time.monotonic())
                self._unsent.append(request)
        if error is not None:
            deliver_safely(deliver, refusal(plan, error))
        else:
            self._ring()

    def cancel(self, request_id: str) -> None:
        with self._lock:
            if request_id not in self._requests:
                return
            self._cancels.append(request_id)
        self._ring()

    def answer_now(self, request_id: str) -> None:
        with self._lock:
            if request_id not in self._requests:
                return
            self._hurries.append(request_id)
        self._ring()

    def info(self) -> ModelInfo | None:
        return self._info

    def state(self) -> EngineState:
        return self._state

    def stats(self) -> EngineStats:
        past, present = self._counts
        total = {f.name: getattr(past, f.name) + getattr(present, f.name) for f in fields(EngineStats) if f.name not in _MOMENTARY}
        return with_waiting(replace(present, **total), len(self._requests))

    def watch(self, note: NoteStep) -> None:
        self._note_step = note

    def close(self) -> None:
        with self._lock:
            self._closing = True
        self._ring()
        if threading.current_thread() is not self._thread:
            # Somebody who finds a model may wait for a network that says nothing.
            self._thread.join(CLOSE_SECONDS if self._options is None else None)

    def _admit(self, plan: GenerationPlan) -> QwenboxError | None:
        """Why the request is refused; None where it has got a place."""
        if self._closing or self._state.name in ("closed", "failed"):
            return self._state.error or closed_error()
        if plan.request_id in self._requests:
            return RequestError(f"request {plan.request_id!r} runs already")
        if self._suspects.refuses(plan):
            return EngineError("this prompt was running at two crashes of the worker and is not run again", code="poisoned_request")
        if self._admission is None:
            return OverloadedError("the model is not here yet", retry_after=5)
        try:
            self._admission.enter(plan)
        except OverloadedError as error:
            return error
        return None

    def _forget(self, request: _Request) -> None:
        """It has ended: its place is free."""
        del self._requests[request.plan.request_id]
        if self._admission is not None:
            self._admission.leave(request.plan)

    def _ring(self) -> None:
        # A full socket has rung already, a closed one has nobody left to wake.
        with contextlib.suppress(OSError):
            self._ringer.send(b"!")

    # --- in the thread ---

    def _supervise(self) -> None:
        deaths = barren = 0
        error: QwenboxError | None = None
        try:
            self._options = options = self._found()
            self._admission = self._admission or Admission(options.max_requests)
            self._state = EngineState("loading")
            while True:
                ready_seconds, message = self._run_worker(options)
                if self._closing:
                    break
                log.error("the worker died: %s", message)
                deaths = 1 if ready_seconds > SETTLED_SECONDS else deaths + 1
                barren = 0 if ready_seconds else barren + 1
                if barren >= (MAX_LOADING_DEATHS if self._info is None else MAX_FAILED_RESTARTS):
                    error = EngineError(f"the worker died {barren} times while it loaded the model: {message}")
                    break
                self._bury(message)
                if self._info is not None:
                    # As many pages as before: others may have been promised what is free now.
                    options = replace(options, num_pages=self._info.num_pages)
                if not self._pause(min(BACKOFF_SECONDS * 2.0 ** (deaths - 1), MAX_BACKOFF_SECONDS)):
                    break
        except Closed:
            pass
        except QwenboxError as failure:
            error = failure
        except Exception as failure:
            log.exception("the supervisor of the worker failed")
            error = EngineError(f"the supervisor of the worker failed: {type(failure).__name__}: {failure}")
        finally:
            self._end(error)

    def _found(self) -> EngineOptions:
        """The options, with the model fetched if need be. Raises what `find` does when another attempt makes no sense, or Closed."""
        attempts, most = 0, 0
        while True:
            try:
                options = self._find(self._report)
                return options if options.model is None else replace(options, model=str(Path(options.model).absolute()))
            except QwenboxError as error:
                done = self._state.done_bytes or 0
                attempts, most = (1, done) if done > most else (attempts + 1, most)
                if error.retry_after is None or attempts >= MAX_FETCHES:
                    raise
                log.warning("the model could not be fetched and is tried again: %s", error.message)
                self._state = replace(self._state, error=error, seconds_left=None)
                if not self._pause(min(FETCH_PAUSE_SECONDS * 2.0 ** (attempts - 1), MAX_FETCH_PAUSE_SECONDS)):
                    raise Closed from None

    def _report(self, name: StateName, done: int, total: int) -> None:
        if self._closing:
            raise Closed
        self._state = self._pace.state(name, done / total if total else 0.0, done_bytes=done if total else None, total_bytes=total or None)

    def _run_worker(self, options: EngineOptions) -> tuple[float, str]:
        """Runs one worker to its end: seconds for which it was ready, and how it died. Raises the error of a model that never could be loaded."""
        self._ready_at = math.inf
        try:
            process, channel = self._start()
        except OSError as error:
            return 0.0, f"it could not be started: {error}"
        message = ""
        try:
            with contextlib.suppress(EOFError, OSError):
                message = self._converse(channel, options)
        except QwenboxError as error:
            if self._info is None and not isinstance(error, FrameError):
                raise
            message = error.message
        finally:
            self._pid = None
            self._reap(process, channel, ask=not message and self._closing and self._state.name == "ready")
        return max(0.0, time.monotonic() - self._ready_at), message or _describe(process.returncode)

    def _start(self) -> tuple[subprocess.Popen[bytes], Channel]:
        front, back = socket.socketpair()
        try:
            with back:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _LAUNCH, str(Path(qwenbox.__path__[0]).parent), str(back.fileno()), str(os.getpid())],
                    pass_fds=(back.fileno(),),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError:
            front.close()
            raise
        self._pid = process.pid
        return process, Channel(front)

    def _converse(self, channel: Channel, options: EngineOptions) -> str:
        """Talks with one worker until it is gone (EOFError, OSError), has to be killed (why is returned), or the engine is closed ("")."""
        channel.send(["open", options.to_wire()])
        ready = select.poll()
        ready.register(self._bell, select.POLLIN)
        deadline = time.monotonic() + LOADING_SECONDS
        while not self._closing:
            self._post_cancels(channel)
            self._post_plans(channel)
            self._post_hurries(channel)
            ready.register(channel, select.POLLIN | (select.POLLOUT if channel.pending else 0))
            ready.poll(max(0.0, deadline - time.monotonic()) * 1000 + 1)
            self._hear()
            heard = False
            # Before anything is written: what a worker said before it died still counts.
            for payload in channel.receive():
                heard = True
                deadline = self._obey(payload)
            channel.flush()
            late = time.monotonic() - deadline
            if late > 1.0 and not heard:
                # We were not there to listen: this machine or this process was stopped. The worker gets another chance.
                deadline = time.monotonic() + self._beat_seconds
            elif late > 0 and not heard:
                return "it said nothing for too long and was killed"
        return ""

    def _obey(self, payload: bytes) -> float:
        """Does what a frame says, and returns when the next one is due."""
        name, items = decode(payload)
        seconds = self._beat_seconds
        try:
            if name == "step":
                outputs, stats = items
                past, before = self._counts
                self._counts = (past, EngineStats(*stats))
                tell_step(self._note_step, before, self._counts[1])
                self._hand_on([unpack_output(output) for output in outputs])
            elif name == "patience":
                seconds = max(seconds, PATIENCE * items[0])
            elif name == "progress":
                self._state = self._pace.state(self._state.name, float(items[0]), error=self._state.error)
                seconds = LOADING_SECONDS
            elif name == "ready":
                self._info = ModelInfo(**items[0])
                self._ready_at = time.monotonic()
                self._state = EngineState("ready", 1.0)
            elif name == "failed":
                raise QwenboxError.from_wire(items[0])
            else:
                raise FrameError(f"the worker sent {name!r}")
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise FrameError(f"the worker sent a malformed {name!r}: {type(error).__name__}: {error}") from None
        return time.monotonic() + seconds

    def _hand_on(self, outputs: list[SequenceOutput]) -> None:
        with self._lock:
            known = [(self._requests[output.request_id], output) for output in outputs if output.request_id in self._requests]
            for request, output in known:
                if output.finish_reason is not None:
                    self._forget(request)
                    self._suspects.clear(request.plan)
        for request, output in known:
            if not deliver_safely(request.deliver, output):
                self._cancels.append(output.request_id)

    def _post_cancels(self, channel: Channel | None) -> None:
        """Tells the worker what to cancel, and ends what it has not been sent yet."""
        ended = []
        with self._lock:
            while self._cancels:
                request = self._requests.get(self._cancels.popleft())
                if request is None:
                    continue
                if not request.sent:
                    self._unsent.remove(request)
                    self._forget(request)
                    ended.append(request)
                elif channel is not None:
                    channel.send(["cancel", request.plan.request_id])
        for request in ended:
            timings = {"queue": time.monotonic() - request.arrived, "prefill": 0.0, "decode": 0.0}
            usage = Usage(len(request.plan.prompt_ids))
            output = SequenceOutput(request.plan.request_id, finish_reason="cancelled", usage=usage, timings=timings)
            deliver_safely(request.deliver, output)

    def _post_plans(self, channel: Channel) -> None:
        while self._state.name == "ready" and self._unsent and channel.pending < MAX_FRAME:
            with self._lock:
                request = self._unsent.popleft()
                request.sent = True
            try:
                channel.send(["submit", request.plan.to_wire()])
            except OSError:
                with self._lock:
                    request.sent = False
                    self._unsent.appendleft(request)
                raise
            except (FrameError, OverflowError, TypeError, ValueError) as error:
                with self._lock:
                    self._forget(request)
                refused = RequestError(f"the request cannot be sent to the worker: {type(error).__name__}: {error}")
                deliver_safely(request.deliver, refusal(request.plan, refused))

    def _post_hurries(self, channel: Channel) -> None:
        """Tells the worker whose thoughts to end; those of requests that it does not know yet when it does."""
        with self._lock:
            hurries = [request for request_id in self._hurries if (request := self._requests.get(request_id)) is not None]
            self._hurries = deque(request.plan.request_id for request in hurries if not request.sent)
        for request in hurries:
            if request.sent:
                channel.send(["answer", request.plan.request_id])

    def _reap(self, process: subprocess.Popen[bytes], channel: Channel, *, ask: bool) -> None:
        if ask:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                channel.send(["close"])
                process.wait(CLOSE_SECONDS)
        channel.close()
        try:
            # The socket closes an instant before the process ends, and its exit status is the better message.
            process.wait(0.0 if self._closing else 0.2)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()

    def _bury(self, message: str) -> None:
        """Ends the requests that the dead worker had, and adds its counts to those of the workers before it."""
        with self._lock:
            sent = [request for request in self._requests.values() if request.sent]
            for request in sent:
                self._forget(request)
            self._suspects.blame(request.plan for request in sent)
            total = self.stats()
            past = replace(total, running=0, waiting=0, used_pages=0, num_pages=0, failed=total.failed + len(sent), restarts=total.restarts + 1)
            self._counts = (past, EngineStats(num_pages=total.num_pages))
            self._state = EngineState("restarting", error=EngineError(message))
        error = WorkerDiedError(f"the worker died while the request ran: {message}").to_wire()
        for request in sent:
            deliver_safely(request.deliver, SequenceOutput(request.plan.request_id, finish_reason="error", error=error))

    def _pause(self, seconds: float) -> bool:
        """Waits before the next start, ending what is cancelled; False where the engine is closed meanwhile."""
        deadline = time.monotonic() + seconds
        while not self._closing:
            self._post_cancels(None)
            rest = deadline - time.monotonic()
            if rest <= 0:
                return True
            select.select([self._bell], [], [], rest)
            self._hear()
        return False

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def _end(self, error: QwenboxError | None) -> None:
        with self._lock:
            self._state = EngineState("closed") if error is None else EngineState("failed", error=error)
            requests, self._requests = self._requests, {}
            self._unsent.clear()
        wire = (error or closed_error()).to_wire()
        for request in requests.values():
            deliver_safely(request.deliver, SequenceOutput(request.plan.request_id, finish_reason="error", error=wire))
        self._bell.close()
        self._ringer.close()


def _describe(returncode: int) -> str:
    """How a process ended, for a person."""
    if returncode >= 0:
        return f"it ended with exit code {returncode}"
    try:
        return f"it was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"it was ended by signal {-returncode}"
