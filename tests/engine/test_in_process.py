"""The engine in a thread, over the fake model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from qwenbox.engine.client import EngineOptions, InProcessEngine
from qwenbox.engine.options import Progress
from qwenbox.errors import EngineError, ModelFormatError, QwenboxError
from qwenbox.types import Batch, SequenceOutput
from tests.engine.fakes import VOCAB, FakeModel, Receiver, eventually, plan

OPTIONS = EngineOptions(model="fake", max_waiting=40)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def engine(model: FakeModel) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(OPTIONS, lambda options, progress: model)
    yield engine
    engine.close()
    assert model.closed


def ask(engine: InProcessEngine, *names: str, max_tokens: int = 8) -> dict[str, Receiver]:
    receivers = {name: Receiver() for name in names}
    for index, (name, receiver) in enumerate(receivers.items()):
        engine.submit(plan(name, 10 + index, max_tokens, seed=index), receiver)
    return receivers


def test_streams_arrive_from_one_thread_in_order_and_end_once(engine: InProcessEngine) -> None:
    receivers = ask(engine, *"abcdefgh", max_tokens=20)
    answers = [receiver.wait() for receiver in receivers.values()]
    assert all(len(answer.ids) == 20 for answer in answers)
    assert len({thread for receiver in receivers.values() for thread in receiver.threads}) == 1
    assert engine.stats().finished == 8
    assert engine.info().context_length == 4096


def test_requests_submitted_while_the_model_loads_are_answered() -> None:
    go = threading.Event()

    def load(options: EngineOptions, progress: Progress) -> FakeModel:
        progress(0.25)
        assert go.wait(60)
        return FakeModel()

    engine = InProcessEngine(OPTIONS, load)
    eventually(lambda: engine.state().progress == 0.25)
    assert engine.state().name == "loading"
    assert engine.info() is None
    receiver = ask(engine, "a")["a"]
    go.set()
    assert receiver.wait().reason == "length"
    assert engine.state().name == "ready"
    engine.close()
    assert engine.state().name == "closed"


def test_a_model_that_cannot_be_loaded_fails_the_engine_and_its_requests() -> None:
    go = threading.Event()

    def load(options: EngineOptions, progress: Progress) -> FakeModel:
        assert go.wait(60)
        raise ModelFormatError("the file is not what it says")

    engine = InProcessEngine(OPTIONS, load)
    early = ask(engine, "early")["early"]
    go.set()
    assert early.wait().last.error["class"] == "ModelFormatError"
    assert engine.state().name == "failed"
    assert isinstance(engine.state().error, ModelFormatError)
    assert ask(engine, "late")["late"].wait().last.error["class"] == "ModelFormatError"
    engine.close()


def test_closing_ends_a_loading_at_its_next_progress() -> None:
    loading = threading.Event()

    def load(options: EngineOptions, progress: Progress) -> FakeModel:
        while True:
            loading.set()
            progress(0.5)

    engine = InProcessEngine(OPTIONS, load)
    assert loading.wait(60)
    engine.close()
    assert engine.state().name == "closed"


def slowly(batch: Batch) -> None:
    """A step that takes long enough for somebody to come while an answer of thousands is made."""
    threading.Event().wait(0.005)


def test_cancel_between_two_steps_ends_the_request_with_its_usage(engine: InProcessEngine, model: FakeModel) -> None:
    model.before_run = slowly
    first = threading.Event()
    receiver = Receiver()

    def deliver(output: SequenceOutput) -> None:
        receiver(output)
        first.set()

    engine.submit(plan("a", 10, 4000), deliver)
    assert first.wait(60)
    engine.cancel("a")
    answer = receiver.wait()
    assert answer.reason == "cancelled"
    assert answer.last.usage.completion_tokens == len(answer.ids) > 0
    engine.cancel("a")
    model.before_run = None
    assert ask(engine, "b")["b"].wait().reason == "length"


def test_a_refused_request_gets_its_error_and_nobody_else(engine: InProcessEngine) -> None:
    receiver, good = Receiver(), Receiver()
    engine.submit(plan("good", 10, 50), good)
    engine.submit(plan("bad", 5000, 5), receiver)
    assert receiver.wait().last.error["code"] == "context_length_exceeded"
    assert len(good.wait().ids) == 50


def test_a_receiver_that_raises_ends_its_own_request(engine: InProcessEngine, caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def broken(output: SequenceOutput) -> None:
        calls.append(output)
        raise RuntimeError("the reader is broken")

    engine.submit(plan("broken", 10, 4000), broken)
    assert ask(engine, "good", max_tokens=50)["good"].wait().reason == "length"
    eventually(lambda: engine.stats().running == 0)
    assert 1 <= len(calls) < 4000
    assert "the receiver of request broken failed" in caplog.text


def test_a_duplicate_id_is_refused_without_touching_the_first(engine: InProcessEngine, model: FakeModel) -> None:
    go = threading.Event()
    model.before_run = lambda batch: None if go.wait(60) else pytest.fail("never released")
    first = ask(engine, "a")["a"]
    second = ask(engine, "a")["a"]
    assert second.wait().last.error["class"] == "RequestError"
    go.set()
    assert first.wait().reason == "length"


def test_too_many_requests_are_refused_with_a_time_to_retry(engine: InProcessEngine, model: FakeModel) -> None:
    go = threading.Event()
    model.before_run = lambda batch: None if go.wait(60) else pytest.fail("never released")
    receivers = ask(engine, *(f"r{i}" for i in range(80)))
    refused = [receiver for receiver in receivers.values() if receiver.answer.last]
    go.set()
    for receiver in receivers.values():
        receiver.wait()
    assert len(refused) >= 80 - 32 - 40
    assert refused[0].answer.last.error["class"] == "OverloadedError"
    assert refused[0].answer.last.error["retry_after"] >= 1


def test_closing_ends_what_runs_with_an_error(model: FakeModel) -> None:
    engine = InProcessEngine(OPTIONS, lambda options, progress: model)
    stepped = threading.Event()
    model.before_run = lambda batch: stepped.set() or slowly(batch)
    receiver = ask(engine, "a", max_tokens=4000)["a"]
    assert stepped.wait(60)
    engine.close()
    assert receiver.wait().last.error["code"] == "engine_closed"
    assert ask(engine, "b")["b"].wait().last.error["code"] == "engine_closed"
    engine.close()


def until_interrupted(model: FakeModel) -> Callable[[Batch], None]:
    """A step that lasts until somebody interrupts it."""
    return lambda batch: eventually(lambda: model.cancel.is_set(), 10)


def test_a_long_step_that_nobody_waits_for_is_interrupted(engine: InProcessEngine, model: FakeModel) -> None:
    model.before_run = until_interrupted(model)
    receiver = ask(engine, "a")["a"]
    eventually(lambda: model.cancel is not None)
    engine.cancel("a")
    assert receiver.wait(60).reason == "cancelled"
    model.before_run = None
    assert ask(engine, "b")["b"].wait().reason == "length"


def test_a_step_goes_on_while_one_of_its_requests_is_wanted(engine: InProcessEngine, model: FakeModel) -> None:
    hold, held, go = threading.Event(), threading.Event(), threading.Event()

    def before_run(batch: Batch) -> None:
        if hold.is_set() and len(batch.spans) == 2:
            held.set()
            assert go.wait(60)
        slowly(batch)

    model.before_run = before_run
    receivers = ask(engine, "a", "b", max_tokens=4000)
    assert receivers["b"].first.wait(60)
    hold.set()
    assert held.wait(60)
    engine.cancel("a")
    assert not model.cancel.is_set()
    engine.cancel("b")
    assert model.cancel.is_set()
    go.set()
    assert [receiver.wait().reason for receiver in receivers.values()] == ["cancelled", "cancelled"]


def test_closing_interrupts_a_long_step(model: FakeModel) -> None:
    engine = InProcessEngine(OPTIONS, lambda options, progress: model)
    model.before_run = until_interrupted(model)
    receiver = ask(engine, "a")["a"]
    eventually(lambda: model.cancel is not None)
    engine.close()
    assert receiver.wait().last.error["code"] == "engine_closed"
    assert model.cancel.is_set()


def test_closing_ends_logits_that_are_computed(model: FakeModel) -> None:
    engine = InProcessEngine(OPTIONS, lambda options, progress: model)
    model.before_run = until_interrupted(model)
    closer = threading.Timer(0, lambda: (eventually(lambda: model.cancel is not None), engine.close()))
    closer.start()
    with pytest.raises(EngineError, match="closed"):
        engine.logits([1, 2, 3])
    closer.join()


def test_logits_of_ids_wait_for_their_turn(engine: InProcessEngine) -> None:
    receiver = ask(engine, "a", max_tokens=200)["a"]
    logits = engine.logits([1, 2, 3])
    assert logits.shape == (3, VOCAB)
    assert np.array_equal(logits, engine.logits([1, 2, 3]))
    assert receiver.wait().reason == "length"
    with pytest.raises(QwenboxError, match="do not fit"):
        engine.logits([])
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.logits([1])


def raises(error: Exception) -> Callable[[Batch], None]:
    def fail(batch: Batch) -> None:
        raise error

    return fail


def test_a_failing_model_fails_requests_not_the_engine(engine: InProcessEngine, model: FakeModel) -> None:
    model.before_run = raises(RuntimeError("a kernel gave up"))
    error = ask(engine, "a")["a"].wait().last.error
    assert (error["class"], error["status"]) == ("EngineError", 500)
    assert "a kernel gave up" in error["message"]
    model.before_run = None
    assert ask(engine, "a")["a"].wait().reason == "length"
    assert engine.stats().failed == 1
