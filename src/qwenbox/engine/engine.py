"""Tokens to tokens over time: requests come in, steps run, outputs go out. Knows no text, no socket and no process.

Not thread-safe, but for `leave` and `interrupt`: they reach a step while it runs.
"""

from __future__ import annotations

import concurrent.futures
import math
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

import numpy as np

from qwenbox.engine.clock import StepClock, Work
from qwenbox.engine.constraint import Grammars
from qwenbox.engine.guard import StepGuard
from qwenbox.engine.pages import PagePool, pages_for
from qwenbox.engine.prefix import PrefixTree
from qwenbox.engine.sampler import choice_row, only_largest, score_rows, token_logprob
from qwenbox.engine.scheduler import Run, Scheduler, Slice
from qwenbox.engine.sequence import Sequence, most_pages
from qwenbox.engine.thought import CONTENT_TOKENS, goes_in_circles
from qwenbox.errors import ContextLengthError, EngineError, NumericalError, OverloadedError, QwenboxError, RequestError
from qwenbox.kernels.program import CancelFlag, Interrupted, SampleResult, SampleRow
from qwenbox.types import Batch, FinishReason, FloatArray, GenerationPlan, SamplingParams, SequenceOutput, Span, ThinkingPlan, TokenLogprob

MAX_LOGPROBS = 128
MAX_PROMPT_LOGPROBS = 1_000_000
"""Entries (prompt tokens times alternatives) that one request may ask for: they leave in one frame."""
MAX_BIASES = 4096
MAX_GRAMMAR = 2 << 20
POLL_SECONDS, MASK_SECONDS = 0.001, 0.005
"""How long a step waits for grammars before and after the model runs."""
MAX_STOP_IDS = 1024
MAX_NAME = 1024

RunBatch: TypeAlias = Callable[[int, CancelFlag], FloatArray]
"""Runs a batch; the number is `Batch.largest`, where the batch is made for this call."""


