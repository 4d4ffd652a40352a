"""An engine without a model, and a chat format without weights: for tests of everything above the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from qwenbox.chat.chat import ChatFormat
from qwenbox.chat.template import template_for
from qwenbox.chat.thinking import nature_of
from qwenbox.chat.tokenizer import BYTE_OF, AddedToken, Tokenizer
from qwenbox.engine.client import Deliver, EngineState, EngineStats, ModelInfo
from qwenbox.engine.engine import check_plan
from qwenbox.engine.protocol import NoteStep, closed_error, deliver_safely, refusal
from qwenbox.errors import QwenboxError
from qwenbox.llm import LocalLLM
from qwenbox.metrics import Metrics
from qwenbox.model.load import MemoryNeed
from qwenbox.server.stock import Held, Outline, StoredModel
from qwenbox.types import GenerationPlan, Progress, SamplingParams, SequenceOutput, TokenLogprob, TokenTable, Usage

GB = 10**9
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")


def byte_tokenizer() -> Tokenizer:
    """One token a byte (id = byte), then Qwen's control tokens from 256 on; the last four are not special."""
    added = [AddedToken(256 + index, text, special=index < 3) for index, text in enumerate(CONTROL)]
    return Tokenizer(BYTE_OF, [], added)


def byte_tokens(num_ids: int) -> TokenTable:
    """A byte each, none of which ends an answer."""
    return TokenTable(bytes(id % 256 for id in range(num_ids)), np.arange(1, num_ids + 1, dtype="<u4").tobytes(), (), ())


def byte_chat(family: str = "qwen3") -> ChatFormat:
    tokenizer, template = byte_tokenizer(), template_for(family, None)
    defaults = SamplingParams(temperature=0.6, top_k=20)
    return ChatFormat(family, tokenizer, template, defaults, tokenizer.eos_ids, nature_of(tokenizer, template))


@dataclass
class _Running:
    plan: GenerationPlan
    deliver: Deliver
    ids: Sequence[int]
    began: float
    position: int = 0
    cancelled: bool = False
    hurried: bool = False


@dataclass
class Script:
    """What the engine answers: the ids of a plan's whole answer, the stop id included where it ends by itself."""

    text: str = "Hello, world! 你好，世界 👩‍👩‍👧."
    reply: Callable[[GenerationPlan], Sequence[int]] | None = None

    def ids(self, plan: GenerationPlan) -> Sequence[int]:
        if self.reply is not None:
            return self.reply(plan)
        return [*byte_tokenizer_ids(self.text), *plan.stop_ids[:1]]


_TOKENIZER = byte_tokenizer()
THINK_END = _TOKENIZER.control_tokens["</think>"]


def byte_tokenizer_ids(text: str) -> list[int]:
    """Ids of a text in which control tokens count."""
    return _TOKENIZER.encode(text)


