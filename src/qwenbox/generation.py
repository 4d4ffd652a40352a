"""The answers of one request while they run: from what the engine delivers to events, and to whoever reads them on an event loop.

`Generation.deliver` is called from the engine's thread, everything else from the reader's. A `Choice` turns the outputs of one answer into events; it
neither waits nor sleeps. `AsyncReader` waits on an event loop, which a `Doorbell` wakes from the engine's thread.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from qwenbox.chat.stream import EventStream
from qwenbox.chat.thinking import Decision
from qwenbox.chat.trial import Trial
from qwenbox.engine.client import EngineClient
from qwenbox.errors import EngineError, OverloadedError, QwenboxError
from qwenbox.types import Event, GenerationPlan, SequenceOutput, TokenLogprob

MAX_UNREAD = 1024
"""Outputs of one choice that may wait for their reader. A reader that is further behind is cut off, so memory stays bounded."""

TURN_SECONDS = 0.002
"""That one reader reads at once, with all others waiting."""

EventBatch = list[tuple[int, Event]]
"""Events with the number of their choice."""


class Host(Protocol):
    """What a choice needs of the model that answers: its prompt as an event, and somebody who counts."""

    def prompt_event(self, plan: GenerationPlan, logprobs: Sequence[TokenLogprob | None] | None) -> Event: ...
    def count_first(self, seconds: float, num_prompt_tokens: int) -> None: ...
    def count_tokens(self, num_tokens: int, num_gaps: int, seconds: float) -> None: ...
    def count_vector(self, num_prompt_tokens: int) -> None: ...
    def count_end(self, event: Event, seconds: float) -> None: ...


class Attempt(NamedTuple):
    """One way to an answer."""

    plan: GenerationPlan
    thinking: Decision | None
    stream: EventStream


class _Counted:
    """How what a request is given ends: once, and counted."""

    def __init__(self, index: int, host: Host) -> None:
        self.index = index
        self.finished = False
        self._host = host
        self._began = time.perf_counter()

    def fail(self, error: QwenboxError) -> Event:
        """The error event that ends this answer before the engine does."""
        event = Event("error", error=error.to_wire())
        self._end(event)
        return event

    def leave(self) -> None:
        """Nobody reads this answer any more."""
        self._end(Event("finish", finish_reason="cancelled"))

    def _end(self, last: Event) -> None:
        self.finished = True
        self._host.count_end(last, time.perf_counter() - self._began)


class Choice(_Counted):
    """One answer of a request, from the engine's outputs to events. Sans-IO.

    With a `trial` that attempt comes first and the other one only where the model is not sure: `plan` is then another one after `feed`.
    """

    def __init__(self, index: int, attempt: Attempt, host: Host, *, echo: bool, counts_prompt: bool, trial: Attempt | None = None) -> None:
        super().__init__(index, host)
        self._trial = None if trial is None else Trial()
        self._then = attempt
        self._tried = 0
        self.plan, self._thinking, self._stream = trial or attempt
        self._echo = echo
        self._counts_prompt = counts_prompt
        self._last = self._began
        self._num_tokens = 0

    def feed(self, output: SequenceOutput) -> list[Event]:
        """Events of an output. The choice is `finished` with the last one; `stopped` before that where a stop string was found."""
        if output.progress is not None:
            return [Event("progress", progress=output.progress)]
        if (trial := self._trial) is None:
            return self._feed(output)
        if (kept := trial.feed(output)) is None:
            return []
        self._trial = None
        if kept:
            return [event for held in trial.held(logprobs=self._then.plan.sampling.logprobs is not None) for event in self._feed(held)]
        self.plan, self._thinking, self._stream = self._then
        self._tried = trial.num_tokens
        self._host.count_tokens(self._tried, 0, 0.0)
        return []

    def hurry(self) -> None:
        """The answer is wanted now."""
        if self._trial is not None:
            self._trial.hurry()

    def _feed(self, output: SequenceOutput) -> list[Event]:
        if output.ids and not self._stream.stopped:
            self._count(len(output.ids))
        events = self._stream.feed(output)
        if self._echo and output.finish_reason != "error":
            events = [self._host.prompt_event(self.plan, output.prompt_logprobs), *events]
            self._echo = False
        if output.finish_reason is not None:
            if detail := self._detail(output.detail or {}):
                events[-1] = replace(events[-1], detail={**events[-1].detail, **detail})
            if self._tried and (usage := events[-1].usage) is not None:
                known = usage.completion_tokens + self._tried, usage.reasoning_tokens + self._tried
                events[-1] = replace(events[-1], usage=replace(usage, completion_tokens=known[0], reasoning_tokens=known[1]))
            self._end(events[-1])
        return events

    def _detail(self, told: Mapping[str, str]) -> dict[str, Any]:
        """What the client should know of how it went: `told` is what the engine said."""
        detail: dict[str, Any] = {}
        if self._thinking is not None and self._thinking.stated:
            detail["thinking"] = self._thinking.body()
            if self._tried:
                detail["thinking"]["tried_tokens"] = self._tried
            if (why := told.get("thinking_ended")) is not None:
                detail["thinking"]["ended"] = why
        if (stop := told.get("stop")) is not None:
            detail["stop_detail"] = stop
        return detail

    @property
    def stopped(self) -> bool:
        return self._stream.stopped

    def _count(self, num_tokens: int) -> None:
        now = time.perf_counter()
        num_gaps = num_tokens
        if self._num_tokens == 0:
            self._host.count_first(now - self._began, len(self.plan.prompt_ids) if self._counts_prompt else 0)
            num_gaps -= 1
        self._host.count_tokens(num_tokens, num_gaps, now - self._last)
        self._num_tokens += num_tokens
        self._last = now


class VectorChoice(_Counted):
    """The vector of one text, from the engine's outputs to one event. Sans-IO; a `Generation` takes it as it takes a `Choice`."""

    stopped = False

    def __init__(self, index: int, plan: GenerationPlan, host: Host) -> None:
        super().__init__(index, host)
        self.plan = plan

    def feed(self, output: SequenceOutput) -> list[Event]:
        if output.finish_reason is None:
            return []
        if output.error is not None:
            event = Event("error", error=output.error)
        elif output.vector is None:
            event = Event("error", error=EngineError("The request was cancelled.", code="cancelled").to_wire())
        else:
            event = Event("finish", finish_reason="stop", usage=output.usage, timings=output.timings, vector=output.vector)
            self._host.count_vector(len(self.plan.prompt_ids))
        self._end(event)
        return [event]

    def hurry(self) -> None:
        """There is no thought to end."""


