"""Thoughts that the engine follows and ends, over scripted models and over one whose answer depends on every token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwenbox.engine.engine import Engine
from qwenbox.engine.thought import CIRCLES, LONGEST_PERIOD, LOOK_EVERY, goes_in_circles
from qwenbox.errors import RequestError
from qwenbox.kernels.program import SampleResult, SampleRow
from qwenbox.types import PAGE_TOKENS, FloatArray, GenerationPlan, ThinkingPlan
from tests.engine.fakes import VOCAB, Answer, FakeModel, plan

OPEN, CLOSE, EOS = 1, 2, 3
CLOSING = (50, 51, CLOSE, 52)


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 1.0
        return self.seconds


class Scripted(FakeModel):
    """Says `script` one after the other, whatever was put in between; the last one for ever."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__()
        self._script = list(script)

    def sample(self, logits: FloatArray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        assert len(rows) == 1
        id = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        return [SampleResult(id, -0.5, []) if rows[0].params.logprobs is not None else SampleResult(id)]


def thinking(**options: Any) -> ThinkingPlan:
    return ThinkingPlan(OPEN, CLOSE, CLOSING, **options)


def say(script: Sequence[int], max_tokens: int = 100, *, hurry_after: int | None = None, clock: Any = None, **options: Any) -> Answer:
    engine = Engine(Scripted(script), **({"clock": clock} if clock else {}))
    answer = Answer()
    engine.add(plan("r", 5, max_tokens, stop_ids=(EOS,), **options))
    while engine.has_work:
        if hurry_after is not None and len(answer.ids) >= hurry_after:
            engine.answer_now("r")
        for output in engine.step():
            answer.feed(output)
        engine.check_integrity()
    assert answer.last is not None
    return answer


def why(answer: Answer) -> str | None:
    assert answer.last is not None
    return (answer.last.detail or {}).get("thinking_ended")


def test_a_thought_that_ends_by_itself_is_left_alone() -> None:
    answer = say([OPEN, 10, 11, CLOSE, 20, EOS], thinking=thinking(max_tokens=5))
    assert answer.ids == [OPEN, 10, 11, CLOSE, 20, EOS]
    assert (answer.reason, why(answer)) == ("stop", None)


@pytest.mark.parametrize("begun", [True, False])
def test_at_the_budget_the_stop_text_is_put_in_by_ids_and_the_answer_follows(begun: bool) -> None:
    script = [10, 11, 12, 20, 21, EOS] if begun else [OPEN, 10, 11, 12, 20, 21, EOS]
    answer = say(script, thinking=thinking(open=begun, max_tokens=3))
    assert answer.ids == [*([] if begun else [OPEN]), 10, 11, 12, *CLOSING, 20, 21, EOS]
    assert why(answer) == "budget"


def test_log_probabilities_are_none_where_the_engine_put_a_token() -> None:
    answer = say([OPEN, 10, 20, EOS], thinking=thinking(max_tokens=1), logprobs=0)
    assert [one is None for one in answer.logprobs] == [False, False, *[True] * len(CLOSING), False, False]


def test_a_thought_cannot_touch_the_tokens_of_the_answer() -> None:
    answer = say([OPEN, *range(10, 40), *[60] * 8], 24, thinking=thinking(answer_tokens=8))
    assert answer.ids == [OPEN, *range(10, 21), *CLOSING, *range(21, 29)]
    assert (answer.reason, why(answer), len(answer.ids)) == ("length", "length", 24)


def test_a_model_that_stops_in_its_thought_answers_all_the_same() -> None:
    answer = say([OPEN, 10, EOS, 20, EOS], thinking=thinking())
    assert answer.ids == [OPEN, 10, *CLOSING, 20, EOS]
    assert (answer.reason, why(answer)) == ("stop", "stop")


@pytest.mark.parametrize("options", [{"max_seconds": 20.0}, {"deadline": 30.0}])
def test_a_thought_ends_when_its_time_is_up(options: dict[str, float]) -> None:
    answer = say([OPEN, *[10, 11, 12, 13, 14] * 8, EOS], thinking=thinking(**options), clock=Clock())
    thought = answer.ids.index(CLOSING[0])
    assert why(answer) == "time"
    assert 2 < thought < 12
    assert answer.ids[thought : thought + 4] == list(CLOSING)


@pytest.mark.parametrize("hurry_after", [0, 1, 5])
def test_who_wants_the_answer_now_has_its_first_token_within_three_steps(hurry_after: int) -> None:
    answer = say([OPEN, *range(10, 40), EOS], thinking=thinking(), hurry_after=hurry_after)
    assert answer.ids == [OPEN, *range(10, 10 + hurry_after), *CLOSING, *range(10 + hurry_after, 40), EOS]
    assert why(answer) == "answer_now"


def test_a_thought_begins_before_anything_is_said() -> None:
    said = say([20, OPEN, *range(10, 20), CLOSE, EOS], thinking=thinking(max_tokens=4, blank_ids=(9,)))
    assert said.ids == [20, OPEN, *range(10, 20), CLOSE, EOS]
    blank = say([9, OPEN, *range(10, 14), 20, EOS], thinking=thinking(max_tokens=4, blank_ids=(9,)))
    assert blank.ids == [9, OPEN, *range(10, 14), *CLOSING, 20, EOS]


def test_a_second_thought_is_text() -> None:
    answer = say([OPEN, CLOSE, OPEN, *range(10, 20), EOS], thinking=thinking(max_tokens=4))
    assert answer.ids == [OPEN, CLOSE, OPEN, *range(10, 20), EOS]


def test_a_thought_in_circles_is_ended_and_an_answer_in_circles_ends_as_length() -> None:
    thought = say([OPEN, *[10, 11, 12] * 100, 20, EOS], 1000, thinking=thinking())
    assert why(thought) == "loop"
    assert len(thought.ids) < 310
    assert say([OPEN, *[10, 11, 12] * 100, CLOSE, EOS], 1000, thinking=thinking(loop_guard=False)).ids[-3:] == [12, CLOSE, EOS]
    answer = say([20, *[10, 11, 12] * 999, EOS], 3000, loop_guard=True)
    assert answer.reason == "length"
    assert answer.last is not None and answer.last.detail == {"stop": "loop"}
    assert 1024 <= len(answer.ids) < 1100
    assert say([20, *[10, 11, 12] * 999, EOS], 3000).reason == "stop"


def test_circles_are_found_where_the_slow_twin_finds_them() -> None:
    def slowly(ids: list[int], num_tokens: int) -> bool:
        if len(ids) < num_tokens or len(ids) % LOOK_EVERY:
            return False
        for period in range(1, LONGEST_PERIOD + 1):
            length = max(num_tokens, CIRCLES * period)
            if len(ids) >= length and all(ids[-i] == ids[-i - period] for i in range(1, length - period + 1)):
                return True
        return False

    rng = np.random.default_rng(3)
    found = 0
    for _ in range(2000):
        period, num_tokens = int(rng.integers(1, 300)), int(rng.integers(1, 40) * LOOK_EVERY)
        piece = rng.integers(0, int(rng.choice([2, 90])), period).tolist()
        ids = [*rng.integers(0, 90, int(rng.integers(0, 64))).tolist(), *(piece * 60)[: num_tokens + int(rng.integers(-20, 400))]]
        if rng.random() < 0.3:
            ids[-int(rng.integers(1, num_tokens + 1))] = 91
        expected = slowly(ids, num_tokens)
        assert goes_in_circles(np.array(ids, np.int32), num_tokens) == expected
        found += expected
    assert found > 20


def test_ended_thoughts_are_bit_equal_alone_and_in_a_crowd() -> None:
    """Budgets, stops and reserves of random answers, under batching, slicing and preemption."""
    rng = np.random.default_rng(17)
    plans: list[GenerationPlan] = []
    for index in range(48):
        budget = None if index % 3 == 0 else int(rng.integers(0, 60))
        own = ThinkingPlan(
            OPEN,
            CLOSE,
            tuple(rng.integers(0, VOCAB - 3, int(rng.integers(1, 40))).tolist()),
            (),
            bool(index % 2),
            budget,
            answer_tokens=int(rng.integers(0, 50)),
        )
        stops = tuple(rng.integers(0, VOCAB - 3, 1).tolist()) if index % 3 == 0 else ()
        plans.append(plan(f"r{index}", int(rng.integers(1, 64)), 150, temperature=1.0, seed=index, thinking=own, stop_ids=stops, logprobs=1))
    engine = Engine(FakeModel(num_pages=30))
    together = {one.request_id: Answer() for one in plans}
    for one in plans:
        engine.add(one)
    while engine.has_work:
        for output in engine.step():
            together[output.request_id].feed(output)
        engine.check_integrity()
    assert engine.stats().preemptions > 5
    ended = set()
    for one in plans:
        alone = Answer()
        engine = Engine(FakeModel())
        engine.add(one)
        while engine.has_work:
            for output in engine.step():
                alone.feed(output)
        assert together[one.request_id].same_as(alone)
        assert why(together[one.request_id]) == why(alone)
        ended.add(why(alone))
    assert {"budget", "stop"} <= ended


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"closing_ids": (VOCAB,)}, "thinking"),
        ({"max_tokens": -1}, "thinking_budget"),
        ({"max_seconds": math.nan}, "max_seconds"),
        ({"answer_tokens": 101}, "answer_tokens"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(options: dict[str, Any], param: str) -> None:
    wrong = ThinkingPlan(**{"open_id": OPEN, "close_id": CLOSE, "closing_ids": CLOSING} | options)
    with pytest.raises(RequestError) as caught:
        Engine(FakeModel()).add(plan("r", 5, 100, thinking=wrong))
    assert caught.value.param == param


def test_plans_cross_to_the_worker_whole() -> None:
    one = plan("r", 5, 9, thinking=thinking(open=True, max_tokens=3, deadline=4.5), loop_guard=True, stop_ids=(1, 2), logit_bias={3: 1.5})
    assert GenerationPlan.from_wire(one.to_wire()) == one


def test_what_is_put_in_at_the_end_of_a_page_is_copied_into_no_page_that_the_answer_has_not() -> None:
    copied: list[int] = []

    class Copying(Scripted):
        def copy_page(self, source: int, target: int, num_tokens: int) -> None:
            assert [target] in [sequence.pages[-1:].tolist() for sequence in engine._scheduler.running]
            copied.append(num_tokens)
            super().copy_page(source, target, num_tokens)

    model = Copying([])
    engine = Engine(model)
    for name in ("first", "second"):
        answer, model._script = Answer(), [10, 20]
        engine.add(replace(plan("r", PAGE_TOKENS, 8, thinking=thinking(open=True, max_tokens=1)), request_id=name))
        while engine.has_work:
            for output in engine.step():
                answer.feed(output)
            engine.check_integrity()
        assert answer.ids[:5] == [10, *CLOSING], name
    assert copied == [PAGE_TOKENS - 1]
