"""The engine in a worker process: the real program and supervisor over the fake model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbox.engine import frames, supervisor, worker
from qwenbox.engine.client import EngineOptions, WorkerEngine
from qwenbox.engine.engine import Engine
from qwenbox.engine.frames import MAX_FRAME, Channel, FrameError, decode, pack_output, unpack_output
from qwenbox.engine.protocol import Pace
from qwenbox.engine.slices import FRONT_SECONDS, ask_slice, slice_seconds
from qwenbox.engine.supervisor import Find, Report
from qwenbox.engine.worker import Worker
from qwenbox.errors import DownloadError, ModelFormatError, UsageError
from qwenbox.types import Progress, SequenceOutput, TokenLogprob, Usage
from tests.engine.fake_worker import POISON, TORPOR
from tests.engine.fakes import Answer, FakeModel, Receiver, eventually, plan
from tests.pace import seconds_of

ROOT = Path(__file__).parents[2]
LAUNCH = f"import sys; sys.path[:0] = [{str(ROOT / 'src')!r}, {str(ROOT)!r}]; from tests.engine.fake_worker import main; main()"

Start = Callable[..., WorkerEngine]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[WorkerEngine]]:
    """What a test appends is closed, and none of the processes stays."""
    monkeypatch.setattr(supervisor, "_LAUNCH", LAUNCH)
    engines: list[WorkerEngine] = []
    yield engines
    for engine in engines:
        pid = engine.pid
        engine.close()
        assert pid is None or gone(pid)


@pytest.fixture
def start(engines: list[WorkerEngine]) -> Start:
    def begin(kind: str = "fast", *, beat_seconds: float = 30.0, ready: bool = True, **options: int) -> WorkerEngine:
        engine = WorkerEngine(EngineOptions(model=kind, **{"max_waiting": 64, **options}), beat_seconds=beat_seconds)
        engines.append(engine)
        if ready:
            eventually(lambda: engine.state().name == "ready")
        return engine

    return begin


def gone(pid: int) -> bool:
    """True also of a process that has ended and whom nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ask(engine: WorkerEngine, *names: str, max_tokens: int = 8) -> list[Receiver]:
    receivers = [Receiver() for _ in names]
    for index, (name, receiver) in enumerate(zip(names, receivers, strict=True)):
        engine.submit(plan(name, [1 + index, 2, 3], max_tokens, seed=index, logprobs=2, logit_bias={POISON: -1000.0, TORPOR: -1000.0}), receiver)
    return receivers


def test_answers_cross_the_border_unchanged(start: Start) -> None:
    engine = start()
    one = plan("a", 700, 40, temperature=0.8, seed=3, logprobs=3, prompt_logprobs=2, logit_bias={POISON: -1000.0, TORPOR: -1000.0})
    one = type(one)(**{name: getattr(one, name) for name in one.__slots__} | {"prompt_ids": tuple(id % 60 for id in one.prompt_ids)})
    receiver = Receiver()
    engine.submit(one, receiver)
    local, expected = Engine(FakeModel()), Answer()
    local.add(one)
    while local.has_work:
        for output in local.step():
            expected.feed(output)
    answer = receiver.wait()
    assert answer.same_as(expected)
    assert answer.last.usage == expected.last.usage
    assert set(answer.last.timings) == {"queue", "prefill", "decode"}
    assert engine.info().context_length == 4096
    assert engine.info().name == "fast"
    assert engine.stats().completion_tokens == 40


def test_steps_are_told_with_their_seconds_and_tokens(start: Start) -> None:
    engine = start("slow")
    steps: list[tuple[float, int, int]] = []
    engine.watch(lambda *step: steps.append(step))
    seconds = seconds_of(lambda: ask(engine, "a", max_tokens=8)[0].wait())
    assert [step[1:] for step in steps] == [(3, 0), *[(0, 1)] * 7]
    assert all(0.005 <= step[0] <= seconds for step in steps)
    stats = engine.stats()
    assert (stats.steps, stats.computed_tokens, stats.decode_tokens) == (8, 10, 7)
    assert sum(step[0] for step in steps) == pytest.approx(stats.step_seconds)