class Generation:
    """The choices of one request while they run. `deliver` is called from the engine's thread, everything else from the reader's."""

    def __init__(
        self,
        choices: Sequence[Choice | VectorChoice],
        engine: EngineClient,
        wake: Callable[[], None],
        timeout: float | None,
        *,
        at_once: int | None = None,
    ) -> None:
        """So many choices are in the engine at once; None: all."""
        self._choices = {choice.plan.request_id: choice for choice in choices}
        self._left = deque(choices)
        """Those that the engine does not know yet."""
        self._at_once = len(choices) if at_once is None else at_once
        self._num_open = len(choices)
        self._engine = engine
        self._wake = wake
        self._outputs: deque[SequenceOutput] = deque()
        self._max_unread = MAX_UNREAD * len(choices)
        self._failure: QwenboxError | None = None
        self._hurried = self._cancelled = False
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout

    @property
    def finished(self) -> bool:
        return self._num_open == 0

    def submit(self) -> None:
        for _ in range(min(self._at_once, len(self._left))):
            self._submit_next()

    def _submit_next(self) -> None:
        if self._left and not self._cancelled:
            self._engine.submit(self._left.popleft().plan, self.deliver)

    def deliver(self, output: SequenceOutput) -> None:
        if self._failure is not None:
            return
        if len(self._outputs) >= self._max_unread:
            self._failure = OverloadedError(f"The answer was read too slowly: {self._max_unread} pieces of it were waiting.")
            self.cancel()
        else:
            self._outputs.append(output)
        self._wake()

    def take(self) -> EventBatch:
        """The events that are there now, with the number of their choice. Where there are many, some, and the reader is woken for the others."""
        events: EventBatch = []
        end = time.monotonic() + TURN_SECONDS
        while self._outputs:
            output = self._outputs.popleft()
            choice = self._choices.get(output.request_id)
            if choice is None or choice.finished:
                continue
            if choice.plan.request_id == output.request_id:
                stopped = choice.stopped
                events += [(choice.index, event) for event in choice.feed(output)]
                if choice.finished:
                    self._num_open -= 1
                    self._submit_next()
                elif choice.plan.request_id != output.request_id or (choice.stopped and not stopped):
                    self._engine.cancel(output.request_id)  # tried in vain, or a stop string, which the engine does not know; its last output follows
            if choice.plan.request_id != output.request_id and output.finish_reason is not None:
                self._submit_again(output.request_id, choice)
            if self._outputs and time.monotonic() > end:
                self._wake()
                break
        if self._failure is None and time.monotonic() > self._deadline:
            self._failure = EngineError("The request took longer than this service allows.", code="request_timeout", status=504)
            self.cancel()
        if self._failure is not None:
            events += [(choice.index, choice.fail(self._failure)) for choice in self._end()]
        return events

    def _submit_again(self, tried: str, choice: Choice | VectorChoice) -> None:
        """Its first attempt has left the engine, so there is room for the other one."""
        del self._choices[tried]
        self._choices[choice.plan.request_id] = choice
        self._engine.submit(choice.plan, self.deliver)
        if self._hurried:
            self._engine.answer_now(choice.plan.request_id)
        if self._cancelled:
            self._engine.cancel(choice.plan.request_id)

    def close(self) -> None:
        """Ends what still runs; for a reader that goes away."""
        self._wake = lambda: None  # no circle of reader and read
        if not self.finished:
            self._failure = EngineError("The reader went away.", code="cancelled")
            self.cancel()
            self._outputs.clear()
            for choice in self._end():
                choice.leave()

    def answer_now(self) -> None:
        """Ends every choice's thought; the answers follow."""
        self._hurried = True
        for choice in tuple(self._choices.values()):
            if not choice.finished:
                choice.hurry()
                self._engine.answer_now(choice.plan.request_id)

    def _end(self) -> list[Choice | VectorChoice]:
        """The choices that have not finished; from now on they have."""
        self._num_open = 0
        return [choice for choice in self._choices.values() if not choice.finished]

    def cancel(self) -> None:
        """Ends every choice as soon as the engine can; what has come is kept, and the last events follow."""
        self._cancelled = True
        for choice in tuple(self._choices.values()):
            if not choice.finished:
                self._engine.cancel(choice.plan.request_id)


