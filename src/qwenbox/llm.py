"""Chat and engine behind one method: text in, events out. `LLM` is for scripts and notebooks, `LocalLLM` is what the service holds.

The pieces, in the order of a request: `LocalLLM` renders and encodes the prompt and makes a `GenerationPlan` of each choice; a `Generation` (see
`generation.py`) makes events of what the engine delivers for them. Two readers wait for these: `LocalLLM.stream` on a threading.Event, and an
`AsyncReader` on an event loop; they differ in nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import secrets
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from qwenbox.chat.chat import ChatFormat, load_chat
from qwenbox.chat.pooling import Vectors
from qwenbox.chat.stream import THINK, EventStream, starts_in_reasoning, text_logprob
from qwenbox.chat.structured import constraint_plan
from qwenbox.chat.thinking import Decision, Nature, decide, thinking_plan, vote_of
from qwenbox.chat.toolcall import ToolScanner, tool_calls
from qwenbox.engine.client import EngineClient, EngineOptions, InProcessEngine, ModelInfo, WorkerEngine
from qwenbox.errors import ContextLengthError, EngineError, OverloadedError, QwenboxError, RequestError, UsageError
from qwenbox.generation import AsyncReader, Attempt, Choice, Doorbell, Generation, VectorChoice
from qwenbox.hub import resolve
from qwenbox.metrics import Metrics
from qwenbox.types import (
    PAGE_TOKENS,
    ConstraintPlan,
    Event,
    GenerationPlan,
    Message,
    OutputFormat,
    RequestParams,
    SamplingParams,
    ThinkingVote,
    TokenLogprob,
    Usage,
)
from qwenbox.weights.gguf import read_gguf

if TYPE_CHECKING:
    from qwenbox.chat.tokenizer import Tokenizer
    from qwenbox.settings import Settings
    from qwenbox.types import FloatArray

MAX_CHAT_TOKENS = 16384
"""Longest answer of a chat that names no limit: the longest that the models were trained to give without reasoning."""
MAX_COMPLETION_TOKENS = 16
"""The same for a plain completion, as OpenAI has it."""
_INFILL = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_AFTER_INFILL = (*_INFILL, "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
READY_POLL_SECONDS = 0.05
FRESH = 0.05
"""Share of the newest token in the average time of one."""
TICK_SECONDS = 10.0
"""How often a reader looks at the clock while nothing comes."""


class Prompt(NamedTuple):
    """Token ids, and what the answer to them may do."""

    ids: Sequence[int]
    thinking: Decision | None = None
    """None: nobody asked, as for a plain completion."""
    tools: Sequence[Mapping[str, Any]] = ()
    """Those that the answer may call."""
    plain_ids: Sequence[int] = ()
    """The same prompt with thinking off, where an answer is tried so first."""
    form: ConstraintPlan | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    reasoning: str
    finish_reason: str
    usage: Usage
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """OpenAI's objects."""