def test_what_has_come_and_does_not_run_waits_wherever_it_is(start: Start) -> None:
    engine = start("slow")
    receivers = ask(engine, *(f"r{i}" for i in range(36)), max_tokens=3000)
    assert engine.stats().running + engine.stats().waiting == 36
    eventually(lambda: engine.stats().running == 32)
    assert engine.stats().waiting == 4
    os.kill(engine.pid, signal.SIGSTOP)  # it hears of nobody any more
    receivers += ask(engine, "late")
    assert engine.stats().waiting == 5
    os.kill(engine.pid, signal.SIGCONT)
    for i in range(36):
        engine.cancel(f"r{i}")
    for receiver in receivers:
        receiver.wait()
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_cancel_ends_a_running_and_a_waiting_request(start: Start) -> None:
    engine = start("slow")
    receivers = ask(engine, *(f"r{i}" for i in range(40)), max_tokens=3000)
    assert receivers[0].first.wait(60)
    for i in (0, 39):
        engine.cancel(f"r{i}")
    engine.cancel("nobody")
    assert receivers[0].wait().reason == "cancelled"
    assert receivers[39].wait().reason == "cancelled"
    assert not receivers[39].answer.ids


def test_a_killed_worker_ends_its_streams_with_errors_and_comes_back(start: Start) -> None:
    engine = start("slow")
    receivers = ask(engine, *(f"r{i}" for i in range(8)), max_tokens=3000)
    for receiver in receivers:
        assert receiver.first.wait(60)
    old = engine.pid
    os.kill(old, signal.SIGKILL)
    began = time.monotonic()
    for receiver in receivers:
        error = receiver.wait().last.error
        assert error["class"] == "WorkerDiedError"
        assert "SIGKILL" in error["message"]
    told = time.monotonic() - began
    after = ask(engine, "after")[0].wait()
    print(f"errors after {told:.3f} s, the next answer after {time.monotonic() - began:.3f} s")
    assert after.reason == "length"
    assert engine.pid != old
    assert gone(old)
    stats = engine.stats()
    assert (stats.restarts, stats.failed, stats.finished) == (1, 8, 1)


def test_requests_wait_for_a_restart_in_a_bounded_queue(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gated"
    engine = start(str(gate), max_waiting=4, max_sequences=1)
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: gate.stat().st_size == 2)
    assert engine.state().name == "restarting"
    receivers = ask(engine, *(f"r{i}" for i in range(7)))
    engine.cancel("r0")
    receivers[0].wait()
    gate.write_text("xxx")
    assert [receiver.wait().reason for receiver in receivers] == ["cancelled", *["length"] * 4, "error", "error"]
    assert receivers[6].answer.last.error["class"] == "OverloadedError"
    assert receivers[5].answer.last.error["retry_after"] >= 1


def test_a_prompt_that_kills_the_worker_twice_is_not_run_again(start: Start) -> None:
    engine = start()
    for _ in range(2):
        receiver = Receiver()
        engine.submit(plan("poison", (1, 2, POISON)), receiver)
        error = receiver.wait().last.error
        assert error["class"] == "WorkerDiedError"
        assert "SIGSEGV" in error["message"]
    receiver = Receiver()
    engine.submit(plan("poison", (1, 2, POISON)), receiver)
    assert receiver.wait().last.error["code"] == "poisoned_request"
    assert ask(engine, "harmless")[0].wait().reason == "length"
    assert engine.stats().restarts == 2


