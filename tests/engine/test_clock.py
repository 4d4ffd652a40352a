"""What steps cost is learnt, and prompts are cut so that a step takes no longer than it may."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from qwenbox.engine.clock import StepClock, Work
from qwenbox.engine.engine import Engine
from qwenbox.kernels.program import Interrupted
from qwenbox.types import Batch, Progress
from tests.engine.fakes import Answer, FakeModel, plan
from tests.engine.test_engine import run

LAYERS = 28
START, EACH, LOOK = 0.03, 0.0035, 1e-6
"""Seconds of a step, of a token and of a position that a token sees: about those of 1.5B weights in 4 bits on two threads."""


def seconds_of(work: Work) -> float:
    return START + EACH * work.num_tokens + LOOK * work.num_attended


def work_of(batch: Batch) -> Work:
    work = Work()
    for span in batch.spans:
        work = work.with_tokens(span.length, span.position)
    return work


def test_work_counts_the_positions_that_each_token_sees() -> None:
    assert Work().with_tokens(3, 10).with_tokens(1, 0) == Work(4, 11 + 12 + 13 + 1)


def test_the_first_prediction_is_a_cautious_guess_from_the_size_of_the_weights() -> None:
    clock = StepClock(weights_bytes=4_000_000_000)
    assert clock.predict(Work(1, 1)) == pytest.approx(1.4, rel=1e-3)
    assert clock.predict(Work(100, 5050)) == pytest.approx(41.0, rel=0.01)


def test_one_measurement_scales_the_guess() -> None:
    clock = StepClock(weights_bytes=4_000_000_000)
    clock.note(Work(1, 1), 0.14)
    assert clock.predict(Work(1, 1)) == pytest.approx(0.14, rel=1e-3)
    assert clock.predict(Work(100, 5050)) == pytest.approx(4.1, rel=0.01)


def test_a_cost_that_is_as_the_model_says_is_found_whatever_the_noise() -> None:
    rng = np.random.default_rng(1)
    clock = StepClock(weights_bytes=900_000_000)
    for _ in range(300):
        work = Work().with_tokens(int(rng.integers(1, 9)), int(rng.integers(1, 500)))
        if rng.random() < 0.5:
            work = work.with_tokens(int(rng.integers(16, 512)), int(rng.integers(0, 30_000)))
        clock.note(work, seconds_of(work) * rng.uniform(0.9, 1.1))
    for work in (Work(1, 100), Work(8, 800), Work().with_tokens(40, 20_000), Work().with_tokens(500, 0), Work().with_tokens(300, 30_000)):
        assert clock.predict(work) == pytest.approx(seconds_of(work), rel=0.2)


def test_a_machine_that_becomes_slower_is_noticed_within_some_steps_and_a_hiccup_is_not_believed() -> None:
    clock = StepClock(weights_bytes=900_000_000)
    works = [Work().with_tokens(count, 100) for count in (1, 8, 40, 200)]
    for _ in range(20):
        for work in works:
            clock.note(work, seconds_of(work))
    clock.note(works[1], 50 * seconds_of(works[1]))
    assert clock.predict(works[2]) < 3 * seconds_of(works[2])
    for _ in range(3):
        for work in works:
            clock.note(work, seconds_of(work))
    for _ in range(8):
        clock.note(works[2], 2 * seconds_of(works[2]))
    assert clock.predict(works[2]) == pytest.approx(2 * seconds_of(works[2]), rel=0.2)


@pytest.mark.parametrize("position", [0, 1000, 30_000])
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.2, 1.0, 100.0])
def test_as_many_tokens_join_a_step_as_its_time_allows(seconds: float, position: int) -> None:
    clock = StepClock(weights_bytes=900_000_000)
    base = Work(8, 4000)
    fitting = [count for count in range(1, 513) if clock.predict(base.with_tokens(count, position)) <= seconds]
    assert clock.tokens_within(seconds, base, position, 512) == len(fitting)


class TimedModel(FakeModel):
    """Its steps take as long as START, EACH and LOOK say, on a clock that the test reads."""

    def __init__(self, slower: float = 1.0) -> None:
        super().__init__(context_length=32768, num_pages=2048)
        self.weights_bytes = 900_000_000
        self.now = self.spent = 0.0
        self.slower = slower

    def run(self, batch: Batch, cancel: object = None, deadline: float | None = None, *, first_op: int = 0) -> np.ndarray:
        if deadline is None:
            self._spend(batch, LAYERS - first_op)
            return self._run(batch, None)
        for op in range(first_op, LAYERS):
            if self.now >= deadline:
                raise Interrupted(op)
            self._spend(batch, 1)
        return self._run(batch, None)

    def run_beside(self, batch: Batch, cancel: object = None) -> np.ndarray:
        self._spend(batch, LAYERS)
        return super().run_beside(batch)

    def _spend(self, batch: Batch, layers: int) -> None:
        seconds = seconds_of(work_of(batch)) * self.slower * layers / LAYERS
        self.spent += seconds
        self.now += seconds


def steps_until(model: TimedModel, engine: Engine, answers: dict[str, Answer], done: Callable[[], bool]) -> np.ndarray:
    """Seconds of each step until it is so."""
    times = [model.now]
    while not done():
        for output in engine.step():
            answers[output.request_id].feed(output)
        times.append(model.now)
    return np.diff(times)


@pytest.mark.parametrize("slower", [0.3, 1.0, 3.0])
def test_a_long_prompt_runs_beside_answers_in_slices_of_a_steps_time(slower: float) -> None:
    model = TimedModel(slower)
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    answers = {name: Answer() for name in (*"abcdefgh", "long")}
    for name in "abcdefgh":
        engine.add(plan(name, 50, 3000, temperature=1.0))
    steps_until(model, engine, answers, lambda: all(answer.ids for name, answer in answers.items() if name != "long"))
    engine.add(plan("long", 6000, 4))
    steps = steps_until(model, engine, answers, lambda: bool(answers["long"].ids))
    alone = seconds_of(Work().with_tokens(8, 8 * 3000)) * slower
    assert steps.max() <= max(0.2, alone + 0.1) + 1.3 / LAYERS
    assert np.median(steps) >= 0.2
    # All that the prompt loses is what the answers take.
    other = TimedModel(slower)
    run(Engine(other, step_seconds=0.2, clock=lambda: other.now), [plan("long", 6000, 1)])
    assert steps.sum() <= 1.02 * other.now + len(steps) * alone


def test_a_prompt_alone_runs_in_longer_steps_and_does_not_wait() -> None:
    model = TimedModel()
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    engine.add(plan("a", 4000, 1))
    answers = {"a": Answer()}
    steps = steps_until(model, engine, answers, lambda: bool(answers["a"].ids))
    assert np.median(steps) == pytest.approx(1.0, rel=0.15)
    assert max(steps) <= 1.3


def test_a_prompt_advances_even_where_a_step_is_always_too_long() -> None:
    model = TimedModel(100.0)
    engine = Engine(model, step_seconds=0.01, clock=lambda: model.now)
    answers = run(engine, [plan("a", 40, 2), plan("b", 200, 2), plan("c", 40, 2)])
    assert all(answer.reason == "length" for answer in answers.values())


@pytest.mark.parametrize("others", [0, 6])
def test_how_far_a_long_prompt_is_comes_twice_a_second_at_most_and_the_time_left_is_right(others: int) -> None:
    model = TimedModel()
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    for index in range(others):
        engine.add(plan(f"other{index}", 50, 3000, temperature=1.0))
    engine.step()
    engine.add(plan("long", 20_000, 1, progress=True))
    told: list[tuple[float, Progress]] = []
    first = None
    while first is None:
        for output in engine.step():
            if output.progress is not None:
                assert output.request_id == "long" and not output.ids
                told.append((model.now, output.progress))
            elif output.request_id == "long":
                first = model.now
    times = [at for at, _ in told]
    assert len(told) > 50 and np.diff(times).min() >= 0.5
    read = [progress.num_read for _, progress in told]
    assert read == sorted(read) and read[-1] < 20_000 and all(progress.num_tokens == 20_000 for _, progress in told)
    # Positions cost more and more, so the first seconds know less of the end than the later ones.
    for at, progress in told[len(told) // 4 :]:
        assert progress.seconds_left == pytest.approx(first - at, rel=0.2, abs=1.0)


def test_the_first_step_of_a_service_says_nothing_of_the_time_left_and_is_forgotten() -> None:
    """Its weights come from the disk, and few tokens are in it, for nobody knows yet how long they take."""
    model = TimedModel()
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    engine.add(plan("long", 20_000, 1, progress=True))
    told = []
    model.slower = 100.0
    while engine.has_work:
        told += [(model.now, output.progress) for output in engine.step() if output.progress is not None]
        model.slower = 1.0
    (_, first), *later = told
    assert (first.num_read < 600, first.seconds_left) == (True, None)
    for at, progress in later:
        assert progress.seconds_left is not None and progress.seconds_left < 2 * (model.now - at)


def test_a_prompt_that_is_read_at_once_says_nothing_of_it_and_neither_does_one_that_was_not_asked() -> None:
    model = TimedModel()
    engine = Engine(model, step_seconds=0.2, clock=lambda: model.now)
    engine.add(plan("short", 100, 1, progress=True))
    engine.add(plan("long", 3000, 1))
    while engine.has_work:
        assert all(output.progress is None for output in engine.step())