class LocalLLM:
    """A model that runs on this machine: an engine and the chat format of its model, under the name that clients know it by."""

    def __init__(
        self,
        engine: EngineClient,
        chat: ChatFormat | Future[ChatFormat],
        name: str,
        *,
        metrics: Metrics | None = None,
        request_timeout: float | None = None,
        thinking: ThinkingVote | None = None,
        loop_guard: bool = True,
    ) -> None:
        """`thinking` holds for requests that say nothing of it; `loop_guard` ends answers that go in circles.

        `chat` may come later, with the model that the engine fetches: a Future that is done before the engine is ready."""
        self.engine = engine
        self._chat: Future[ChatFormat] = Future()
        if isinstance(chat, Future):
            self._chat = chat
        else:
            self._chat.set_result(chat)
        self.name = name
        self.created = int(time.time())
        self.metrics = metrics or Metrics()
        self.metrics.engines[name] = lambda: engine_rows(engine)
        self._request_timeout = request_timeout
        self._thinking = thinking or ThinkingVote("service")
        self._loop_guard = loop_guard
        self._ids = itertools.count()
        self._doorbells: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Doorbell] = weakref.WeakKeyDictionary()
        bound = {row: self.metrics[row].labels(name) for row in _COUNTED}
        self._prompt_tokens, self._generation_tokens, self._vectors = bound["prompt_tokens"], bound["generation_tokens"], bound["vectors"]
        self._first_token, self._next_token = bound["time_to_first_token_seconds"], bound["inter_token_latency_seconds"]
        self._request_seconds, self._queue_seconds = bound["e2e_request_latency_seconds"], bound["request_queue_time_seconds"]
        self._step_seconds = bound["step_seconds"]
        self._prefill_tokens, self._decode_tokens = (self.metrics["iteration_tokens_total"].labels(name, phase) for phase in ("prefill", "decode"))
        self._token_seconds: float | None = None
        engine.watch(self.count_step)

    # --- people's methods ----------------------------------------------------------------------------------------------

    def chat(self, messages: str | Sequence[Message | Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), **params: Any) -> Reply:
        """The answer to a conversation. `params` are fields of `RequestParams`; raises QwenboxError."""
        return reply(self.stream(messages, tools=tools, **params))

    def stream(
        self, messages: str | Sequence[Message | Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), **params: Any
    ) -> Iterator[Event]:
        """Events of the answer as they come. Closing the iterator ends the request."""
        asked = request_params(params)
        return self._events([self.chat_prompt(as_messages(messages), tools, asked)], asked, chat=True)

    async def astream(
        self, messages: str | Sequence[Message | Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = (), **params: Any
    ) -> AsyncIterator[Event]:
        """`stream` for an event loop."""
        asked = request_params(params)
        prompt = self.chat_prompt(as_messages(messages), tools, asked)
        async with aclosing(self.reader([prompt], asked, chat=True).batches()) as batches:
            async for batch in batches:
                for _, event in batch:
                    yield event

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Reply:
        """A text, or token ids, carried on: no chat format around it."""
        asked = request_params(params)
        return reply(self._events([self.text_prompt(self.encode_prompt(prompt), asked)], asked, chat=False))

    def batch(self, conversations: Sequence[str | Sequence[Message | Mapping[str, Any]]], **params: Any) -> list[Reply]:
        """The answers to several conversations, which run together."""
        answers = dict(self.replies(conversations, **params))
        return [answers[index] for index in range(len(conversations))]

    def replies(
        self, conversations: Sequence[str | Sequence[Message | Mapping[str, Any]]], **params: Any
    ) -> Generator[tuple[int, Reply], None, None]:
        """`batch`, each answer with its number as soon as it is whole, which makes room for the next. Closing the iterator ends the others."""
        asked = request_params(params)
        waiting = enumerate([self.chat_prompt(as_messages(messages), (), asked) for messages in conversations])
        running: dict[int, tuple[Generation, list[Event]]] = {}
        bell = threading.Event()
        try:
            while True:
                for index, prompt in itertools.islice(waiting, self._info.max_requests - len(running)):
                    running[index] = self.start([prompt], asked, bell.set, chat=True), []
                if not running:
                    return
                bell.wait(TICK_SECONDS)
                bell.clear()
                for index, (generation, events) in tuple(running.items()):
                    events += [event for _, event in generation.take()]
                    if generation.finished:
                        del running[index]
                        yield index, reply(events)
        finally:
            for generation, _ in running.values():
                generation.close()

    def embed(self, texts: Sequence[str | Sequence[int]], *, dimensions: int | None = None, **params: Any) -> FloatArray:
        """A vector of length 1 for each text, or token ids: float32 [texts, hidden size, or `dimensions`]. Raises QwenboxError.

        A model that was not made for it gives the mean of its hidden states.
        """
        self.check_dimensions(dimensions)
        bell = threading.Event()
        prompts = [self.vector_ids(text)[0] for text in texts]
        generation = self.start_vectors(prompts, request_params(params), bell.set)
        vectors: dict[int, FloatArray] = {}
        with closing(self._taken(generation, bell)) as events:
            for index, event in events:
                if event.kind == "error":
                    raise QwenboxError.from_wire(event.error or {})
                vectors[index] = unit_vector(event, dimensions)
        width = self._info.hidden_size if dimensions is None else dimensions
        return np.array([vectors[index] for index in range(len(prompts))], np.float32).reshape(len(prompts), width)

    def close(self) -> None:
        self.metrics.engines.pop(self.name, None)
        self.engine.close()
        self.engine.watch(lambda *_: None)  # no circle: what this holds, a tokenizer of 50 MB, goes with the last who knows it
        if self._chat.done():
            self._chat.result().close()

    def __enter__(self) -> LocalLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the parts of a request ---------------------------------------------------------------------------------------

    @property
    def chat_format(self) -> ChatFormat:
        """Raises OverloadedError while the model is fetched, or the error of a model that never will be there."""
        if not self._chat.done():
            self.check_ready()
            raise self.loading_error()
        return self._chat.result()

    @property
    def nature(self) -> Nature | None:
        """Whether the model thinks as it is told, always or never; None until that is known."""
        return self._chat.result().nature if self._chat.done() and self._chat.exception() is None else None

    @property
    def tokenizer(self) -> Tokenizer:
        return self.chat_format.tokenizer

    @property
    def context_length(self) -> int:
        """Tokens that a prompt and its answer have together: the model's window, or the KV pages where they hold less."""
        return min(self._info.context_length, self._info.num_pages * PAGE_TOKENS)

    @property
    def _info(self) -> ModelInfo:
        if (info := self.engine.info()) is None:
            raise self.loading_error()
        return info

    def wait_ready(self, timeout: float | None = None) -> None:
        """Returns when the model answers. Raises the error that keeps it from loading, or OverloadedError after `timeout` seconds."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self.check_ready():
            if time.monotonic() > deadline:
                raise self.loading_error()
            time.sleep(READY_POLL_SECONDS)

    async def await_ready(self, timeout: float) -> bool:
        """Whether the model answers within `timeout` seconds. Raises the error of a model that never will."""
        deadline = time.monotonic() + timeout
        while not self.check_ready():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(READY_POLL_SECONDS)
        return True

    def check_ready(self) -> bool:
        """Whether the model answers now. Raises the error of a model that never will."""
        state = self.engine.state()
        if state.name in ("failed", "closed"):
            raise state.error or EngineError("The engine is closed.", code="engine_closed", status=503)
        return state.name == "ready"

    def loading_error(self) -> OverloadedError:
        state = self.engine.state()
        reason = "" if state.error is None else f" The last attempt failed: {state.error.message}"
        wait = 5 if state.seconds_left is None else min(max(1, math.ceil(state.seconds_left)), 60)
        return OverloadedError(f"The model is not ready: {state.name} ({state.progress:.0%}).{reason}", code="model_loading", retry_after=wait)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], params: RequestParams) -> Prompt:
        """The prompt of a conversation, and the form of its answer. RequestError for what no model can be asked, or not this one."""
        chat = self.chat_format
        self._check_answers()
        ids, decision = self.chat_ids(messages, tools, params)
        plain = chat.encode(messages, tools, **{**params.template_options, "enable_thinking": False}) if decision.unless_sure else ()
        callable_ = [tool for tool in tools if not params.allowed_tools or tool["function"]["name"] in params.allowed_tools]
        return Prompt(ids, decision, callable_, plain, constraint_plan(chat.tokenizer, callable_, params, in_tags=chat.calls_in_tags))

    def _check_answers(self) -> None:
        """RequestError where the model was made for vectors: its head, where it has one, says nothing."""
        if self.vectors.stated:
            raise RequestError(f"{self.name} makes vectors of texts (/v1/embeddings) and gives no answers: ask another model.", param="model")

    def chat_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], params: RequestParams) -> tuple[list[int], Decision]:
        """Ids of a conversation's prompt. It says to a hybrid model whether to think; for one that always thinks it ends the thought at once."""
        chat = self.chat_format
        decision = decide(chat.nature, messages, tools, params.thinking, self._thinking, params.max_tokens or MAX_CHAT_TOKENS)
        has_form = params.output_format is not None or params.tool_choice not in ("auto", "none")
        if has_form:
            decision = replace(decision, unless_sure=False)
        ids = chat.encode_for(decision.on, messages, tools, **params.template_options)
        if decision.on and has_form and not chat.starts_in_reasoning(ids):
            ids += chat.tokenizer.encode(f"{THINK}\n")  # as the model would; the form is for what follows the thought
        return ids, decision

    def text_prompt(self, ids: Sequence[int], params: RequestParams) -> Prompt:
        """The prompt of a text that is carried on."""
        self._check_answers()
        return Prompt(ids, form=constraint_plan(self.tokenizer, (), params))

    def encode_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a plain prompt, in which control tokens count."""
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def encode_infill(self, prompt: str | Sequence[int], suffix: str) -> list[int]:
        """Ids of a prompt that asks for what stands between the two texts. RequestError where the model's tokenizer has no ids for that."""
        ids = self.tokenizer.control_tokens
        if not can_infill(self.tokenizer):
            raise RequestError(f"suffix: {self.name} fills in nothing: its tokenizer has no {_INFILL[0]}.", param="suffix")
        before, after, middle = (ids[name] for name in _INFILL)
        return [before, *self.encode_prompt(prompt), after, *self.tokenizer.encode(suffix), middle]

    def infill_stop_ids(self) -> tuple[int, ...]:
        """What follows the text that was asked for: another file, or the next gap."""
        return tuple(id for name, id in self.tokenizer.control_tokens.items() if name in _AFTER_INFILL)

    @property
    def vectors(self) -> Vectors:
        """How the model makes a vector of a text."""
        return self.chat_format.vectors

    def check_dimensions(self, dimensions: int | None) -> None:
        """RequestError where vectors have no so many."""
        if dimensions is not None and not 1 <= dimensions <= self._info.hidden_size:
            raise RequestError(f"dimensions is {dimensions}: vectors of {self.name} have {self._info.hidden_size}.", param="dimensions")

    def vector_ids(self, text: str | Sequence[int], *, truncate: bool = False) -> tuple[list[int], bool]:
        """Ids of a text that a vector is wanted of, with those that end it, and whether it was cut to the window, which `truncate` allows.

        Control tokens in a text are text. ContextLengthError where it does not fit, RequestError where there is nothing of it.
        """
        end = self.vectors.end_ids
        ids = self.tokenizer.encode(text, control=False) if isinstance(text, str) else list(text)
        if ids and max(ids) >= self.tokenizer.vocab_limit:
            raise RequestError(f"input: a token id is outside 0 to {self.tokenizer.vocab_limit - 1}.", param="input")
        if end and tuple(ids[-len(end) :]) == end:
            ids = ids[: -len(end)]
        room = self.context_length - len(end)
        if cut := len(ids) > room:
            if not truncate:
                raise ContextLengthError(f"input: a text of {len(ids)} tokens, and the model's window holds {room}. Divide it.", param="input")
            ids = ids[:room]
        if not ids and not end:
            raise RequestError("input: a text is empty; there is no vector of nothing.", param="input")
        return [*ids, *end], cut

    def vector_reader(self, prompts: Sequence[Sequence[int]], params: RequestParams) -> AsyncReader:
        """`start_vectors`, with a reader on the running event loop."""
        return AsyncReader(self._doorbell(), partial(self.start_vectors, prompts, params), TICK_SECONDS, TICK_SECONDS)

    def start_vectors(self, prompts: Sequence[Sequence[int]], params: RequestParams, wake: Callable[[], None]) -> Generation:
        """Submits a request for the vector of each prompt; half of the engine's places are left to others."""
        choices = []
        for index, ids in enumerate(prompts):
            plan = GenerationPlan(
                request_id=f"r{next(self._ids)}",
                prompt_ids=tuple(ids),
                max_tokens=0,
                pooling=self.vectors.pooling,
                cache_salt=params.cache_salt,
                user=params.user,
                weight=params.weight,
                priority=params.priority,
                attempt=params.attempt,
            )
            choices.append(VectorChoice(index, plan, self))
        at_once = max(1, self._info.max_sequences // 2)
        generation = Generation(choices, self.engine, wake, self._request_timeout, at_once=at_once)
        generation.submit()
        return generation

    def reader(
        self,
        prompts: Sequence[Prompt],
        params: RequestParams,
        first_tick: float = TICK_SECONDS,
        tick: float = TICK_SECONDS,
        *,
        chat: bool,
    ) -> AsyncReader:
        """`start`, with a reader on the running event loop."""
        return AsyncReader(self._doorbell(), partial(self.start, prompts, params, chat=chat), first_tick, tick)

    def _doorbell(self) -> Doorbell:
        """The one of the running event loop."""
        loop = asyncio.get_running_loop()
        doorbell = self._doorbells.get(loop)
        if doorbell is None:
            doorbell = self._doorbells[loop] = Doorbell(loop)
        return doorbell

    def start(self, prompts: Sequence[Prompt], params: RequestParams, wake: Callable[[], None], *, chat: bool) -> Generation:
        """Submits `params.n` choices of each prompt; choice i belongs to prompt i // n. `wake` is called when there is something to take."""
        seed = secrets.randbits(63) if params.seed is None else params.seed
        choices = []
        for index in range(len(prompts) * params.n):
            prompt, trial = prompts[index // params.n], None
            if prompt.plain_ids and prompt.thinking is not None:
                tried = replace(params, logprobs=params.logprobs or 0)
                plain = Prompt(prompt.plain_ids, prompt.thinking.after_trial(sure=True), prompt.tools, form=prompt.form)
                trial = self._attempt(plain, tried, index % params.n, seed, chat=chat)
                prompt = prompt._replace(thinking=prompt.thinking.after_trial(sure=False))
            attempt = self._attempt(prompt, params, index % params.n, seed, chat=chat)
            choices.append(Choice(index, attempt, self, echo=params.echo, counts_prompt=index % params.n == 0, trial=trial))
        generation = Generation(choices, self.engine, wake, self._request_timeout)
        generation.submit()
        return generation

    def _attempt(self, prompt: Prompt, params: RequestParams, choice: int, seed: int, *, chat: bool) -> Attempt:
        plan = self._plan(prompt, params, choice, seed, chat=chat)
        whole = not params.template_options.get("continue_final_message")
        tools = (
            ToolScanner(prompt.tools, parallel=params.parallel_tool_calls, fenced=whole and self.chat_format.calls_in_fences)
            if prompt.tools
            else None
        )
        stream = EventStream(
            self.tokenizer,
            stop=params.stop,
            start_reasoning=plan.thinking is not None and plan.thinking.open,
            split_reasoning=chat,
            tools=tools,
        )
        return Attempt(plan, prompt.thinking, stream)

    def _plan(self, prompt: Prompt, params: RequestParams, choice: int, seed: int, *, chat: bool) -> GenerationPlan:
        window, num_prompt, thinking = self.context_length, len(prompt.ids), prompt.thinking
        if num_prompt >= window:
            raise ContextLengthError(
                f"The prompt has {num_prompt} tokens and the context holds {window}, the answer included. "
                "Shorten the prompt, or start the service with a larger context.",
                param="messages" if chat else "prompt",
            )
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise RequestError(f"min_tokens is {params.min_tokens}, more than max_tokens ({params.max_tokens}).", param="min_tokens")
        wanted = params.max_tokens if params.max_tokens is not None else MAX_CHAT_TOKENS if chat else MAX_COMPLETION_TOKENS
        max_tokens = min(wanted, window - num_prompt)
        asked = {name: value for name in _SAMPLED if (value := getattr(params, name)) is not None}
        defaults = replace(self.chat_format.defaults_for(thinking is None or thinking.on), presence_penalty=0.0)
        return GenerationPlan(
            request_id=f"r{next(self._ids)}",
            prompt_ids=tuple(prompt.ids),
            max_tokens=max_tokens,
            sampling=replace(defaults, **asked, logit_bias=dict(params.logit_bias), seed=seed % 2**64, choice=choice, logprobs=params.logprobs),
            stop_ids=(() if params.ignore_eos else tuple(self.chat_format.eos_ids)) + params.stop_ids + self._special_stops(params.stop),
            min_tokens=min(params.min_tokens, max_tokens),
            prompt_logprobs=params.logprobs if params.echo else None,
            cache_salt=params.cache_salt,
            user=params.user,
            weight=params.weight,
            priority=params.priority,
            attempt=params.attempt,
            thinking=None
            if thinking is None
            else thinking_plan(
                self.tokenizer,
                thinking,
                is_open=starts_in_reasoning(self.tokenizer, prompt.ids),
                max_tokens=max_tokens,
                wait_seconds=params.wait_seconds,
                loop_guard=self._loop_guard,
            ),
            loop_guard=chat and self._loop_guard,
            constraint=prompt.form,
            progress=params.progress and choice == 0,
        )

    def _special_stops(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Ids of the stop strings that are special tokens: answers never have their text, so it could not be found there."""
        tokenizer = self.tokenizer
        ids = (tokenizer.id_of(text) for text in stop)
        return tuple(id for id in ids if id is not None and tokenizer.is_special(id))

    def _events(self, prompts: Sequence[Prompt], params: RequestParams, *, chat: bool) -> Iterator[Event]:
        bell = threading.Event()
        with closing(self._taken(self.start(prompts, params, bell.set, chat=chat), bell)) as events:
            for _, event in events:
                yield event

    @staticmethod
    def _taken(generation: Generation, bell: threading.Event) -> Generator[tuple[int, Event], None, None]:
        """The events of a generation that rings the bell."""
        try:
            while not generation.finished:
                bell.wait(TICK_SECONDS)
                bell.clear()
                yield from generation.take()
        finally:
            generation.close()

    # --- what choices ask -----------------------------------------------------------------------------------------------

    def prompt_event(self, plan: GenerationPlan, logprobs: Sequence[TokenLogprob | None] | None) -> Event:
        """The prompt as content, for `echo`. The first token has no log-probability, which is NaN here."""
        text = self.tokenizer.decode(plan.prompt_ids)
        if logprobs is None:
            return Event("content", text, ids=plan.prompt_ids)
        known = [logprob or TokenLogprob(id, math.nan) for id, logprob in zip(plan.prompt_ids, logprobs, strict=True)]
        return Event("content", text, logprobs=tuple(text_logprob(self.tokenizer, logprob) for logprob in known), ids=plan.prompt_ids)

    def count_first(self, seconds: float, num_prompt_tokens: int) -> None:
        self._first_token.observe(seconds)
        self._prompt_tokens.inc(num_prompt_tokens)

    def count_tokens(self, num_tokens: int, num_gaps: int, seconds: float) -> None:
        """`seconds` since the last count, shared by the gaps between tokens."""
        self._generation_tokens.inc(num_tokens)
        if num_gaps:
            self._next_token.observe(seconds / num_gaps, num_gaps)

    def count_vector(self, num_prompt_tokens: int) -> None:
        self._vectors.inc()
        self._prompt_tokens.inc(num_prompt_tokens)

    def count_step(self, seconds: float, prefill_tokens: int, decode_tokens: int) -> None:
        self._step_seconds.observe(seconds)
        for histogram, num_tokens in ((self._prefill_tokens, prefill_tokens), (self._decode_tokens, decode_tokens)):
            if num_tokens:
                histogram.observe(num_tokens)
        if decode_tokens == 1 and not prefill_tokens and seconds > 0.0:
            self._token_seconds = seconds if self._token_seconds is None else self._token_seconds + FRESH * (seconds - self._token_seconds)

    @property
    def write_speed(self) -> float | None:
        """Tokens a second of an answer that has the machine to itself, as it was of late; None before the first one."""
        return None if self._token_seconds is None else 1.0 / self._token_seconds

    def count_end(self, event: Event, seconds: float) -> None:
        reason = event.finish_reason if event.kind == "finish" else "error"
        self.metrics["request_success"].labels(self.name, str(reason)).inc()
        self._request_seconds.observe(seconds)
        if event.timings and "queue" in event.timings:
            self._queue_seconds.observe(event.timings["queue"])


class LLM(LocalLLM):
    """A model for a script or a notebook: `LLM("qwen2.5-coder-0.5b").chat("Hello").text`.

    `model` is a catalogue name, a directory or a `.gguf` file; a catalogue model that is not here yet is fetched. With `worker=True` the engine
    runs in a process of its own. `options` are those of `EngineOptions` (threads, isa, weights, context_length, ...).
    """

    def __init__(self, model: str = "qwen2.5-coder-1.5b", *, worker: bool = False, **options: Any) -> None:
        known = [entry.name for entry in fields(EngineOptions) if entry.name not in ("model", "tokens")]
        if unknown := sorted(set(options) - set(known)):
            raise UsageError(f"Unknown option {', '.join(unknown)}; there are {', '.join(known)}.")
        path = resolve(model)
        chat = open_chat(path)
        engine_options = EngineOptions(model=str(path), tokens=chat.tokenizer.table(), **options)
        engine = (WorkerEngine if worker else InProcessEngine)(engine_options)
        super().__init__(engine, chat, model_name(model))
        try:
            self.wait_ready()
        except BaseException:
            engine.close()
            raise

    def logits(self, prompt: str | Sequence[int]) -> FloatArray:
        """Raw logits after each token, float32 [tokens, vocab_size]. Only where the engine runs in this process."""
        if not isinstance(self.engine, InProcessEngine):
            raise UsageError("Logits stay in the worker's process; use LLM(..., worker=False).")
        return self.engine.logits(self.encode_prompt(prompt))


def unit_vector(event: Event, dimensions: int | None) -> FloatArray:
    """The vector of a "finish" event, its first `dimensions`, brought to length 1; [dimensions] float32."""
    values = np.frombuffer(event.vector or b"", "<f4")[:dimensions].astype(np.float64)
    length = math.sqrt(math.fsum(values * values))  # rounded once: the same on every machine
    return (values / length if length > 0 else values).astype(np.float32)


def can_infill(tokenizer: Tokenizer) -> bool:
    """Whether a model with this tokenizer can be asked for what stands between two texts."""
    return tokenizer.control_tokens.keys() >= set(_INFILL)


def open_chat(path: Path) -> ChatFormat:
    """The chat format of a model on disk: of its directory, or of the metadata of its GGUF file."""
    return load_chat(directory=path) if path.is_dir() else load_chat(metadata=read_gguf(path).metadata)


def default_thinking(settings: Settings) -> ThinkingVote:
    """What the settings say of thinking."""
    modes: Mapping[str, Literal["on", "off", "auto"]] = {"on": "on", "off": "off", "auto": "auto"}
    return ThinkingVote("service", modes.get(settings.thinking), settings.thinking_budget, settings.thinking_seconds)


def model_name(model: str) -> str:
    """The name that clients know a model by: a catalogue name as it is, of a path the last part without `.gguf`."""
    path = Path(model)
    return (path if path.name not in ("", "..") else path.resolve()).name.removesuffix(".gguf") or model


def as_messages(messages: str | Sequence[Message | Mapping[str, Any]]) -> tuple[Message, ...]:
    """A conversation in our nouns; a bare string is one turn of the user."""
    if isinstance(messages, str):
        return (Message("user", messages),)
    try:
        return tuple(message if isinstance(message, Message) else Message(**message) for message in messages)
    except TypeError as error:
        raise UsageError(f'A message is {{"role": ..., "content": ...}}: {error}.') from None


_PARAM_TYPES: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(("max_tokens", "top_k", "seed", "n", "min_tokens", "logprobs"), (int, "a whole number")),
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), ((int, float), "a number")),
    **dict.fromkeys(("logit_bias", "template_options"), (Mapping, "a mapping")),
    "stop": ((str, list, tuple), "a text or a list of texts"),
    "stop_ids": ((list, tuple), "a list of token ids"),
    **dict.fromkeys(("ignore_eos", "echo", "parallel_tool_calls", "progress"), (bool, "true or false")),
    "output_format": (OutputFormat, "an OutputFormat"),
    "tool_choice": (str, "auto, none, required or `=` and a name"),
    "allowed_tools": ((list, tuple), "a list of names"),
}


def request_params(given: Mapping[str, Any]) -> RequestParams:
    """`RequestParams` of keyword arguments, or UsageError that names the unknown one."""
    known = [entry.name for entry in fields(RequestParams)]
    if unknown := sorted(set(given) - set(known)):
        raise UsageError(f"Unknown parameter {', '.join(unknown)}; there are {', '.join(known)}.")
    given = dict(given)
    votes = _votes(given.pop("thinking", ()))
    for name, value in given.items():
        kind, what = _PARAM_TYPES[name]
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise UsageError(f"{name} is {value!r}; it must be {what}.", param=name)
    if (most := given.get("max_tokens")) is not None and most < 1:
        raise UsageError(f"max_tokens is {most}; at least 1 is needed.", param="max_tokens")
    if "enable_thinking" in (given.get("template_options") or {}):
        raise UsageError("template_options: `thinking` is the parameter for this.", param="template_options")
    if given.get("n", 1) != 1:
        raise UsageError("n: one answer a call here; ask several times, or pass the conversation to `batch` several times.", param="n")
    stop = given.get("stop") or ()
    return RequestParams(**given | {"thinking": votes, "stop": (stop,) if isinstance(stop, str) else tuple(stop)})


def _votes(thinking: Any) -> tuple[ThinkingVote, ...]:
    """True, False, "on", "off", "auto", or a budget of tokens."""
    if thinking in ("on", "off", "auto") or (isinstance(thinking, int) and thinking >= 0):
        return (vote_of("thinking", thinking),)
    if isinstance(thinking, tuple) and all(isinstance(vote, ThinkingVote) for vote in thinking):
        return thinking
    raise UsageError(f'thinking is {thinking!r}; it must be "on", "off", "auto", or a number of tokens.', param="thinking")


def reply(events: Iterable[Event]) -> Reply:
    """A whole answer of its events. Raises the error that ended it."""
    events = list(events)
    last = events[-1]
    if last.kind == "error":
        raise QwenboxError.from_wire(last.error or {})
    text, reasoning = ("".join(event.text for event in events if event.kind == kind) for kind in ("content", "reasoning"))
    return Reply(text, reasoning, str(last.finish_reason), last.usage or Usage(), tuple(tool_calls(events)))


def engine_rows(engine: EngineClient) -> Mapping[str, float]:
    """The engine's numbers under the names of the metrics table."""
    stats = engine.stats()
    return {
        "num_requests_running": stats.running,
        "num_requests_waiting": stats.waiting,
        "kv_cache_usage_perc": stats.used_pages / stats.num_pages if stats.num_pages else 0.0,
        "num_preemptions": stats.preemptions,
        "prefix_cache_queries": stats.prompt_tokens,
        "prefix_cache_hits": stats.cached_tokens,
        "worker_restarts": stats.restarts,
    }


_SAMPLED = tuple(
    entry.name for entry in fields(SamplingParams) if entry.name in {f.name for f in fields(RequestParams)} - {"logit_bias", "seed", "logprobs"}
)
"""The parameters that a request overlays on the model's defaults as they are."""
_COUNTED = (
    "prompt_tokens",
    "generation_tokens",
    "vectors",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "step_seconds",
)