def test_a_prompt_that_ended_well_is_not_blamed_for_an_earlier_crash(start: Start) -> None:
    engine = start("slow")
    for _ in range(3):
        streaming = ask(engine, "a", max_tokens=3000)[0]
        assert streaming.first.wait(60)
        os.kill(engine.pid, signal.SIGKILL)
        assert streaming.wait().last.error["class"] == "WorkerDiedError"
        assert ask(engine, "a")[0].wait().reason == "length"


def test_a_worker_that_says_nothing_is_killed_and_started_again(start: Start) -> None:
    engine = start(beat_seconds=3.0)
    old, receiver = engine.pid, Receiver()
    engine.submit(plan("torpor", (1, 2, TORPOR)), receiver)
    error = receiver.wait().last.error
    assert error["class"] == "WorkerDiedError"
    assert "said nothing" in error["message"]
    assert gone(old)
    assert ask(engine, "after")[0].wait().reason == "length"


def test_an_idle_worker_is_left_alone(start: Start) -> None:
    engine = start(beat_seconds=3.0)
    old = engine.pid
    assert not threading.Event().wait(4.5)  # nothing is to happen, so there is nothing to wait for
    assert engine.pid == old
    assert engine.stats().restarts == 0


def test_a_model_that_cannot_be_loaded_is_said_and_not_tried_again(start: Start) -> None:
    engine = start("broken", ready=False)
    receiver = ask(engine, "early")[0]
    assert receiver.wait().last.error["class"] == "ModelFormatError"
    assert engine.state().name == "failed"
    assert isinstance(engine.state().error, ModelFormatError)
    assert ask(engine, "late")[0].wait().last.error["class"] == "ModelFormatError"
    assert engine.pid is None


def test_a_restart_that_fails_is_tried_again_and_the_reason_is_told(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = start(str(tmp_path / "fickle"))
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.3)
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: engine.state().error is not None and "memory" in engine.state().error.message)
    assert engine.state().name == "restarting"
    assert ask(engine, "patient")[0].wait().reason == "length"
    assert (engine.state().name, engine.state().error) == ("ready", None)
    assert (tmp_path / "fickle").stat().st_size == 4


def test_a_worker_that_is_started_again_has_as_many_pages_as_before(start: Start, tmp_path: Path) -> None:
    engine = start(str(tmp_path / "crowded"))
    pages = engine.info().num_pages
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: engine.stats().restarts == 1 and engine.state().name == "ready")
    assert engine.info().num_pages == pages == 1024


def test_a_restart_that_fails_too_often_ends_the_engine(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = start(str(tmp_path / "hopeless"))
    monkeypatch.setattr(supervisor, "MAX_FAILED_RESTARTS", 3)
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.01)
    os.kill(engine.pid, signal.SIGKILL)
    eventually(lambda: engine.state().name == "failed")
    assert "somebody else has the memory" in engine.state().error.message
    assert (tmp_path / "hopeless").stat().st_size == 4


def found(engines: list[WorkerEngine], find: Find) -> WorkerEngine:
    engines.append(WorkerEngine(find))
    return engines[-1]


def test_a_model_is_found_in_the_engines_own_thread_with_progress(engines: list[WorkerEngine]) -> None:
    go, told = threading.Event(), threading.Event()

    def find(report: Report) -> EngineOptions:
        report("fetching", 30, 120)
        told.set()
        assert go.wait(60)
        return EngineOptions(model="fast")

    engine = found(engines, find)
    assert told.wait(60)
    state = engine.state()
    assert (state.name, state.progress, state.done_bytes, state.total_bytes) == ("fetching", 0.25, 30, 120)
    assert ask(engine, "early")[0].wait().last.error["class"] == "OverloadedError"
    go.set()
    eventually(lambda: engine.state().name == "ready")
    assert ask(engine, "late")[0].wait().reason == "length"