@dataclass
class FakeEngine:
    """An `EngineClient` whose steps give each running request the next id of its script.

    `hold` keeps requests where they are, `step_seconds` paces the steps. Log-probabilities are -0.5 - id / 1000, the alternatives the ids after it.
    """

    script: Script = field(default_factory=Script)
    context_length: int = 4096
    hidden_size: int = 8
    vocab_limit: int = 256 + len(CONTROL)
    num_pages: int = 1024
    max_requests: int = 160
    step_seconds: float = 0.0
    tokens_per_step: int = 1
    state_now: EngineState = field(default_factory=lambda: EngineState("ready", 1.0))

    def __post_init__(self) -> None:
        self.plans: list[GenerationPlan] = []
        self.cancelled: list[str] = []
        self.hurried: list[str] = []
        self.steps = 0
        self.note_step: NoteStep = lambda *_: None
        self._running: dict[str, _Running] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._held: Callable[[GenerationPlan, int], bool] = lambda plan, position: False
        self._thread = threading.Thread(target=self._work, name="fake-engine", daemon=True)
        self._thread.start()

    # --- EngineClient ---

    def submit(self, plan: GenerationPlan, deliver: Deliver) -> None:
        model: Any = SimpleNamespace(vocab_limit=self.vocab_limit, context_length=self.context_length, num_pages=self.num_pages)
        try:
            check_plan(plan, model)
        except QwenboxError as error:
            deliver_safely(deliver, refusal(plan, error))
            return
        with self._changed:
            self.plans.append(plan)
            self._running[plan.request_id] = _Running(plan, deliver, self.script.ids(plan), time.monotonic())
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        with self._changed:
            self.cancelled.append(request_id)
            if request_id in self._running:
                self._running[request_id].cancelled = True
            self._changed.notify_all()

    def answer_now(self, request_id: str) -> None:
        """Leaves the rest of a thought out."""
        with self._changed:
            self.hurried.append(request_id)
            one = self._running.get(request_id)
            if one is not None and THINK_END in one.ids[one.position :]:
                one.position, one.hurried = list(one.ids).index(THINK_END, one.position), True

    def info(self) -> ModelInfo | None:
        if self.state_now.name in ("fetching", "verifying", "loading"):
            return None
        limits = {
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_limit,
            "vocab_limit": self.vocab_limit,
            "num_pages": self.num_pages,
            "max_sequences": 32,
        }
        limits |= {"max_batch_tokens": 512, "max_requests": self.max_requests}
        return ModelInfo("fake", "", self.context_length, **limits, isa="generic", threads=1, weights_bytes=0, costs={"touched_bytes": GB})

    def state(self) -> EngineState:
        return self.state_now

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(running=len(self._running), num_pages=self.num_pages, used_pages=len(self._running), steps=self.steps)

    def watch(self, note: NoteStep) -> None:
        self.note_step = note

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self.fail(closed_error())

    # --- for tests ---

    @property
    def closed(self) -> bool:
        return self._closing

    def hold(self, held: Callable[[GenerationPlan, int], bool]) -> None:
        """Requests for which it is so, by their plan and the number of their tokens, get no further until it is so no longer."""
        with self._changed:
            self._held = held
            self._changed.notify_all()

    def pause(self) -> None:
        self.hold(lambda plan, position: True)

    def resume(self) -> None:
        self.hold(lambda plan, position: False)

    def wait_for(self, condition: Callable[[FakeEngine], bool], timeout: float = 300.0) -> None:
        """Returns when `condition` holds; AssertionError after `timeout` seconds."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout), "the condition did not come true"

    def tell(self, *progress: Progress) -> None:
        """Says of every running request that wants to know how far its prompt is."""
        for one in list(self._running.values()):
            for part in progress if one.plan.progress else ():
                deliver_safely(one.deliver, SequenceOutput(one.plan.request_id, progress=part))

    @property
    def num_running(self) -> int:
        return len(self._running)

    def fail(self, error: QwenboxError) -> None:
        """Ends every running request with an error, as a dead worker does."""
        with self._changed:
            running, self._running = list(self._running.values()), {}
            self._changed.notify_all()
        for one in running:
            deliver_safely(one.deliver, refusal(one.plan, error))

    # --- in the thread ---

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or any(map(self._goes, self._running.values())))
                if self._closing:
                    return
                running = list(filter(self._goes, self._running.values()))
            outputs = [(one, self._advance(one)) for one in running]
            with self._changed:
                self.steps += 1
                for one, output in outputs:
                    if output.finish_reason is not None:
                        self._running.pop(one.plan.request_id, None)
                self._changed.notify_all()
            for one, output in outputs:
                deliver_safely(one.deliver, output)
            if self.step_seconds:
                time.sleep(self.step_seconds)

    def _goes(self, one: _Running) -> bool:
        return one.cancelled or not self._held(one.plan, one.position)

    def _advance(self, one: _Running) -> SequenceOutput:
        plan = one.plan
        now = time.monotonic()
        if one.cancelled:
            return SequenceOutput(plan.request_id, finish_reason="cancelled", usage=self._usage(one), timings=self._timings(one, now))
        if plan.pooling is not None:
            vector = np.random.default_rng(plan.prompt_ids).standard_normal(self.hidden_size).astype("<f4").tobytes()
            return SequenceOutput(plan.request_id, finish_reason="stop", usage=self._usage(one), timings=self._timings(one, now), vector=vector)
        first = one.position == 0
        end = min(one.position + self.tokens_per_step, plan.max_tokens, len(one.ids))
        ids = tuple(one.ids[one.position : end])
        one.position = end
        stopped = bool(ids) and ids[-1] in plan.stop_ids
        over = stopped or end == plan.max_tokens or end == len(one.ids)
        wanted = plan.sampling.logprobs
        prompt = plan.prompt_logprobs
        return SequenceOutput(
            plan.request_id,
            ids,
            logprobs=None if wanted is None else tuple(self._logprob(id, wanted) for id in ids),
            prompt_logprobs=None if prompt is None or not first else (None, *(self._logprob(id, prompt) for id in plan.prompt_ids[1:])),
            finish_reason=("stop" if stopped else "length") if over else None,
            usage=self._usage(one) if over else None,
            timings=self._timings(one, now) if over else None,
            detail={"thinking_ended": "answer_now"} if over and one.hurried else None,
        )

    def _logprob(self, id: int, top: int) -> TokenLogprob:
        return TokenLogprob(id, -0.5 - id / 1000, tuple(((id + k) % 250, -0.5 - id / 1000 - k) for k in range(top)))

    def _usage(self, one: _Running) -> Usage:
        return Usage(prompt_tokens=len(one.plan.prompt_ids), completion_tokens=one.position)

    def _timings(self, one: _Running, now: float) -> dict[str, float]:
        return {"queue": 0.0, "prefill": 0.0, "decode": now - one.began}


class FakeSource:
    """Models of so many gigabytes on a machine with so much memory; the first is the default."""

    def __init__(self, sizes: Mapping[str, float], memory: float) -> None:
        self.sizes, self.memory = sizes, memory
        self.default = next(iter(sizes))
        self.metrics = Metrics()
        self.opened: list[str] = []
        self.engines: dict[str, FakeEngine] = {}
        self.first_state = EngineState("ready", 1.0)

    def models(self) -> Mapping[str, StoredModel]:
        return {name: StoredModel(int(size * GB), 1700000000) for name, size in self.sizes.items()}

    def need(self, name: str) -> MemoryNeed:
        return MemoryNeed(int(self.sizes[name] * GB), 0, 0)

    def outline(self, name: str) -> Outline | None:
        return Outline(int(self.sizes[name] * GB), int(self.sizes[name] * GB), 4096)

    def free(self) -> int:
        return int((self.memory - sum(self.sizes[name] for name in self.loaded)) * GB)

    def held(self, llm: LocalLLM) -> Held:
        return Held(int(self.sizes[llm.name] * GB), int(self.sizes[llm.name] * GB))

    def open(self, name: str, memory_bytes: int | None = None) -> LocalLLM:
        assert name not in self.loaded, "two of one model"
        self.opened.append(name)
        self.engines[name] = FakeEngine(script=Script(f"I am {name}."), state_now=self.first_state)
        return LocalLLM(self.engines[name], byte_chat(), name, metrics=self.metrics, request_timeout=30)

    @property
    def loaded(self) -> list[str]:
        return [name for name, engine in self.engines.items() if not engine.closed]
