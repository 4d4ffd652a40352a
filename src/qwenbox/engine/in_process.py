"""An engine in a thread of this process: for scripts, notebooks and most tests."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from qwenbox.engine.admission import Admission
from qwenbox.engine.engine import Engine, EngineModel, EngineStats
from qwenbox.engine.options import EngineOptions, Progress, open_grammars, open_model
from qwenbox.engine.protocol import (
    Closed,
    Deliver,
    EngineState,
    ModelInfo,
    NoteStep,
    Pace,
    closed_error,
    deliver_safely,
    model_info,
    refusal,
    tell_step,
    with_waiting,
)
from qwenbox.errors import EngineError, OverloadedError, QwenboxError, RequestError
from qwenbox.kernels.program import Interrupted
from qwenbox.types import FloatArray, GenerationPlan, SequenceOutput

log = logging.getLogger(__name__)


class InProcessEngine:
    """An `Engine` in a thread of this process. The model's calls release the interpreter lock, so callers go on meanwhile."""

    def __init__(self, options: EngineOptions, load: Callable[[EngineOptions, Progress], EngineModel] = open_model) -> None:
        self._options = options
        self._load = load
        self._changed = threading.Condition()
        self._state = EngineState("loading")
        self._pace = Pace()
        self._info: ModelInfo | None = None
        self._engine: Engine | None = None
        self._stats = EngineStats()
        self._note_step: NoteStep = lambda *_: None
        self._admission = Admission(options.max_requests)
        self._receivers: dict[str, tuple[GenerationPlan, Deliver]] = {}
        self._commands: deque[Callable[[Engine], None]] = deque()
        self._refused: list[SequenceOutput] = []
        self._results: set[Future[FloatArray]] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="qwenbox-engine", daemon=True)
        self._thread.start()

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None:
        with self._changed:
            error = self._admit(plan)
            if error is None:
                self._receivers[plan.request_id] = plan, deliver
                self._command(lambda engine: self._add(engine, plan))
        if error is not None:
            deliver_safely(deliver, refusal(plan, error))

    def cancel(self, request_id: str) -> None:
        with self._changed:
            if request_id in self._receivers:
                self._command(lambda engine: engine.cancel(request_id))
                if self._engine is not None:
                    self._engine.leave(request_id)

    def answer_now(self, request_id: str) -> None:
        with self._changed:
            if request_id in self._receivers:
                self._command(lambda engine: engine.answer_now(request_id))

    def info(self) -> ModelInfo | None:
        return self._info

    def state(self) -> EngineState:
        return self._state

    def stats(self) -> EngineStats:
        return with_waiting(self._stats, len(self._receivers))

    def watch(self, note: NoteStep) -> None:
        self._note_step = note

    def logits(self, ids: Sequence[int]) -> FloatArray:
        """Raw logits after each of `ids`, float32 [len(ids), vocab_size]; waits for its turn between two steps."""
        result: Future[FloatArray] = Future()

        def compute(engine: Engine) -> None:
            try:
                result.set_result(engine.logits(ids))
            except Interrupted:
                pass  # the engine closes, which answers whoever still waits
            except Exception as error:
                result.set_exception(error)

        with self._changed:
            if self._state.name in ("closed", "failed") or self._closing:
                raise self._state.error or closed_error()
            self._results.add(result)
            result.add_done_callback(self._results.discard)
            self._command(compute)
        return result.result()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            if self._engine is not None:
                self._engine.interrupt()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _admit(self, plan: GenerationPlan) -> QwenboxError | None:
        """Why the request is refused; None where it has got a place."""
        if self._closing or self._state.name in ("closed", "failed"):
            return self._state.error or closed_error()
        if plan.request_id in self._receivers:
            return RequestError(f"request {plan.request_id!r} runs already")
        try:
            self._admission.enter(plan)
        except OverloadedError as error:
            return error
        return None

    def _command(self, command: Callable[[Engine], None]) -> None:
        self._commands.append(command)
        self._changed.notify_all()

    # --- in the thread ---

    def _add(self, engine: Engine, plan: GenerationPlan) -> None:
        try:
            engine.add(plan)
        except QwenboxError as error:
            self._refused.append(refusal(plan, error))

    def _work(self) -> None:
        model = None
        error: QwenboxError | None = None
        try:
            grammars = open_grammars(self._options)
            model = self._load(self._options, self._note_progress)
            engine = self._engine = Engine(model, grammars=grammars, step_seconds=self._options.step_ms / 1000, debug=self._options.debug)
            self._info = model_info(model, self._options)
            self._set_state(EngineState("ready", 1.0))
            self._serve(engine)
        except Closed:
            pass
        except Exception as caught:
            log.exception("the engine ended")
            error = caught if isinstance(caught, QwenboxError) else EngineError(f"the engine ended: {type(caught).__name__}: {caught}")
        finally:
            self._end(error)
            if model is not None:
                model.close()

    def _note_progress(self, progress: float) -> None:
        if self._closing:
            raise Closed
        self._state = self._pace.state("loading", progress)

    def _set_state(self, state: EngineState) -> None:
        with self._changed:
            self._state = state
            self._changed.notify_all()

    def _serve(self, engine: Engine) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._commands or self._closing or engine.has_work)
                if self._closing:
                    return
                commands, self._commands = self._commands, deque()
            for command in commands:
                command(engine)
            outputs, self._refused = self._refused, []
            if engine.has_work:
                outputs += engine.step()
            before, self._stats = self._stats, engine.stats()
            tell_step(self._note_step, before, self._stats)
            for output in outputs:
                self._deliver(engine, output)

    def _deliver(self, engine: Engine, output: SequenceOutput) -> None:
        if output.finish_reason is None:
            _, deliver = self._receivers[output.request_id]
        else:
            with self._changed:
                plan, deliver = self._receivers.pop(output.request_id)
                self._admission.leave(plan)
        if not deliver_safely(deliver, output):
            engine.cancel(output.request_id)

    def _end(self, error: QwenboxError | None) -> None:
        with self._changed:
            self._state = EngineState("closed") if error is None else EngineState("failed", error=error)
            receivers, self._receivers = self._receivers, {}
            results = list(self._results)
        error = error or closed_error()
        for request_id, (_, deliver) in receivers.items():
            deliver_safely(deliver, SequenceOutput(request_id, finish_reason="error", error=error.to_wire()))
        for result in results:
            result.set_exception(error)