def test_what_may_pass_is_tried_again_while_it_advances_or_a_few_times(engines: list[WorkerEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FETCH_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(supervisor, "MAX_FETCHES", 3)
    calls = []

    def find(report: Report) -> EngineOptions:
        calls.append(None)
        report("fetching", min(len(calls), 5), 10)
        raise DownloadError("the network is down", retry_after=1)

    engine = found(engines, find)
    eventually(lambda: engine.state().name == "failed")
    assert engine.state().error.message == "the network is down"
    assert len(calls) == 5 + 2


def test_what_will_not_pass_is_not_tried_again(engines: list[WorkerEngine]) -> None:
    calls = []

    def find(report: Report) -> EngineOptions:
        calls.append(None)
        raise DownloadError("the digest is wrong")

    engine = found(engines, find)
    eventually(lambda: engine.state().name == "failed")
    assert len(calls) == 1
    assert ask(engine, "late")[0].wait().last.error["message"] == "the digest is wrong"


def test_closing_ends_a_finding_at_its_next_report(engines: list[WorkerEngine]) -> None:
    def find(report: Report) -> EngineOptions:
        while True:
            report("verifying", 1, 2)

    engine = found(engines, find)
    eventually(lambda: engine.state().name == "verifying")
    engine.close()
    assert engine.state().name == "closed"


def test_the_time_that_is_left_is_that_of_what_was_done_in_this_phase() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    assert pace.state("fetching", 0.5).seconds_left is None
    now = 10.0
    assert pace.state("fetching", 0.6).seconds_left == pytest.approx(40.0)
    assert pace.state("loading", 0.0).seconds_left is None
    now = 12.0
    assert pace.state("loading", 0.5).seconds_left == pytest.approx(2.0)
    assert pace.state("loading", 0.1).seconds_left is None, "it began again"


def test_a_worker_that_always_dies_while_loading_is_given_up(start: Start) -> None:
    engine = start("deadly", ready=False)
    eventually(lambda: engine.state().name == "failed")
    assert "SIGSEGV" in engine.state().error.message


def test_a_worker_does_not_take_over_the_short_slices_of_its_front(start: Start) -> None:
    usual = slice_seconds()
    ask_slice(FRONT_SECONDS)
    try:
        assert slice_seconds(start().pid or 0) == usual
    finally:
        ask_slice(None)


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path[:0] = [{str(ROOT / "src")!r}, {str(ROOT)!r}]
from qwenbox.engine import supervisor
from qwenbox.engine.client import EngineOptions, WorkerEngine
from tests.engine.fakes import eventually, plan
supervisor._LAUNCH = {LAUNCH!r}
engine = WorkerEngine(EngineOptions(model="slow"))
engine.submit(plan("a", (1, 2), 4000, logit_bias={{{POISON}: -1000.0, {TORPOR}: -1000.0}}), lambda output: None)
eventually(lambda: engine.stats().steps > 3)
print(engine.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    eventually(lambda: gone(pid), 10)


def test_a_worker_inherits_its_socket_and_nothing_else(start: Start, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        pid = start().pid
        held = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    assert not any("secret" in target for target in held)
    assert sum(target.startswith("socket:") for target in held) == 1


def test_closing_ends_requests_and_process_also_while_loading(start: Start) -> None:
    engine = start("slow")
    pid = engine.pid
    receiver = ask(engine, "a", max_tokens=3000)[0]
    assert receiver.first.wait(60)
    engine.close()
    assert receiver.wait().last.error["code"] == "engine_closed"
    assert gone(pid)
    assert engine.state().name == "closed"
    assert ask(engine, "late")[0].wait().last.error["code"] == "engine_closed"
    start(ready=False).close()


# --- frames ---


class Wire:
    """The front's end of a channel to a `Worker` that serves in a thread; `ended` is what ended it."""

    def __init__(self, model: FakeModel) -> None:
        self.front, back = socket.socketpair()
        self.front.settimeout(60)
        self._reader = self.front.makefile("rb")
        self._back = Channel(back)
        self._worker = Worker(self._back, Engine(model))
        self.ended: BaseException | None = None
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._worker.serve()
        except BaseException as error:
            self.ended = error
        self._back.close()

    def send(self, payload: bytes) -> None:
        self.front.sendall(len(payload).to_bytes(4, "little") + payload)

    def num_heard(self) -> int:
        """Requests that the worker has, and those that it will have after the step that runs."""
        stats = self._worker._engine.stats()
        return stats.running + stats.waiting + len(self._worker._inbox)

    def receive(self, name: str) -> list[object]:
        """Items of the next frame of this name."""
        while True:
            got, items = decode(self._reader.read(int.from_bytes(self._reader.read(4), "little")))
            if got == name and (name != "step" or items[0]):
                return items

    def join(self) -> BaseException | None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.close()
        return self.ended

    def close(self) -> None:
        self._reader.close()
        self.front.close()


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\xff" * 9, msgpack.packb(5), msgpack.packb([]), msgpack.packb([5]), msgpack.packb(["what"]), msgpack.packb(["submit", {}])],
)
def test_a_garbage_frame_ends_the_worker_in_order(payload: bytes) -> None:
    wire = Wire(FakeModel())
    wire.send(payload)
    assert isinstance(wire.join(), FrameError)


def test_a_frame_that_announces_too_much_ends_the_worker_in_order() -> None:
    wire = Wire(FakeModel())
    wire.front.sendall((MAX_FRAME + 1).to_bytes(4, "little"))
    assert isinstance(wire.join(), FrameError)


def test_a_malformed_plan_is_an_error_of_its_request_only() -> None:
    wire = Wire(FakeModel())
    bad = plan("bad", 3).to_wire() | {"extra": 1}
    wire.send(msgpack.packb(["submit", bad]))
    assert unpack_output(wire.receive("step")[0][0]).error["class"] == "RequestError"
    for field, value in (("prompt_ids", "abc"), ("prompt_ids", [None]), ("stop_ids", 5), ("max_tokens", "7"), ("sampling", {})):
        wire.send(msgpack.packb(["submit", plan("bad", 3).to_wire() | {field: value}]))
        assert unpack_output(wire.receive("step")[0][0]).error["class"] == "RequestError"
    wire.send(msgpack.packb(["submit", plan("good", 3, 1).to_wire()]))
    assert unpack_output(wire.receive("step")[0][0]).finish_reason == "length"
    wire.send(msgpack.packb(["close"]))
    assert wire.join() is None


def test_one_frame_carries_all_streams_of_a_step() -> None:
    model = FakeModel()
    go = threading.Event()
    model.before_run = lambda batch: None if go.wait(60) else pytest.fail("never released")
    wire = Wire(model)
    for i in range(5):
        wire.send(msgpack.packb(["submit", plan(f"r{i}", 3, 3).to_wire()]))
    eventually(lambda: wire.num_heard() == 5)
    go.set()
    sizes = [len(wire.receive("step")[0]) for _ in range(3)]
    assert max(sizes) == 5
    wire.close()
    assert isinstance(wire.join(), EOFError | BrokenPipeError)


def in_a_step() -> tuple[FakeModel, Wire]:
    """A worker in the middle of a step for request "a", which ends only when it is interrupted."""
    model = FakeModel()
    model.before_run = lambda batch: eventually(lambda: model.cancel.is_set(), 10)
    wire = Wire(model)
    wire.send(msgpack.packb(["submit", plan("a", 3, 3).to_wire()]))
    eventually(lambda: model.cancel is not None)
    return model, wire


def test_a_cancellation_reaches_a_step_that_runs() -> None:
    model, wire = in_a_step()
    wire.send(msgpack.packb(["cancel", "a"]))
    assert unpack_output(wire.receive("step")[0][0]).finish_reason == "cancelled"
    wire.send(msgpack.packb(["submit", plan("b", 3, 3).to_wire()]))
    eventually(lambda: not model.cancel.is_set())
    wire.send(msgpack.packb(["close"]))
    assert wire.join() is None


def test_a_front_that_is_gone_ends_a_step_that_runs() -> None:
    model, wire = in_a_step()
    wire.close()
    assert isinstance(wire.join(), (EOFError, BrokenPipeError))
    assert model.cancel.is_set()


def test_a_step_too_large_for_one_frame_goes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME", 2000)
    wire = Wire(FakeModel())
    for i in range(8):
        wire.send(msgpack.packb(["submit", plan(f"r{i}", 3, 4, logprobs=50).to_wire()]))
    received = []
    while len(received) < 8 * 4:
        received += wire.receive("step")[0]
    assert len(received) == 8 * 4
    assert sum(output[4] is not None for output in received) == 8
    wire.close()
    assert isinstance(wire.join(), EOFError | BrokenPipeError)


def test_a_front_that_does_not_read_ends_the_worker_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_UNREAD", 1 << 16)
    monkeypatch.setattr(worker, "UNREAD_SECONDS", 0.3)
    model = FakeModel()
    model.keep_batches = False
    wire = Wire(model)
    for i in range(32):
        wire.send(msgpack.packb(["submit", plan(f"r{i}", 3, 900, logprobs=20).to_wire()]))
    assert isinstance(wire.join(), TimeoutError)


def test_the_worker_works_on_while_the_front_is_slow() -> None:
    wire = Wire(FakeModel())
    for i in range(8):
        wire.send(msgpack.packb(["submit", plan(f"r{i}", 3, 400, logprobs=20).to_wire()]))
    eventually(lambda: wire._back.pending > 1 << 18)
    ended = 0
    while ended < 8:
        ended += sum(output[4] is not None for output in wire.receive("step")[0])
    wire.close()
    assert isinstance(wire.join(), EOFError | BrokenPipeError)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_frame_error(data: bytes) -> None:
    try:
        name, items = decode(data)
    except FrameError:
        return
    assert isinstance(name, str)
    assert isinstance(items, list)
    with contextlib.suppress(FrameError):
        unpack_output(items)


def test_outputs_survive_packing() -> None:
    logprob = TokenLogprob(5, -0.25, ((5, -0.25), (7, -1.5)))
    for output in (
        SequenceOutput("a", (1, 2), (logprob, logprob), (None, logprob)),
        SequenceOutput("a", (), None, None, "error", {"class": "EngineError", "message": "é"}, Usage(1, 2, 3, 4), {"queue": 0.5}),
        SequenceOutput("a", progress=Progress(10, 40, 0, 0.5, 1.5)),
        SequenceOutput("a", finish_reason="stop", usage=Usage(3), vector=b"\0\0\0@"),
    ):
        assert unpack_output(msgpack.unpackb(msgpack.packb(pack_output(output)))) == output


def test_frames_larger_than_the_socket_arrive_whole_and_in_order() -> None:
    one, two = (Channel(end) for end in socket.socketpair())
    one.send(["a", "x" * 5_000_000])
    one.send(["b"])
    received: list[str] = []
    while len(received) < 2:
        received += [decode(payload)[0] for payload in two.receive()]
        one.flush()
    assert received == ["a", "b"]
    one.close()
    with pytest.raises(EOFError):
        list(two.receive())
    two.close()


# --- small parts ---


def test_options_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="one of a model and a random shape"):
        EngineOptions()
    with pytest.raises(UsageError, match="max_batch_tokens is 0"):
        EngineOptions(model="a", max_batch_tokens=0)
    with pytest.raises(UsageError, match="loader"):
        EngineOptions.from_wire({"model": "a", "loader": "os:system"})
    options = EngineOptions(random="0.6b", kv_gb=0.5)
    assert EngineOptions.from_wire(msgpack.unpackb(msgpack.packb(options.to_wire()))) == options
