"""Any order of adding, cancelling and stepping, in pools and batches of any size: books and answers stay right."""

from __future__ import annotations

import functools
import itertools
import math
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwenbox.engine.engine import Engine
from qwenbox.errors import ContextLengthError
from qwenbox.types import GenerationPlan
from tests.engine.fakes import VOCAB, Answer, FakeModel, plan

TEXT = plan("x", 300).prompt_ids
PROMPTS = [*(TEXT[:size] for size in (1, 2, 31, 32, 33, 64, 300)), *(TEXT[:size] + plan("y", 20).prompt_ids for size in (7, 32, 70, 96)), TEXT[9:109]]


@functools.cache
def alone(prompt: int, max_tokens: int, seed: int, stop: int, min_tokens: int, kind: str) -> Answer:
    engine = Engine(FakeModel(context_length=512))
    engine.add(make(prompt, max_tokens, seed, stop, min_tokens, kind))
    answer = Answer()
    while engine.has_work:
        for output in engine.step():
            answer.feed(output)
    return answer


def make(prompt: int, max_tokens: int, seed: int, stop: int, min_tokens: int, kind: str, name: str = "x", salt: str = "") -> GenerationPlan:
    if kind in ("mean", "last"):
        return plan(name, PROMPTS[prompt], 0, pooling=kind, cache_salt=salt)
    options = {"cache_salt": salt} | ({"prompt_logprobs": 1} if kind == "scored" else {})
    return plan(name, PROMPTS[prompt], max_tokens, seed=seed, stop_ids=(stop,), min_tokens=min_tokens, logprobs=1, **options)


REQUEST = st.tuples(
    st.integers(0, len(PROMPTS) - 1),
    st.integers(1, 120),
    st.integers(0, 3),
    st.integers(0, VOCAB - 4),
    st.integers(0, 40),
    st.sampled_from(["", "", "scored", "mean", "last"]),
)


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        pages=st.integers(4, 24),
        tokens=st.sampled_from([1, 7, 32, 256]),
        logits=st.sampled_from([1, 5, 64]),
        sequences=st.integers(1, 12),
        step_seconds=st.sampled_from([math.inf, 1e-9]),
        pauses=st.randoms(use_true_random=False),
    )
    def begin(self, pages: int, tokens: int, logits: int, sequences: int, step_seconds: float, pauses: random.Random) -> None:
        model = FakeModel(context_length=512, num_pages=pages, max_batch_tokens=tokens, max_logits=logits, max_sequences=sequences)
        model.pauses = lambda: pauses.random() < 0.3
        # A clock of its own: the same choices must lead to the same steps, however busy this machine is.
        self.engine = Engine(model, step_seconds=step_seconds, clock=map(float, itertools.count()).__next__)
        self.requests: dict[str, tuple[int, int, int, int, int, str]] = {}
        self.answers: dict[str, Answer] = {}
        self.cancelled: set[str] = set()

    @rule(request=REQUEST, salt=st.sampled_from(["", "", "", "other"]))
    def add(self, request: tuple[int, int, int, int, int, str], salt: str) -> None:
        name = f"r{len(self.requests)}"
        one = make(*request, name=name, salt=salt)
        try:
            self.engine.add(one)
        except ContextLengthError:
            assert len(one.prompt_ids) + one.max_tokens - 1 > self.engine.model.num_pages * 32
            return
        self.requests[name] = request
        self.answers[name] = Answer()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancel_one(data.draw(st.sampled_from(sorted(self.requests))))

    def cancel_one(self, name: str) -> None:
        if self.answers[name].last is None:
            self.cancelled.add(name)
        self.engine.cancel(name)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave_during_a_step(self, data: st.DataObject) -> None:
        names = data.draw(st.sets(st.sampled_from(sorted(self.requests)), min_size=1))
        self.engine.model.before_run = lambda batch: [self.engine.leave(name) for name in names]
        outputs = self.engine.step()
        self.engine.model.before_run = None
        self.engine.check_integrity()
        for output in outputs:
            self.answers[output.request_id].feed(output)
        for name in names:
            self.cancel_one(name)
        self.engine.check_integrity()

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            before = self.engine.stats().computed_tokens
            busy = self.engine.stats().running + self.engine.stats().waiting
            for output in self.engine.step():
                self.answers[output.request_id].feed(output)
            self.engine.check_integrity()
            assert not busy or self.engine.stats().computed_tokens > before, "a step did nothing"

    @invariant()
    def books_are_right(self) -> None:
        self.engine.check_integrity()

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        while self.engine.has_work:
            self.step(1)
        assert self.engine.stats().used_pages == 0
        for name, request in self.requests.items():
            answer, expected = self.answers[name], alone(*request)
            if name in self.cancelled:
                assert answer.reason == "cancelled"
                assert answer.ids == expected.ids[: len(answer.ids)]
            else:
                assert answer.same_as(expected)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