class EngineModel(Protocol):
    """What the engine runs; `model.load.Model` is one. A result with a negative id says that its row held NaN."""

    context_length: int
    hidden_size: int
    vocab_size: int
    vocab_limit: int
    num_pages: int
    max_batch_tokens: int
    max_logits: int
    max_sequences: int
    slice_tokens: int
    """Tokens of a prompt that are worth reading the weights for."""
    isa: str
    threads: int
    weights_bytes: int
    costs: Mapping[str, float]

    def run(self, batch: Batch, cancel: CancelFlag | None = None, deadline: float | None = None, *, first_op: int = 0) -> FloatArray:
        """Logits of the batch's rows, or their hidden states; of these there may be as many as tokens.

        Raises Interrupted at the next operation when `cancel` is set or `deadline` has passed. The same batch may be run again, or go on with
        `first_op=error.next_op` where nothing but `run_beside` ran in between.
        """
        ...

    def run_beside(self, batch: Batch, cancel: CancelFlag | None = None) -> FloatArray:
        """`run` of at most `max_logits` tokens, while a batch of other sequences is interrupted."""
        ...

    def sample(self, logits: FloatArray, rows: AnySequence[SampleRow]) -> list[SampleResult]: ...

    def copy_page(self, source: int, target: int, num_tokens: int) -> None:
        """The first tokens of a page become those of another."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counts since the engine started, but for the first four, which are of this moment."""

    running: int = 0
    waiting: int = 0
    """Requests that have come and do not run, those that are still on their way to the engine included."""
    used_pages: int = 0
    num_pages: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    model_seconds: float = 0.0
    """Of `step_seconds`, inside the model and the sampler."""
    computed_tokens: int = 0
    """Tokens that ran, those computed again after a preemption included."""
    decode_tokens: int = 0
    """Those of them that were all that their request lacked: one a step of each answer."""
    cached_tokens: int = 0
    """Prompt tokens that did not have to run, because their pages were found."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    restarts: int = 0
    """Times that a worker had to be started again; 0 in process."""


class Engine:
    """`add` and `cancel` requests between calls of `step`, which runs one batch and says what each request got from it."""

    def __init__(
        self,
        model: EngineModel,
        *,
        grammars: Grammars | None = None,
        step_seconds: float = math.inf,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self._grammars = grammars
        self._debug = debug
        self._clock = clock
        self._target = step_seconds
        self._step_clock = StepClock(model.weights_bytes)
        self._tree = PrefixTree(PagePool(model.num_pages))
        self._scheduler = Scheduler(
            self._tree,
            model.copy_page,
            self._step_clock,
            step_seconds=step_seconds,
            max_running=model.max_sequences,
            max_batch_tokens=model.max_batch_tokens,
            max_logits=model.max_logits,
            slice_tokens=model.slice_tokens,
        )
        self._guard = StepGuard()
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._cancelled: list[SequenceOutput] = []
        self._counts = dict.fromkeys(
            ("steps", "computed_tokens", "decode_tokens", "cached_tokens", "prompt_tokens", "completion_tokens", "finished", "failed", "cancelled"), 0
        )
        self._step_seconds = 0.0
        self._model_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._cancelled)

    def predict_seconds(self) -> float:
        """How long the next step may take: with all that its requests lack, as far as it fits."""
        num_tokens = min(self.model.max_batch_tokens, sum(sequence.num_missing for sequence in self._sequences.values()))
        most_seen = max((sequence.num_tokens for sequence in self._sequences.values()), default=0)
        return self._step_clock.predict(Work(num_tokens, num_tokens * most_seen))

    def add(self, plan: GenerationPlan) -> None:
        """Queues a request. RequestError or ContextLengthError where it cannot be honoured: nothing is cut to fit. How many is up to the caller."""
        if plan.request_id in self._sequences:
            raise RequestError(f"request {plan.request_id!r} runs already")
        check_plan(plan, self.model)
        constraint = None
        if plan.constraint is not None:
            if self._grammars is None or self._grammars.num_ids < self.model.vocab_limit:
                raise RequestError(
                    f"{plan.constraint.param}: this engine was opened without the text of all its tokens.", param=plan.constraint.param
                )
            constraint = self._grammars.begin(plan.constraint)
        sequence = Sequence(plan, self._arrivals, self._clock(), constraint)
        self._arrivals += 1
        self._sequences[plan.request_id] = sequence
        self._scheduler.add(sequence)
        self._counts["prompt_tokens"] += sequence.num_prompt

    def cancel(self, request_id: str) -> None:
        """Ends a request now; its last output comes with the next step. A request that is unknown or over is no error."""
        self._guard.forget(request_id)
        if (sequence := self._sequences.get(request_id)) is not None:
            self._cancelled.append(self._finish(sequence, sequence.last_output("cancelled", self._clock()), "cancelled"))

    def warm(self) -> None:
        """Gets ready, in an idle moment, for what the first request of its kind would wait for."""
        if self._grammars is not None:
            self._grammars.warm()

    def answer_now(self, request_id: str) -> None:
        """Ends the thought of a request with its next token. A request that is unknown, over, or does not think is no error."""
        if (sequence := self._sequences.get(request_id)) is not None:
            sequence.hurry()

    def leave(self, request_id: str) -> None:
        """From any thread, and followed by `cancel` from the engine's: a step that runs for nobody else is interrupted at its next operation."""
        self._guard.leave(request_id)

    def interrupt(self) -> None:
        """From any thread, before closing: ends the step that runs at its next operation. Steps do nothing from now on."""
        self._guard.stop()

    def step(self) -> list[SequenceOutput]:
        """Runs one batch, and for the rest of the step the slice of prompts that waits beside it.

        A failure of the model ends the requests in the batch, NaN ends the request it came from; the engine goes on. A batch that was
        interrupted has never been: nothing it wrote counts, and its tokens are still missing.
        """
        began = self._clock()
        outputs, self._cancelled = self._cancelled, []
        outputs += self._poll(began)
        runs = self._scheduler.schedule()
        part = self._scheduler.slice
        if not runs and part is None:
            return outputs
        try:
            if runs:
                run_batch = self.model.run if part is None else self.model.run_beside
                outputs += self._run(runs, lambda largest, flag: run_batch(self._scheduler.batch(runs, largest), flag))
            # Slices get the rest of the step, but half a step at least.
            deadline = max(began + self._target, self._clock() + self._target / 2) if runs else None
            while part is not None:
                outputs += self._go_on(part, deadline)
                through = self._scheduler.slice is None and deadline is not None and self._clock() < deadline
                part = self._scheduler.next_slice() if through else None
        except Interrupted:
            return outputs
        self._counts["steps"] += 1
        self._step_seconds += self._clock() - began
        if self._debug:
            self.check_integrity()
        return outputs

    def logits(self, ids: AnySequence[int]) -> FloatArray:
        """Raw logits after each of `ids`, float32 [len(ids), vocab_size]. Runs between the steps of the requests, whose pages it leaves alone.

        Raises Interrupted where the engine closes meanwhile.
        """
        ids = list(ids)
        num_tokens = len(ids)
        if not 0 < num_tokens <= self.model.context_length:
            raise ContextLengthError(f"{num_tokens} tokens do not fit the context of {self.model.context_length}")
        _check_ids(ids, "ids", self.model.vocab_limit)
        if pages_for(num_tokens) > self._tree.num_free:
            raise OverloadedError(f"{pages_for(num_tokens)} pages wanted, {self._tree.num_free} are free", retry_after=1)
        self._scheduler.slice = None  # its activations are about to be written over
        tokens = np.array(ids, np.int32)
        pages = self._tree.allocate(pages_for(num_tokens))
        table = np.array(pages, np.int32)
        rows = np.empty((num_tokens, self.model.vocab_size), np.float32)
        size = min(self.model.max_batch_tokens, self.model.max_logits)
        self._guard.begin(())
        try:
            for first in range(0, num_tokens, size):
                end = min(first + size, num_tokens)
                span = Span(0, end - first, first, table[: pages_for(end)])
                rows[first:end] = self.model.run(Batch(tokens[first:end], [span], np.arange(end - first, dtype=np.int32)), self._guard.flag)
        finally:
            self._tree.pool.free(pages)
        return rows

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            used_pages=self._tree.num_used,
            num_pages=self._tree.pool.num_pages,
            preemptions=self._scheduler.preemptions,
            step_seconds=self._step_seconds,
            model_seconds=self._model_seconds,
            **self._counts,
        )

    def check_integrity(self) -> None:
        """EngineError with numbers where a page is lost or a sequence is in no queue."""
        self._scheduler.check_integrity()
        queued = len(self._scheduler.running) + len(self._scheduler.waiting)
        if queued != len(self._sequences):
            raise EngineError(f"{len(self._sequences)} requests are alive, {queued} sequences are queued")

    def close(self) -> None:
        if self._grammars is not None:
            self._grammars.close()
        self.model.close()

    # --- one step ---

    def _poll(self, now: float) -> list[SequenceOutput]:
        """What grammars have come to since the last step: ids that have to follow, and answers that are over or cannot be."""
        part = self._scheduler.slice
        busy = {run.sequence for run in part.runs} if part else set()  # what they run is settled
        bound = [sequence for sequence in self._sequences.values() if sequence.constraint is not None and sequence not in busy]
        _wait(bound, POLL_SECONDS)
        outputs = []
        for sequence in bound:
            try:
                ids = sequence.follow_grammar()
            except Exception as error:
                outputs.append(self._fail(sequence, error))
                continue
            self._counts["completion_tokens"] += len(ids)
            logprobs = None if sequence.plan.sampling.logprobs is None else (None,) * len(ids)
            if ids:
                outputs.append(SequenceOutput(sequence.request_id, ids, logprobs))
            if sequence.constraint is not None and sequence.constraint.over:
                outputs.append(self._end(sequence, "stop", now))  # without a stop id
            elif sequence.num_output == sequence.plan.max_tokens:
                outputs.append(self._end(sequence, "length", now))
        return outputs

    def _run(self, runs: list[Run], run_batch: RunBatch, spent: float = 0.0) -> list[SequenceOutput]:
        """Runs a batch, on which so many seconds have been spent before, and returns what its sequences have got from it."""
        for run in runs:
            run.sequence.start(self._clock())
        try:
            results = self._results(runs, run_batch, spent)
        except Interrupted:
            raise
        except Exception as error:
            return [self._fail(run.sequence, error) for run in runs]
        return self._advance(runs, results)

    def _go_on(self, part: Slice, deadline: float | None) -> list[SequenceOutput]:
        """Runs a slice until it is through, or as far as it comes."""
        began = self._clock()
        try:
            outputs = self._run(part.runs, lambda _, flag: self.model.run(part.batch, flag, deadline, first_op=part.next_op), part.seconds)
        except Interrupted as pause:
            part.next_op = pause.next_op
            seconds = self._clock() - began
            part.seconds += seconds
            self._model_seconds += seconds
            return []
        self._scheduler.slice = None
        return outputs

    def _results(self, runs: list[Run], run_batch: RunBatch, spent: float) -> AnySequence[SampleResult] | FloatArray:
        """One result for each row of logits, in order, or the hidden states themselves."""
        began = self._clock()
        limit = self.model.vocab_limit
        pools = runs[0].sequence.pools
        largest = not pools and all(only_largest(run.sequence, run.length) for run in runs)
        self._guard.begin(run.sequence.request_id for run in runs)
        try:
            output = run_batch(limit if largest else 0, self._guard.flag)
        finally:
            self._guard.end()
        results = output if pools else self._sample(runs, output)
        self._counts["computed_tokens"] += sum(run.length for run in runs)
        self._counts["decode_tokens"] += sum(run.sequence.num_missing == 1 and not pools for run in runs)
        seconds = self._clock() - began
        work = Work()
        for run in runs:
            work = work.with_tokens(run.length, run.sequence.num_computed)
        self._step_clock.note(work, spent + seconds)
        self._scheduler.charge(runs, spent + seconds)
        self._model_seconds += seconds
        return results

    def _sample(self, runs: list[Run], logits: FloatArray) -> list[SampleResult]:
        limit = self.model.vocab_limit
        _wait([run.sequence for run in runs], MASK_SECONDS)
        rows: list[SampleRow] = []
        for sequence, length, num_rows in runs:
            if num_rows:
                rows += score_rows(sequence, length, limit)
                if length == sequence.num_missing:
                    allowed = sequence.allowed() if sequence.is_bound else None
                    sequence.waits = sequence.is_bound and allowed is None
                    rows.append(choice_row(sequence, limit, allowed))
        return self.model.sample(logits, rows) if rows else []

    def _advance(self, runs: list[Run], results: AnySequence[SampleResult] | FloatArray) -> list[SequenceOutput]:
        outputs = []
        now = self._clock()
        first = 0
        for sequence, length, num_rows in runs:
            mine = results[first : first + num_rows]
            first += num_rows
            if isinstance(mine, np.ndarray):
                output = self._pool_one(sequence, length, mine, now)
            else:
                output = self._advance_one(sequence, length, mine, now)
            if output is not None:
                outputs.append(output)
        return outputs

    def _pool_one(self, sequence: Sequence, length: int, rows: FloatArray, now: float) -> SequenceOutput | None:
        through = length == sequence.num_missing
        scored = len(sequence.scored_rows(length))
        sequence.num_computed += length
        if not np.isfinite(rows).all():
            return self._fail(sequence, NumericalError("the model produced NaN for this request"))
        sequence.give_pages(self._tree)
        sequence.num_scored += scored
        sequence.pool(rows)
        return self._end(sequence, "stop", now, vector=sequence.vector()) if through else sequence.tell_progress(now, self._step_clock, length)

    def _advance_one(self, sequence: Sequence, length: int, results: AnySequence[SampleResult], now: float) -> SequenceOutput | None:
        chosen = length == sequence.num_missing
        if chosen and sequence.waits:
            chosen, length, results = False, length - 1, results[:-1]
        scored = len(sequence.scored_rows(length))
        sequence.num_computed += length
        if any(result.id < 0 for result in results):
            return self._fail(sequence, NumericalError("the model produced NaN for this request"))
        sequence.give_pages(self._tree)
        if sequence.prompt_logprobs is not None:
            sequence.num_scored += scored
            sequence.prompt_logprobs += [token_logprob(result) for result in results[:scored]]
        if not chosen:
            return sequence.tell_progress(now, self._step_clock, length)
        plan = sequence.plan
        prompt_logprobs = None
        if not sequence.num_output and sequence.prompt_logprobs is not None:
            prompt_logprobs = tuple(sequence.prompt_logprobs)
        if not plan.max_tokens:
            return self._end(sequence, "length", now, prompt_logprobs=prompt_logprobs)
        id, logprob = results[-1].id, token_logprob(results[-1])
        sequence.append(id, now)
        stopped = id in plan.stop_ids
        if (why := sequence.thought_due(now, stopped=stopped)) is not None:
            kept = () if stopped else (id,)  # a model that stops in a thought has not answered
            if stopped:
                sequence.drop_last()
            forced, stopped = sequence.end_thought(why), False
            ids: tuple[int, ...] = (*kept, *forced)
            logprobs: tuple[TokenLogprob | None, ...] | None = None if logprob is None else (*(logprob for _ in kept), *(None for _ in forced))
        else:
            ids, logprobs = (id,), None if logprob is None else (logprob,)
        self._counts["completion_tokens"] += len(ids)
        if stopped:
            return self._end(sequence, "stop", now, ids, logprobs, prompt_logprobs)
        if sequence.num_output == plan.max_tokens:
            return self._end(sequence, "length", now, ids, logprobs, prompt_logprobs)
        if plan.loop_guard and not sequence.thinks and goes_in_circles(sequence.output_ids, CONTENT_TOKENS):
            return self._end(sequence, "length", now, ids, logprobs, prompt_logprobs, stop="loop")
        return SequenceOutput(plan.request_id, ids, logprobs, prompt_logprobs)

    def _end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob | None, ...] | None = None,
        prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None,
        stop: str | None = None,
        vector: bytes | None = None,
    ) -> SequenceOutput:
        last = sequence.last_output(reason, now, stop=stop)
        return self._finish(sequence, replace(last, ids=ids, logprobs=logprobs, prompt_logprobs=prompt_logprobs, vector=vector), "finished")

    def _fail(self, sequence: Sequence, error: Exception) -> SequenceOutput:
        if not isinstance(error, QwenboxError):
            error = EngineError(f"the model failed: {type(error).__name__}: {error}")
        return self._finish(sequence, sequence.last_output("error", self._clock(), error=error), "failed")

    def _finish(self, sequence: Sequence, output: SequenceOutput, count: str) -> SequenceOutput:
        self._counts["cached_tokens"] += sequence.num_cached
        self._scheduler.remove(sequence)
        del self._sequences[sequence.request_id]
        self._counts[count] += 1
        return output