class Doorbell:
    """Wakes readers on one event loop from the engine's thread: once a step, however many requests the step served."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._rung: dict[Callable[[], None], None] = {}

    def ring(self, wake: Callable[[], None]) -> None:
        """Calls `wake` on the loop, soon, and once, however often it was rung until then."""
        with self._lock:
            first = not self._rung
            self._rung[wake] = None
        if first:
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # the loop is closed, and its readers are gone with it
                self._rung = {}

    def _answer(self) -> None:
        with self._lock:
            rung, self._rung = self._rung, {}
        for wake in rung:
            wake()


class AsyncReader:
    """Reads a generation on an event loop, in batches: what came since the last one, and now and then nothing.

    The first tick comes after `first_tick` seconds, the others `tick` seconds apart. Where `shortcut` is set, a batch that comes while the reader of
    `batches` waits is offered to it first: no task has to wake for a token. It returns False for what it cannot take; the end is never offered.
    """

    def __init__(self, doorbell: Doorbell, begin: Callable[[Callable[[], None]], Generation], first_tick: float, tick: float) -> None:
        self.shortcut: Callable[[EventBatch], bool] | None = None
        self._first_tick, self._tick = first_tick, tick
        self._event = asyncio.Event()
        self._waits = False
        self._left: EventBatch = []
        self.generation = begin(partial(doorbell.ring, self._wake))

    async def batches(self) -> AsyncGenerator[EventBatch]:
        generation = self.generation
        self._ring_after(self._first_tick)
        try:
            while not generation.finished:
                self._waits = True
                await self._event.wait()
                self._waits = False
                self._event.clear()
                batch, self._left = self._left, []
                yield batch + generation.take()
        finally:
            self._waits = False
            self._timer.cancel()
            generation.close()

    def _wake(self) -> None:
        if self._waits and self.shortcut is not None and not self._left:
            batch = self.generation.take()
            # What a shortcut raises is raised again where the batch is read, and not here, where other readers are woken.
            with suppress(Exception):
                if not self.generation.finished and (not batch or self.shortcut(batch)):
                    return
            self._left = batch
        self._event.set()

    def _ring_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        self._event.set()
        self._ring_after(self._tick)