def _wait(sequences: AnySequence[Sequence], seconds: float) -> None:
    """For what the grammars of these are about, if it comes soon."""
    tasks = [task for sequence in sequences if sequence.is_bound and sequence.constraint and (task := sequence.constraint.task) and not task.done()]
    if tasks:
        concurrent.futures.wait(tasks, seconds)


# --- what a request may ask for ---

_LIMITS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
    "repetition_penalty": (0.01, 100.0),
    "seed": (-(2**63), 2**64 - 1),
    "choice": (0, 2**31 - 1),
}
_WHOLE = {"top_k", "seed", "choice"}


def check_plan(plan: GenerationPlan, model: EngineModel) -> None:
    """RequestError or ContextLengthError, naming the field, unless this model can honour the plan."""
    _check_ids(plan.prompt_ids, "prompt", model.vocab_limit)
    if not plan.prompt_ids:
        raise RequestError("the prompt is empty: at least one token is needed", param="prompt")
    _check_number("max_tokens", plan.max_tokens, 0, math.inf, whole=True)
    if plan.pooling is not None:
        _check_pooling(plan)
    elif plan.max_tokens == 0 and plan.prompt_logprobs is None:
        raise RequestError("max_tokens is 0: at least 1 is needed, unless log-probabilities of the prompt are asked for", param="max_tokens")
    _check_number("min_tokens", plan.min_tokens, 0, math.inf, whole=True)
    total = len(plan.prompt_ids) + plan.max_tokens
    if total > model.context_length:
        raise ContextLengthError(
            f"the prompt has {len(plan.prompt_ids)} tokens and max_tokens is {plan.max_tokens}: {total} tokens do not fit "
            f"the context of {model.context_length}",
            param="messages" if len(plan.prompt_ids) >= model.context_length else "max_tokens",
        )
    if most_pages(plan) > model.num_pages:
        raise ContextLengthError(
            f"{total} tokens need {most_pages(plan)} pages of the KV cache, which has {model.num_pages}: "
            "a larger KV cache or a smaller max_tokens is needed",
            param="max_tokens",
        )
    if len(plan.stop_ids) > MAX_STOP_IDS:
        raise RequestError(f"{len(plan.stop_ids)} stop ids, at most {MAX_STOP_IDS} are possible", param="stop")
    for id in plan.stop_ids:
        _check_number("stop_ids", id, 0, 2**31 - 1, whole=True)
    if not isinstance(plan.cache_salt, str) or len(plan.cache_salt) > MAX_NAME:
        raise RequestError(f"cache_salt is not a text of at most {MAX_NAME} characters", param="cache_salt")
    if not isinstance(plan.user, str) or len(plan.user) > MAX_NAME:
        raise RequestError(f"user is not a text of at most {MAX_NAME} characters", param="user")
    _check_number("weight", plan.weight, 0.001, 1000.0)
    _check_number("priority", plan.priority, -(2**31), 2**31 - 1, whole=True)
    if plan.thinking is not None:
        _check_thinking(plan.thinking, plan.max_tokens, model.vocab_limit)
    if plan.constraint is not None and len(plan.constraint.grammar) > MAX_GRAMMAR:
        raise RequestError(f"{plan.constraint.param}: a grammar of {len(plan.constraint.grammar)} characters", param=plan.constraint.param)
    most_logprobs = min(MAX_LOGPROBS, model.vocab_limit)
    _check_sampling(plan.sampling, model.vocab_limit, most_logprobs)
    if plan.prompt_logprobs is not None:
        _check_number("prompt_logprobs", plan.prompt_logprobs, 0, most_logprobs, whole=True)
        entries = len(plan.prompt_ids) * (plan.prompt_logprobs + 1)
        if entries > MAX_PROMPT_LOGPROBS:
            raise RequestError(f"{entries} log-probabilities of the prompt, at most {MAX_PROMPT_LOGPROBS} are possible", param="prompt_logprobs")


def _check_pooling(plan: GenerationPlan) -> None:
    if plan.pooling not in ("mean", "last"):
        raise RequestError(f"pooling is {plan.pooling!r}: there is mean and last", param="pooling")
    if plan.max_tokens or plan.prompt_logprobs is not None or plan.thinking is not None or plan.constraint is not None:
        raise RequestError("a request for a vector gets no tokens and no log-probabilities", param="pooling")


def _check_thinking(plan: ThinkingPlan, max_tokens: int, vocab_limit: int) -> None:
    _check_ids((plan.open_id, plan.close_id, *plan.closing_ids), "thinking", vocab_limit)
    if plan.max_tokens is not None:
        _check_number("thinking_budget", plan.max_tokens, 0, math.inf, whole=True)
    for name in ("max_seconds", "deadline"):
        _check_number(name, getattr(plan, name), 0.0, math.inf)
    _check_number("answer_tokens", plan.answer_tokens, 0, max_tokens, whole=True)


def _check_sampling(params: SamplingParams, vocab_limit: int, most_logprobs: int) -> None:
    for name, (low, high) in _LIMITS.items():
        _check_number(name, getattr(params, name), low, high, whole=name in _WHOLE)
    if params.logprobs is not None:
        _check_number("logprobs", params.logprobs, 0, most_logprobs, whole=True)
    if len(params.logit_bias) > MAX_BIASES:
        raise RequestError(f"logit_bias has {len(params.logit_bias)} entries, at most {MAX_BIASES} are possible", param="logit_bias")
    _check_ids(tuple(params.logit_bias), "logit_bias", vocab_limit)
    for bias in params.logit_bias.values():
        if not isinstance(bias, int | float) or math.isnan(bias) or bias == math.inf:
            raise RequestError(f"logit_bias holds {bias!r}: a number is needed, and minus infinity at the least", param="logit_bias")


def _check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    # isinstance before the comparison: these values crossed a process border. NaN fails both comparisons.
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name} is {value!r}: {kind} from {low:g} to {high:g} is needed", param=name)


def _check_ids(ids: AnySequence[int], name: str, vocab_limit: int) -> None:
    if not ids:
        return
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):
        array = np.empty(0)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= vocab_limit:
        raise RequestError(f"{name} holds ids outside 0 to {vocab_limit - 1}", param=name)
